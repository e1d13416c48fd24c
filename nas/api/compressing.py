"""Making a model smaller after the search: pruning and int8."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from nas.config import check_bounds
from nas.errors import InvalidInputError, unknown_name
from nas.progress import Progress
from search_spaces.files import expanded

if TYPE_CHECKING:
    from nas.finish.companion import Companion

MODES = ("dynamic", "static", "qat")
PRUNE_STEPS, QAT_STEPS = 1000, 500


@dataclass(frozen=True)
class Compressed:
    """A smaller model.

    Attributes:
        model_dir: Its folder.
        sparsity: Share of its matrices' weights that are zero by a lock; None where there is no lock.
        scores: Figures by split, of a model that was trained on a task.
        explained: Share of its teacher's states that an encoder trained on text explains, on held-out text.
        sizes: Bytes and ratios of a sparse int8 model, see ``nas.finish.storage.StoredSizes``; else empty.
        sentences: The same in words.
    """

    model_dir: Path
    sparsity: float | None = None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    explained: float | None = None
    sizes: dict[str, Any] = field(default_factory=dict)
    sentences: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {
            "model": str(self.model_dir),
            "sparsity": self.sparsity,
            "scores": self.scores,
            "explained": self.explained,
            **self.sizes,
        }


class Learning(TypedDict, total=False):
    """What a training beside is asked for; every entry may be left out.

    Attributes:
        task: Where texts with labels come from: a file, folder or hub id; either this or ``corpora``.
        corpora: Text files, folders or hub ids.
        teacher: What is learnt from; None is the model itself as it was.
        steps: Optimiser steps; where neither these nor ``minutes`` are given 1000, or 500 of rounding.
        minutes: Wall-clock minutes of training, evaluations included: as many steps as fit by a measurement at the
            beginning.
        batch_size: Texts a step, 32.
        lr: Peak learning rate, 2e-4, or 5e-5 of rounding.
        seq_len: Longer texts are cut to so many tokens; of a corpus 64 by default.
        seed: Of every draw.
        text: Column of the text.
        text_pair: Column of the second text.
        label: Column of the labels.
        resume: Whether to go on from an unfinished run.
        command: What made the model, for its card.
        progress: What is told about it.
    """

    task: str | None
    corpora: Sequence[str]
    teacher: str | Path | None
    steps: int | None
    minutes: float | None
    batch_size: int
    lr: float
    seq_len: int | None
    seed: int
    text: str | None
    text_pair: str | None
    label: str | None
    resume: bool
    command: str | None
    progress: Progress | None


@dataclass(frozen=True)
class _Run:
    """A model, a folder, and what of :class:`Learning` is given."""

    model: str | Path
    out: Path
    usual_steps: int
    lr: float
    task: str | None = None
    corpora: Sequence[str] = ()
    teacher: str | Path | None = None
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 32
    seq_len: int | None = None
    seed: int = 0
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    resume: bool = False
    command: str | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        names = ("steps", "minutes", "batch_size", "lr", "seed", "seq_len")
        check_bounds(**{name: getattr(self, name) for name in names})
        if self.steps is not None and self.minutes is not None:
            raise InvalidInputError("say how long to train: give either --steps or --minutes")

    @property
    def options(self) -> Any:
        """What is named of the task."""
        from supernet.task_spec import TaskOptions

        return TaskOptions(None, self.text, self.text_pair, self.label, self.seq_len)

    def train(self, companion: "Companion") -> tuple[dict[str, dict[str, float]], float | None]:
        """Trains with a companion; returns figures by split, or the share of the teacher's states that is explained."""
        if (self.task is None) == (not self.corpora):
            raise InvalidInputError("say what to learn from: give either a task (--task) or text (--corpus)")
        from nas.finish.finetune import FinetuneConfig, finetune
        from nas.finish.text_training import train_on_text
        from nas.finish.training import LoopConfig

        steps = self.usual_steps if self.steps is None and self.minutes is None else self.steps
        loop = LoopConfig(steps=steps, batch_size=self.batch_size, learning_rate=self.lr, seed=self.seed)
        rest: dict[str, Any] = {name: getattr(self, name) for name in ("minutes", "resume", "command", "progress")}
        if self.task is None:
            found = train_on_text(
                self.model, self.corpora, self.out, companion, loop=loop, seq_len=self.seq_len or 64,
                teacher=self.teacher, **rest,
            )  # fmt: skip
            return {}, found.explained
        teacher = self.model if self.teacher is None else self.teacher
        tuned = finetune(
            self.model, self.task, self.out, config=FinetuneConfig(loop), options=self.options, teacher=teacher,
            companion=companion, **rest,
        )  # fmt: skip
        scores = {"validation": tuned.validation.scores}
        return scores | ({} if tuned.test is None else {"test": tuned.test.scores}), None


def prune(
    model: str | Path,
    out: str | Path,
    *,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    scope: str = "uniform",
    criterion: str = "magnitude",
    **learning: Unpack[Learning],
) -> Compressed:
    """Removes most weights of an encoder's matrices by and by, while the dense model teaches what is left.

    Args:
        model: A task model's folder with ``task``, an encoder's with ``corpora``.
        out: Folder for the sparse model; must be absent or empty.
        sparsity: Share of the weights that goes; None takes 0.9, or what N:M comes to.
        pattern: ``unstructured``, N:M such as 2:4, or blocks of RxC such as 4x1.
        scope: ``uniform`` (every matrix alike) or ``global``.
        criterion: ``magnitude``, or ``obert`` for the second-order one.
        **learning: What is learnt from meanwhile and how long, see :class:`Learning`.

    Raises:
        InvalidInputError: An input breaks a law, the folder is occupied, or the loss is no longer finite.
    """
    learning.setdefault("lr", 2e-4)
    run = _Run(model, Path(out), PRUNE_STEPS, **learning)
    from nas.finish.prune import PruneConfig, Pruning

    config = PruneConfig(sparsity, pattern, scope, criterion)  # type: ignore[arg-type]  # checked by PruneConfig
    scores, explained = run.train(Pruning(config))
    return Compressed(Path(out), config.sparsity, scores, explained)


def quantize(model: str | Path, out: str | Path, *, mode: str = "dynamic", **learning: Unpack[Learning]) -> Compressed:
    """Rounds a model to int8: as it is, with ranges found on real text, or trained to be rounded.

    Args:
        model: A task model's or an encoder's folder; a lock on its pattern is kept.
        out: Folder for the int8 model; must be absent or empty.
        mode: ``dynamic`` (needs no text), ``static`` or ``qat``.
        **learning: Where text comes from and, for ``qat``, how the model is trained, see :class:`Learning`.

    Raises:
        InvalidInputError: An input breaks a law, the folder is occupied, or the loss is no longer finite.
    """
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    learning.setdefault("lr", 5e-5)
    run = _Run(model, Path(out), QAT_STEPS, **learning)
    if mode != "qat":
        for name, verb, given in (
            ("minutes", "are", run.minutes),
            ("steps", "are", run.steps),
            ("teacher", "is", run.teacher),
        ):
            if given is not None:
                raise InvalidInputError(f"{name} {verb} for qat, which trains, and {mode} does not; leave --{name} out")
        if run.resume:
            raise InvalidInputError(f"{mode} is done in one go; leave --resume out")
    from nas.finish.quantize import Rounding, quantize_model

    if mode != "qat":
        found = quantize_model(
            model, run.out, mode=mode, task=run.task, corpora=run.corpora, options=run.options,  # type: ignore[arg-type]
            command=run.command, progress=run.progress,
        )  # fmt: skip
        return _sized(run.out, found.sparsity, found.sizes)
    companion = Rounding(expanded(model))
    scores, explained = run.train(companion)
    sparsity = None if companion.sparsity is None else companion.sparsity.sparsity
    return _sized(run.out, sparsity, companion.sizes, scores, explained)


def _sized(
    out: Path,
    sparsity: float | None,
    sizes: Any,
    scores: dict[str, dict[str, float]] | None = None,
    explained: float | None = None,
) -> Compressed:
    if sizes is None:
        return Compressed(out, sparsity, scores or {}, explained)
    return Compressed(out, sparsity, scores or {}, explained, sizes.to_dict(), tuple(sizes.sentences()))
