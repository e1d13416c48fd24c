"""The samplers by name: Optuna's, with a search space in its words, and our own.

One of Optuna's is made afresh for every suggestion, from a seed that depends on the search's seed and the number of
trials finished; one of ours (:mod:`nas.search.proposers`) is handed randomness of that seed. Every suggestion is
thereby a pure function of (seed, history): a search that was killed and resumed suggests exactly what the
uninterrupted one would have.

===============  =====================================================================================================
random           uniform draws
evolution        AutoTinyBERT's: mutation within a band around the latency budget
evolution-fast   the same within the proportions that AutoTinyBERT found best
nsga2, tpe, gp   Optuna's, which begin with architectures that fill the budget; ``tpe``, the default, takes every second
                 turn for a relative of the best
most-parameters  no search at all: the largest encoders that fit
w-pca            none either: the highest scores of a proxy that needs a forward pass on random weights
assembly         NAS-BERT's: the best of all chains that a supernet's blocks assemble to, by sums of their losses
===============  =====================================================================================================
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from nas.errors import InvalidInputError, unknown_name
from nas.search.evolution import Evolution, FastRule
from nas.search.objective import SearchProblem
from nas.search.proposers import Listed, Proposer
from nas.search.proxies import most_parameters, w_pca
from search_spaces.precisions import AnySpace
from search_spaces.spaces import Space

NSGA2_POPULATION = 24
NUM_STARTUP = 10
NUM_CANDIDATES = 64  # of TPE; its default of 24 repeats itself more often in a space of discrete choices


def distributions(space: AnySpace) -> dict[str, BaseDistribution]:
    """Each dimension as Optuna sees it: a stepped integer where the choices are regular, categorical otherwise."""
    return {
        # Numbers of narrow layers stand from the most to the fewest.
        name: _distribution(sorted(choices) if name == "num_narrow_layers" else choices)
        for name, choices in space.dimensions.items()
    }


def _distribution(choices: Sequence[Any]) -> BaseDistribution:
    if isinstance(choices[0], str):
        return CategoricalDistribution(choices)
    step = choices[1] - choices[0]
    if step > 0 and list(choices) == list(range(choices[0], choices[-1] + 1, step)):
        return IntDistribution(choices[0], choices[-1], step=step)
    return CategoricalDistribution(choices)


class _OneThreadGPSampler(GPSampler):
    """Optuna's Gaussian process with one torch thread: its matrices are small, and more threads triple its time."""

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        import torch

        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return super().sample_relative(study, trial, search_space)
        finally:
            torch.set_num_threads(num_threads)


def _random(space: AnySpace, seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def _nsga2(space: AnySpace, seed: int) -> BaseSampler:
    return NSGAIISampler(seed=seed, population_size=NSGA2_POPULATION)


def _tpe(space: AnySpace, seed: int) -> BaseSampler:
    return TPESampler(
        seed=seed, multivariate=True, n_startup_trials=NUM_STARTUP, n_ei_candidates=NUM_CANDIDATES, constant_liar=True
    )


def _gp(space: AnySpace, seed: int) -> BaseSampler:
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        return _OneThreadGPSampler(seed=seed, n_startup_trials=NUM_STARTUP, deterministic_objective=True)


OPTUNA: dict[str, Callable[[AnySpace, int], BaseSampler]] = {"random": _random, "nsga2": _nsga2, "tpe": _tpe, "gp": _gp}
PROPOSERS: dict[str, Callable[[SearchProblem, int], Proposer]] = {
    "evolution": lambda problem, _: Evolution(problem),
    "evolution-fast": lambda problem, _: Evolution(problem, is_fast=True),
    "most-parameters": most_parameters,
    "w-pca": w_pca,
    "assembly": lambda problem, _: Listed(problem.assembled),
}
SAMPLERS = (*OPTUNA, *PROPOSERS)
#: Those that learn from what is evaluated and so begin with :mod:`nas.search.designs`; the others are what they are
#: published as.
BEGIN_WITH_DESIGNS = ("nsga2", "tpe", "gp")
#: The default: it looks at the whole front, so that beside it somebody has to look closely at the best.
WITH_RELATIVES = ("tpe",)


def check_sampler(name: str) -> None:
    """Raises InvalidInputError, with the nearest known name, where there is no such sampler."""
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)


def check_sampler_suits(name: str, space: Space, *, has_texts: bool, has_blocks: bool = False) -> None:
    """Checks, before anything is measured, that a sampler can work on a space.

    Args:
        name: One of :data:`SAMPLERS`.
        space: What would be searched.
        has_texts: Whether there are texts that a proxy can run encoders on.
        has_blocks: Whether there are blocks with losses that chains can be assembled from.

    Raises:
        InvalidInputError: It cannot; the text says why.
    """
    if name == "evolution-fast":
        FastRule(space)
    if name == "w-pca" and not has_texts:
        raise InvalidInputError(
            "w-pca needs texts to run encoders on, and this supernet has no reference, since it was trained without a "
            "teacher; leave it out"
        )
    if name == "assembly" and not has_blocks:
        raise InvalidInputError(
            "assembly makes chains of the blocks that a chain supernet kept, and this supernet kept none; search with "
            "--sampler tpe, or train one with nas train --space nas-bert"
        )


def make_sampler(name: str, space: AnySpace, seed: int) -> BaseSampler:
    """A sampler of Optuna's for one suggestion: random where the name is one of ours.

    Args:
        name: One of :data:`SAMPLERS`.
        space: What may be suggested.
        seed: Of this one suggestion.

    Raises:
        InvalidInputError: The name is not known.
    """
    check_sampler(name)
    return OPTUNA.get(name, _random)(space, seed)


def make_proposer(name: str, problem: SearchProblem, seed: int) -> Proposer | None:
    """A sampler of our own for a whole search; None where it is one of Optuna's, or there is nothing to choose from.

    Where a problem lists what alone may be evaluated, that is what is proposed.

    Args:
        name: One of :data:`SAMPLERS`.
        problem: What is searched.
        seed: Of the search.

    Raises:
        InvalidInputError: The sampler cannot work on the problem.
        InfeasibleBudgetError: Nothing that it would propose fits.
    """
    if problem.listed:
        return Listed(problem.listed)
    return PROPOSERS[name](problem, seed) if name in PROPOSERS and problem.space.size > 1 else None
