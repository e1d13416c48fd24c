"""Making a model smaller after the search: pruning and int8."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.config import check_bounds
from nas.errors import InvalidInputError, unknown_name
from nas.progress import Progress

if TYPE_CHECKING:
    from nas.finish.companion import Companion
    from supernet.task_spec import TaskOptions

MODES = ("dynamic", "static", "qat")


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


@dataclass(frozen=True)
class _Run:
    """What training is asked for, on a task or on text."""

    model: str | Path
    out: Path
    task: str | None
    corpora: Sequence[str]
    teacher: str | Path | None
    steps: int
    batch_size: int
    lr: float
    seq_len: int | None
    seed: int
    options: "TaskOptions"
    resume: bool
    command: str | None
    progress: Progress | None

    def __post_init__(self) -> None:
        check_bounds(steps=self.steps, batch_size=self.batch_size, lr=self.lr, seed=self.seed, seq_len=self.seq_len)
        if (self.task is None) == (not self.corpora):
            raise InvalidInputError("say what to learn from: give either a task (--task) or text (--corpus)")

    def train(self, companion: "Companion") -> tuple[dict[str, dict[str, float]], float | None]:
        """Trains with a companion; returns figures by split, or the share of the teacher's states that is explained."""
        from nas.finish.finetune import FinetuneConfig, finetune
        from nas.finish.text_training import train_on_text
        from nas.finish.training import LoopConfig

        loop = LoopConfig(steps=self.steps, batch_size=self.batch_size, learning_rate=self.lr, seed=self.seed)
        rest: dict[str, Any] = {"resume": self.resume, "command": self.command, "progress": self.progress}
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
    task: str | None = None,
    corpora: Sequence[str] = (),
    teacher: str | Path | None = None,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    scope: str = "uniform",
    criterion: str = "magnitude",
    steps: int = 1000,
    batch_size: int = 32,
    lr: float = 2e-4,
    seq_len: int | None = None,
    seed: int = 0,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    resume: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Removes most weights of an encoder's matrices by and by, while the dense model teaches what is left.

    Args:
        model: A task model's folder with ``task``, an encoder's with ``corpora``.
        out: Folder for the sparse model; must be absent or empty.
        task: A file, folder or hub id.
        corpora: Text files, folders or hub ids.
        teacher: What it learns from; None is the dense model itself.
        sparsity: Share of the weights that goes; None takes 0.9, or what N:M comes to.
        pattern: ``unstructured``, N:M such as 2:4, or blocks of RxC such as 4x1.
        scope: ``uniform`` (every matrix alike) or ``global``.
        criterion: ``magnitude``, or ``obert`` for the second-order one.
        steps: Optimiser steps.
        batch_size: Texts a step.
        lr: Peak learning rate.
        seq_len: Longer texts are cut to so many tokens; of a corpus 64 by default.
        seed: Of every draw.
        text: Column of the text.
        text_pair: Column of the second text.
        label: Column of the labels.
        resume: Whether to go on from an unfinished run.
        command: What made it, for the card.
        progress: What is told about it.

    Raises:
        InvalidInputError: An input breaks a law, the folder is occupied, or the loss is no longer finite.
    """
    from nas.finish.prune import PruneConfig, Pruning
    from supernet.task_spec import TaskOptions

    config = PruneConfig(sparsity, pattern, scope, criterion)  # type: ignore[arg-type]  # checked by PruneConfig
    options = TaskOptions(None, text, text_pair, label, seq_len)
    run = _Run(
        model, Path(out), task, corpora, teacher, steps, batch_size, lr, seq_len, seed, options, resume, command,
        progress,
    )  # fmt: skip
    scores, explained = run.train(Pruning(config))
    return Compressed(Path(out), config.sparsity, scores, explained)


def quantize(
    model: str | Path,
    out: str | Path,
    *,
    mode: str = "dynamic",
    task: str | None = None,
    corpora: Sequence[str] = (),
    teacher: str | Path | None = None,
    steps: int = 500,
    batch_size: int = 32,
    lr: float = 5e-5,
    seq_len: int | None = None,
    seed: int = 0,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    resume: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Rounds a model to int8: as it is, with ranges found on real text, or trained to be rounded.

    Args:
        model: A task model's or an encoder's folder; a lock on its pattern is kept.
        out: Folder for the int8 model; must be absent or empty.
        mode: ``dynamic`` (needs no text), ``static`` or ``qat``.
        task: Where text, and for ``qat`` labels, come from: a file, folder or hub id.
        corpora: Or text files, folders or hub ids.
        teacher: With ``qat``, what it learns from; None is the model as it was.
        steps: Optimiser steps of ``qat``.
        batch_size: Texts a step.
        lr: Peak learning rate.
        seq_len: Longer texts are cut to so many tokens.
        seed: Of every draw.
        text: Column of the text.
        text_pair: Column of the second text.
        label: Column of the labels.
        resume: Whether to go on from an unfinished run.
        command: What made it, for the card.
        progress: What is told about it.

    Raises:
        InvalidInputError: An input breaks a law, the folder is occupied, or the loss is no longer finite.
    """
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    check_bounds(steps=steps, batch_size=batch_size, lr=lr, seed=seed, seq_len=seq_len)
    from nas.finish.quantize import Rounding, quantize_model
    from supernet.task_spec import TaskOptions

    options = TaskOptions(None, text, text_pair, label, seq_len)
    if mode != "qat":
        found = quantize_model(
            model, Path(out), mode=mode, task=task, corpora=corpora, options=options, command=command,  # type: ignore[arg-type]
            progress=progress,
        )  # fmt: skip
        return _sized(Path(out), found.sparsity, found.sizes)
    companion = Rounding(Path(model).expanduser())
    run = _Run(
        model, Path(out), task, corpora, teacher, steps, batch_size, lr, seq_len, seed, options, resume, command,
        progress,
    )  # fmt: skip
    scores, explained = run.train(companion)
    sparsity = None if companion.sparsity is None else companion.sparsity.sparsity
    return _sized(Path(out), sparsity, companion.sizes, scores, explained)


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
