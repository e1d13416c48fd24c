import pytest
from supernet_cases import SPACES

from supernet.sampling import subnets_of_step

SPACE = SPACES["uniform"]


def test_the_sandwich_holds_both_ends_largest_first():
    subnets = subnets_of_step(SPACE, "sandwich", num_random=2, seed=1, step=0)
    assert subnets[0] == SPACE.largest()
    assert subnets[-1] == SPACE.smallest()
    assert len(subnets) == len(set(subnets)) == 4
    assert all(subnet in SPACE for subnet in subnets)


def test_no_subnet_is_trained_twice_in_a_step():
    for step in range(20):
        subnets = subnets_of_step(SPACE, "sandwich", num_random=8, seed=0, step=step)
        assert len(subnets) == len(set(subnets))


def test_the_largest_can_be_trained_now_and_then():
    has_largest = [
        subnets_of_step(SPACE, "sandwich", num_random=0, seed=0, step=step, largest_every=3)[0] == SPACE.largest()
        for step in range(6)
    ]
    assert has_largest == [True, False, False, True, False, False]


@pytest.mark.parametrize("strategy", ["sandwich", "uniform"])
def test_a_step_draws_the_same_again_and_another_step_differs(strategy):
    def draw(step):
        return subnets_of_step(SPACE, strategy, num_random=6, seed=4, step=step)

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)
