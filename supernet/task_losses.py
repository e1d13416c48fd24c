"""What teaches a task's head: labels, and a teacher's answers.

Shapes: B batch, M words, C outputs (labels, or 1 for a number).
"""

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from supernet.examples import IGNORED
from supernet.task_spec import Kind


def label_loss(kind: Kind, logits: Tensor, labels: Tensor, spread: float = 1.0) -> Tensor:
    """What a head learns from labels: cross-entropy, or the squared error in units of the labels' spread.

    What has no label (:data:`supernet.examples.IGNORED`, or NaN for a number) counts nothing.

    Args:
        kind: Of the task.
        logits: Shape (B, C), or (B, M, C) of tags.
        labels: Shape (B,), or (B, M) of tags.
        spread: Standard deviation of the numbers of a regression.
    """
    if kind == "regression":
        known = ~labels.isnan()
        errors = (logits[:, 0].float() - labels)[known] / spread
        return errors.square().sum() / known.sum().clamp(min=1)
    flat, classes = logits.float().flatten(0, -2), labels.flatten()
    total = F.cross_entropy(flat, classes, ignore_index=IGNORED, reduction="sum")
    return total / (classes != IGNORED).sum().clamp(min=1)


def teacher_loss(
    kind: Kind,
    logits: Tensor,
    target: Tensor,
    words: Tensor | None = None,
    *,
    temperature: float = 1.0,
    spread: float = 1.0,
) -> Tensor:
    """What a head learns from a teacher's logits (Hinton et al., 2015, arXiv 1503.02531).

    The Kullback-Leibler divergence at a temperature, times its square so that gradients keep their size; of a
    regression the squared difference in units of the labels' spread.

    Args:
        kind: Of the task.
        logits: The student's, (B, C) or (B, M, C).
        target: The teacher's, of the same shape; no gradient flows into it.
        words: Tagging: where there is a word, boolean (B, M).
        temperature: Softens both distributions.
        spread: Standard deviation of the numbers of a regression.
    """
    target = target.detach().float()
    if kind == "regression":
        return ((logits.float() - target) / spread).square().mean()
    ours = F.log_softmax(logits.float() / temperature, -1)
    theirs = F.log_softmax(target / temperature, -1)
    divergence = (theirs.exp() * (theirs - ours)).sum(-1)  # (B,) or (B, M)
    return temperature**2 * (divergence if words is None else divergence[words]).mean()
