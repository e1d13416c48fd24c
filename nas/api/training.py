"""Training: a supernet, or a chosen model further."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nas.config import check_bounds
from nas.errors import InvalidInputError, unknown_name
from nas.progress import Fact, Progress, ended
from search_spaces.chain_space import ChainSpace
from search_spaces.presets import load_space

if TYPE_CHECKING:
    from nas.distilling import Distilled
    from supernet.objectives import LossWeights
    from supernet.shrinking import OperationLatency
    from supernet.trainer import TrainingStatus

_LOSSES = ("hidden", "pooled", "relation", "attention", "output", "mlm")
_MODEL_LOSSES = ("hidden", "pooled", "output")
_OBJECTIVES = ("distil", "mlm", "kd")
_LAYERS = ("alternate", "first")
_UNIFORM_SPACES = ("autotinybert-mlm", "autotinybert-kd")  # published with uniform sampling
MASK_RATE, CANDIDATES = 0.15, 40


def train(
    out: str | Path,
    *,
    corpora: Sequence[str],
    teacher: str | None = None,
    tokenizer: str | None = None,
    space: str = "stock",
    objective: str | None = None,
    narrow: bool = False,
    partitions: int = 1,
    shrink: bool = True,
    candidates: int = CANDIDATES,
    latency_on: str | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    batch_size: int = 32,
    seq_len: int = 64,
    lr: float = 5e-4,
    accumulate: int = 1,
    precision: str = "auto",
    strategy: str | None = None,
    num_random: int = 2,
    in_place: bool = True,
    sort: bool = True,
    layers: str = "alternate",
    losses: Mapping[str, float] | None = None,
    mask_rate: float = MASK_RATE,
    narrow_cls: bool = True,
    seed: int = 0,
    resume: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Trains a supernet; every option in ``supernet.trainer.TrainingConfig`` that is not here keeps its default.

    Args:
        out: Folder for the supernet; must be absent or empty unless ``resume``.
        corpora: Text files, folders or hub ids.
        teacher: Folder or hub id of a BERT-like encoder; None for a fresh start with the mlm loss.
        tokenizer: Folder or hub id, where there is no teacher.
        space: A preset's name or a TOML file.
        objective: ``distil`` (hidden states and sentences of the teacher), ``mlm`` (masked tokens; the teacher, where
            there is one, only gives the first weights) or ``kd`` (AutoTinyBERT's: attention scores and last states);
            by default distil with a teacher and mlm without.
        narrow: Whether the space gets every number of narrow layers, in both forms.
        partitions: Into how many disjoint parts, each with weights of its own, the space is split after a third of the
            budget.
        shrink: Whether the training of a chain space is progressively confined to the best blocks of every size.
        candidates: Blocks of a chain space that are drawn and scored for each place and each of ten sizes; ten are
            kept.
        latency_on: A device on which the operations of a chain space are measured first; of every size, blocks that are
            slower there than most are not trained.
        steps: Optimiser steps; either these or ``minutes``.
        minutes: Wall-clock minutes of training.
        batch_size: Texts a batch.
        seq_len: Most tokens a text.
        lr: Peak learning rate.
        accumulate: Batches a step.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        strategy: ``sandwich`` or ``uniform``; by default uniform for kd and for AutoTinyBERT's spaces.
        num_random: Random subnets a batch; of a chain space, the chains.
        in_place: Whether smaller subnets learn from the largest one of the step.
        sort: Whether the teacher's units are sorted by importance before they are sliced.
        layers: Which layers of the supernet shallow subnets take: ``alternate`` or ``first``.
        losses: Weight by loss, instead of an objective: hidden, pooled, relation, attention, output, mlm.
        mask_rate: Share of tokens that are masked, and of positions that narrow layers update.
        narrow_cls: Whether masked-token training labels [CLS] too where layers are narrow.
        seed: Of every draw.
        resume: Whether to go on from the last checkpoint in ``out``.
        progress: What is told about it.

    Returns:
        The folder.

    Raises:
        InvalidInputError: An input breaks a law, the folder is occupied, or the loss is no longer finite.
    """
    _check(corpora, steps, minutes, batch_size=batch_size, seq_len=seq_len, lr=lr, accumulate=accumulate, seed=seed)
    _check_losses(objective, losses, _LOSSES)
    if teacher is not None and tokenizer is not None:
        raise InvalidInputError("a teacher brings its own tokenizer; leave --tokenizer out, or --teacher")
    if layers not in _LAYERS:
        raise unknown_name("selection of layers", layers, _LAYERS)
    chosen_space = load_space(space)
    is_uniform = objective == "kd" or chosen_space.name in _UNIFORM_SPACES
    if isinstance(chosen_space, ChainSpace):
        _check_chains(
            chosen_space,
            teacher,
            {
                "objective": objective is not None,
                "losses": bool(losses),
                "strategy": strategy is not None,
                "narrow": narrow,
                "partitions": partitions != 1,
                "layers": layers != "alternate",
                "no-sort": not sort,
                "no-in-place": not in_place,
                "mask-rate": mask_rate != MASK_RATE,
                "no-narrow-cls": not narrow_cls,
            },
        )
    elif not shrink or latency_on is not None or candidates != CANDIDATES:
        raise InvalidInputError(
            "shrinking, its candidates, and shrinking by latency are for spaces of chains, and "
            f"{chosen_space.name!r} is not one; leave them out"
        )
    elif narrow:
        chosen_space = chosen_space.with_narrowing()

    from supernet.trainer import TrainingConfig

    config = TrainingConfig(
        steps=steps,
        minutes=minutes,
        strategy=strategy or ("uniform" if is_uniform else "sandwich"),  # type: ignore[arg-type]  # checked there
        num_random=num_random,
        in_place=in_place,
        is_sorted=sort,
        partitions=partitions,
        losses=_loss_weights(objective, losses, has_teacher=teacher is not None),
        mask_rate=mask_rate,
        narrow_cls=narrow_cls,
        batch_size=batch_size,
        seq_len=seq_len,
        accumulate=accumulate,
        learning_rate=lr,
        precision=precision,  # type: ignore[arg-type]  # checked by TrainingConfig
        seed=seed,
    )
    with ended(progress) as said:
        told = _TrainingProgress(said, steps)
        if isinstance(chosen_space, ChainSpace):
            from supernet.chain_train import train_chains
            from supernet.chain_trainer import ChainTrainingConfig
            from supernet.shrinking import Shrinking

            assert teacher is not None
            latency = None if latency_on is None else _operation_latency(latency_on, chosen_space, teacher, said)
            return train_chains(
                Path(out),
                space=chosen_space,
                corpora=corpora,
                config=ChainTrainingConfig(
                    config,
                    num_paths=max(1, num_random),
                    shrinking=Shrinking(candidates=candidates, keep=min(candidates, Shrinking.keep)),
                    shrinks=shrink,
                ),
                teacher=teacher,
                latency=latency,
                resume=resume,
                on_status=told.status,
                on_note=told.note,
            )
        from supernet.train import train as train_supernet

        return train_supernet(
            Path(out),
            space=chosen_space,
            corpora=corpora,
            config=config,
            teacher=teacher,
            tokenizer=tokenizer,
            layer_selection=layers,  # type: ignore[arg-type]  # checked before
            resume=resume,
            on_status=told.status,
            on_note=told.note,
        )


def distil(
    model_dir: str | Path,
    out: str | Path,
    *,
    corpora: Sequence[str],
    teacher: str,
    steps: int | None = None,
    minutes: float | None = None,
    batch_size: int = 32,
    seq_len: int = 64,
    lr: float = 2e-4,
    accumulate: int = 1,
    precision: str = "auto",
    losses: Mapping[str, float] | None = None,
    keep_rate: float = 0.15,
    seed: int = 0,
    resume: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
) -> "Distilled":
    """Trains an exported model further, alone, and exports it again: AutoTinyBERT's last step.

    Args:
        model_dir: Folder that :func:`export` or :func:`search` made.
        out: Folder for the new model; must be absent or empty. Checkpoints are kept in ``OUT.training`` meanwhile.
        corpora: Text files, folders or hub ids.
        teacher: Folder or hub id of a BERT-like encoder with the model's tokenizer, at least as deep and as wide.
        steps: Optimiser steps; either these or ``minutes``.
        minutes: Wall-clock minutes of training.
        batch_size: Texts a batch.
        seq_len: Most tokens a text.
        lr: Peak learning rate.
        accumulate: Batches a step.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        losses: Weight by loss: hidden, pooled, output; by default the first two.
        keep_rate: Share of positions that narrow layers update in a step; position 0 always is.
        seed: Of every draw.
        resume: Whether to go on from the last checkpoint in ``OUT.training``.
        command: What the card keeps as the command that did this.
        progress: What is told about it.

    Raises:
        InvalidInputError: An input breaks a law, the folder is occupied, or the loss is no longer finite.
    """
    _check(corpora, steps, minutes, batch_size=batch_size, seq_len=seq_len, lr=lr, accumulate=accumulate, seed=seed)
    _check_losses(None, losses, _MODEL_LOSSES)

    from nas.distilling import distil_model
    from supernet.trainer import TrainingConfig

    config = TrainingConfig(
        steps=steps,
        minutes=minutes,
        strategy="uniform",
        num_random=1,
        in_place=False,
        losses=_loss_weights("distil" if losses is None else None, losses, has_teacher=True),
        mask_rate=keep_rate,
        batch_size=batch_size,
        seq_len=seq_len,
        accumulate=accumulate,
        learning_rate=lr,
        trains_embeddings=True,
        precision=precision,  # type: ignore[arg-type]  # checked by TrainingConfig
        seed=seed,
    )
    with ended(progress) as said:
        told = _TrainingProgress(said, steps)
        return distil_model(
            Path(model_dir),
            Path(out),
            corpora=corpora,
            teacher=teacher,
            config=config,
            resume=resume,
            command=command or "nas.distil(...)",
            on_status=told.status,
            on_note=told.note,
        )


class _TrainingProgress:
    """Tells a :class:`Progress` what a training says; a run bounded by minutes counts percent."""

    def __init__(self, progress: Progress, steps: int | None) -> None:
        self._progress, self._steps = progress, steps
        self._is_running = False

    def note(self, message: str) -> None:
        self._progress.note(message)

    def status(self, status: "TrainingStatus") -> None:
        if not self._is_running:
            self._is_running = True
            self._progress.start("train", self._steps or 100)
        done = status.step if self._steps else round(100 * status.fraction)
        facts: dict[str, Fact] = {"step": status.step}
        if status.loss is not None:
            facts["loss"] = round(status.loss, 4)
        if status.remaining_s is not None and not self._steps:  # steps are even, and a bar knows the time they take
            facts["left"] = _duration(status.remaining_s)
        facts |= {f"held_out_{place}": round(loss, 4) for place, loss in status.held_out.items()}
        self._progress.update(done, **facts)


def _operation_latency(device: str, space: ChainSpace, teacher: str, progress: Progress) -> "OperationLatency":
    """Seconds of an operation at a hidden size on a device, measured now or lately."""
    from nas.config import cache_dir
    from nas.devices.defaults import settings_for
    from nas.devices.operation_table import load_or_measure_table
    from nas.devices.resolve import live
    from supernet.material import load_start

    target = live(device, settings_for(device)[0])
    loaded, _ = load_start(teacher, None)
    assert loaded is not None
    table = load_or_measure_table(target, space, loaded.encoder.text, cache_dir=cache_dir(), progress=progress)
    progress.note(f"Operations on {device}: {table.description}.")
    return table.latency_of(space)


def _check_chains(space: ChainSpace, teacher: str | None, given: Mapping[str, bool]) -> None:
    """Refuses what only uniform spaces have, and a start without a teacher."""
    for name, is_given in given.items():
        if is_given:
            raise InvalidInputError(
                f"{name} is for spaces of uniform encoders, but {space.name!r} holds chains, which learn block by "
                "block from a teacher; leave it out"
            )
    if teacher is None:
        raise InvalidInputError(
            f"{space.name!r} holds chains, which learn block by block from a teacher; give one (--teacher DIR_OR_ID)"
        )


def _check(corpora: Sequence[str], steps: int | None, minutes: float | None, **numbers: float) -> None:
    """Checks what every training is asked for."""
    check_bounds(steps=steps, minutes=minutes, **numbers)
    if (steps is None) == (minutes is None):
        raise InvalidInputError("say how long to train: give either --steps or --minutes")
    if not corpora:
        raise InvalidInputError("training needs at least one corpus")


def _check_losses(objective: str | None, losses: Mapping[str, float] | None, known: Sequence[str]) -> None:
    if objective is not None and losses:
        raise InvalidInputError("an objective is a set of losses: give either an objective or losses of your own")
    if objective is not None and objective not in _OBJECTIVES:
        raise unknown_name("objective", objective, _OBJECTIVES)
    for name in losses or {}:
        if name not in known:
            raise unknown_name("loss", name, known)


def _loss_weights(objective: str | None, losses: Mapping[str, float] | None, *, has_teacher: bool) -> "LossWeights":
    """Weights of the losses: those given and no others, or those of the objective."""
    from supernet.objectives import OBJECTIVES, LossWeights

    if losses:
        return LossWeights(**{name: losses.get(name, 0.0) for name in _LOSSES})
    return OBJECTIVES[objective or ("distil" if has_teacher else "mlm")]  # type: ignore[index]  # checked before


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
