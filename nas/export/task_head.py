"""The head that turns an encoder's states into a task's answer.

Shapes: B batch, T tokens, M positions that are wanted, D hidden, C labels (1 for a number).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from search_spaces.architecture import Architecture
from supernet.task_spec import TaskSpec

Pooling = Literal["first", "mean"]
Activation = Literal["tanh", "gelu", "relu"]


@dataclass(frozen=True)
class TaskHead:
    """A head's shape and, unless only its time matters, its weights.

    Classification and regression: ``out(activation(dense(pooled)))``; tagging: ``out(state)`` of each position.

    Attributes:
        spec: What it answers.
        pooling: Which state stands for a text: position 0, or the mean of all.
        activation: Behind ``dense``.
        weights: ``dense.weight`` (D, D), ``dense.bias``, ``out.weight`` (C, D), ``out.bias``, float32; without
            ``dense`` for tagging. None for a shape that is only timed.
    """

    spec: TaskSpec
    pooling: Pooling = "first"
    activation: Activation = "tanh"
    weights: Mapping[str, NDArray[np.float32]] | None = field(default=None, repr=False, compare=False)

    def shapes(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights for an encoder that is D wide at its end."""
        outputs = self.spec.num_outputs
        shapes: dict[str, tuple[int, ...]] = {"out.weight": (outputs, hidden_size), "out.bias": (outputs,)}
        if self.spec.kind == "tagging":
            return shapes
        return {"dense.weight": (hidden_size, hidden_size), "dense.bias": (hidden_size,)} | shapes


def stock_activation(architecture: Architecture) -> Activation:
    """The activation of the head that a stock class has for an encoder: BERT's is tanh, Electra's gelu."""
    return "tanh" if architecture.embedding_size == architecture.hidden_size else "gelu"
