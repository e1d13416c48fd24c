"""What a sampler of our own is: it names the next architecture from the problem and the finished trials.

Optuna's samplers choose dimension by dimension. A proposer chooses whole architectures, so it can keep to a rule or
to a band of latencies, and it says so where nothing is left. It keeps no state that an interrupted search would lose:
what it proposes depends on the problem, its seed, the finished trials and the randomness that it is handed.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from analysis.trial import Trial
from search_spaces.architecture import Architecture
from search_spaces.precisions import AnySpace

MAX_DRAWS = 2000
MAX_ENUMERATED = 20_000

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


def draws(space: AnySpace, rng: random.Random) -> Iterator[Architecture]:
    """Every architecture of a space in random order, or a bounded number of random ones where there are many."""
    if space.size <= MAX_ENUMERATED:
        return (space.at(index) for index in rng.sample(range(space.size), space.size))
    return (space.sample(rng) for _ in range(MAX_DRAWS))
