"""What a subnet is taught: hidden states, pooled sentences, relations and masked tokens.

Every distillation loss is normalised by the target's own variance, so that 0 is the target itself and 1 is knowing
its mean alone. The teacher's units are sorted like the supernet's, so the leading units correspond.

Shapes: B batch, T tokens, D hidden, N heads, K head width, R relation heads, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from supernet.model import States

IGNORED = -100


class OutputMaps(nn.Module):
    """One learned linear map per hidden size, from a subnet's last state to the full width; training only.

    Args:
        sizes: The hidden sizes below the full one.
        full_size: Width of the target.
    """

    def __init__(self, sizes: tuple[int, ...], full_size: int) -> None:
        super().__init__()
        self.maps = nn.ModuleDict()
        for size in sizes:
            if size != full_size:
                linear = nn.Linear(size, full_size)
                nn.init.eye_(linear.weight)
                nn.init.zeros_(linear.bias)
                self.maps[str(size)] = linear

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (..., D) to (..., full size)."""
        key = str(hidden.shape[-1])
        mapped: Tensor = self.maps[key](hidden) if key in self.maps else hidden
        return mapped


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


def hidden_loss(student: States, target: States, mask: Tensor, maps: OutputMaps) -> Tensor:
    """Unexplained share of the target's states: leading units at each kept layer, all units at the last.

    Args:
        student: The subnet's states.
        target: States of every layer of the full model, in supernet layer order.
        mask: 1 where a token is real, shape (B, T).
        maps: From the subnet's last state to the target's width.
    """
    last = unexplained(maps(student.hidden[-1]), target.hidden[student.layers[-1]], mask)
    if len(student.hidden) == 1:
        return last
    inner = [
        unexplained(hidden, target.hidden[layer][..., : hidden.shape[-1]], mask)
        for hidden, layer in zip(student.hidden[:-1], student.layers[:-1], strict=True)
    ]
    return last + torch.stack(inner).mean()


def pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens: (B, T, D) and (B, T) to (B, D), in float32."""
    weight = mask[..., None].float()
    return (hidden.float() * weight).sum(1) / weight.sum(1).clamp(min=1)


def pooled_loss(student: States, target: States, mask: Tensor, maps: OutputMaps) -> Tensor:
    """Distance of mean-pooled sentences: their directions, and their similarities within the batch.

    The similarity part is relational distillation (Park et al., 2019, arXiv 1904.05068) on cosines.
    """
    ours = F.normalize(pool(maps(student.hidden[-1]), mask), dim=-1)
    theirs = F.normalize(pool(target.hidden[-1].detach(), mask), dim=-1)
    direction = (1 - (ours * theirs).sum(-1)).mean()
    similarity = (ours @ ours.T - theirs @ theirs.T).square().sum() / max(1, ours.shape[0] * (ours.shape[0] - 1))
    return direction + 10 * similarity


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
