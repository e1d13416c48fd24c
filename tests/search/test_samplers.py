"""The space in Optuna's words, and the evolution's parents."""

import random

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from search_fakes import SPACE

from nas.search.samplers import EVOLUTION_POPULATION, SAMPLERS, EvolutionSampler, distributions, make_sampler
from search_spaces.errors import InvalidInputError
from search_spaces.space import SearchSpace


def test_regular_choices_are_integers_and_others_categories():
    space = SearchSpace("s", (1, 2, 3), (32, 64, 128), (64, 128, 192), head_size=(16,), embedding_size=(16, 0))
    assert distributions(space) == {
        "num_layers": IntDistribution(1, 3),
        "hidden_size": CategoricalDistribution((32, 64, 128)),
        "intermediate_size": IntDistribution(64, 192, step=64),
        "embedding_size": CategoricalDistribution((16, 0)),
    }


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_suggests_members(name):
    study = optuna.create_study(directions=["maximize", "minimize"])
    for number in range(14):  # beyond the random start of TPE and GP
        study.sampler = make_sampler(name, SPACE, number)
        trial = study.ask(distributions(SPACE))
        assert SPACE.build(trial.params) in SPACE
        study.tell(trial, [trial.params["num_layers"], trial.params["hidden_size"]])


def test_unknown_sampler_suggests_the_nearest():
    with pytest.raises(InvalidInputError, match="Did you mean 'evolution'"):
        make_sampler("evolutoin", SPACE, 0)


def complete(architecture, quality, latency_s, budget_s=None):
    return optuna.trial.create_trial(
        params=SPACE.values(architecture),
        distributions=distributions(SPACE),
        values=[quality, latency_s],
        constraints=None if budget_s is None else {"latency": latency_s - budget_s},
    )


def suggestions(trials, count=60):
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.add_trials(trials)
    found = []
    for seed in range(count):
        sampler = EvolutionSampler(SPACE, seed)
        found.append(SPACE.build(sampler.sample_relative(study, None, {})))
    return found


def test_evolution_mutates_the_best_within_the_budget():
    best, other = SPACE.smallest(), SPACE.largest()
    trials = [complete(best, 1.0, 1.0, 2.0)] * EVOLUTION_POPULATION
    trials += [complete(other, 9.0, 3.0, 2.0)] * EVOLUTION_POPULATION  # better, but over the budget
    near = [s for s in suggestions(trials) if s.num_layers <= 2 and s.hidden_size <= 64]
    far = [s for s in suggestions(trials) if s.num_layers >= 3 and s.hidden_size == 96]
    assert len(near) > 2 * len(far)


def test_evolution_waits_for_a_whole_generation_and_keeps_drawing_fresh():
    young = [complete(SPACE.smallest(), 1.0, 1.0)] * (EVOLUTION_POPULATION - 1)
    expected = []
    for seed in range(60):
        rng = random.Random(seed)
        expected.append(SPACE.sample(rng))
    assert suggestions(young) == expected
    grown = [complete(SPACE.smallest(), 1.0, 1.0)] * EVOLUTION_POPULATION
    assert suggestions(grown) != expected
    assert any(s.num_layers == 4 for s in suggestions(grown))  # two mutations away at least: fresh
