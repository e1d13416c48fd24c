"""The verbs as functions. The command line calls these and prints what they return; ``import nas`` re-exports them.

Heavy libraries are imported by the verb that needs them, never by importing this module.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nas.config import check_bounds
from nas.errors import InvalidInputError, unknown_name
from nas.progress import Fact, Progress, ended
from nas.rundir import RunDir, fresh_path
from search_spaces.presets import load_space

if TYPE_CHECKING:
    from nas.measurement import Measurement
    from nas.pick import Exported
    from nas.search.result import SearchResult
    from supernet.train import TrainingStatus

_LOSSES = ("hidden", "pooled", "relation", "mlm")


def devices() -> dict[str, str]:
    """The devices that latencies can be measured on: name to description."""
    from nas.devices.resolve import known_devices

    return known_devices()


def measure(
    model_dir: str | Path,
    *,
    device: str = "cpu",
    latency_ms: float | None = None,
    threads: int = 1,
    batch_size: int = 1,
    seq_len: int = 128,
    seconds_each: float = 3.0,
    progress: Progress | None = None,
) -> "Measurement":
    """Measures the ONNX files of an exported model.

    Args:
        model_dir: Folder with ``model.onnx`` or ``model.int8.onnx``, or both.
        device: A key of :func:`devices`.
        latency_ms: Budget to judge the files by.
        threads: Threads of the runtime.
        batch_size: Texts at a time.
        seq_len: Tokens a text.
        seconds_each: How long to time each file.
        progress: What is told about it.

    Raises:
        InvalidInputError: An argument is out of bounds, or there is no model.
        DeviceNotAvailableError: No such device is known here.
        InconclusiveMeasurementError: The measuring itself broke down.
    """
    check_bounds(
        latency_ms=latency_ms, threads=threads, batch_size=batch_size, seq_len=seq_len, seconds_each=seconds_each
    )
    from nas.measurement import measure_model

    with ended(progress) as said:
        return measure_model(
            Path(model_dir),
            device=device,
            budget_s=None if latency_ms is None else latency_ms / 1e3,
            threads=threads,
            batch_size=batch_size,
            seq_len=seq_len,
            seconds_each=seconds_each,
            progress=said,
        )


def search(
    latency_ms: float | None = None,
    *,
    device: str = "cpu",
    supernet: str | Path | None = None,
    space: str | None = None,
    sampler: str = "tpe",
    engine: str = "inprocess",
    ray_address: str | None = None,
    evaluations: int | None = None,
    seed: int = 0,
    threads: int = 1,
    batch_size: int = 1,
    seq_len: int = 128,
    task: str | None = None,
    out: str | Path | None = None,
    storage: str | None = None,
    resume: str | Path | None = None,
    command: str | None = None,
    progress: Progress | None = None,
) -> "SearchResult":
    """Finds the best encoder within a latency budget, exports it, measures the export, and writes the report.

    Args:
        latency_ms: The budget; None for the whole Pareto front.
        device: A key of :func:`devices`.
        supernet: Folder that :func:`train` made; None for the shipped one.
        space: A preset's name or a TOML file; None for the supernet's own space.
        sampler: ``random``, ``evolution``, ``nsga2``, ``tpe`` or ``gp``.
        engine: ``inprocess`` or ``ray``.
        ray_address: Cluster for the ray engine; None starts a local one.
        evaluations: How many architectures to evaluate; 80 where None.
        seed: Of every draw.
        threads: Threads of the runtime.
        batch_size: Texts at a time.
        seq_len: Tokens a text.
        task: File or hub id with text (or text pair) and label; None judges by agreement with the teacher.
        out: Run folder; None for ``runs/<time>``.
        storage: Database URL of the trials; None for SQLite in the run folder.
        resume: Run folder to continue; everything but ``evaluations`` then comes from there.
        command: What ``run.json`` keeps as the command that did this; None for this function's name.
        progress: What is told about it.

    Returns:
        What was found. Its exit code is 0, 3 where nothing fits, 5 where the measurements do not decide.

    Raises:
        InvalidInputError: An argument, the supernet, the task, the store or the run folder breaks a law.
        DeviceNotAvailableError: The device, or the Ray cluster, is not there.
        InconclusiveMeasurementError: The measuring itself broke down.
    """
    check_bounds(
        latency_ms=latency_ms,
        evaluations=evaluations,
        seed=seed,
        threads=threads,
        batch_size=batch_size,
        seq_len=seq_len,
    )
    chosen_space = None if space is None else load_space(space)
    folder = Path(resume or out or fresh_path())

    from nas.search.pipeline import search as run_search
    from nas.search.result import SearchRequest

    request = SearchRequest(
        budget_s=None if latency_ms is None else latency_ms / 1e3,
        device=device,
        supernet=None if supernet is None else Path(supernet),
        space=chosen_space,
        sampler=sampler,
        engine=engine,
        ray_address=ray_address,
        seed=seed,
        num_evaluations=evaluations,
        threads=threads,
        batch_size=batch_size,
        seq_len=seq_len,
        task=task,
        run_dir=folder,
        storage=storage,
        resume=None if resume is None else folder,
    )
    with ended(progress) as said:
        result = run_search(request, said)
        RunDir(result.run).add_command(command or "nas.search(...)")
        _report(result, said)
    return result


def front(run: str | Path, *, progress: Progress | None = None) -> "SearchResult":
    """Reads what a search found so far, finished or not, and writes its report and ``front.csv`` anew.

    Args:
        run: Run folder.
        progress: What is told about it.

    Raises:
        InvalidInputError: The run folder or its store is missing, broken, or not of a search.
    """
    folder = RunDir.open(Path(run))

    from nas.search.result import load_result

    result = load_result(folder)
    with ended(progress) as said:
        _report(result, said)
    return result


def export(run: str | Path, out: str | Path, *, pick: str = "best", progress: Progress | None = None) -> "Exported":
    """Exports a model of a search: Hugging Face folder, tokenizer, ONNX in float and int8, model card.

    Args:
        run: Run folder.
        out: Folder for the model; must be absent or empty.
        pick: ``best`` (the chosen one), ``fastest`` or ``smallest`` of the front, or a model's key.
        progress: What is told about it.

    Raises:
        InvalidInputError: The run, the pick, the supernet or the place breaks a law.
        InconclusiveMeasurementError: The measuring itself broke down.
    """
    folder = RunDir.open(Path(run)).path

    from nas.pick import export_pick

    with ended(progress) as said:
        return export_pick(folder, Path(out), pick=pick, progress=said)


def _report(result: "SearchResult", progress: Progress) -> None:
    from nas.reporting import write_run_report

    progress.start("writing the report")
    files = write_run_report(result)
    progress.finish(str(files.html))
    if files.picture_note:
        progress.note(files.picture_note)


def train(
    out: str | Path,
    *,
    corpora: Sequence[str],
    teacher: str | None = None,
    tokenizer: str | None = None,
    space: str = "stock",
    steps: int | None = None,
    minutes: float | None = None,
    batch_size: int = 32,
    seq_len: int = 64,
    lr: float = 5e-4,
    accumulate: int = 1,
    precision: str = "auto",
    strategy: str = "sandwich",
    losses: Mapping[str, float] | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Trains a supernet; every option in ``supernet.train.TrainingConfig`` that is not here keeps its default.

    Args:
        out: Folder for the supernet; must be absent or empty unless ``resume``.
        corpora: Text files, folders or hub ids.
        teacher: Folder or hub id of a BERT-like encoder; None for a fresh start with the mlm loss.
        tokenizer: Folder or hub id, where there is no teacher.
        space: A preset's name or a TOML file.
        steps: Optimiser steps; either these or ``minutes``.
        minutes: Wall-clock minutes of training.
        batch_size: Texts a batch.
        seq_len: Most tokens a text.
        lr: Peak learning rate.
        accumulate: Batches a step.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        strategy: ``sandwich`` or ``uniform``.
        losses: Weight by loss: hidden, pooled, relation, mlm.
        seed: Of every draw.
        resume: Whether to go on from the last checkpoint in ``out``.
        progress: What is told about it.

    Returns:
        The folder.

    Raises:
        InvalidInputError: An input breaks a law, the folder is occupied, or the loss is no longer finite.
    """
    check_bounds(
        steps=steps, minutes=minutes, batch_size=batch_size, seq_len=seq_len, lr=lr, accumulate=accumulate, seed=seed
    )
    if (steps is None) == (minutes is None):
        raise InvalidInputError("say how long to train: give either steps or minutes")
    if not corpora:
        raise InvalidInputError("training needs at least one corpus")
    weights = _loss_weights(losses, has_teacher=teacher is not None)
    chosen_space = load_space(space)

    from supernet.distil import LossWeights
    from supernet.train import TrainingConfig
    from supernet.train import train as train_supernet

    config = TrainingConfig(
        steps=steps,
        minutes=minutes,
        strategy=strategy,  # type: ignore[arg-type]  # checked by TrainingConfig
        losses=LossWeights(**weights),
        batch_size=batch_size,
        seq_len=seq_len,
        accumulate=accumulate,
        learning_rate=lr,
        precision=precision,  # type: ignore[arg-type]  # checked by TrainingConfig
        seed=seed,
    )
    with ended(progress) as said:
        told = _TrainingProgress(said, steps)
        return train_supernet(
            Path(out),
            space=chosen_space,
            corpora=corpora,
            config=config,
            teacher=teacher,
            tokenizer=tokenizer,
            resume=resume,
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


def _loss_weights(losses: Mapping[str, float] | None, *, has_teacher: bool) -> dict[str, float]:
    """Weights of the losses: those given and no others; without any, distillation, or mlm where there is no teacher."""
    for name in losses or {}:
        if name not in _LOSSES:
            raise unknown_name("loss", name, _LOSSES)
    if losses:
        return {name: losses.get(name, 0.0) for name in _LOSSES}
    return {} if has_teacher else {"hidden": 0.0, "pooled": 0.0, "relation": 0.0, "mlm": 1.0}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
