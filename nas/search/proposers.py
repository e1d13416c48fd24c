"""What a sampler of our own is: it names the next architecture from the problem and the finished trials.

Optuna's samplers choose dimension by dimension. A proposer chooses whole architectures, so it can keep to a rule or
to a band of latencies, and it says so where nothing is left. It keeps no state that an interrupted search would lose:
what it proposes depends on the problem, its seed, the finished trials and the randomness that it is handed.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from analysis.pareto import non_dominated
from analysis.trial import Trial
from nas.search.objective import SearchProblem
from search_spaces.architecture import Architecture
from search_spaces.precisions import AnySpace

MAX_DRAWS = 2000
MAX_MUTATIONS = 64
MAX_ENUMERATED = 20_000
#: Shares of the latency budget between which AutoTinyBERT's published search code keeps its candidates.
BAND = (0.85, 1.1)

MayEvaluate = Callable[[Architecture], bool]


class Proposer(Protocol):
    """Names architectures to evaluate."""

    def propose(self, trials: Sequence[Trial], may_evaluate: MayEvaluate, rng: random.Random) -> Architecture | None:
        """The next architecture, or None where none is left that it would name.

        Args:
            trials: What was evaluated, in order.
            may_evaluate: Whether an architecture is new and not beyond a budget for certain.
            rng: Randomness of this one proposal.
        """


class Listed:
    """Proposes given architectures in their order."""

    def __init__(self, architectures: Sequence[Architecture]) -> None:
        self._architectures = tuple(architectures)

    def propose(self, trials: Sequence[Trial], may_evaluate: MayEvaluate, rng: random.Random) -> Architecture | None:
        """The first that may be evaluated."""
        return next(filter(may_evaluate, self._architectures), None)


class Relatives:
    """Proposes mutants of what was best so far: local search (White et al., 2020, arXiv 2005.02960).

    Within budgets the parent is the best of those that are expected to keep to them; so is the child, and where one of
    them is of time it takes most of that (:data:`BAND`). Without any, the parent is drawn from the Pareto front.

    Args:
        problem: What is searched.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem

    def propose(self, trials: Sequence[Trial], may_evaluate: MayEvaluate, rng: random.Random) -> Architecture | None:
        """A new mutant, or None where there is no parent, or many draws found no new one."""
        parents = self._parents(trials)
        for _ in range(MAX_MUTATIONS if parents else 0):
            child = self._problem.space.mutate(rng.choice(parents).architecture, rng)
            use = self._problem.use(child)
            fills = use is None or use >= BAND[0]
            if fills and may_evaluate(child) and self._problem.is_expected_within(child):
                return child
        return None

    def _parents(self, trials: Sequence[Trial]) -> list[Trial]:
        within = [trial for trial in trials if self._problem.is_expected_within(trial.architecture)]
        if self._problem.is_bounded:
            return sorted(within, key=lambda trial: -trial.quality)[:1]
        points = [(trial.quality, *(latency.p50_s for latency in trial.latencies)) for trial in within]
        return [within[index] for index in non_dominated(points)]


def draws(space: AnySpace, rng: random.Random) -> Iterator[Architecture]:
    """Every architecture of a space in random order, or a bounded number of random ones where there are many."""
    if space.size <= MAX_ENUMERATED:
        return (space.at(index) for index in rng.sample(range(space.size), space.size))
    return (space.sample(rng) for _ in range(MAX_DRAWS))
