"""How good a subnet is, without training it: agreement with the teacher, or a figure on a task it was adapted to.

A text's state is the mean over its tokens, or, since narrow layers keep no other for sure, that of position 0. Subnets
that are compared are all judged by the same one of the two. What an architecture shall compute in eight bits is judged
doing so (:mod:`supernet.int8`).

Shapes: B batch, T tokens, D hidden, M reference texts, C classes.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from search_spaces.architecture import Architecture
from search_spaces.errors import InvalidInputError
from supernet.adapt import AdaptedTask, load_adapted
from supernet.checkpoint import AnySupernet, LoadedSupernet, load_supernet
from supernet.data import Batch
from supernet.int8 import subnet_runner
from supernet.pooling import Pooling, check_pooling, text_states

BATCH = 64


def pooled_states(
    supernet: AnySupernet, architecture: Architecture, batches: Sequence[Batch], pooling: Pooling = "mean"
) -> Tensor:
    """The last hidden state of a subnet that stands for each text of the batches: (M, D).

    Raises:
        InvalidInputError: The architecture is not of the supernet's space, or the mean is asked of one with narrow
            layers.
    """
    check_pooling(architecture, pooling)
    run = subnet_runner(supernet, architecture)
    with torch.inference_mode():
        return torch.cat([text_states(run(batch), batch.attention_mask, pooling) for batch in batches])


class TeacherAgreement:
    """Quality without a task: how alike a subnet and the teacher see which texts are alike.

    Representational similarity (Kriegeskorte et al., 2008, doi 10.3389/neuro.06.004.2008) of the pooled last hidden
    states of held-out texts, the teacher's always mean-pooled: 1.0 is the teacher, 0.0 is no relation. It needs no map
    between the two widths, and unlike the distillation loss it does not count what single tokens say of themselves. How
    well it ranks subnets, beside other measures and the parameter count, is in ``benchmarks/quality_ranking.py``.

    Args:
        loaded: A supernet with its reference.
        pooling: Which state of a subnet stands for a text.

    Raises:
        InvalidInputError: The supernet has no reference, since it was trained without a teacher.
    """

    def __init__(self, loaded: LoadedSupernet, pooling: Pooling = "mean") -> None:
        if loaded.reference is None:
            raise InvalidInputError(
                f"the supernet in {loaded.folder} was trained without a teacher, so agreement with it is unknown; "
                "search with --task FILE_OR_ID instead"
            )
        self.supernet, self.pooling = loaded.supernet, pooling
        ids, mask = loaded.reference.input_ids, loaded.reference.attention_mask
        order = torch.argsort(mask.sum(1), stable=True)
        self.batches = []
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            width = int(mask[rows].sum(1).max())
            self.batches.append(Batch(ids[rows, :width], mask[rows, :width]))
        self.target = loaded.reference.teacher_pooled[order]

    @property
    def name(self) -> str:
        """What the quality is called."""
        return agreement_name(self.pooling)

    def __call__(self, architecture: Architecture) -> float:
        """The agreement of one subnet.

        Raises:
            InvalidInputError: The architecture is not of the supernet's space, or has no mean over all tokens.
        """
        states = pooled_states(self.supernet, architecture, self.batches, self.pooling)
        return similarity_agreement(states, self.target)


def agreement_name(pooling: Pooling) -> str:
    """What agreement with the teacher is called, by which state of a subnet it is judged."""
    return "teacher agreement" if pooling == "mean" else "teacher agreement of position 0"


def similarity_agreement(ours: Tensor, theirs: Tensor) -> float:
    """Correlation of two sets of states, (M, D1) and (M, D2), in how similar each pair of the M texts is: -1 to 1.

    Similarity is the cosine after the mean state is taken away; every pair of different texts counts once.
    """
    rows, columns = torch.triu_indices(len(ours), len(ours), offset=1)
    pairs = []
    for states in (ours, theirs):
        centred = F.normalize((states - states.mean(0)).double(), dim=-1)
        pairs.append((centred @ centred.T)[rows, columns])
    return float(torch.corrcoef(torch.stack(pairs))[0, 1])


class TaskQuality:
    """A subnet's figure on a task's validation split, with a supernet's weights that were adapted to the task once.

    Args:
        adapted: The adapted supernet, its head and its validation split.
    """

    def __init__(self, adapted: AdaptedTask) -> None:
        self.adapted = adapted

    @property
    def name(self) -> str:
        """What the figure is called: accuracy, a correlation or F1, as fits the task."""
        return self.adapted.quality_name

    def __call__(self, architecture: Architecture) -> float:
        """The figure of one subnet.

        Raises:
            InvalidInputError: The architecture is not of the supernet's space, or has not all states that are read.
        """
        return self.adapted.quality(architecture)


def teacher_agreement(folder: Path | None, pooling: Pooling = "mean") -> TeacherAgreement:
    """Builds the evaluator of a supernet folder (None: the one that ships); a picklable factory by name."""
    return TeacherAgreement(load_supernet(folder), pooling)


def task_quality(folder: Path) -> TaskQuality:
    """Builds the evaluator of an adapted folder; a picklable factory by name."""
    return TaskQuality(load_adapted(folder))
