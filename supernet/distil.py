"""One training step: the subnets of a step learn from the teacher, from the largest subnet, or from masked tokens.

Shapes: B batch, T tokens, D hidden, N heads, K head width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search_spaces.architecture import Architecture, Attention
from search_spaces.errors import InvalidInputError
from supernet.data import Batch, mask_tokens
from supernet.encoder import AttentionSublayer, Encoder, FeedForwardSublayer, key_mask
from supernet.losses import (
    OutputMaps,
    hidden_loss,
    masked_token_loss,
    pooled_loss,
    relation_loss,
    soft_token_loss,
    unexplained,
)
from supernet.model import States, Supernet, select_layers


@dataclass(frozen=True)
class LossWeights:
    """How much each loss counts; 0 leaves it out.

    Attributes:
        hidden: Hidden states, all kept layers and the last one.
        pooled: Mean-pooled sentences.
        relation: q-q, k-k and v-v relations of the last layer.
        mlm: Masked tokens.
    """

    hidden: float = 1.0
    pooled: float = 1.0
    relation: float = 0.0
    mlm: float = 0.0

    def __post_init__(self) -> None:
        values = (self.hidden, self.pooled, self.relation, self.mlm)
        if not all(0 <= value <= 1e6 for value in values) or not any(values):
            raise InvalidInputError(f"loss weights must be from 0 to 1e6 and not all 0, got {values}")


@dataclass(frozen=True)
class Masking:
    """How tokens are masked for the masked-token loss."""

    mask_token_id: int
    special_ids: tuple[int, ...]
    rate: float = 0.15


class Teaching(nn.Module):
    """What trains a supernet: its output maps, its teacher and the weights of the losses.

    Args:
        supernet: The student of every size.
        teacher: A sorted teacher, frozen; None to learn from masked tokens and the largest subnet alone.
        weights: Of the losses.
        in_place: Whether smaller subnets learn from the largest subnet of the step instead of the teacher.
        masking: Needed for the masked-token loss.

    Raises:
        InvalidInputError: The losses ask for a teacher or a head that is not there.
    """

    def __init__(
        self,
        supernet: Supernet,
        teacher: Encoder | None,
        weights: LossWeights,
        *,
        in_place: bool = True,
        masking: Masking | None = None,
    ) -> None:
        super().__init__()
        if weights.mlm and (supernet.mlm_head is None or masking is None):
            raise InvalidInputError("the mlm loss needs a teacher with a masked-language head, or a fresh start")
        if teacher is None and not weights.mlm:
            raise InvalidInputError("without a teacher the mlm loss must have a weight above 0")
        self.weights = weights
        self.in_place = in_place
        self.masking = masking
        self.maps = OutputMaps(supernet.config.space.hidden_size, supernet.largest.hidden_size)
        self.layers: tuple[int, ...] = ()
        if teacher is not None:
            self.layers = select_layers(supernet.largest.num_layers, teacher.architecture.num_layers, "alternate")

    def backward(
        self,
        supernet: Supernet,
        teacher: Encoder | None,
        batch: Batch,
        subnets: Sequence[Architecture],
        *,
        seed: int,
        scale: float,
        scaler: torch.amp.GradScaler | None = None,
    ) -> dict[str, float]:
        """Adds the gradients of every subnet's loss, one subnet after the other.

        Args:
            supernet: Whose parameters receive the gradients.
            teacher: The sorted teacher, or None.
            batch: Token ids and mask, each (B, T).
            subnets: The largest first, where it is among them.
            seed: Chooses the masked tokens.
            scale: Multiplies every loss (1 over the number of accumulated batches and subnets).
            scaler: For fp16.

        Returns:
            The loss of each subnet by its key.
        """
        chosen, labels = None, None
        if self.weights.mlm:
            assert self.masking is not None
            batch, chosen, labels = mask_tokens(
                batch,
                mask_token_id=self.masking.mask_token_id,
                vocab_size=supernet.config.text.vocab_size,
                special_ids=torch.tensor(self.masking.special_ids, device=batch.input_ids.device),
                rate=self.masking.rate,
                seed=seed,
            )
        target = self.teacher_states(supernet, teacher, batch) if teacher is not None else None
        target_logits: Tensor | None = None
        losses: dict[str, float] = {}
        largest = supernet.config.space.largest()
        for architecture in subnets:
            states = supernet(
                architecture, batch.input_ids, batch.attention_mask, with_relations=self.weights.relation > 0
            )
            loss = self._distillation(states, target, batch.attention_mask)
            if chosen is not None and labels is not None:
                assert supernet.mlm_head is not None
                logits = supernet.mlm_head(states.hidden[-1][chosen], supernet.embeddings.word.weight)
                token_loss = (
                    masked_token_loss(logits, labels)
                    if target_logits is None
                    else soft_token_loss(logits, target_logits)
                )
                loss = loss + self.weights.mlm * token_loss
                if self.in_place and architecture == largest:
                    target_logits = logits.detach()
            scaled = loss * scale
            (scaler.scale(scaled) if scaler is not None else scaled).backward()  # type: ignore[no-untyped-call]
            losses[architecture.key()] = float(loss.detach())
            if self.in_place and architecture == largest:
                target = detached(states)
        return losses

    def _distillation(self, states: States, target: States | None, mask: Tensor) -> Tensor:
        loss = torch.zeros((), device=mask.device)
        if target is None:
            return loss
        if self.weights.hidden:
            loss = loss + self.weights.hidden * hidden_loss(states, target, mask, self.maps)
        if self.weights.pooled:
            loss = loss + self.weights.pooled * pooled_loss(states, target, mask, self.maps)
        if self.weights.relation:
            loss = loss + self.weights.relation * relation_loss(states, target, mask)
        return loss

    @torch.no_grad()
    def teacher_states(self, supernet: Supernet, teacher: Encoder, batch: Batch) -> States:
        """The teacher's states at the layers that correspond to the supernet's, cut to its leading units."""
        return encoder_states(
            teacher,
            batch,
            layers=self.layers,
            width=supernet.largest.hidden_size,
            with_relations=self.weights.relation > 0,
        )

    @torch.no_grad()
    def held_out_loss(
        self, supernet: Supernet, teacher: Encoder, architecture: Architecture, batches: Sequence[Batch]
    ) -> float:
        """Unexplained share of the teacher's last hidden states: 0 is the teacher, 1 is knowing their mean."""
        shares, counts = [], []
        for batch in batches:
            target = self.teacher_states(supernet, teacher, batch).hidden[-1]
            states = supernet(architecture, batch.input_ids, batch.attention_mask)
            shares.append(float(unexplained(self.maps(states.hidden[-1]), target, batch.attention_mask)))
            counts.append(float(batch.attention_mask.sum()))
        return sum(share * count for share, count in zip(shares, counts, strict=True)) / sum(counts)


def encoder_states(
    encoder: Encoder, batch: Batch, *, layers: tuple[int, ...], width: int, with_relations: bool = False
) -> States:
    """Hidden states of a one-block encoder after the given layers, each (B, T, width)."""
    mask = key_mask(batch.attention_mask)
    hidden = encoder.embeddings(batch.input_ids)
    after: list[Tensor] = []
    relations: tuple[Tensor, Tensor, Tensor] | None = None
    for sublayer in encoder.block(0).sublayers:
        if with_relations and isinstance(sublayer, AttentionSublayer):
            shape: Attention = sublayer.shape
            split = (*hidden.shape[:2], shape.num_heads, shape.head_size)
            query, key, value = (
                linear(hidden).view(split).transpose(1, 2) for linear in (sublayer.query, sublayer.key, sublayer.value)
            )
            relations = (query, key, value)
        hidden = sublayer(hidden, mask)
        if isinstance(sublayer, FeedForwardSublayer):
            after.append(hidden)
    return States([after[layer][..., :width] for layer in layers], tuple(range(len(layers))), relations)


def detached(states: States) -> States:
    """The same states without their graph."""
    relations = states.relations and (
        states.relations[0].detach(),
        states.relations[1].detach(),
        states.relations[2].detach(),
    )
    return States([hidden.detach() for hidden in states.hidden], states.layers, relations)
