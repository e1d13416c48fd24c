"""Predicts the latency of a shape from a few dozen measured ones.

What is learned is the ratio to the anchor model, which holds while the machine's own level drifts. A ridge regression
on counts of the work (products, scores, element-wise work, layers) is enough: the time of a small encoder on one
device is very nearly a sum of such terms. Errors count relative to the ratio, so a 1 ms model matters as much as a
30 ms one. The penalty is chosen by leave-one-out errors, which a ridge gives in closed form, and those same errors
make the interval (the jackknife+ of Barber et al., 2021, arXiv 1905.02928, with one fit instead of n).

Symbols: B batch, T tokens, D hidden, N heads, W heads times head width, F feed-forward width, E embedding width.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.latency import Conditions, Latency, predicted, widened
from search_spaces.architecture import Architecture, Attention, FeedForward, SepConv
from search_spaces.errors import InvalidInputError

SCHEMA_VERSION = 1
MAX_SAMPLES = 10_000
MAX_RATIO = 1e6
COVERAGE = 0.9
PENALTIES = tuple(10.0**power for power in np.arange(-10, 1.01, 0.5))
#: What is left to doubt where two samples or fewer can show no error.
UNTESTED_ERROR = 0.5
LOWEST_RATIO = 1e-4

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured shape: its latency in units of the anchor's."""

    architecture: Architecture
    ratio: float

    def __post_init__(self) -> None:
        is_number = isinstance(self.ratio, int | float) and not isinstance(self.ratio, bool)
        if not is_number or not 0 < self.ratio <= MAX_RATIO:
            raise InvalidInputError(f"a sample's ratio must be above 0 and at most {MAX_RATIO:g}, got {self.ratio!r}")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; :meth:`from_dict` restores an equal value."""
        return {"architecture": self.architecture.to_dict(), "ratio": self.ratio}

    @classmethod
    def from_dict(cls, data: object) -> "Sample":
        """Reads :meth:`to_dict`'s form; raises InvalidInputError where it is not one."""
        if not isinstance(data, dict) or set(data) != {"architecture", "ratio"}:
            raise InvalidInputError("a sample must hold exactly an architecture and a ratio")
        return cls(Architecture.from_dict(data["architecture"]), data["ratio"])


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


def features(architecture: Architecture, seq_len: int, batch_size: int) -> dict[str, float]:
    """Counts of the work that one forward pass does, by name.

    Linear maps, scores and contexts are multiply-accumulates; the rest are elements touched.

    Raises:
        InvalidInputError: The architecture holds a part whose latency cannot be predicted yet.
    """
    if architecture.narrow_from is not None:
        raise InvalidInputError("the latency of narrow layers cannot be predicted yet; leave narrow_from out")
    tokens, pairs = batch_size * seq_len, batch_size * seq_len * seq_len
    work = dict.fromkeys(("layers", "attention", "feed_forward", "scores", "softmax", "hidden", "inner", "width"), 0.0)
    embedding, incoming = architecture.embedding_size, architecture.embedding_size
    work |= {"constant": 1.0, "embedding": float(tokens * embedding), "maps": 0.0}
    for block in architecture.blocks:
        size = block.hidden_size
        work["maps"] += tokens * incoming * size if incoming != size else 0
        incoming = size
        for sublayer in block.sublayers:
            work["hidden"] += tokens * size
            match sublayer:
                case Attention(num_heads):
                    work["layers"] += 1
                    work["attention"] += 4 * tokens * size * sublayer.width
                    work["scores"] += 2 * pairs * sublayer.width
                    work["softmax"] += pairs * num_heads
                    work["width"] += tokens * sublayer.width
                case FeedForward(intermediate_size):
                    work["feed_forward"] += 2 * tokens * size * intermediate_size
                    work["inner"] += tokens * intermediate_size
                case SepConv():
                    raise InvalidInputError(
                        "the latency of separable convolutions cannot be predicted yet; leave them out"
                    )
    return work


class LatencyPredictor:
    """Predicts latencies of one space on one target; made by :meth:`fit` or :meth:`from_dict`.

    Args:
        samples: The measured shapes, each once.
        conditions: What they were measured for.
        anchor_reference_s: The anchor's level that turns ratios into seconds.
        level_interval: Between which multiples of the reference that level moves, 90 % of the time.

    Raises:
        InvalidInputError: There are no samples, too many, one twice, or one that cannot be described.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        conditions: Conditions,
        anchor_reference_s: float,
        level_interval: tuple[float, float] = (1.0, 1.0),
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
        self._names = tuple(features(samples[0].architecture, 1, 1))
        self._ratios = np.array([sample.ratio for sample in samples])
        self._rows = np.array([self._row(sample.architecture) for sample in samples])
        fits = [_ridge(self._rows, self._ratios, penalty) for penalty in PENALTIES]
        self._weights, self._left_out = min(fits, key=lambda fit: float(np.abs(fit[1] / self._ratios - 1).mean()))

    @classmethod
    def fit(
        cls,
        samples: Iterable[Sample],
        conditions: Conditions,
        anchor_reference_s: float,
        level_interval: tuple[float, float] = (1.0, 1.0),
    ) -> "LatencyPredictor":
        """Fits a predictor to measured shapes; see the class."""
        return cls(tuple(samples), conditions, anchor_reference_s, level_interval)

    def predict(self, architecture: Architecture) -> Latency:
        """The latency of a shape, with a 90 % interval.

        Raises:
            InvalidInputError: The shape holds a part that cannot be predicted.
        """
        ratio = max(LOWEST_RATIO, float(self._row(architecture) @ self._weights))
        reach = self.reach
        below, above = widened((ratio / (1 + reach), ratio * (1 + reach)), ratio, self.level_interval)
        p50_s = ratio * self.anchor_reference_s
        low_s, high_s = p50_s * math.exp(-below), p50_s * math.exp(above)
        return predicted(self.conditions, p50_s, low_s, high_s, self.anchor_reference_s)

    @cached_property
    def left_out_errors(self) -> Floats:
        """Measured over predicted minus 1 for each sample, predicted without it."""
        if len(self.samples) == 1:
            return np.array([UNTESTED_ERROR])
        return self._ratios / np.maximum(self._left_out, LOWEST_RATIO) - 1

    @property
    def reach(self) -> float:
        """How far, relative to a prediction, the measured ratio lies at most, 90 % of the time."""
        sizes = np.sort(np.abs(self.left_out_errors))
        rank = math.ceil(COVERAGE * (len(sizes) + 1))
        if len(sizes) <= 2:
            return max(UNTESTED_ERROR, float(sizes[-1]))
        return float(sizes[min(rank, len(sizes)) - 1])

    @property
    def error(self) -> HeldOutError:
        """The error on shapes that were left out of the fit."""
        sizes = np.abs(self.left_out_errors)
        left_out = np.maximum(self._left_out, LOWEST_RATIO)
        return HeldOutError(
            median=float(np.median(sizes)),
            p95=float(np.quantile(sizes, 0.95)),
            spearman=spearman(left_out, self._ratios),
            num_samples=len(self.samples),
        )

    @property
    def coefficients(self) -> dict[str, float]:
        """What one unit of each feature adds to the ratio."""
        return dict(zip(self._names, map(float, self._weights), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; :meth:`from_dict` restores an equal predictor."""
        return {
            "schema_version": SCHEMA_VERSION,
            "conditions": asdict(self.conditions),
            "anchor_reference_s": self.anchor_reference_s,
            "level_interval": list(self.level_interval),
            "samples": [sample.to_dict() for sample in self.samples],
            "coefficients": self.coefficients,
            "error": asdict(self.error),
        }

    @classmethod
    def from_dict(cls, data: object) -> "LatencyPredictor":
        """Reads :meth:`to_dict`'s form. Coefficients and error are for other readers: they are computed anew.

        Raises:
            InvalidInputError: The data is of another schema or breaks a bound.
        """
        names = {"conditions", "anchor_reference_s", "level_interval", "samples", "coefficients", "error"}
        if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
            raise InvalidInputError(f"a predictor must be an object of schema {SCHEMA_VERSION}")
        if set(data) != names | {"schema_version"}:
            raise InvalidInputError(f"a predictor must hold exactly {sorted(names)}, got {sorted(map(str, data))}")
        interval, samples = data["level_interval"], data["samples"]
        if not isinstance(interval, list) or len(interval) != 2 or not isinstance(samples, list):
            raise InvalidInputError("a predictor's level_interval must be two numbers, and its samples a list")
        return cls(
            tuple(map(Sample.from_dict, samples)),
            Conditions.from_dict(data["conditions"]),
            data["anchor_reference_s"],
            (interval[0], interval[1]),
        )

    def _row(self, architecture: Architecture) -> Floats:
        return np.array(
            list(features(architecture, self.conditions.seq_len, self.conditions.batch_size).values()), dtype=float
        )


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


def _ridge(rows: Floats, targets: Floats, penalty: float) -> tuple[Floats, Floats]:
    """Weights that minimise the mean squared relative error, and each target predicted without its own row.

    Columns are brought to one scale first, so that one penalty fits all.
    """
    relative = rows / targets[:, None]
    scales = np.sqrt((relative**2).mean(axis=0))
    scales[scales == 0] = 1.0
    design = relative / scales
    gram = design.T @ design / len(targets) + penalty * np.eye(design.shape[1])
    inverse = np.linalg.inv(gram) / len(targets)
    weights = inverse @ design.sum(axis=0)
    leverage = np.minimum(np.einsum("ij,jk,ik->i", design, inverse, design), 1 - 1e-9)
    left_out = 1 - (1 - design @ weights) / (1 - leverage)
    return weights / scales, left_out * targets
