"""A task model with an exit behind every layer, in torch; every exit but the last may have a gate, DACT's h_n.

Shapes: B batch, T tokens, D hidden, C classes, N exits.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.export.task_head import Activation, Pooling
from nas.finish.exit_layers import check_can_exit, layers_of
from nas.finish.heads import Head
from supernet.encoder import Encoder, check_text, key_mask
from supernet.losses import pool
from supernet.task_spec import TaskSpec

#: Gates begin at sigmoid(2) = 0.88, nearly open: at one half each, deep layers would hardly count and learn nothing.
GATE_BIAS = 2.0


class ExitModel(nn.Module):
    """An encoder with a head, and perhaps a gate, behind each layer.

    Args:
        encoder: The backbone.
        spec: What every head answers.
        pooling: Which state stands for a text at the last exit, whose head is the task model's.
        early: The same of all other exits. Of an encoder that was trained to be pooled by the mean, position 0 says
            little before its last layers.
        activation: Of the heads.
        has_gates: Whether each exit but the last has a gate.
        seed: Of the heads' random weights.

    Raises:
        InvalidInputError: See :func:`nas.finish.exit_layers.check_can_exit`.
    """

    def __init__(
        self,
        encoder: Encoder,
        spec: TaskSpec,
        *,
        pooling: Pooling = "first",
        early: Pooling = "mean",
        activation: Activation = "tanh",
        has_gates: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_can_exit(encoder.architecture, spec)
        self.encoder, self.spec, self.pooling, self.early, self.activation = encoder, spec, pooling, early, activation
        self.layers = layers_of(encoder.architecture)
        widths = [layer[-1].hidden_size for layer in self.layers]
        self.heads = nn.ModuleList(
            _fresh(Head(spec, width, pooling=own, activation=activation), seed + place)
            for place, (width, own) in enumerate(zip(widths, self.poolings, strict=True))
        )
        self.gates = nn.ModuleList(nn.Linear(width, 1) for width in widths[:-1]) if has_gates else nn.ModuleList()
        for gate in self.gates:
            assert isinstance(gate, nn.Linear)
            nn.init.zeros_(gate.weight)
            nn.init.constant_(gate.bias, GATE_BIAS)

    @property
    def num_exits(self) -> int:
        """N, as many as layers."""
        return len(self.layers)

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """Of each exit."""
        return (*[self.early] * (self.num_exits - 1), self.pooling)

    @property
    def has_gates(self) -> bool:
        """Whether it was made for DACT."""
        return len(self.gates) > 0

    def head(self, place: int) -> Head:
        """The head of an exit."""
        head = self.heads[place]
        assert isinstance(head, Head)
        return head

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """What the first layer reads: (B, T, D) for token ids (B, T)."""
        check_text(self.encoder.text, input_ids)
        embedded: Tensor = self.encoder.embeddings(input_ids, token_type_ids)
        return embedded

    def advance(self, place: int, hidden: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Runs one layer and its exit.

        Args:
            place: Index of the layer, from 0.
            hidden: What the layer before left, (B, T, D).
            attention_mask: 1 where a token is real, (B, T).

        Returns:
            The layer's states (B, T, D), the head's logits (B, C), and the gate before its sigmoid (B,), or None.
        """
        mask = key_mask(attention_mask)
        for step in self.layers[place]:
            part = self.encoder.get_submodule(step.name)
            hidden = part(hidden) if step.sublayer is None else part(hidden, mask)
        logits: Tensor = self.head(place)(hidden, attention_mask)
        if place >= len(self.gates):
            return hidden, logits, None
        pooled = pool(hidden, attention_mask) if self.early == "mean" else hidden[:, 0]
        gate: Tensor = self.gates[place](pooled)[:, 0]
        return hidden, logits, gate

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Runs every layer: it never stops, as training wants it.

        Returns:
            Logits of all exits, (N, B, C), and of all gates, (N - 1, B), or None where there are none.
        """
        hidden = self.embed(input_ids, token_type_ids)
        logits, gates = [], []
        for place in range(self.num_exits):
            hidden, answer, gate = self.advance(place, hidden, attention_mask)
            logits.append(answer)
            gates += [] if gate is None else [gate]
        return torch.stack(logits), torch.stack(gates) if gates else None


def _fresh(head: Head, seed: int) -> Head:
    """Begins a head as :func:`nas.finish.heads.new_head` does, for states of any width."""
    assert head.dense is not None
    with torch.no_grad():
        nn.init.eye_(head.dense.weight)
        head.dense.bias.zero_()
        head.out.weight.normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))
        head.out.bias.zero_()
    return head


class TorchLayers:
    """The layers of an :class:`ExitModel` as :func:`nas.finish.exits.run` drives them."""

    def __init__(self, model: ExitModel) -> None:
        self.model = model.eval()
        self.num_exits, self.num_classes = model.num_exits, model.spec.num_outputs
        self._device = next(model.parameters()).device

    def advance(
        self, place: int, hidden: Any, batch: Mapping[str, NDArray[np.int64]]
    ) -> tuple[Any, NDArray[np.float64], NDArray[np.float64] | None]:
        """Runs one layer; see :class:`nas.finish.exits.Layers`."""
        with torch.no_grad():
            tensors = {name: torch.from_numpy(array).to(self._device) for name, array in batch.items()}
            if place == 0:
                hidden = self.model.embed(tensors["input_ids"], tensors.get("token_type_ids"))
            hidden, logits, gate = self.model.advance(place, hidden, tensors["attention_mask"])
        return hidden, _numbers(logits), None if gate is None else _numbers(gate)

    def keep(self, hidden: Any, rows: NDArray[np.bool_]) -> Any:
        """The states of some rows."""
        return hidden[torch.from_numpy(rows).to(self._device)]


def _numbers(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().double().cpu().numpy()
