"""One training step: the subnets of a step learn from the teacher, from the largest subnet, or from masked tokens.

Shapes: B batch, T tokens, M positions that narrow layers keep, D hidden, N heads, K head width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from search_spaces.architecture import Architecture, Attention
from search_spaces.errors import InvalidInputError
from supernet.data import Batch, Masking, draw_positions, mask_tokens
from supernet.encoder import AttentionSublayer, Encoder, FeedForwardSublayer, key_mask
from supernet.losses import (
    Kept,
    OutputMaps,
    attention_loss,
    hidden_loss,
    is_narrow,
    masked_token_loss,
    output_loss,
    pooled_loss,
    relation_loss,
    soft_token_loss,
    unexplained,
)
from supernet.model import States, Supernet, select_layers
from supernet.narrow import position_index
from supernet.objectives import LossWeights
from supernet.pooling import pooling_of, taught_states, text_states


@dataclass
class _Lesson:
    """What the subnets of one step learn from a batch.

    Attributes:
        batch: Token ids, masked where the masked-token loss counts, and mask, each (B, T).
        target: States to learn from, all of all positions; None where nothing is distilled.
        kept: The positions that narrow layers update.
        chosen: Where a label is, boolean (B, T); None without the masked-token loss.
        labels: The tokens there, row by row.
        target_logits: What the largest subnet says of them, where it went first.
        summed: The sum of table rows that every subnet reads, (B, T, W); None to let each make its own.
    """

    batch: Batch
    target: States | None
    kept: Kept
    chosen: Tensor | None = None
    labels: Tensor | None = None
    target_logits: Tensor | None = None
    summed: Tensor | None = None


class Teaching(nn.Module):
    """What trains a supernet: its output maps, its teacher and the weights of the losses.

    Args:
        supernet: The student of every size.
        teacher: A sorted teacher, frozen; None to learn from masked tokens and the largest subnet alone.
        weights: Of the losses.
        in_place: Whether smaller subnets learn from the largest subnet of the step instead of the teacher.
        masking: Needed for the masked-token loss.
        narrow_rate: Share of positions that narrow layers update where no tokens are masked.

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
        narrow_rate: float = 0.15,
    ) -> None:
        super().__init__()
        if weights.mlm and (supernet.mlm_head is None or masking is None):
            raise InvalidInputError("the mlm loss needs a teacher with a masked-language head, or a fresh start")
        if teacher is None and weights.distils:
            raise InvalidInputError("every loss but mlm needs a teacher")
        self.weights = weights
        self.in_place = in_place
        self.masking = masking
        self.narrow_rate = narrow_rate
        self.pooling = pooling_of(supernet.config.space)
        width = supernet.largest.hidden_size if teacher is None else teacher.architecture.hidden_size
        self.maps = OutputMaps(supernet.config.space.hidden_size, width)
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
            seed: Chooses the masked tokens and the positions that narrow layers update.
            scale: Multiplies every loss (1 over the number of accumulated batches and subnets).
            scaler: For fp16.

        Returns:
            The loss of each subnet by its key.
        """
        lesson = self._prepare(supernet, teacher, batch, seed=seed)
        # All subnets read one sum of table rows, so that the large gradient of the tables is made once.
        rows = supernet.embeddings.summed(lesson.batch.input_ids)
        lesson.summed = shared = rows.detach().requires_grad_(rows.requires_grad)
        losses: dict[str, float] = {}
        largest = supernet.config.space.largest()
        for architecture in subnets:
            states = self._run(supernet, architecture, lesson)
            loss = self._distillation(states, lesson)
            logits = self._logits(supernet, architecture, states, lesson)
            if logits is not None and lesson.labels is not None:
                loss = loss + self.weights.mlm * (
                    masked_token_loss(logits, lesson.labels)
                    if lesson.target_logits is None
                    else soft_token_loss(logits, lesson.target_logits)
                )
            scaled = loss * scale
            (scaler.scale(scaled) if scaler is not None else scaled).backward()  # type: ignore[no-untyped-call]
            losses[architecture.key()] = float(loss.detach())
            if self.in_place and architecture == largest:
                self._follow(lesson, states, logits)
        if shared.grad is not None:
            rows.backward(shared.grad)  # type: ignore[no-untyped-call]
        return losses

    def _prepare(self, supernet: Supernet, teacher: Encoder | None, batch: Batch, *, seed: int) -> _Lesson:
        chosen, labels = None, None
        if self.weights.mlm:
            assert self.masking is not None
            batch, chosen, labels = mask_tokens(
                batch, self.masking, vocab_size=supernet.config.text.vocab_size, seed=seed
            )
            positions = chosen.clone()
            positions[:, 0] |= self.weights.distils
        else:
            positions = draw_positions(batch.attention_mask, self.narrow_rate, seed=seed)
        target = self.teacher_states(teacher, batch) if teacher is not None and self.weights.distils else None
        return _Lesson(batch, target, Kept(*position_index(positions)), chosen, labels)

    def _run(self, supernet: Supernet, architecture: Architecture, lesson: _Lesson) -> States:
        batch = lesson.batch
        states: States = supernet(
            architecture,
            batch.input_ids,
            batch.attention_mask,
            with_relations=self.weights.needs_relations,
            positions=lesson.kept.index,
            summed=lesson.summed,
        )
        return states

    def _distillation(self, states: States, lesson: _Lesson) -> Tensor:
        weights, target, mask = self.weights, lesson.target, lesson.batch.attention_mask
        loss = torch.zeros((), device=mask.device)
        if target is None:
            return loss
        if weights.hidden:
            loss = loss + weights.hidden * hidden_loss(states, target, mask, self.maps, lesson.kept)
        if weights.output:
            loss = loss + weights.output * output_loss(states, target, mask, self.maps, lesson.kept)
        if weights.pooled:
            ours = text_states(self.maps(states.hidden[-1]), mask, self.pooling)
            loss = loss + weights.pooled * pooled_loss(ours, text_states(target.hidden[-1], mask, self.pooling))
        if weights.relation and not is_narrow(states):
            loss = loss + weights.relation * relation_loss(states, target, mask)
        if weights.attention and not is_narrow(states):
            loss = loss + weights.attention * attention_loss(states, target, mask)
        return loss

    def _logits(self, supernet: Supernet, architecture: Architecture, states: States, lesson: _Lesson) -> Tensor | None:
        """Logits (labels, V) of the masked-language head, row by row; None without the masked-token loss."""
        if lesson.chosen is None:
            return None
        assert supernet.mlm_head is not None
        chosen = lesson.chosen
        if is_narrow(states):
            chosen = chosen.gather(1, lesson.kept.index) & lesson.kept.is_kept
        table = supernet.embeddings.output_table(architecture.embedding_size)
        logits: Tensor = supernet.mlm_head(states.hidden[-1][chosen], table)
        return logits

    def _follow(self, lesson: _Lesson, states: States, logits: Tensor | None) -> None:
        """Makes the largest subnet what the next ones learn from; its states only where they are of all positions."""
        lesson.target_logits = None if logits is None else logits.detach()
        if lesson.target is not None and not is_narrow(states):
            lesson.target = detached(replace(states, hidden=[*states.hidden[:-1], self.maps(states.hidden[-1])]))

    @torch.no_grad()
    def teacher_states(self, teacher: Encoder, batch: Batch) -> States:
        """The teacher's states at the layers that correspond to the supernet's, the last as its subnets learn it."""
        states = encoder_states(teacher, batch, layers=self.layers, with_relations=self.weights.needs_relations)
        states.hidden[-1] = taught_states(states.hidden[-1], batch.attention_mask, self.pooling)
        return states

    @torch.no_grad()
    def held_out_loss(
        self, supernet: Supernet, teacher: Encoder | None, architecture: Architecture, batches: Sequence[Batch]
    ) -> float:
        """How much a subnet has still to learn, on texts that are not trained on.

        With a teacher to distil from, the unexplained share of its last hidden states: 0 is the teacher, 1 is knowing
        their mean. Else the masked-token loss.
        """
        losses, counts = [], []
        for number, batch in enumerate(batches):
            if teacher is not None and self.weights.distils:
                target = self.teacher_states(teacher, batch).hidden[-1]
                every = batch.attention_mask.bool()
                states = supernet(architecture, batch.input_ids, batch.attention_mask, positions=every)
                losses.append(float(unexplained(self.maps(states.hidden[-1]), target, batch.attention_mask)))
                counts.append(int(every.sum()))
            else:
                lesson = self._prepare(supernet, None, batch, seed=number)
                states = self._run(supernet, architecture, lesson)
                logits = self._logits(supernet, architecture, states, lesson)
                assert logits is not None
                assert lesson.labels is not None
                losses.append(float(masked_token_loss(logits, lesson.labels)))
                counts.append(len(lesson.labels))
        return sum(loss * count for loss, count in zip(losses, counts, strict=True)) / max(1, sum(counts))


def encoder_states(encoder: Encoder, batch: Batch, *, layers: tuple[int, ...], with_relations: bool = False) -> States:
    """Hidden states of a one-block encoder without narrow layers after the given layers, each (B, T, D)."""
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
    return States([after[layer] for layer in layers], tuple(range(len(layers))), relations)


def detached(states: States) -> States:
    """The same states without their graph."""
    relations = states.relations and (
        states.relations[0].detach(),
        states.relations[1].detach(),
        states.relations[2].detach(),
    )
    return replace(states, hidden=[hidden.detach() for hidden in states.hidden], relations=relations)
