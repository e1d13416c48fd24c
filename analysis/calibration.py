"""Probabilities that mean what they say: softmax, and the temperature that calibrates it.

Temperature scaling is Guo et al.'s (2017, arXiv 1706.04599).

Shapes: B batch, C classes.
"""

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def softmax(logits: Floats) -> Floats:
    """Probabilities of the last axis."""
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return cast(Floats, raised / raised.sum(-1, keepdims=True))


def fit_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float:
    """The temperature, from 0.05 to 20, that gives held-out labels the highest likelihood (Guo et al., 2017).

    The likelihood is concave in one over the temperature, so thirds of the interval can be dropped until it is small.

    Args:
        logits: Of one exit, (B, C).
        labels: Shape (B,).
    """
    scores = logits.astype(np.float64)

    def loss(inverse: float) -> float:
        scaled = scores * inverse
        top = scaled.max(1)
        return float(
            (np.log(np.exp(scaled - top[:, None]).sum(1)) + top - scaled[np.arange(len(labels)), labels]).mean()
        )

    low, high = 0.05, 20.0
    for _ in range(60):
        first, second = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, second) if loss(first) < loss(second) else (first, high)
    return 2 / (low + high)
