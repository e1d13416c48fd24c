"""A subnet that computes in eight bits, as ONNX Runtime does by dynamic quantisation, in torch.

What a search needs to judge an int8 model before it is exported. The rules are those of the file that an export writes:
a linear map has whole weights from -64 to 64 with a scale for each output, and rounds its inputs to 256 levels between
the lowest and the highest value of the text at hand; a table has 256 levels over all its rows. Products of two
activations, norms, softmax and the few weights of a depthwise convolution stay floats. Where a narrow attention absorbs
its keys and values, their weights are whole numbers from -127 to 127 and its inputs stay floats.

Shapes: B batch, T tokens, M positions that are kept, N layers, D hidden, O outputs, I inputs of a linear map, V rows,
E width.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from search_spaces.architecture import Architecture, Attention
from search_spaces.cost import is_absorbed_cheaper
from supernet.checkpoint import AnySupernet
from supernet.encoder import AttentionSublayer, Encoder
from supernet.extract import extract

LINEAR_LEVELS = 64
ABSORBED_LEVELS = 127
ACTIVATION_LEVELS = 255


class AnyBatch(Protocol):
    """Token ids, their mask (1 where a token is real, all of them first) and perhaps their segments; each (B, T)."""

    @property
    def input_ids(self) -> Tensor: ...

    @property
    def attention_mask(self) -> Tensor: ...

    @property
    def token_type_ids(self) -> Tensor | None: ...


def row_scale(weight: Tensor, levels: int = LINEAR_LEVELS) -> Tensor:
    """The step between two values of each row of (O, I), whose largest absolute weight is the last level: (O, 1)."""
    return (weight.detach().abs().amax(-1, keepdim=True) / levels).clamp(min=1e-12)


def rounded_rows(weight: Tensor, levels: int = LINEAR_LEVELS) -> Tensor:
    """A matrix (O, I) whose rows are whole multiples of a scale each."""
    scale = row_scale(weight, levels)
    return torch.round(weight / scale).clamp(-levels, levels) * scale


def rounded_texts(values: Tensor) -> Tensor:
    """Values (B, ...) rounded to 256 levels between the lowest and the highest of each text, 0 being one of them."""
    return _rounded_between(values, tuple(range(1, values.ndim)))


def rounded_table(table: Tensor) -> Tensor:
    """A table (V, E) rounded to 256 levels between its lowest and its highest value."""
    return _rounded_between(table, (0, 1))


def _rounded_between(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    low, high = values.amin(axes, keepdim=True).clamp(max=0), values.amax(axes, keepdim=True).clamp(min=0)
    scale = ((high - low) / ACTIVATION_LEVELS).clamp(min=torch.finfo(values.dtype).tiny)
    zero = torch.round(-low / scale)
    return ((torch.round(values / scale) + zero).clamp(0, ACTIVATION_LEVELS) - zero) * scale


class Int8Linear(nn.Module):
    """A linear map of rounded weights and rounded inputs."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = rounded_rows(linear.weight), linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps (B, ..., I) to (B, ..., O)."""
        return F.linear(rounded_texts(inputs), self.weight, self.bias)


@torch.no_grad()
def round_encoder(encoder: Encoder) -> Encoder:
    """Has an encoder compute in eight bits, in place; one text, or texts of one length, at a time."""
    absorbed = _absorb(encoder)
    for parent in list(encoder.modules()):
        if isinstance(parent, nn.Embedding):
            parent.weight.copy_(rounded_table(parent.weight))
        for name, child in list(parent.named_children()):
            if child in absorbed:
                child.weight.copy_(rounded_rows(child.weight, ABSORBED_LEVELS))
            elif type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))
    return encoder


def _absorb(encoder: Encoder) -> set[nn.Linear]:
    """Settles the form of every narrow attention as its file has it; the keys and values that are absorbed."""
    absorbed = set()
    for step in encoder.steps:
        if step.is_narrow and isinstance(step.sublayer, Attention):
            module = encoder.get_submodule(step.name)
            assert isinstance(module, AttentionSublayer)
            sizes = (step.sublayer.head_size, step.source_size, encoder.text.max_positions)
            module.is_absorbed = is_absorbed_cheaper(*sizes, 1)
            if module.is_absorbed:
                absorbed |= {module.key, module.value}
                module.output.bias.add_(module.output.weight @ module.value.bias)  # where the file has it
                module.value.bias.zero_()
    return absorbed


def subnet_runner(supernet: AnySupernet, architecture: Architecture) -> Callable[[AnyBatch], Tensor]:
    """A subnet in the number format that its architecture names, as a function from a batch to last hidden states.

    Args:
        supernet: Where the weights come from; not changed.
        architecture: A member of its space, or a narrow form of one, whatever it runs in.

    Returns:
        Gives (B, T, D), or (B, M, D) with narrow layers. Each text of an int8 subnet is as if it were run by itself.

    Raises:
        InvalidInputError: The architecture is not of the supernet's space.
    """
    shape = architecture.shape
    if architecture.precision == "fp32":
        supernet.check_member(shape)
        return lambda batch: supernet(shape, batch.input_ids, batch.attention_mask, batch.token_type_ids).hidden[-1]
    encoder = round_encoder(extract(supernet, shape))
    return lambda batch: run_by_length(encoder, batch)


def layer_runner(supernet: AnySupernet, architecture: Architecture) -> Callable[[AnyBatch], Tensor]:
    """As :func:`subnet_runner`, but what is given are the states behind every layer, (N, B, T, D).

    Args:
        supernet: Where the weights come from; not changed.
        architecture: A uniform member of its space without narrow layers, whatever it runs in.

    Raises:
        InvalidInputError: The architecture is not of the supernet's space.
    """
    shape = architecture.shape
    if architecture.precision == "fp32":
        supernet.check_member(shape)
        return lambda batch: torch.stack(
            supernet(shape, batch.input_ids, batch.attention_mask, batch.token_type_ids).hidden
        )
    encoder, states = round_encoder(extract(supernet, shape)), list[Tensor]()
    for sublayer in encoder.block(0).sublayers[1::2]:  # the second of each layer
        sublayer.register_forward_hook(lambda module, given, hidden: states.append(hidden))

    def run(batch: AnyBatch) -> Tensor:
        layers = torch.zeros(shape.num_layers, *batch.input_ids.shape, shape.hidden_size)
        for rows, inputs in _by_length(batch):
            states.clear()
            encoder(*inputs)
            layers[:, rows, : states[0].shape[1]] = torch.stack(states)
        return layers

    return run


def run_by_length(encoder: Encoder, batch: AnyBatch) -> Tensor:
    """Runs texts of one length together, so that no padding widens the range of their values."""
    num_texts, longest = batch.input_ids.shape
    width = longest if encoder.keeps_all_positions else 1
    hidden = torch.zeros(num_texts, width, encoder.architecture.hidden_size)
    for rows, inputs in _by_length(batch):
        found = encoder(*inputs)
        hidden[rows, : found.shape[1]] = found
    return hidden


def _by_length(batch: AnyBatch) -> Iterator[tuple[Tensor, tuple[Tensor, None, Tensor | None]]]:
    """Which texts are of one length, (B,), and what an encoder reads of them, padding left out."""
    lengths = batch.attention_mask.sum(1)
    for length in sorted(set(lengths.tolist())):
        rows = lengths == length
        types = None if batch.token_type_ids is None else batch.token_type_ids[rows, :length]
        yield rows, (batch.input_ids[rows, :length], None, types)
