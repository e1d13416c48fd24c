"""Predicts the latency of a shape from a few dozen measured ones, or a dozen where a similar device is known.

What is learned is the ratio to the anchor model, which holds while the machine's own level drifts. A ridge regression
on counts of the work (``nas.devices.features``) is enough: the time of a small encoder on one device is very nearly a
sum of such terms. Errors count relative to the ratio, so a 1 ms model matters as much as a
30 ms one. The penalty is chosen by leave-one-out errors, which a ridge gives in closed form, and those same errors
make the interval (the jackknife+ of Barber et al., 2021, arXiv 1905.02928, with one fit instead of n).

An interval keeps its promise for shapes that are like those it was calibrated on. Searches ask for shapes of the whole
space, so that only samples that were drawn at random from it calibrate; the extremes and the samples chosen near a
budget improve the fit alone.

What another device, or this one under other settings, charges for each unit of work is a start: with a prior the
weights are shrunk towards its coefficients, scaled by kind of work, instead of towards zero. It is used where that
lowers the leave-one-out error.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.latency import Conditions, Latency, predicted, widened
from nas.devices.features import FEATURES, KINDS, UNIFORM_FEATURES, features
from search_spaces.architecture import Architecture
from search_spaces.errors import InvalidInputError, shown

SCHEMA_VERSION = 2
MAX_SAMPLES = 10_000
MAX_RATIO = 1e6
COVERAGE = 0.9
PENALTIES = tuple(10.0**power for power in np.arange(-10, 1.01, 0.5))
SCALE_PENALTY = 1e-4
#: A prior is looked at below this many samples; with more it changes nothing worth its cost.
TRANSFER_BELOW = 20
#: Drawn samples below which all samples calibrate: the largest error of fewer is no 90 % bound.
MIN_DRAWN = 9
#: What is left to doubt where two samples or fewer can show no error.
UNTESTED_ERROR = 0.5
LOWEST_RATIO = 1e-4

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured shape.

    Attributes:
        architecture: The shape.
        ratio: Its latency in units of the anchor's.
        is_drawn: Whether it was drawn at random from its space, so that its error tells of other shapes of the space.
    """

    architecture: Architecture
    ratio: float
    is_drawn: bool = True

    def __post_init__(self) -> None:
        is_number = isinstance(self.ratio, int | float) and not isinstance(self.ratio, bool)
        if not is_number or not LOWEST_RATIO <= self.ratio <= MAX_RATIO:
            raise InvalidInputError(
                f"a sample's ratio must be from {LOWEST_RATIO:g} to {MAX_RATIO:g}, got {shown(self.ratio)}"
            )
        if not isinstance(self.is_drawn, bool):
            raise InvalidInputError(f"a sample's is_drawn must be true or false, got {self.is_drawn!r}")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; :meth:`from_dict` restores an equal value."""
        return {"architecture": self.architecture.to_dict(), "ratio": self.ratio, "is_drawn": self.is_drawn}

    @classmethod
    def from_dict(cls, data: object) -> "Sample":
        """Reads :meth:`to_dict`'s form; raises InvalidInputError where it is not one."""
        if not isinstance(data, dict) or set(data) != {"architecture", "ratio", "is_drawn"}:
            raise InvalidInputError("a sample must hold exactly an architecture, a ratio and is_drawn")
        return cls(Architecture.from_dict(data["architecture"]), data["ratio"], data["is_drawn"])


@dataclass(frozen=True, slots=True)
class Prior:
    """What another device, or this one under other settings, charges for each unit of work.

    Attributes:
        conditions: What it was learned for.
        coefficients: A number for every feature, as :attr:`LatencyPredictor.coefficients`.
    """

    conditions: Conditions
    coefficients: Mapping[str, float]

    def __post_init__(self) -> None:
        if not isinstance(self.coefficients, Mapping) or set(self.coefficients) != set(FEATURES):
            raise InvalidInputError(f"a prior's coefficients must be of exactly {', '.join(sorted(FEATURES))}")
        for name, value in self.coefficients.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not -MAX_RATIO <= value <= MAX_RATIO:
                raise InvalidInputError(f"a prior's coefficient of {name} must be a finite number, got {value!r}")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; :meth:`from_dict` restores an equal value."""
        return {"conditions": asdict(self.conditions), "coefficients": dict(self.coefficients)}

    @classmethod
    def from_dict(cls, data: object) -> "Prior":
        """Reads :meth:`to_dict`'s form; raises InvalidInputError where it is not one.

        A prior that was learned when only uniform full encoders were known has no coefficients of other work, which
        then counts as 0, as it did there.
        """
        if not isinstance(data, dict) or set(data) != {"conditions", "coefficients"}:
            raise InvalidInputError("a prior must hold exactly conditions and coefficients")
        coefficients = data["coefficients"]
        if isinstance(coefficients, dict) and set(coefficients) == UNIFORM_FEATURES:
            coefficients = dict.fromkeys(FEATURES, 0.0) | coefficients
        return cls(Conditions.from_dict(data["conditions"]), coefficients)


@dataclass(frozen=True, slots=True)
class HeldOutError:
    """How far predictions of shapes that were left out of the fit lie from what was measured.

    Attributes:
        median: Median relative error.
        p95: 95th percentile of it.
        spearman: Rank correlation of predicted and measured.
        num_samples: How many shapes were measured.
    """

    median: float
    p95: float
    spearman: float
    num_samples: int


class LatencyPredictor:
    """Predicts latencies of one space on one target.

    Args:
        samples: The measured shapes, each once.
        conditions: What they were measured for.
        anchor_reference_s: The anchor's level that turns ratios into seconds.
        level_interval: Between which multiples of the reference that level moves, 90 % of the time.
        priors: Devices or settings that are known already; the best is used where it helps.

    Raises:
        InvalidInputError: There are no samples, too many, or one twice.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        conditions: Conditions,
        anchor_reference_s: float,
        level_interval: tuple[float, float] = (1.0, 1.0),
        priors: Sequence[Prior] = (),
    ) -> None:
        if not 1 <= len(samples) <= MAX_SAMPLES:
            raise InvalidInputError(f"a predictor needs 1 to {MAX_SAMPLES} samples, got {len(samples)}")
        if len({sample.architecture for sample in samples}) != len(samples):
            raise InvalidInputError("a predictor needs each architecture once among its samples")
        predicted(conditions, anchor_reference_s, anchor_reference_s, anchor_reference_s)  # checks the time
        widened((1.0, 1.0), 1.0, level_interval)
        self.samples = tuple(samples)
        self.conditions = conditions
        self.anchor_reference_s = anchor_reference_s
        self.level_interval = level_interval
        self._ratios = np.array([sample.ratio for sample in samples])
        self._rows = np.array([self._row(sample.architecture) for sample in samples])
        self._alone = self._fit = self._best_fit(None)
        self.prior: Prior | None = None
        for prior in priors if len(samples) < TRANSFER_BELOW else ():
            fit = self._best_fit(prior)
            if fit.mean_error < self._fit.mean_error:
                self._fit, self.prior = fit, prior

    def predict(self, architecture: Architecture) -> Latency:
        """The latency of a shape, with a 90 % interval."""
        ratio = self._ratio(self._row(architecture))
        reach = self.reach
        below, above = widened((ratio / (1 + reach), ratio * (1 + reach)), ratio, self.level_interval)
        p50_s = ratio * self.anchor_reference_s
        low_s, high_s = p50_s * math.exp(-below), p50_s * math.exp(above)
        return predicted(self.conditions, p50_s, low_s, high_s, self.anchor_reference_s)

    def least_certain(self, candidates: Sequence[Architecture], num: int) -> list[Architecture]:
        """The shapes that the fit would learn most from, one after the other.

        Each is the one whose prediction varies most (the ridge's variance, relative to the prediction) given the
        samples and those chosen before it: greedy D-optimal design.

        Args:
            candidates: What to choose from.
            num: How many to choose, at most all.
        """
        rows = [self._row(architecture) for architecture in candidates]
        designs = np.array([self._fit.design(row, self._ratio(row)) for row in rows])
        inverse = self._fit.inverse.copy()
        chosen: list[int] = []
        for _ in range(min(num, len(candidates))):
            variances = np.einsum("ij,jk,ik->i", designs, inverse, designs)
            variances[chosen] = -1.0
            chosen.append(int(np.argmax(variances)))
            along = inverse @ designs[chosen[-1]]
            inverse -= np.outer(along, along) / (1 + designs[chosen[-1]] @ along)
        return [candidates[index] for index in chosen]

    @property
    def left_out_errors(self) -> Floats:
        """Measured over predicted minus 1 for each sample, predicted without it."""
        return np.array([UNTESTED_ERROR]) if len(self.samples) == 1 else self._fit.errors

    @cached_property
    def reach(self) -> float:
        """How far, relative to a prediction, the measured ratio lies at most, 90 % of the time.

        With a prior it is at least what it would be without: a fit that was chosen for its small errors is flattered
        by them. With fewer drawn samples than :data:`MIN_DRAWN` all count, and 90 % is a guess: 77 to 100 % were seen.
        """
        if len(self.samples) <= 2:
            return max(UNTESTED_ERROR, float(np.abs(self.left_out_errors).max()))
        drawn = np.array([sample.is_drawn for sample in self.samples])
        calibrating = drawn if drawn.sum() >= MIN_DRAWN else np.full(len(drawn), True)
        sizes = np.sort(np.abs([fit.errors[calibrating] for fit in (self._alone, self._fit)]), axis=1)
        rank = math.ceil(COVERAGE * (sizes.shape[1] + 1))
        return float(sizes[:, min(rank, sizes.shape[1]) - 1].max())

    @property
    def error(self) -> HeldOutError | None:
        """The error on shapes that were left out of the fit; None where one shape is all that was measured."""
        if len(self.samples) == 1:
            return None
        sizes = np.abs(self.left_out_errors)
        return HeldOutError(
            median=float(np.median(sizes)),
            p95=float(np.quantile(sizes, 0.95)),
            spearman=spearman(self._fit.left_out, self._ratios),
            num_samples=len(self.samples),
        )

    @property
    def description(self) -> str:
        """What it rests on and how good it is, in words."""
        error = self.error
        if error is None:
            return "1 shape measured, so that none could be left out and the error is not known"
        return f"{error.num_samples} shapes measured, median error {error.median:.1%} on shapes left out"

    @property
    def coefficients(self) -> dict[str, float]:
        """What one unit of each feature adds to the ratio."""
        return dict(zip(FEATURES, map(float, self._fit.weights), strict=True))

    def as_prior(self) -> Prior:
        """What this predictor knows, as a start for another."""
        return Prior(self.conditions, self.coefficients)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; :meth:`from_dict` restores an equal predictor."""
        return {
            "schema_version": SCHEMA_VERSION,
            "conditions": asdict(self.conditions),
            "anchor_reference_s": self.anchor_reference_s,
            "level_interval": list(self.level_interval),
            "samples": [sample.to_dict() for sample in self.samples],
            "prior": None if self.prior is None else self.prior.to_dict(),
            "coefficients": self.coefficients,
            "error": self.error and asdict(self.error),
        }

    @classmethod
    def from_dict(cls, data: object) -> "LatencyPredictor":
        """Reads :meth:`to_dict`'s form. Coefficients and error are for other readers: they are computed anew.

        Raises:
            InvalidInputError: The data is of another schema or breaks a bound.
        """
        names = {"conditions", "anchor_reference_s", "level_interval", "samples", "prior", "coefficients", "error"}
        if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
            raise InvalidInputError(f"a predictor must be an object of schema {SCHEMA_VERSION}")
        if set(data) != names | {"schema_version"}:
            raise InvalidInputError(f"a predictor must hold exactly {sorted(names)}, got {sorted(map(str, data))}")
        interval, samples, prior = data["level_interval"], data["samples"], data["prior"]
        if not isinstance(interval, list) or len(interval) != 2 or not isinstance(samples, list):
            raise InvalidInputError("a predictor's level_interval must be two numbers, and its samples a list")
        return cls(
            tuple(map(Sample.from_dict, samples)),
            Conditions.from_dict(data["conditions"]),
            data["anchor_reference_s"],
            (interval[0], interval[1]),
            () if prior is None else (Prior.from_dict(prior),),
        )

    def _row(self, architecture: Architecture) -> Floats:
        return np.array(
            list(features(architecture, self.conditions.seq_len, self.conditions.batch_size).values()), dtype=float
        )

    def _ratio(self, row: Floats) -> float:
        return max(LOWEST_RATIO, float(row @ self._fit.weights))

    def _best_fit(self, prior: Prior | None) -> "_Fit":
        known = None if prior is None else self._known(prior)
        fits = (_ridge(self._rows, self._ratios, penalty, known) for penalty in PENALTIES)
        return min(fits, key=lambda fit: fit.mean_error)

    def _known(self, prior: Prior) -> Floats:
        """A prior's coefficients, one column for each kind of work, as (features, kinds)."""
        kinds = [[prior.coefficients[name] * (name in names) for name in FEATURES] for names in KINDS.values()]
        return np.array(kinds).T


def spearman(first: Sequence[float] | Floats, second: Sequence[float] | Floats) -> float:
    """Rank correlation, ties sharing their mean rank; 1 where one of the two never changes."""
    ranks = [_ranks(np.asarray(values, float)) for values in (first, second)]
    centred = [values - values.mean() for values in ranks]
    scale = math.sqrt(float((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / scale if scale else 1.0


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], float)


@dataclass(frozen=True, slots=True)
class _Fit:
    """A ridge regression: n samples, p features, p or more columns.

    Attributes:
        weights: What one unit of each feature adds. (p)
        left_out: Each ratio predicted without its own row. (n)
        errors: Measured over that, minus 1. (n)
        basis: Brings a row of features to the columns. (p, columns)
        inverse: The inverse of the penalised Gram matrix of the columns.
    """

    weights: Floats
    left_out: Floats
    errors: Floats
    basis: Floats
    inverse: Floats

    @property
    def mean_error(self) -> float:
        return float(np.abs(self.errors).mean())

    def design(self, row: Floats, ratio: float) -> Floats:
        """A row of features as the fit sees it."""
        return np.asarray(row @ self.basis / ratio)


def _ridge(rows: Floats, targets: Floats, penalty: float, known: Floats | None = None) -> _Fit:
    """Weights that minimise the mean squared relative error, and each target predicted without its own row.

    Columns are brought to one scale first, so that one penalty fits all. Known weights come as further columns, one
    for each factor that scales a part of them (features, factors); these factors are all but free of a penalty, so
    that the other columns are the deviation from what is known.
    """
    scales = np.sqrt(((rows / targets[:, None]) ** 2).mean(axis=0))
    scales[scales == 0] = 1.0
    basis = np.diag(1 / scales)
    penalties = np.full(len(scales), penalty)
    if known is not None:
        basis = np.hstack([basis, known])
        penalties = np.append(penalties, np.full(known.shape[1], SCALE_PENALTY))
    design = rows @ basis / targets[:, None]
    inverse = np.linalg.inv(design.T @ design + len(targets) * np.diag(penalties))
    factors = inverse @ design.sum(axis=0)
    leverage = np.minimum(np.einsum("ij,jk,ik->i", design, inverse, design), 1 - 1e-9)
    left_out = np.maximum((1 - (1 - design @ factors) / (1 - leverage)) * targets, LOWEST_RATIO)
    return _Fit(basis @ factors, left_out, targets / left_out - 1, basis, inverse)
