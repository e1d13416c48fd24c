"""Search, and what is done with its run folder and its models: front, export, measure."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nas.config import check_bounds, check_percentile
from nas.errors import InvalidInputError
from nas.progress import Progress, ended
from nas.rundir import RunDir, fresh_path
from search_spaces.presets import load_space

if TYPE_CHECKING:
    from nas.measurement import Measurement
    from nas.pick import Exported
    from nas.search.result import SearchResult


def measure(
    model_dir: str | Path,
    *,
    device: str = "cpu",
    latency_ms: float | None = None,
    percentile: int = 50,
    exits: str | None = None,
    runtime: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    cpus: Sequence[int] | None = None,
    batch_size: int | Sequence[int] = 1,
    seq_len: int | Sequence[int] | None = None,
    seconds_each: float = 3.0,
    sustained_s: float | None = None,
    ray_address: str | None = None,
    progress: Progress | None = None,
) -> "Measurement":
    """Measures an exported model.

    Args:
        model_dir: Folder that ``nas export`` or ``nas search`` made, or a model folder of ``nas exits``.
        device: A key of :func:`devices`.
        latency_ms: Budget to judge the model by.
        percentile: Which percentile of the latency the budget binds: 50, 90 or 99.
        exits: Which latency of a model with exits the budget binds: ``expected`` (None) or ``worst``.
        runtime: ``onnxruntime``, ``openvino``, ``torch`` or ``torch-graphs``; None for the device's own.
        precision: ``fp32``, ``int8`` ...; None for all that the model has.
        threads: Threads of the runtime; None for the device's own.
        cpus: The cores to run on; None for the device's own, or the idlest.
        batch_size: Texts at a time; several are measured one after the other.
        seq_len: Tokens a text; likewise. None takes 128, or as many as the model reads where those are fewer.
        seconds_each: How long to time each.
        sustained_s: Time each for so long on end instead, and tell how far it slows down.
        ray_address: A Ray cluster, where the device is a node of it by accelerator type or custom resource.
        progress: What is told about it.

    Raises:
        InvalidInputError: An argument is out of bounds, or there is no model.
        DeviceNotAvailableError: No such device is known here, or it cannot be measured.
        InconclusiveMeasurementError: The measuring itself broke down.
    """
    check_bounds(latency_ms=latency_ms, seconds_each=seconds_each, sustained_s=sustained_s)
    check_percentile(percentile)
    from nas.devices.defaults import is_gpu, settings_for
    from nas.devices.resolve import on_ray
    from nas.finish.exit_folder import is_adaptive, read_description
    from nas.measurement import (
        USUAL_LENGTH,
        longest_text,
        measure_model,
        precisions_of,
        sparse_pattern,
        with_gpu_sparse_forms,
        with_precisions,
        with_sparse_forms,
    )

    if ray_address is not None:
        asked, device = device, on_ray(device, ray_address)
        if device == asked:
            raise InvalidInputError(
                f"a Ray address is for a device on it, which {device} is not; leave --ray-address out"
            )
    if seq_len is None:
        folder = Path(model_dir)
        longest = read_description(folder).text.max_positions if is_adaptive(folder) else longest_text(folder)
        seq_len = min(USUAL_LENGTH, longest or USUAL_LENGTH)
    settings = settings_for(
        device, runtime=runtime, precision=precision, threads=threads, cpus=cpus, batch_size=batch_size, seq_len=seq_len
    )
    from nas.finish.exit_measure import check_one_model, in_its_precisions, measure_exits

    budget_s = None if latency_ms is None else latency_ms / 1e3
    if is_adaptive(Path(model_dir)):
        if device != "cpu" or cpus is not None or sustained_s is not None:
            raise InvalidInputError("a model with exits is timed on cpu alone; leave --device, --cpus, --sustained out")
        if precision is None:
            settings = in_its_precisions(Path(model_dir), settings)
        with ended(progress) as said:
            return measure_exits(
                Path(model_dir), settings, budget_s=budget_s, percentile=percentile, binds=exits,
                seconds_each=seconds_each, progress=said,
            )  # fmt: skip
    check_one_model(Path(model_dir))
    if exits is not None:
        raise InvalidInputError("only a model with exits has an expected and a worst latency; leave --exits out")
    if precision is None:
        settings = with_precisions(settings, precisions_of(Path(model_dir), settings[0].runtime))
        is_sparse = runtime is None and sparse_pattern(Path(model_dir)) is not None
        if is_sparse and device == "cpu":
            settings = with_sparse_forms(settings, Path(model_dir))
        elif is_sparse and is_gpu(device):
            settings = with_gpu_sparse_forms(settings, Path(model_dir))
    with ended(progress) as said:
        return measure_model(
            Path(model_dir),
            device=device,
            settings=settings,
            budget_s=budget_s,
            percentile=percentile,
            seconds_each=seconds_each if sustained_s is None else sustained_s,
            is_sustained=sustained_s is not None,
            progress=said,
        )


def search(
    latency_ms: float | None = None,
    *,
    device: str | Sequence[str] = "cpu",
    runtime: str | None = None,
    precision: str | Sequence[str] | None = None,
    threads: int | None = None,
    cpus: Sequence[int] | None = None,
    batch_size: int | Sequence[int] = 1,
    seq_len: int | Sequence[int] = 128,
    percentile: int = 50,
    max_memory_mb: float | None = None,
    max_size_mb: float | None = None,
    supernet: str | Path | None = None,
    space: str | None = None,
    narrow: bool = False,
    sampler: str | None = None,
    compare_samplers: Sequence[str] = (),
    engine: str = "inprocess",
    ray_address: str | None = None,
    evaluations: int | None = None,
    seed: int = 0,
    task: str | None = None,
    teacher: str | None = None,
    epochs: float | None = None,
    exits: str | None = None,
    kind: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    out: str | Path | None = None,
    storage: str | None = None,
    resume: str | Path | None = None,
    command: str | None = None,
    progress: Progress | None = None,
) -> "SearchResult":
    """Finds the best encoder within latency budgets, exports it, measures the export, and writes the report.

    Every device, batch and length together is a goal, at most 8 in all. A model is chosen that meets all of them.

    Args:
        latency_ms: The budget of every device without one of its own; None for the whole Pareto front.
        device: One or several of :func:`devices`, each perhaps with a budget of its own, such as ``board:20ms``.
        runtime: ``onnxruntime``, ``openvino``, ``torch`` or ``torch-graphs``; None for the device's own.
        precision: ``fp32``, ``int8`` ...; both of these for a search that chooses between them, by quality and latency
            of the model as it then runs; None for the device's own.
        threads: Threads of the runtime; None for the device's own.
        cpus: The cores to run on; None for the device's own, or the idlest.
        batch_size: Texts at a time, one or several.
        seq_len: Tokens a text, one or several.
        percentile: Which percentile of the latency the budgets bound: 50, 90 or 99.
        max_memory_mb: By how many megabytes a process may grow that loads and runs the model.
        max_size_mb: How many megabytes the model file may take.
        supernet: Folder that :func:`train` made; None for the shipped one.
        space: A preset's name or a TOML file; None for the supernet's own space.
        narrow: Whether the last layers may be narrow (NarrowBERT): they update position 0 alone, which is enough to
            classify a text. All models are then judged by the state of position 0.
        sampler: One of ``nas.search.samplers.SAMPLERS``; None for ``tpe``, and for ``assembly`` where a supernet of
            chains kept blocks.
        compare_samplers: Several of them, each to search with as many evaluations; the best model of all is chosen.
        engine: ``inprocess`` or ``ray``.
        ray_address: Cluster for the ray engine (None starts a local one) and for devices that are its nodes, by
            accelerator type or custom resource.
        evaluations: How many architectures to evaluate; 80 where None, 100 of ``assembly``.
        seed: Of every draw.
        task: File or hub id with text (or text pair) and label, or words and tags, to judge by and to end with a model
            of; None judges by agreement with the teacher and ends with an encoder.
        teacher: Task model that teaches the chosen one: a folder or hub id; None fine-tunes the supernet's largest
            subnet before.
        epochs: Of the chosen model's fine-tuning; 4 where None.
        exits: ``expected`` or ``worst``: the model leaves early where it is sure enough, and the budget binds its mean
            latency over the task's texts, or that of a text that goes through all layers.
        kind: classification, regression or tagging, where the task's labels leave a doubt.
        text: Column of the task's text, or of its words.
        text_pair: Column of the second text.
        label: Column of the labels.
        out: Run folder; None for ``runs/<time>``.
        storage: Database URL of the trials; None for SQLite in the run folder.
        resume: Run folder to continue; everything but ``evaluations`` then comes from there.
        command: What ``run.json`` keeps as the command that did this; None for this function's name.
        progress: What is told about it.

    Returns:
        What was found. Its exit code is 0, 3 where nothing fits, 5 where the measurements do not decide.

    Raises:
        InvalidInputError: An argument, the supernet, the task, the store or the run folder breaks a law.
        DeviceNotAvailableError: A device, or the Ray cluster, is not there.
        InconclusiveMeasurementError: The measuring itself broke down.
    """
    check_percentile(percentile)
    check_bounds(
        latency_ms=latency_ms,
        max_memory_mb=max_memory_mb,
        max_size_mb=max_size_mb,
        evaluations=evaluations,
        seed=seed,
        epochs=epochs,
    )
    chosen_space = None if space is None else load_space(space)
    folder = Path(resume or out or fresh_path())

    from nas.finish.after_search import check_task, learn_task, write_untaught
    from nas.finish.exits_after_search import time_exits
    from nas.search.pipeline import search as run_search
    from nas.search.request import SearchRequest, goal_requests
    from supernet.task_spec import TaskOptions

    named = () if precision is None else (precision,) if isinstance(precision, str) else tuple(precision)
    precisions = named if len(named) > 1 else ()
    goals = goal_requests(
        [device] if isinstance(device, str) else device,
        None if latency_ms is None else latency_ms / 1e3,
        ray_address=ray_address,
        runtime=runtime,
        precision="fp32" if precisions else next(iter(named), None),
        threads=threads,
        cpus=cpus,
        batch_size=batch_size,
        seq_len=seq_len,
    )
    request = SearchRequest(
        goals=goals,
        precisions=precisions,
        percentile=percentile,
        max_memory_mb=max_memory_mb,
        max_size_mb=max_size_mb,
        supernet=None if supernet is None else Path(supernet),
        space=chosen_space,
        narrow=narrow,
        sampler=sampler,
        compare_samplers=tuple(compare_samplers),
        engine=engine,
        ray_address=ray_address,
        seed=seed,
        num_evaluations=evaluations,
        task=task,
        teacher=teacher,
        epochs=epochs,
        exits=exits,
        task_options=TaskOptions(kind, text, text_pair, label),  # type: ignore[arg-type]  # checked by TaskOptions
        run_dir=folder,
        storage=storage,
        resume=None if resume is None else folder,
    )
    with ended(progress) as said:
        if resume is None:
            request.check()
            check_task(request)
        written = command or "nas.search(...)"
        result = run_search(request, said, command=written, write_task_model=write_untaught, time_exits=time_exits)
        result = learn_task(result, said)
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
