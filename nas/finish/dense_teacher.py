"""What a model that is pruned or rounded learns from the dense one it was.

On text without labels an encoder learns the states behind every sub-layer; one with a masked-language head learns as in
Prune Once for All (Zafrir et al., 2021, arXiv 2111.05754): half masked tokens, half the teacher's distribution over
tokens at temperature 2, at every position that is no padding.

Shapes: B batch, T tokens, M masked tokens, D hidden, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from nas.finish.distillation import recorded
from supernet.data import Batch, Masking, TokenChunks, mask_tokens
from supernet.encoder import ACTIVATIONS, Encoder
from supernet.examples import Examples, TaskBatch
from supernet.losses import masked_token_loss, unexplained

TEMPERATURE = 2.0
EVALUATION_CHUNKS = 256


def states_loss(ours: Sequence[Tensor], theirs: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Mean unexplained share of the teacher's states: of every sub-layer, or of the last where depths differ.

    Args:
        ours: States behind the student's sub-layers.
        theirs: The same of the teacher's.
        mask: 1 where a token is real, (B, T).
    """
    same = len(ours) == len(theirs) and all(a.shape == b.shape for a, b in zip(ours, theirs, strict=True))
    pairs = zip(ours, theirs, strict=True) if same else [(ours[-1], theirs[-1])]
    return torch.stack([unexplained(a, b, mask[:, : a.shape[1]]) for a, b in pairs]).mean()


@dataclass(frozen=True)
class MaskedTokens:
    """A masked-language head that student and teacher share, and how tokens are masked.

    Attributes:
        weights: By the names of ``supernet.teacher``.
        masking: Which tokens are masked.
        seed: Of the run.
    """

    weights: Mapping[str, Tensor]
    masking: Masking
    seed: int

    def logits(self, encoder: Encoder, hidden: Tensor) -> Tensor:
        """Maps states (..., D) to (..., V) with the encoder's own word table."""
        weights, text = self.weights, encoder.text
        projected = F.linear(hidden, weights["transform.weight"], weights["transform.bias"])
        activated = ACTIVATIONS[text.hidden_act](projected)
        shape = (activated.shape[-1],)
        normed = F.layer_norm(activated, shape, weights["norm.weight"], weights["norm.bias"], text.layer_norm_eps)
        return F.linear(normed, encoder.embeddings.word.weight, weights["bias"])


class EncoderLesson:
    """Losses and figures for an encoder on text without labels.

    Args:
        student: What learns.
        teacher: What it learns from; as wide, and frozen.
        held_out: Text that is never learnt from.
        tokens: The masked-language head; None teaches states.
    """

    def __init__(
        self, student: Encoder, teacher: Encoder, held_out: TokenChunks, tokens: MaskedTokens | None = None
    ) -> None:
        self.student, self.teacher, self.tokens = student, teacher.eval().requires_grad_(False), tokens
        self._held_out = held_out.spread(EVALUATION_CHUNKS).batches(32)
        self._device = next(student.parameters()).device

    def loss(self, batch: TaskBatch) -> dict[str, Tensor]:
        """The parts of a batch's loss."""
        ids, mask = batch.input_ids, batch.attention_mask
        if self.tokens is not None:
            return self._token_losses(batch, self.tokens)
        with recorded(self.student, _all(self.student)) as ours, recorded(self.teacher, _all(self.teacher)) as theirs:
            self._run(ids, mask)
        return {"states": states_loss(list(ours.values()), list(theirs.values()), mask)}

    def evaluate(self) -> dict[str, float]:
        """``explained``: the share of the teacher's last states that the student's explain, on held-out text."""
        shares = []
        for batch in (batch.to(self._device) for batch in self._held_out):
            ours, theirs = self._run(batch.input_ids, batch.attention_mask)
            shares.append(float(unexplained(ours, theirs, batch.attention_mask[:, : ours.shape[1]])))
        return {"explained": 1 - sum(shares) / len(shares)}

    def _run(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        ours: Tensor = self.student(ids, mask)
        with torch.no_grad():
            theirs: Tensor = self.teacher(ids, mask)
        return ours, theirs

    def _token_losses(self, batch: TaskBatch, tokens: MaskedTokens) -> dict[str, Tensor]:
        vocab_size, seed = self.student.text.vocab_size, tokens.seed + int(batch.indices.sum())
        plain = Batch(batch.input_ids, batch.attention_mask)
        masked, chosen, labels = mask_tokens(plain, tokens.masking, vocab_size=vocab_size, seed=seed)
        ours, theirs = self._run(masked.input_ids, masked.attention_mask)
        real = batch.attention_mask.bool()
        logits = tokens.logits(self.student, ours[real])  # (real tokens, V)
        with torch.no_grad():
            wanted = tokens.logits(self.teacher, theirs[real])
        return {
            "mlm": 0.5 * masked_token_loss(logits[chosen[real]], labels),
            "kd": 0.5 * TEMPERATURE**2 * _divergence(logits, wanted),
        }


def _all(encoder: Encoder) -> range:
    """The places of all sub-layers."""
    return range(len(encoder.architecture.sublayers))


def _divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence at :data:`TEMPERATURE` of (M, V) from (M, V), mean over M."""
    ours = F.log_softmax(logits.float() / TEMPERATURE, -1)
    theirs = F.log_softmax(target.float() / TEMPERATURE, -1)
    return (theirs.exp() * (theirs - ours)).sum(-1).mean()


def chunk_examples(chunks: TokenChunks) -> Examples:
    """Text without labels as the training loop takes it."""
    rows = [chunks.tokens[start:end].tolist() for start, end in zip(chunks.starts[:-1], chunks.starts[1:], strict=True)]
    return Examples(rows, [[0] * len(row) for row in rows], [0] * len(rows), None, chunks.pad_token_id)
