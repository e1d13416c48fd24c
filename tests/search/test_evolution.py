"""AutoTinyBERT's evolution: parents, the band around the budget, and the Fast rule."""

import random
from dataclasses import replace

import pytest
from search_fakes import SPACE, predict_all, problem

from analysis.pareto import non_dominated
from analysis.trial import Trial
from nas.errors import InfeasibleBudgetError, InvalidInputError
from nas.search.evolution import POPULATION, Evolution, FastRule
from nas.search.proposers import BAND
from search_spaces.presets import load_space
from search_spaces.space import SearchSpace

BUDGET_S = 2e-3
# Steps as fine as the paper's, in small: few of its architectures keep to the rule.
WIDTHS, WIDER = tuple(range(32, 97, 8)), tuple(range(32, 192, 4))
FINE = SearchSpace("fine", (1, 2, 3), WIDTHS, WIDER, num_heads=(2, 4, 8, 10), head_size=(4, 6, 8, 9))


def trial(architecture, quality):
    return Trial(0, architecture, quality, predict_all(architecture), 1, 1)


def proposals(asked, trials, count=60, *, is_fast=False, may_evaluate=lambda architecture: True):
    evolution = Evolution(asked, is_fast=is_fast)
    return [evolution.propose(trials, may_evaluate, random.Random(seed)) for seed in range(count)]


def is_near(architecture, other):
    """Within one mutation's reach in every dimension."""
    for name, choices in SPACE.dimensions.items():
        reach = 2 if name == "intermediate_size" else 1
        places = [choices.index(SPACE.values(one)[name]) for one in (architecture, other)]
        if abs(places[0] - places[1]) > reach:
            return False
    return True


def test_parents_are_the_best_that_are_expected_within_the_budget():
    inside, outside = SPACE.smallest(), SPACE.largest()
    good, better = [trial(inside, place) for place in range(30)], [trial(outside, 90.0)] * POPULATION
    parents = Evolution(problem(BUDGET_S))._parents(good + better)
    assert parents == good[:4:-1]


def test_without_a_budget_parents_are_those_of_the_first_fronts():
    evolution = Evolution(problem())
    shapes = random.Random(0).sample(list(SPACE.enumerate()), 40)
    trials = [trial(shape, random.Random(place).random()) for place, shape in enumerate(shapes)]
    parents = evolution._parents(trials)
    assert len(parents) == POPULATION
    points = [(one.quality, one.latency.p50_s) for one in trials]
    assert {(one.quality, one.latency.p50_s) for one in parents} >= {points[index] for index in non_dominated(points)}


def test_a_better_parent_breeds_more_and_the_worst_does_not():
    asked = problem(10.0)  # everything fits, so the band is below and the nearest to it is taken
    good, bad = SPACE.smallest(), SPACE.largest()
    trials = [trial(good, 2.0), *[trial(bad, 1.0)] * (POPULATION - 1)]
    evolution = Evolution(asked)
    children = [evolution._child(evolution._parents(trials), random.Random(seed)) for seed in range(200)]
    assert sum(is_near(child, good) for child in children) > 1.5 * sum(is_near(child, bad) for child in children)


def test_a_generation_is_waited_for_and_fresh_draws_go_on():
    asked = problem()
    young = [trial(SPACE.smallest(), 1.0)] * (POPULATION - 1)
    assert proposals(asked, young) == proposals(asked, [])
    grown = [trial(SPACE.smallest(), 1.0)] * POPULATION
    assert proposals(asked, grown) != proposals(asked, [])
    assert any(child.num_layers == 4 for child in proposals(asked, grown))  # two mutations away at least: fresh


def test_candidates_lie_in_the_band_while_there_are_any():
    asked = problem(BUDGET_S)
    in_band = {shape for shape in asked.space.enumerate() if BAND[0] <= asked.use(shape) <= BAND[1]}
    assert 2 <= len(in_band) < asked.space.size / 2
    assert set(proposals(asked, [])) <= in_band
    seen: list = []
    while (child := Evolution(asked).propose([], lambda a: a not in seen, random.Random(len(seen)))) is not None:
        seen.append(child)
    assert set(seen[: len(in_band)]) == in_band
    assert len(seen) == len(set(seen)) == asked.space.size  # then the others, and no loop without end


def test_everything_taken_is_none_at_once():
    assert proposals(problem(BUDGET_S), [], 3, may_evaluate=lambda architecture: False) == [None] * 3


@pytest.mark.parametrize("budget_s", [None, 6e-4])
def test_fast_proposals_keep_to_the_rule(budget_s):
    asked = replace(problem(budget_s), space=FINE)
    parents = [trial(child, place) for place, child in enumerate(proposals(asked, [], POPULATION, is_fast=True))]
    for child in proposals(asked, parents, 60, is_fast=True):
        layers = child.uniform
        assert 1.6 * child.hidden_size <= layers.feed_forward.intermediate_size <= 1.9 * child.hidden_size
        assert 0.7 * child.hidden_size <= layers.attention.width <= child.hidden_size


def test_the_rule_s_size_is_what_it_draws_and_what_it_holds():
    rule = FastRule(FINE)
    drawn = list(rule.draws(random.Random(0)))
    assert len(drawn) == len(set(drawn)) == rule.size
    assert set(drawn) == {shape for shape in FINE.enumerate() if shape in rule}


def test_fast_ends_where_the_rule_is_used_up():
    small = replace(FINE, num_layers=(1, 2), hidden_size=(32, 64))
    evolution, seen = Evolution(replace(problem(), space=small), is_fast=True), set()
    while (child := evolution.propose([], lambda a: a not in seen, random.Random(len(seen)))) is not None:
        seen.add(child)
    assert len(seen) == FastRule(small).size


def test_the_stock_space_holds_the_sizes_that_are_named():
    drawn = FastRule(load_space("stock")).draws(random.Random(0))
    shapes = {(shape.hidden_size, shape.uniform.feed_forward.intermediate_size) for shape in drawn}
    assert shapes == {
        (160, 256), (192, 320), (224, 384), (256, 448), (288, 512), (320, 512), (320, 576), (352, 576), (352, 640),
        (384, 640), (384, 704),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["autotinybert-mlm", "autotinybert-kd"])
def test_the_published_spaces_are_drawn_from_quickly(name):
    rule = FastRule(load_space(name))
    rng = random.Random(0)
    assert all(rule.sample(rng) in rule for _ in range(50))


def test_a_space_with_nothing_inside_says_what_would_be():
    square = SearchSpace("square", (1, 2), (64, 128), (64, 128), head_size=(16,))
    with pytest.raises(InvalidInputError, match=r"for hidden_size 128, an intermediate_size from 205 to 243"):
        FastRule(square)


def test_a_budget_below_the_rule_is_infeasible():
    smallest = min(predict_all(shape)[0].low_s for shape in FastRule(FINE).draws(random.Random(0)))
    asked = replace(problem(), space=FINE)
    asked = replace(asked, goals=(replace(asked.goals[0], budget_s=0.99 * smallest),))
    with pytest.raises(InfeasibleBudgetError, match="nothing that keeps to the rule"):
        Evolution(asked, is_fast=True)
