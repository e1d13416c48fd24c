"""When an input has been through enough layers: policies over the answers of a model's exits, one after the other.

A policy is asked for a batch at each exit and remembers one row of state an input, so that finished inputs can leave
the batch. Three are known, all of them over the same kind of heads::

    Dact         mixes the answers so far; stops where nothing that follows can change the leader
                 (DACT-BERT, Eyzaguirre et al., 2022, arXiv 2109.11745)
    Patience     stops where consecutive exits agree (PABEE, Zhou et al., 2020, arXiv 2006.04152)
    Confidence   stops where the calibrated probability of the leader is high enough
                 (calibration by temperature: Guo et al., 2017, arXiv 1706.04599)

Shapes: B batch, C classes, N exits.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from analysis.calibration import fit_temperature as fit_temperature
from analysis.calibration import softmax as softmax
from nas.errors import InvalidInputError

#: How far an inequality must hold beyond equality. At equality itself both rules of DACT fail: the leader may end in a
#: tie, which the smaller class number wins. The rest is room for rounding: the same text in another batch gives states
#: that differ in their last bits.
SLACK = 1e-4
MAX_EXITS = 512

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
State = tuple[NDArray[Any], ...]
Rule = Literal["margin", "paper"]
RULES: tuple[Rule, ...] = ("margin", "paper")


@dataclass(frozen=True, slots=True)
class Look:
    """What a policy makes of one exit.

    Attributes:
        state: What it remembers, one row an input in each array.
        probabilities: The answer if an input stopped here, (B, C).
        stops: Whether it may, (B,).
    """

    state: State
    probabilities: Floats
    stops: Bools


class Policy(Protocol):
    """Decides exit by exit; the last exit ends everything and needs no decision."""

    kind: ClassVar[str]

    def begin(self, batch_size: int, num_classes: int) -> State:
        """The state before the first exit."""

    def look(self, state: State, logits: Floats, gates: Floats | None, *, place: int, left: int) -> Look:
        """Looks at an exit.

        Args:
            state: From the exit before, or from :meth:`begin`.
            logits: The exit's head, (B, C).
            gates: The exit's gate before its sigmoid, (B,); None where it has none.
            place: Index of the exit, from 0.
            left: How many exits follow.
        """

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; :func:`policy_from_dict` reads it."""


@dataclass(frozen=True, slots=True)
class Dact:
    """DACT's mixture with one of its exact halting rules; see :func:`is_settled`.

    Exit n answers y_n and its gate h_n says how much of the answer is still open. With p_n = h_1 ... h_n and p_0 = 1,
    the answer so far is a_n = y_n p_(n-1) + a_(n-1) (1 - p_(n-1)), hence a_1 = y_1; the model's answer is a_N.
    """

    rule: Rule = "margin"
    kind: ClassVar[str] = "dact"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise InvalidInputError(f"the halting rule of DACT must be one of {', '.join(RULES)}, got {self.rule!r}")

    def begin(self, batch_size: int, num_classes: int) -> State:
        """Nothing answered, all of it open."""
        return np.zeros((batch_size, num_classes)), np.ones(batch_size)

    def look(self, state: State, logits: Floats, gates: Floats | None, *, place: int, left: int) -> Look:
        """Mixes the exit's answer in; see :class:`Policy`."""
        answers, rest = state  # a_(n-1), p_(n-1)
        answers = softmax(logits) * rest[:, None] + answers * (1 - rest[:, None])
        rest = np.zeros_like(rest) if gates is None else rest * sigmoid(gates)
        return Look((answers, rest), answers, is_settled(answers, rest, left, self.rule))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"kind": self.kind, "rule": self.rule}


@dataclass(frozen=True, slots=True)
class Patience:
    """PABEE: stops where an exit's class has been that of so many exits before it, without a break.

    Attributes:
        patience: How many exits must have agreed with the one before them.
    """

    patience: int
    kind: ClassVar[str] = "patience"

    def __post_init__(self) -> None:
        if not isinstance(self.patience, int) or isinstance(self.patience, bool) or not 1 <= self.patience <= MAX_EXITS:
            raise InvalidInputError(f"patience must be a whole number from 1 to {MAX_EXITS}, got {self.patience!r}")

    def begin(self, batch_size: int, num_classes: int) -> State:
        """No class yet, and no agreement."""
        return np.full(batch_size, -1), np.zeros(batch_size, dtype=np.int64)

    def look(self, state: State, logits: Floats, gates: Floats | None, *, place: int, left: int) -> Look:
        """Counts agreements; see :class:`Policy`."""
        before, agreements = state
        classes = logits.argmax(1)
        agreements = np.where(classes == before, agreements + 1, 0)
        return Look((classes, agreements), softmax(logits), agreements >= self.patience)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"kind": self.kind, "patience": self.patience}


@dataclass(frozen=True, slots=True)
class Confidence:
    """Stops where the probability of the leading class, calibrated at each exit, reaches a threshold.

    Attributes:
        threshold: From 0 (excluded) to 1.
        temperatures: What each exit's logits are divided by; see :func:`fit_temperature`.
    """

    threshold: float
    temperatures: tuple[float, ...]
    kind: ClassVar[str] = "confidence"

    def __post_init__(self) -> None:
        if not _is_number(self.threshold) or not 0 < self.threshold <= 1:
            raise InvalidInputError(f"the confidence must be above 0 and at most 1, got {self.threshold!r}")
        if not 1 <= len(self.temperatures) <= MAX_EXITS or not all(
            _is_number(value) and value > 0 for value in self.temperatures
        ):
            raise InvalidInputError(f"temperatures must be 1 to {MAX_EXITS} positive numbers, one for each exit")

    def begin(self, batch_size: int, num_classes: int) -> State:
        """Nothing to remember."""
        return ()

    def look(self, state: State, logits: Floats, gates: Floats | None, *, place: int, left: int) -> Look:
        """Compares with the threshold; see :class:`Policy`."""
        probabilities = softmax(logits / self.temperatures[place])
        return Look((), probabilities, probabilities.max(1) >= self.threshold)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"kind": self.kind, "threshold": self.threshold, "temperatures": list(self.temperatures)}


def policy_from_dict(data: object, num_exits: int) -> Policy:
    """Reads a policy's JSON form.

    Raises:
        InvalidInputError: It is none, or it is for another number of exits.
    """
    fields = data if isinstance(data, dict) else {}
    match fields:
        case {"kind": "dact", "rule": str(rule)} if len(fields) == 2:
            return Dact(cast(Rule, rule))
        case {"kind": "patience", "patience": int(patience)} if len(fields) == 2:
            return Patience(patience)
        case {"kind": "confidence", "threshold": int() | float() as threshold, "temperatures": [*temperatures]}:
            if len(fields) == 3 and len(temperatures) == num_exits:
                return Confidence(threshold, tuple(temperatures))
    raise InvalidInputError(f"a halting policy of {num_exits} exits must be of dact, patience or confidence")


def is_settled(answers: Floats, rest: Floats, left: int, rule: Rule = "margin") -> Bools:
    """Whether the leading class of DACT's mixture stays the leader whatever the exits that follow answer.

    With d exits left, each next one counts for at most p_n, so that at least w = (1 - p_n)^d of the answer so far stays
    in the last one, which is w' a_n + (1 - w') (a mixture of what follows) for a w' >= w. From there, for the leader c:

    * ``paper``: Pr(c) w > Pr(runner-up) + p_n d, the bounds on both classes taken one by one;
    * ``margin``: w > 1 / (1 + margin), the bound on their difference: the worst that can follow gives all of 1 - w to
      the runner-up. It stops wherever the other does, since 1 - w <= p_n d, and earlier.

    Both are published with >=, which does not hold: with d = 1, p_n = 1/3 and a_n = (1/4, 3/4) the margin rule has
    equality, and y = (1, 0) makes it (1/2, 1/2), where the smaller class number wins. Hence :data:`SLACK`.

    Args:
        answers: a_n, (B, C) with C at least 2.
        rest: p_n, (B,).
        left: d.
        rule: Which inequality.

    Returns:
        Shape (B,).
    """
    if left == 0:
        return np.ones(len(answers), dtype=bool)
    runner_up, leader = np.partition(answers, -2, axis=1)[:, -2:].T
    kept = (1 - rest) ** left
    if rule == "paper":
        return cast(Bools, leader * kept > runner_up + rest * left + SLACK)
    return cast(Bools, kept * (1 + leader - runner_up) > 1 + SLACK)


def replay(
    policy: Policy, logits: NDArray[np.floating[Any]], gates: NDArray[np.floating[Any]] | None, *, halts: bool = True
) -> tuple[Floats, NDArray[np.int64]]:
    """What a policy does with answers that are known already: the same as a model that stops by it.

    Args:
        policy: When to stop.
        logits: Every exit's head, (N, B, C).
        gates: Every gate before its sigmoid, (N - 1, B); None where the model has none.
        halts: Whether inputs may stop before the last exit.

    Returns:
        Probabilities (B, C), and the number of exits that each input passed, (B,), from 1 to N.
    """
    num_exits, batch_size, num_classes = logits.shape
    state = policy.begin(batch_size, num_classes)
    probabilities = np.zeros((batch_size, num_classes))
    passed = np.zeros(batch_size, dtype=np.int64)
    for place in range(num_exits):
        left = num_exits - 1 - place
        gate = None if gates is None or not left else gates[place].astype(np.float64)
        look = policy.look(state, logits[place].astype(np.float64), gate, place=place, left=left)
        state = look.state
        ends = (passed == 0) & (look.stops if halts and left else left == 0)
        probabilities[ends], passed[ends] = look.probabilities[ends], place + 1
    return probabilities, passed


def sigmoid(values: Floats) -> Floats:
    """The logistic function, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * values))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
