"""What a subnet is taught: hidden states, pooled sentences, attention, relations and masked tokens.

Every distillation loss but AutoTinyBERT's two plain mean squares is normalised by the target's own variance, so that 0
is the target itself and 1 is knowing its mean alone. The teacher's units are sorted like the supernet's, so the leading
units correspond.

Shapes: B batch, T tokens, M positions that narrow layers keep, D hidden, N heads, K head width, R relation heads,
V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from supernet.elastic import ElasticLinear
from supernet.model import MAX_SPECIALISED_WIDTHS, States, select_layers
from supernet.narrow import take


@dataclass(frozen=True)
class Kept:
    """The positions that the narrow layers of a step update.

    Attributes:
        index: Which they are, ascending, int64 (B, M); filled up with others where a text has fewer.
        is_kept: Whether each place holds a chosen position, boolean (B, M).
    """

    index: Tensor
    is_kept: Tensor


class OutputMaps(nn.Module):
    """Learned linear maps from a subnet's last state to the teacher's width; training only.

    One map for each hidden size, or, where the sizes are many, one for all of them whose columns are sliced
    (AutoTinyBERT's).

    Args:
        sizes: The hidden sizes of the space.
        full_size: Width of the target.
    """

    def __init__(self, sizes: tuple[int, ...], full_size: int) -> None:
        super().__init__()
        widths = {str(size): size for size in sizes if size != full_size}
        if len(sizes) > MAX_SPECIALISED_WIDTHS:
            widths = {"shared": max(sizes)}
        self.maps = nn.ModuleDict({key: ElasticLinear(width, full_size) for key, width in widths.items()})
        for linear in self.linears():
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)

    def linears(self) -> list[ElasticLinear]:
        """All maps."""
        return [linear for linear in self.maps.values() if isinstance(linear, ElasticLinear)]

    def of_size(self, size: int) -> ElasticLinear | None:
        """The map for a hidden size; None where the states are of the target's width already."""
        key = "shared" if "shared" in self.maps else str(size)
        linear = dict(self.maps.items()).get(key)
        assert linear is None or isinstance(linear, ElasticLinear)
        return linear

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (..., D) to (..., full size)."""
        linear = self.of_size(hidden.shape[-1])
        mapped: Tensor = hidden if linear is None else linear(hidden)
        return mapped

    @torch.no_grad()
    def inherit(self, source: "OutputMaps") -> None:
        """Takes the maps of a space that holds this one's sizes, to the same width."""
        for linear in self.linears():
            origin = source.of_size(linear.in_features)
            assert origin is not None
            linear.weight.copy_(origin.weight[:, : linear.in_features])
            linear.bias.copy_(origin.bias)


def unexplained(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared error over the target's variance, over real tokens: 0 is equal, 1 is no better than the mean.

    Args:
        prediction: Shape (B, T, D).
        target: Shape (B, T, D); no gradient flows into it.
        mask: 1 where a token is real, shape (B, T).
    """
    target = target.detach().float()
    weight = mask[..., None].float()
    count = weight.sum().clamp(min=1)
    mean = (target * weight).sum((0, 1)) / count
    error = ((prediction.float() - target).square() * weight).sum()
    spread = ((target - mean).square() * weight).sum()
    return error / spread.clamp(min=1e-12)


def hidden_loss(student: States, target: States, mask: Tensor, maps: OutputMaps, kept: Kept | None = None) -> Tensor:
    """Unexplained share of the target's states: leading units at each layer, all units at the last.

    A subnet's layers learn from the target's at the same relative depth, the last one from the last.

    Args:
        student: The subnet's states.
        target: States of every layer of the full model, all of all positions.
        mask: 1 where a token is real, shape (B, T).
        maps: From the subnet's last state to the target's width.
        kept: The positions of the subnet's narrow states, where it has some.
    """
    num_layers = max(len(student.layers), len(student.hidden))
    *depths, last = select_layers(num_layers, len(target.hidden), "alternate")
    places = [*depths[: len(student.hidden) - 1], last]  # a ContextFirst end has no states but its last
    shares = []
    for number, (hidden, place) in enumerate(zip(student.hidden, places, strict=True)):
        wanted, weight = _at(target.hidden[place], mask, kept if number >= student.num_full else None)
        prediction = maps(hidden) if number + 1 == len(places) else hidden
        shares.append(unexplained(prediction, wanted[..., : prediction.shape[-1]], weight))
    return shares[-1] + torch.stack(shares[:-1]).mean() if len(shares) > 1 else shares[-1]


def output_loss(student: States, target: States, mask: Tensor, maps: OutputMaps, kept: Kept | None = None) -> Tensor:
    """Mean squared difference of the mapped last states from the target's, over real tokens and units.

    AutoTinyBERT's hidden loss (Yin et al., 2021, arXiv 2107.13686).
    """
    wanted, weight = _at(target.hidden[-1], mask, kept if is_narrow(student) else None)
    error: Tensor = (maps(student.hidden[-1]).float() - wanted.detach().float()).square().mean(-1)
    return (error * weight).sum() / weight.sum().clamp(min=1)


def is_narrow(states: States) -> bool:
    """Whether the last state is of kept positions only."""
    return states.num_full < len(states.hidden)


def _at(states: Tensor, mask: Tensor, kept: Kept | None) -> tuple[Tensor, Tensor]:
    """States (B, T, D) and their mask, or those of the kept positions: (B, M, D) and (B, M)."""
    return (states, mask) if kept is None else (take(states, kept.index), kept.is_kept)


def pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens: (B, T, D) and (B, T) to (B, D), in float32."""
    weight = mask[..., None].float()
    return (hidden.float() * weight).sum(1) / weight.sum(1).clamp(min=1)


def pooled_loss(ours: Tensor, theirs: Tensor) -> Tensor:
    """Distance of whole texts' states: their directions, and their similarities within the batch.

    The similarity part is relational distillation (Park et al., 2019, arXiv 1904.05068) on cosines.

    Args:
        ours: A subnet's states of the texts, at the target's width, shape (B, D).
        theirs: The target's, shape (B, D); no gradient flows into them.
    """
    ours, theirs = (F.normalize(states.float(), dim=-1) for states in (ours, theirs.detach()))
    direction = (1 - (ours * theirs).sum(-1)).mean()
    similarity = (ours @ ours.T - theirs @ theirs.T).square().sum() / max(1, ours.shape[0] * (ours.shape[0] - 1))
    return direction + 10 * similarity


def attention_scores(states: States) -> Tensor:
    """Pre-softmax attention scores of the last layer, q k^T / sqrt(K): (B, N, T, T)."""
    assert states.relations is not None
    query, key, _ = states.relations
    return query.float() @ key.float().transpose(2, 3) / math.sqrt(query.shape[-1])


def attention_loss(student: States, target: States, mask: Tensor) -> Tensor:
    """Mean squared difference of the last layers' attention scores, over heads and pairs of real tokens.

    AutoTinyBERT's attention loss (Yin et al., 2021, arXiv 2107.13686): each one's scores are scaled by its own head
    width, and heads correspond one to one.

    Args:
        student: States with ``relations``.
        target: States with ``relations``, of as many heads.
        mask: 1 where a token is real, shape (B, T).
    """
    ours, theirs = attention_scores(student), attention_scores(target).detach()
    is_real = mask.bool()[:, None, :, None] & mask.bool()[:, None, None, :]
    error = (ours - theirs).square().masked_fill(~is_real, 0).sum()
    return error / (is_real.sum() * ours.shape[1]).clamp(min=1)


def num_relation_heads(student_width: int, teacher_width: int, most: int = 12) -> int:
    """The most relation heads, up to ``most``, that both widths divide into."""
    common = math.gcd(student_width, teacher_width)
    return max(count for count in range(1, most + 1) if common % count == 0)


def relation_loss(student: States, target: States, mask: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the q-q, k-k and v-v relations of the last layers.

    MiniLMv2 (Wang et al., 2021, arXiv 2012.15828): relations free head count and width from the teacher's.

    Args:
        student: States with ``relations``.
        target: States with ``relations``.
        mask: 1 where a token is real, shape (B, T).
    """
    assert student.relations is not None
    assert target.relations is not None
    total = torch.zeros((), device=mask.device)
    for ours, theirs in zip(student.relations, target.relations, strict=True):
        heads = num_relation_heads(ours.shape[1] * ours.shape[3], theirs.shape[1] * theirs.shape[3])
        log_ours = _relation(ours, mask, heads)
        log_theirs = _relation(theirs.detach(), mask, heads)
        divergence = (log_theirs.exp() * (log_theirs - log_ours)).masked_fill(~mask.bool()[:, None, None, :], 0).sum(-1)
        total = total + (divergence * mask[:, None, :]).sum() / (mask.sum() * heads)
    return total / 3


def _relation(states: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Log-softmax of the scaled products of (B, N, T, K) regrouped into R relation heads: (B, R, T, T)."""
    flat = states.float().transpose(1, 2).flatten(2)  # (B, T, N * K)
    grouped = flat.view(*flat.shape[:2], heads, -1).transpose(1, 2)  # (B, R, T, N * K / R)
    scores = grouped @ grouped.transpose(2, 3) / math.sqrt(grouped.shape[-1])
    return F.log_softmax(scores.masked_fill(~mask.bool()[:, None, None, :], -1e9), dim=-1)


def masked_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (M, V) of the masked positions against their tokens (M,); 0 where nothing is masked."""
    if labels.numel() == 0:
        return logits.sum() * 0
    return F.cross_entropy(logits.float(), labels)


def soft_token_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the subnet's token distribution (M, V) from the target's (M, V)."""
    if logits.shape[0] == 0:
        return logits.sum() * 0
    return F.kl_div(
        F.log_softmax(logits.float(), -1),
        F.log_softmax(target.detach().float(), -1),
        reduction="batchmean",
        log_target=True,
    )
