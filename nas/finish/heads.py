"""What turns an encoder's states into a task's answer.

Shapes: B batch, T tokens, M words or positions, D hidden, C outputs (labels, or 1 for a number).
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from nas.export.task_head import Activation, Pooling, TaskHead, stock_activation
from supernet.encoder import Encoder
from supernet.losses import pool
from supernet.narrow import check_all_positions
from supernet.task_spec import TaskSpec

DROPOUT = 0.1
_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "gelu": F.gelu, "relu": F.relu}


class Head(nn.Module):
    """The head of the stock classes: ``out(activation(dense(pooled)))``, or ``out(state)`` for tags.

    Args:
        spec: What it answers.
        hidden_size: D.
        pooling: Which state stands for a text.
        activation: Behind ``dense``; see :func:`nas.export.task_head.stock_activation`.
    """

    def __init__(
        self, spec: TaskSpec, hidden_size: int, *, pooling: Pooling = "first", activation: Activation = "tanh"
    ) -> None:
        super().__init__()
        self.spec, self.pooling, self.activation = spec, pooling, activation
        self.dense = None if spec.kind == "tagging" else nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, spec.num_outputs)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Maps states (B, T, D) to logits: (B, C), or of tags (B, T, C).

        Args:
            states: The encoder's; of position 0 alone, (B, 1, D), they do for pooling ``first``.
            attention_mask: 1 where a token is real, (B, T); needed for pooling ``mean``.
        """
        logits: Tensor
        if self.dense is None:
            logits = self.out(self.dropout(states))
            return logits
        if self.pooling == "mean":
            assert attention_mask is not None
            pooled = pool(states, attention_mask)
        else:
            pooled = states[:, 0]
        logits = self.out(self.dropout(_ACTIVATIONS[self.activation](self.dense(pooled))))
        return logits

    def exported(self) -> TaskHead:
        """Its shape and weights as arrays."""
        weights: dict[str, NDArray[np.float32]] = {
            name: tensor.detach().cpu().float().numpy() for name, tensor in self.state_dict().items()
        }
        return TaskHead(self.spec, self.pooling, self.activation, weights)


def new_head(
    spec: TaskSpec,
    encoder: Encoder,
    *,
    seed: int,
    pooling: Pooling = "first",
    label_scale: tuple[float, float] = (0.0, 1.0),
) -> Head:
    """A fresh head for an encoder: ``dense`` passes states on, ``out`` is small and random.

    Args:
        spec: What it shall answer.
        encoder: What it stands on.
        seed: Of the random weights.
        pooling: Which state stands for a text.
        label_scale: Mean and spread of the numbers of a regression, so that it begins among them.

    Raises:
        InvalidInputError: Mean pooling, and the encoder has narrow layers.
    """
    if pooling == "mean" and spec.kind != "tagging":
        check_all_positions(encoder.architecture, "mean pooling")
    architecture = encoder.architecture
    head = Head(spec, architecture.hidden_size, pooling=pooling, activation=stock_activation(architecture))
    mean, spread = label_scale
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if head.dense is not None:
            nn.init.eye_(head.dense.weight)
            head.dense.bias.zero_()
        head.out.weight.normal_(0, 0.02 * spread, generator=generator)
        head.out.bias.fill_(mean)
    return head
