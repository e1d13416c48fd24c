"""Early exits as a choice of the search: at which confidence a text leaves, and what that gives and costs.

A supernet that was adapted with its head behind every layer answers there for every subnet, so that one pass over the
validation texts tells what every confidence would do: temperatures are fitted on one half of the texts, accuracy and
the shares of texts that leave at each layer are counted on the other. The expected latency is the sum over layers of
the share that leaves there times the latency of the layers up to it; the worst case goes through all of them. Heads and
the host loop are left out of predictions, and are in what is measured.

Shapes: N layers, M texts, C classes.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.calibration import fit_temperature, softmax
from analysis.latency import Latency, predicted
from nas.errors import InvalidInputError
from nas.search.objective import Judged
from search_spaces.architecture import Architecture
from search_spaces.space import SearchSpace
from search_spaces.spaces import Space
from supernet.adapt import AdaptedTask, load_adapted

EXIT_QUALITY = "task accuracy with early exits"
#: Confidences at which a text may leave; None: never before the last layer.
CONFIDENCES = (None, 0.95, 0.9, 0.8, 0.7)


@dataclass(frozen=True, slots=True)
class Exits:
    """What a confidence does.

    Attributes:
        confidence: At which texts leave; None where none leaves early.
        accuracy: Share of right answers.
        shares: Of texts that leave at each layer; their sum is 1.
    """

    confidence: float | None
    accuracy: float
    shares: tuple[float, ...]

    def expected(self, latencies: Sequence[Latency]) -> Latency:
        """The mean latency where the passes up to each layer take so long; its interval is that of all together."""
        p50_s, low_s, high_s = (
            sum(share * float(getattr(latency, name)) for share, latency in zip(self.shares, latencies, strict=True))
            for name in ("p50_s", "low_s", "high_s")
        )
        return predicted(latencies[-1].conditions, p50_s, low_s, high_s, latencies[-1].anchor_reference_s)


def exits_of(logits: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> list[Exits]:
    """What each confidence does, from answers behind every layer.

    Args:
        logits: Shape (N, M, C); at least two texts.
        labels: Shape (M,).
    """
    order = np.random.default_rng(0).permutation(len(labels))  # rows may come in an order of their own
    fitted, judged = order[::2], order[1::2]
    temperatures = [fit_temperature(own[fitted], labels[fitted]) for own in logits]
    answers = [softmax(own[judged] / temperature) for own, temperature in zip(logits, temperatures, strict=True)]
    probabilities = np.stack(answers)  # (N, M / 2, C)
    sure, classes = probabilities.max(-1), probabilities.argmax(-1)
    return [_leaving(confidence, sure, classes, labels[judged]) for confidence in CONFIDENCES]


def _leaving(
    confidence: float | None, sure: NDArray[np.float64], classes: NDArray[np.int64], labels: NDArray[np.int64]
) -> Exits:
    leaves = sure >= (2.0 if confidence is None else confidence)
    leaves[-1] = True
    layers = leaves.argmax(0)  # the first at which a text may leave
    right = classes[layers, np.arange(len(labels))] == labels
    counts = np.bincount(layers, minlength=len(sure))
    return Exits(confidence, float(right.mean()), tuple((counts / counts.sum()).tolist()))


def prefixes(shape: Architecture) -> list[Architecture]:
    """The encoders up to each layer of a uniform one."""
    (block,) = shape.blocks
    ends = range(2, len(block.sublayers) + 1, 2)
    return [replace(shape, blocks=(replace(block, sublayers=block.sublayers[:end]),)) for end in ends]


def prefix_space(space: Space) -> SearchSpace:
    """The space that holds the prefixes of a space's encoders too, for predictors to know."""
    assert isinstance(space, SearchSpace)
    return replace(space, num_layers=tuple(range(1, space.num_layers[-1] + 1)))


def before_evaluation(latencies: Sequence[Latency]) -> Latency:
    """What is expected of a shape before it is evaluated: as many texts leave at one layer as at another.

    At least it takes what the first layer does.
    """
    evenly = Exits(None, 0.0, (1 / len(latencies),) * len(latencies)).expected(latencies)
    return replace(evenly, low_s=min(evenly.low_s, latencies[0].low_s))


class ExitJudge:
    """Evaluates shapes by the best that exits make of them.

    Of the confidences whose bound latency is within the budget the most accurate is taken, and of those that are alike
    the fastest; where none is within, the fastest.

    Args:
        adapted: A supernet whose head was adapted behind every layer.
        predict: The latencies of a shape's prefixes, see :func:`prefixes`.
        bound: What the budget binds, ``expected`` or ``worst``.
        budget_s: The budget; None without one.
    """

    def __init__(
        self,
        adapted: AdaptedTask,
        predict: Callable[[Architecture], Sequence[Latency]],
        bound: str,
        budget_s: float | None,
    ) -> None:
        self._adapted, self._predict, self._bound, self._budget_s = adapted, predict, bound, budget_s
        self._labels = np.asarray(adapted.validation.labels, dtype=np.int64)
        self._known: dict[Architecture, list[Exits]] = {}

    def exits(self, shape: Architecture) -> list[Exits]:
        """What each confidence does with a shape; remembered."""
        if shape not in self._known:
            self._known[shape] = exits_of(self._adapted.layer_logits(shape).numpy(), self._labels)
        return self._known[shape]

    def choose(self, shape: Architecture, latencies: Sequence[Latency]) -> tuple[Exits, Latency]:
        """The confidence to take where passes up to each layer take so long, and the latency that the budget binds."""
        pairs = [(one, self.bound_latency(one, latencies)) for one in self.exits(shape)]
        within = [pair for pair in pairs if self._budget_s is None or pair[1].p50_s <= self._budget_s]
        if not within:
            return min(pairs, key=lambda pair: pair[1].p50_s)
        return max(within, key=lambda pair: (pair[0].accuracy, -pair[0].expected(latencies).p50_s))

    def bound_latency(self, exits: Exits, latencies: Sequence[Latency]) -> Latency:
        """The latency that the budget binds."""
        return exits.expected(latencies) if self._bound == "expected" else latencies[-1]

    def __call__(self, architecture: Architecture) -> Judged:
        """Accuracy and latency of a shape with its best exits.

        Raises:
            InvalidInputError: The architecture is not of the supernet's space.
        """
        exits, latency = self.choose(architecture, self._predict(architecture))
        return Judged(exits.accuracy, (latency,))


def exit_judge(
    adapted: Path, predict: Callable[[Architecture], Sequence[Latency]], bound: str, budget_s: float | None
) -> Callable[[], ExitJudge]:
    """The factory of the one judge of a search, see :class:`ExitJudge`; it reads the adapted folder once asked."""
    return functools.cache(lambda: ExitJudge(load_adapted(adapted), predict, bound, budget_s))


def exit_space(kind: str, space: Space) -> SearchSpace:
    """The part of a space that can have exits: encoders of two layers or more.

    Args:
        kind: Of the task.
        space: What would be searched.

    Raises:
        InvalidInputError: The task is no classification, or the space has narrow layers, or one layer alone.
    """
    if kind != "classification":
        raise InvalidInputError(
            f"exits stop where the leading class is decided, which a {kind} task does not have; leave --exits out"
        )
    if not isinstance(space, SearchSpace) or space.has_narrowing:
        raise InvalidInputError(
            "exits need the states of all positions behind every layer, which narrow layers do not give; leave --exits "
            "or --narrow out"
        )
    deep = tuple(number for number in space.num_layers if number > 1)
    if not deep:
        raise InvalidInputError(
            f"the encoders of {space.name!r} have one layer, so there is nothing to leave out; search deeper ones"
        )
    return replace(space, num_layers=deep)
