"""A latency is a statement with evidence: what was timed, how, how often, and how far the number can be trusted.

A candidate is timed in rounds, each a burst of the anchor model followed by a burst of the candidate. What a shared
machine does to one it does to the other, so the *ratio* of the two is steady where absolute times are not: medians of
separate runs differ by tens of percent, ratios of interleaved rounds by about one. The absolute latency is that ratio
times the anchor's own level, the median of every anchor sample of the session, in which short drifts average out.

Times are in seconds; milliseconds appear only where a person reads. With one thread they are times on a core: what the
scheduler gave to others in between is not in them, but told as pressure, and it raises the upper bound.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeGuard, get_args

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InvalidInputError, shown

SCHEMA_VERSION = 2
MAX_SAMPLES = 1_000_000
MAX_SECONDS = 86_400.0
MAX_MULTIPLE = 1e6  # of the anchor's level
NUM_RESAMPLES = 1000
NUM_TAIL_RESAMPLES = 200

#: Verdict thresholds: half the 90 % interval relative to the median, of all and of the ratio alone, and the signs of a
#: machine under pressure. A machine whose level moves makes a latency noisy, never inconclusive: the interval says it.
OK_HALF_WIDTH = 0.05
USABLE_HALF_WIDTH = 0.20
MIN_ROUNDS = 4
#: The percentiles that a bound may be asked of, and how many samples each takes: with 299, one of them is beyond the
#: 99th percentile 95 % of the time.
MIN_SAMPLES = {50: 1, 90: 29, 99: 299}
MAX_STEAL_SHARE = 0.02
MAX_WAITING_SHARE = 0.05

Source = Literal["measured", "predicted"]
Verdict = Literal["ok", "noisy", "inconclusive"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a latency holds for; two latencies compare only where these are equal.

    Attributes:
        device: The target's name, e.g. ``cpu``.
        fingerprint: Digest of the facts of the machine that its latencies depend on.
        runtime: What ran the model, with its version.
        precision: Number format of the weights, e.g. ``fp32``.
        threads: Threads within one operator.
        batch_size: Texts at a time.
        seq_len: Tokens a text.
    """

    device: str
    fingerprint: str
    runtime: str
    precision: str = "fp32"
    threads: int = 1
    batch_size: int = 1
    seq_len: int = 128

    def __post_init__(self) -> None:
        for name in ("device", "fingerprint", "runtime", "precision"):
            value = getattr(self, name)
            if not isinstance(value, str) or not 1 <= len(value) <= 200:
                raise InvalidInputError(f"{name} must be a text of 1 to 200 characters, got {value!r}")
        for name, maximum in (("threads", 1024), ("batch_size", 65_536), ("seq_len", 65_536)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= maximum:
                raise InvalidInputError(f"{name} must be a whole number from 1 to {maximum}, got {value!r}")

    @classmethod
    def from_dict(cls, data: object) -> "Conditions":
        """Reads the JSON form; raises InvalidInputError where it is not one."""
        return cls(**_fields("conditions", data, cls))


@dataclass(frozen=True, slots=True)
class Pressure:
    """What else the machine did while a model was timed, each between 0 and 1.

    Attributes:
        busy_share: How much of the other cores was in use.
        steal_share: How much time the hypervisor took from the whole machine.
        waiting_share: How much of the timed span the runner was ready to run and did not.
        throttled: Why the device ran slower than it can, in its own words; not a share.
    """

    busy_share: float = 0.0
    steal_share: float = 0.0
    waiting_share: float = 0.0
    throttled: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        words = list(self.throttled) if isinstance(self.throttled, list | tuple) else [None]
        if len(words) > 20 or not all(isinstance(word, str) and len(word) <= 200 for word in words):
            raise InvalidInputError(f"throttled must be a few short reasons, got {self.throttled!r}")
        object.__setattr__(self, "throttled", tuple(words))
        for name in ("busy_share", "steal_share", "waiting_share"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= 1:
                raise InvalidInputError(f"{name} must be a number from 0 to 1, got {value!r}")

    @property
    def is_high(self) -> bool:
        """Whether the timed process itself was held up or slowed down, which no interleaving corrects."""
        return bool(self.throttled) or self.steal_share > MAX_STEAL_SHARE or self.waiting_share > MAX_WAITING_SHARE


@dataclass(frozen=True, slots=True)
class Tail:
    """A percentile of a latency beyond its median.

    Attributes:
        value_s: The percentile.
        low_s: Lower end of its 90 % interval.
        high_s: Upper end: a one-sided 95 % bound.
    """

    value_s: float
    low_s: float
    high_s: float

    def __post_init__(self) -> None:
        if not _check_time(self.low_s) <= _check_time(self.value_s) <= _check_time(self.high_s):
            raise InvalidInputError("a tail must be ordered: low <= value <= high")


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one forward pass takes, with the evidence.

    Attributes:
        conditions: What the number holds for.
        source: Whether the model was timed, or its latency predicted from its shape.
        verdict: ``ok``; ``noisy`` (the interval is wide or the machine was under pressure; the bounds hold all the
            same); or ``inconclusive`` (too few or too scattered samples to say anything).
        p50_s: The median.
        p90: The 90th percentile; None where predicted, or where the samples are too few to bound it.
        p99: The 99th percentile, likewise.
        low_s: Lower end of the 90 % interval of the median.
        high_s: Upper end: a one-sided 95 % bound.
        samples_s: Raw times of the candidate, in the order they were taken; empty where predicted.
        anchor_samples_s: Raw times of the anchor, interleaved with those.
        anchor_reference_s: The anchor's level that turned the ratio into seconds.
        num_rounds: How many rounds the samples fall into, in order and of equal size.
        pressure: What else the machine did meanwhile, where that is known.
        peak_memory_bytes: By how much a process grows that loads and runs the model, where that was measured.
        energy_j: Joules of one forward pass, where the hardware counts them.
    """

    conditions: Conditions
    source: Source
    verdict: Verdict
    p50_s: float
    low_s: float
    high_s: float
    p90: Tail | None = None
    p99: Tail | None = None
    samples_s: tuple[float, ...] = ()
    anchor_samples_s: tuple[float, ...] = ()
    anchor_reference_s: float | None = None
    num_rounds: int = 0
    pressure: Pressure | None = None
    peak_memory_bytes: int | None = None
    energy_j: float | None = None

    def __post_init__(self) -> None:
        if self.source not in get_args(Source) or self.verdict not in get_args(Verdict):
            raise InvalidInputError(
                f"a latency's source and verdict must be known, got {self.source!r}, {self.verdict!r}"
            )
        times = [self.low_s, self.p50_s, self.high_s]
        times += [] if self.anchor_reference_s is None else [self.anchor_reference_s]
        for time in (*times, *self.samples_s, *self.anchor_samples_s):
            _check_time(time)
        if not self.low_s <= self.p50_s <= self.high_s:
            raise InvalidInputError("a latency must be ordered: low <= p50 <= high")
        values = [self.p50_s, *(tail.value_s for tail in (self.p90, self.p99) if tail is not None)]
        if values != sorted(values):
            raise InvalidInputError("a latency's percentiles must be ordered")
        if (self.source == "measured") != bool(self.samples_s) or (self.source == "predicted" and len(values) > 1):
            raise InvalidInputError("a measured latency holds its samples, a predicted one neither samples nor tails")
        memory, energy = self.peak_memory_bytes, self.energy_j
        if memory is not None and (not isinstance(memory, int) or isinstance(memory, bool) or memory < 0):
            raise InvalidInputError(f"peak_memory_bytes must be a whole number from 0, got {memory!r}")
        if energy is not None and (not _is_number(energy) or energy < 0):
            raise InvalidInputError(f"energy_j must be a number from 0, got {energy!r}")
        if max(len(self.samples_s), len(self.anchor_samples_s)) > MAX_SAMPLES:
            raise InvalidInputError(f"a latency holds at most {MAX_SAMPLES} samples")
        if not isinstance(self.num_rounds, int) or not 0 <= self.num_rounds <= len(self.samples_s):
            raise InvalidInputError(f"num_rounds must be from 0 to the number of samples, got {self.num_rounds!r}")

    def meets(self, budget_s: float, percentile: int = 50) -> bool:
        """Whether a percentile is within the budget, with 95 % confidence; one that is not known never is."""
        bounds = self.bounds_s(percentile)
        return _check_time(budget_s) >= bounds[1] if bounds else False

    def exceeds(self, budget_s: float, percentile: int = 50) -> bool:
        """Whether a percentile is over the budget, with 95 % confidence."""
        bounds = self.bounds_s(percentile)
        return bounds[0] > _check_time(budget_s) if bounds else self.low_s > _check_time(budget_s)

    def bounds_s(self, percentile: int) -> tuple[float, float] | None:
        """The 90 % interval of a percentile (50, 90 or 99); None where it is not known.

        Raises:
            InvalidInputError: Another percentile.
        """
        if percentile == 50:
            return self.low_s, self.high_s
        tail = self._tail(percentile)
        return None if tail is None else (tail.low_s, tail.high_s)

    def percentile_s(self, percentile: int) -> float | None:
        """A percentile (50, 90 or 99); None where it is not known.

        Raises:
            InvalidInputError: Another percentile.
        """
        if percentile == 50:
            return self.p50_s
        tail = self._tail(percentile)
        return None if tail is None else tail.value_s

    @property
    def p90_s(self) -> float | None:
        """The 90th percentile; None where it is not known."""
        return self.percentile_s(90)

    def _tail(self, percentile: int) -> Tail | None:
        if percentile not in MIN_SAMPLES:
            raise InvalidInputError(
                f"a percentile must be one of {', '.join(map(str, MIN_SAMPLES))}, got {percentile!r}"
            )
        return self.p90 if percentile == 90 else self.p99

    @property
    def throughput(self) -> float:
        """Texts a second, one batch after the other."""
        return self.conditions.batch_size / self.p50_s

    @property
    def drift(self) -> float | None:
        """By how much, relative, the last tenth of the raw times is slower than the first; None below 40 samples."""
        part = len(self.samples_s) // 10
        if part < 4:
            return None
        return float(np.median(self.samples_s[-part:]) / np.median(self.samples_s[:part])) - 1

    @property
    def ratio(self) -> float | None:
        """The median in units of the anchor's, where the anchor's level is known."""
        return None if self.anchor_reference_s is None else self.p50_s / self.anchor_reference_s

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; :meth:`from_dict` restores an equal value."""
        data = asdict(self)
        for name in ("samples_s", "anchor_samples_s"):
            data[name] = list(data[name])
        return {"schema_version": SCHEMA_VERSION, **data}

    @classmethod
    def from_dict(cls, data: object) -> "Latency":
        """Reads :meth:`to_dict`'s form.

        Raises:
            InvalidInputError: The data is of another schema, not finite, not positive or not in order.
        """
        if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
            raise InvalidInputError(f"a latency must be an object of schema {SCHEMA_VERSION}")
        entries = _fields("latency", {name: value for name, value in data.items() if name != "schema_version"}, cls)
        for name in ("samples_s", "anchor_samples_s"):
            if not isinstance(entries[name], list):
                raise InvalidInputError(f"a latency's {name} must be a list")
            entries[name] = tuple(entries[name])
        entries["conditions"] = Conditions.from_dict(entries["conditions"])
        for name, record in _PARTS.items():
            if entries[name] is not None:
                entries[name] = record(**_fields(name, entries[name], record))
        return cls(**entries)


#: The records within a latency.
_PARTS: Mapping[str, type] = {"pressure": Pressure, "p90": Tail, "p99": Tail}


def measured(
    conditions: Conditions,
    samples_s: Sequence[float],
    anchor_samples_s: Sequence[float],
    anchor_reference_s: float,
    pressure: Pressure | None = None,
    *,
    num_rounds: int | None = None,
    level_interval: tuple[float, float] = (1.0, 1.0),
    peak_memory_bytes: int | None = None,
    energy_j: float | None = None,
    seed: int = 0,
) -> Latency:
    """Turns raw interleaved samples into a latency.

    The ratio is the median over rounds of (median of the candidate's burst / median of the anchor's burst beside it);
    its interval is a percentile bootstrap over rounds, which are the independent draws (samples within a burst are
    not). How far the machine's own level moves within the session is added in quadrature on the log scale, and the
    share of time in which the process was held up raises the upper end: a loop over the model at another moment of
    the same session is to find its median between ``low_s`` and ``high_s``.

    Args:
        conditions: What the samples hold for.
        samples_s: The candidate's times, round after round.
        anchor_samples_s: The anchor's times of the same rounds.
        anchor_reference_s: The anchor's level: its median over the whole session.
        pressure: What else the machine did meanwhile.
        num_rounds: How many rounds of equal size the samples fall into; by default one for each pair where both
            sequences are equally long, else one.
        level_interval: Between which multiples of the reference the anchor's level moved, 90 % of the time.
        peak_memory_bytes: What the model takes, where that was measured.
        energy_j: Joules a pass, where the hardware counts them.
        seed: Of the bootstrap.

    Raises:
        InvalidInputError: No samples, samples that are not positive and finite, or that do not divide into the rounds.
    """
    candidate, anchor = _as_rounds(samples_s, anchor_samples_s, num_rounds)
    _check_time(anchor_reference_s)
    levels = np.median(anchor, axis=1)  # one a round
    ratios = np.median(candidate, axis=1) / levels
    ratio = float(np.median(ratios))
    interval = _bootstrap_interval(ratios, seed)
    below, above = widened(interval, ratio, level_interval)
    if len(ratios) < MIN_ROUNDS or max(widened(interval, ratio, (1.0, 1.0))) > USABLE_HALF_WIDTH:
        verdict: Verdict = "inconclusive"
    else:
        is_calm = max(below, above) <= OK_HALF_WIDTH and (pressure is None or not pressure.is_high)
        verdict = "ok" if is_calm else "noisy"
    held_up = 0.0 if pressure is None else min(0.9, pressure.steal_share + pressure.waiting_share)
    p50_s = ratio * anchor_reference_s

    def tail(percentile: int) -> Tail | None:
        if candidate.size < MIN_SAMPLES[percentile]:
            return None
        levelled, share = candidate / levels[:, None], percentile / 100
        middle = max(ratio, float(np.quantile(levelled, share)))
        below, above = widened(_tail_interval(levelled, share, middle, seed), middle, level_interval)
        value_s = middle * anchor_reference_s
        return Tail(value_s, value_s * math.exp(-below), value_s * math.exp(above) / (1 - held_up))

    return Latency(
        conditions=conditions,
        source="measured",
        verdict=verdict,
        p50_s=p50_s,
        low_s=p50_s * math.exp(-below),
        high_s=p50_s * math.exp(above) / (1 - held_up),
        p90=tail(90),
        p99=tail(99),
        samples_s=tuple(map(float, samples_s)),
        anchor_samples_s=tuple(map(float, anchor_samples_s)),
        anchor_reference_s=float(anchor_reference_s),
        num_rounds=len(ratios),
        pressure=pressure,
        peak_memory_bytes=peak_memory_bytes,
        energy_j=energy_j,
    )


def widened(interval: tuple[float, float], middle: float, level_interval: tuple[float, float]) -> tuple[float, float]:
    """How far an interval reaches below and above its middle on the log scale once the level's own reach has joined.

    Raises:
        InvalidInputError: The level's interval is not of positive multiples around 1.
    """
    if (
        not all(map(_is_number, level_interval))
        or not 1 / MAX_MULTIPLE <= level_interval[0] <= 1 <= level_interval[1] <= MAX_MULTIPLE
    ):
        raise InvalidInputError(f"level_interval must be two positive multiples around 1, got {shown(level_interval)}")
    (low, high), (level_low, level_high) = interval, level_interval
    return math.hypot(math.log(middle / low), math.log(level_low)), math.hypot(
        math.log(high / middle), math.log(level_high)
    )


def predicted(
    conditions: Conditions, p50_s: float, low_s: float, high_s: float, anchor_reference_s: float | None = None
) -> Latency:
    """A latency from a predictor, with the 90 % interval that its held-out errors justify."""
    return Latency(conditions, "predicted", "ok", p50_s, low_s, high_s, anchor_reference_s=anchor_reference_s)


def _as_rounds(
    samples_s: Sequence[float], anchor_samples_s: Sequence[float], num_rounds: int | None
) -> tuple[Floats, Floats]:
    """Both sequences as arrays of shape (rounds, samples a round)."""
    if not len(samples_s) or not len(anchor_samples_s):
        raise InvalidInputError("a latency needs samples of the candidate and of the anchor, got none")
    for time in (*samples_s, *anchor_samples_s):
        _check_time(time)
    if num_rounds is None:
        num_rounds = len(samples_s) if len(samples_s) == len(anchor_samples_s) else 1
    if num_rounds < 1 or len(samples_s) % num_rounds or len(anchor_samples_s) % num_rounds:
        raise InvalidInputError(
            f"samples must divide into num_rounds equal rounds, got {len(samples_s)} and {len(anchor_samples_s)} "
            f"for {num_rounds} rounds"
        )
    shape = (num_rounds, -1)
    return np.asarray(samples_s, float).reshape(shape), np.asarray(anchor_samples_s, float).reshape(shape)


def _bootstrap_interval(values: Floats, seed: int) -> tuple[float, float]:
    """90 % percentile bootstrap interval of the median, widened to hold the median itself."""
    draws = np.random.default_rng(seed).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[draws], axis=1), (0.05, 0.95))
    median = np.median(values)
    return float(min(low, median)), float(max(high, median))


def _tail_interval(levelled: Floats, share: float, middle: float, seed: int) -> tuple[float, float]:
    """90 % percentile bootstrap interval of a quantile over whole rounds (R, samples), widened to hold ``middle``."""
    rng = np.random.default_rng(seed)
    resamples = rng.integers(len(levelled), size=(NUM_TAIL_RESAMPLES, len(levelled)))
    values = [np.quantile(levelled[draw], share) for draw in resamples]
    low, high = np.quantile(values, (0.05, 0.95))
    return float(min(low, middle)), float(max(high, middle))


def _check_time(value: object) -> float:
    if not _is_number(value) or not 0 < value <= MAX_SECONDS:
        raise InvalidInputError(f"a time must be a positive, finite number of seconds, got {shown(value)}")
    return float(value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _fields(what: str, data: object, record: type) -> dict[str, Any]:
    names = {field.name for field in fields(record)}
    if not isinstance(data, dict) or set(data) != names:
        found = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise InvalidInputError(f"{what} must hold exactly {sorted(names)}, got {found}")
    return dict(data)
