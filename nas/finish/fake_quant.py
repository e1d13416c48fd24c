"""Training that feels int8: weights and activations rounded in the forward pass, exact in the backward pass.

Quantisation-aware training as in Prune Once for All (Zafrir et al., 2021, arXiv 2111.05754) and Q8BERT (Zafrir et al.,
2019, arXiv 1910.06188): weights symmetric, one scale a matrix, so that a pruned weight stays zero; activations affine
in eight unsigned bits, their range a moving average; gradients pass straight through. Where we depart: weights take the
values -64 to 64, because processors without VNNI add two products in 16 bits (:mod:`nas.export.int8`), and tables get a
scale a row, as rows are read, never multiplied.

Shapes: O outputs, I inputs of a linear map, V rows of a table, E its width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from nas.export.int8 import WEIGHT_LEVELS, Int8Matrix
from nas.export.qdq import Int8Linear, Int8Weights
from supernet.encoder import Encoder
from supernet.int8 import row_scale as row_scale

TABLE_LEVELS = 127
ACTIVATION_LEVELS = 255
BIAS_LEVELS = 2**31 - 1
AVERAGING = 0.05


class ActivationRange(nn.Module):
    """Rounds activations to 256 levels between two ends that follow what it sees in training.

    Attributes:
        low: Moving average of the lowest value of a batch, at most 0; not a number before the first.
        high: The same of the highest, at least 0.
    """

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(float("nan")))
        self.register_buffer("high", torch.tensor(float("nan")))

    def forward(self, activations: Tensor) -> Tensor:
        """Rounds activations of any shape; what lies outside the range is cut, and gets no gradient."""
        if self.training:
            self._follow(activations.detach())
        scale, zero_point = self.scale_and_zero()
        rounded: Tensor = torch.fake_quantize_per_tensor_affine(activations, scale, zero_point, 0, ACTIVATION_LEVELS)
        return rounded

    def scale_and_zero(self) -> tuple[Tensor, Tensor]:
        """The step between two levels, float32, and the level of zero, int32; both scalars."""
        scale = ((self.high - self.low) / ACTIVATION_LEVELS).clamp(min=1e-8)
        return scale, torch.round(-self.low / scale).clamp(0, ACTIVATION_LEVELS).to(torch.int32)

    def _follow(self, activations: Tensor) -> None:
        for end, seen in ((self.low, activations.amin().clamp(max=0)), (self.high, activations.amax().clamp(min=0))):
            end.copy_(torch.where(end.isnan(), seen, end + AVERAGING * (seen.float() - end)))


class FakeQuantLinear(nn.Linear):
    """A linear map whose weights, inputs and bias are rounded; it shares the parameters of the one it stands for."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.input_range = ActivationRange().to(linear.weight.device)

    def forward(self, activations: Tensor) -> Tensor:
        """Maps (..., I) to (..., O)."""
        scale = matrix_scale(self.weight)
        inputs = self.input_range(activations)
        step = scale.view(()) * self.input_range.scale_and_zero()[0]  # of the sums that integer kernels form
        weight, bias = _rounded(self.weight, scale, WEIGHT_LEVELS), _rounded(self.bias, step, BIAS_LEVELS)
        return F.linear(inputs, weight, bias)


class FakeQuantEmbedding(nn.Embedding):
    """A table whose rows are rounded; it shares the parameter of the one it stands for."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__(table.num_embeddings, table.embedding_dim, table.padding_idx, device="meta")
        self.weight = table.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Reads rows: ids (...) to (..., E)."""
        rows: Tensor = super().forward(ids)
        return _rounded(rows, row_scale(rows, TABLE_LEVELS), TABLE_LEVELS)


class _Round(torch.autograd.Function):
    """Rounds to multiples of a scale; the gradient passes as if nothing were rounded."""

    @staticmethod
    def forward(_context: object, values: Tensor, scale: Tensor, levels: int) -> Tensor:
        return torch.round(values / scale).clamp(-levels, levels) * scale

    @staticmethod
    def backward(_context: object, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


def _rounded(values: Tensor, scale: Tensor, levels: int) -> Tensor:
    rounded: Tensor = _Round.apply(values, scale, levels)  # type: ignore[no-untyped-call]
    return rounded


def matrix_scale(weight: Tensor, levels: int = WEIGHT_LEVELS) -> Tensor:
    """The step between two values of a matrix (O, I): its largest absolute weight is the last level; (1, 1)."""
    return (weight.detach().abs().amax() / levels).clamp(min=1e-12).view(1, 1)


def int8_matrix(weight: Tensor, scale: Tensor, levels: int = WEIGHT_LEVELS) -> Int8Matrix:
    """A matrix (O, I) as int8, with a scale of (1, 1) or (O, 1)."""
    values = torch.round(weight.detach() / scale).clamp(-levels, levels).to(torch.int8)
    return Int8Matrix(values.cpu().numpy(), scale.detach().float().cpu().numpy())


def insert(encoder: Encoder) -> None:
    """Has an encoder's linear maps and tables round, in place; parameters stay the same objects.

    Narrow attention forms its keys and values meanwhile: an absorbed matrix has no input of its own to round.
    """
    encoder.absorb(False)
    for parent in list(encoder.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, FakeQuantLinear(child))
            elif type(child) is nn.Embedding:
                setattr(parent, name, FakeQuantEmbedding(child))


@torch.no_grad()
def remove(encoder: Encoder) -> Int8Weights:
    """Undoes :func:`insert`, leaves the rounded weights in the encoder, and returns them as int8 with their ranges."""
    linears: dict[str, Int8Linear] = {}
    tables: dict[str, Int8Matrix] = {}
    for parent_name, parent in list(encoder.named_modules()):
        for name, child in list(parent.named_children()):
            full = f"{parent_name}.{name}.weight".lstrip(".")
            if isinstance(child, FakeQuantLinear):
                matrix = int8_matrix(child.weight, matrix_scale(child.weight))
                scale, zero_point = child.input_range.scale_and_zero()
                linears[full] = Int8Linear(matrix, float(scale), int(zero_point))
                plain: nn.Module = nn.Linear(child.in_features, child.out_features, device="meta")
                plain.bias = child.bias
            elif isinstance(child, FakeQuantEmbedding):
                matrix = tables[full] = int8_matrix(child.weight, row_scale(child.weight, TABLE_LEVELS), TABLE_LEVELS)
                plain = nn.Embedding(child.num_embeddings, child.embedding_dim, child.padding_idx, device="meta")
            else:
                continue
            child.weight.copy_(torch.from_numpy(matrix.dense()))
            plain.weight = child.weight
            setattr(parent, name, plain)
    encoder.absorb(None)
    return Int8Weights(linears, tables)
