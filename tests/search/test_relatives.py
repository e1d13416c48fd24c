"""Local search beside the samplers: relatives of the best within the budget, or of the front where there is none."""

import random

import pytest
from search_fakes import SPACE, predict, predict_all, problem, quality

from analysis.pareto import non_dominated
from analysis.trial import Trial
from nas.search.proposers import BAND, Relatives

BUDGET_S = 2e-3
SHAPES = random.Random(1).sample(list(SPACE.enumerate()), 24)
TRIALS = [Trial(place, shape, quality(shape), predict_all(shape), 1, 1) for place, shape in enumerate(SHAPES)]


def proposals(asked, trials=TRIALS, may_evaluate=lambda architecture: architecture not in SHAPES, count=100):
    relatives = Relatives(asked)
    return [relatives.propose(trials, may_evaluate, random.Random(seed)) for seed in range(count)]


def relatives_of(parents):
    """Everything that mutation makes of them, as far as many draws show."""
    rng = random.Random(0)
    return {SPACE.mutate(parent, rng) for parent in parents for _ in range(3000)}


def test_within_a_budget_the_best_that_keeps_to_it_is_the_parent_and_the_child_keeps_to_it_too():
    within = [trial for trial in TRIALS if predict(trial.architecture).p50_s <= BUDGET_S]
    best = max(within, key=lambda trial: trial.quality)
    assert best.quality < max(trial.quality for trial in TRIALS)  # else the budget would not matter
    budget_s = 1.02 * best.latency.p50_s
    found = set(proposals(problem(budget_s), may_evaluate=lambda architecture: architecture != best.architecture))
    wanted = {one for one in relatives_of([best.architecture]) if BAND[0] <= predict(one).p50_s / budget_s <= 1}
    assert found - {None} == wanted - {best.architecture}
    assert len(found) > 1


def test_without_a_budget_parents_are_of_the_front():
    points = [(trial.quality, trial.latency.p50_s) for trial in TRIALS]
    front = [SHAPES[index] for index in non_dominated(points)]
    found = set(proposals(problem()))
    assert found <= relatives_of(front)
    assert not found <= relatives_of(front[:1])


@pytest.mark.parametrize(
    ("trials", "may_evaluate"), [([], lambda architecture: True), (TRIALS, lambda architecture: False)]
)
def test_without_a_parent_or_anything_new_nothing_is_proposed(trials, may_evaluate):
    assert set(proposals(problem(BUDGET_S), trials, may_evaluate)) == {None}
