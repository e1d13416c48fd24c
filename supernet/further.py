"""Training one architecture by itself: to improve a chosen model, or to see what sharing weights costs it.

The one model is a supernet of a space of one architecture, so that losses, schedule, checkpoints and resume are those
of every other training.

Shapes: B batch, T tokens, D hidden.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from search_spaces.architecture import Architecture
from search_spaces.errors import InvalidInputError
from supernet.calibrate import fit_map
from supernet.chain_supernet import ChainSupernet
from supernet.checkpoint import AnySupernet
from supernet.data import Batch
from supernet.inherit import inherit, space_of
from supernet.losses import unexplained
from supernet.material import Material
from supernet.model import States, Supernet, select_layers
from supernet.partitions import PartitionedSupernet
from supernet.pooling import pooling_of, taught_states
from supernet.runlog import RunLog
from supernet.start import build_supernet, calibrate_start
from supernet.teacher import reorder_hidden
from supernet.trainer import HELD_OUT_CHUNKS, OnStatus, Trainer, TrainingConfig

FIT_BATCH = 32


def from_supernet(supernet: AnySupernet, architecture: Architecture) -> Supernet:
    """A supernet of one architecture with the weights that another one has for it.

    Raises:
        InvalidInputError: The architecture is not of the supernet's space.
    """
    supernet.check_member(architecture)
    if isinstance(supernet, ChainSupernet):
        raise InvalidInputError(
            f"{supernet.config.space.name!r} holds chains, and only uniform encoders are trained alone; "
            "fine-tune the exported chain instead (nas finetune)"
        )
    source = supernet.part_of(architecture) if isinstance(supernet, PartitionedSupernet) else supernet
    alone = Supernet(replace(source.config, space=space_of(architecture)))
    inherit(alone, source)
    return alone


def train_alone(
    architecture: Architecture,
    material: Material,
    config: TrainingConfig,
    *,
    start: AnySupernet | None = None,
    log: RunLog | None = None,
    device: str | None = None,
    on_status: OnStatus = lambda status: None,
) -> Supernet:
    """Trains one architecture by itself.

    Args:
        architecture: What is trained.
        material: Text, and the teacher, whose hidden units are put into the order of ``start``'s.
        config: How; the strategy makes no difference.
        start: A supernet that holds the architecture and whose weights for it are the start; None for the leading
            slices of the teacher's, as a supernet of the whole space starts (sort the teacher by importance first).
        log: Where checkpoints go, and where the training goes on if it holds one; None for no checkpoints.
        device: A torch device; by default CUDA where there is one, else the CPU.
        on_status: Called after every step.

    Returns:
        A supernet of that one architecture, in evaluation mode on the CPU.

    Raises:
        InvalidInputError: The architecture is not uniform or not of ``start``, or the loss is no longer finite.
    """
    if start is None:
        trainer = Trainer(build_supernet(space_of(architecture), material, config), material, config, device=device)
        calibrate_start(trainer)
    else:
        trainer = Trainer(from_supernet(start, architecture), material, config, device=device)
        match_teacher(trainer, architecture)
    if log is not None:
        if log.exists:
            log.restore(trainer)
        else:
            log.save(trainer)
    trainer.run(log, on_status)
    return trainer.supernet.cpu().eval()


@torch.no_grad()
def match_teacher(trainer: Trainer, architecture: Architecture) -> None:
    """Puts the teacher's hidden units into the order of a trained model's, and fits the map between their last states.

    A model that was distilled from a sorted teacher has that order for good; a teacher that is loaded again, or sorted
    on other text, has another. Each unit of the model takes the teacher's unit that it correlates with most over all
    layers, the surest pairs first.
    """
    teacher = trainer.material.teacher
    if teacher is None or trainer.teacher is None:
        return
    config = trainer.config
    ours: list[list[Tensor]] = []
    theirs: list[list[Tensor]] = []
    for ids, mask in trainer.material.calibration(config.batch_size, config.seed):
        batch = Batch(ids, mask).to(trainer.device)
        every = batch.attention_mask.bool()
        states: States = trainer.supernet(architecture, batch.input_ids, batch.attention_mask, positions=every)
        target = trainer.teaching.teacher_states(trainer.teacher, batch)
        places = select_layers(len(states.hidden), len(target.hidden), "alternate")
        ours.append([hidden[every] for hidden in states.hidden])
        theirs.append([target.hidden[place][every] for place in places])
    pairs = [
        (torch.cat(a), torch.cat(b)) for a, b in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True)
    ]
    order = match_units(sum((_correlations(a, b) for a, b in pairs), torch.zeros((), device=trainer.device)))
    reorder_hidden(teacher, order)
    for linear in trainer.teaching.maps.linears():
        fit_map(linear, pairs[-1][0], pairs[-1][1][:, order])


def match_units(scores: Tensor) -> Tensor:
    """An order of teacher units for scores (model units, teacher units): the matched ones first, the rest behind."""
    left = scores.cpu().clone()
    matched = [-1] * scores.shape[0]
    for _ in matched:
        unit, chosen = divmod(int(left.argmax()), scores.shape[1])
        matched[unit] = chosen
        left[unit], left[:, chosen] = -torch.inf, -torch.inf
    taken = set(matched)
    rest = [unit for unit in range(scores.shape[1]) if unit not in taken]
    return torch.tensor([*matched, *rest])


def _correlations(ours: Tensor, theirs: Tensor) -> Tensor:
    """Correlations of the columns of (n, D1) with those of (n, D2): (D1, D2)."""
    first, second = (F.normalize(states.float() - states.float().mean(0), dim=0) for states in (ours, theirs))
    return first.T @ second


@torch.no_grad()
def unexplained_share(supernet: AnySupernet, architecture: Architecture, material: Material) -> float:
    """The share of the teacher's last states on held-out text that the best linear map of a subnet's does not explain.

    They are the teacher's as the subnet learns them (:func:`supernet.pooling.taught_states`).

    The map is fitted on training text, so that models are compared by what they know and not by how well a learned map
    keeps up with them.

    Args:
        supernet: On the CPU.
        architecture: A member of its space.
        material: With a teacher, which is moved to the CPU.
    """
    assert material.teacher is not None
    teacher, pooling = material.teacher.encoder.cpu(), pooling_of(supernet.config.space)

    def taught(ids: Tensor, mask: Tensor) -> Tensor:
        return taught_states(teacher(ids, mask), mask, pooling)

    pairs = []
    for ids, mask in material.calibration(FIT_BATCH, 0):
        real = mask.bool()
        pairs.append((supernet(architecture, ids, mask, positions=real).hidden[-1][real], taught(ids, mask)[real]))
    linear = nn.Linear(architecture.hidden_size, teacher.architecture.hidden_size)
    fit_map(linear, torch.cat([ours for ours, _ in pairs]), torch.cat([theirs for _, theirs in pairs]))
    shares, counts = [], []
    for batch in material.held_out.spread(HELD_OUT_CHUNKS).batches(FIT_BATCH):
        ids, mask = batch.input_ids, batch.attention_mask
        hidden = supernet(architecture, ids, mask, positions=mask.bool()).hidden[-1]
        shares.append(float(unexplained(linear(hidden), taught(ids, mask), mask)))
        counts.append(int(mask.sum()))
    return sum(share * count for share, count in zip(shares, counts, strict=True)) / sum(counts)
