"""``nas search``: the main job."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli import options
from nas.cli.outcome import Interrupted, command_line, is_given, print_json, say, verb

_BESIDE_RESUME = {"resume", "evaluations", "as_json", "quiet"}


@verb
def search(
    context: typer.Context,
    latency_ms: Annotated[
        float | None, typer.Option(help="Budget in milliseconds. Without one the whole Pareto front is sought.")
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="Where the model shall run, cpu by default; nas devices lists them. Give it again for several; "
            "NAME:20ms gives one a budget of its own.",
            show_default=False,
        ),
    ] = None,
    seq_len: Annotated[str, typer.Option(help="Tokens a text; several as 32,128.")] = "128",
    batch_size: Annotated[str, typer.Option(help="Texts at a time; several as 1,8.")] = "1",
    percentile: Annotated[int, typer.Option(help="Percentile that the budgets bind: 50, 90 or 99.")] = 50,
    max_memory_mb: Annotated[
        float | None, typer.Option(help="Most megabytes that a process grows by to load and run the model.")
    ] = None,
    max_size_mb: Annotated[float | None, typer.Option(help="Most megabytes of the model file.")] = None,
    runtime: Annotated[
        str | None, typer.Option(help="onnxruntime, openvino, torch or torch-graphs; the device's own by default.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32 or int8, or fp32,int8 to have it chosen as well; the device's own by default."),
    ] = None,
    threads: options.Threads = None,
    cpus: options.Cpus = None,
    supernet: Annotated[
        Path | None, typer.Option(help="Folder that nas train made; the shipped one by default.")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="Search space: a preset's name or a TOML file; the supernet's by default.")
    ] = None,
    narrow: Annotated[
        bool,
        typer.Option("--narrow", help="Also search layers that update position 0 alone (NarrowBERT); for classifying."),
    ] = False,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="tpe, gp, nsga2, evolution, evolution-fast, most-parameters, w-pca, assembly or random; by default "
            "tpe, or assembly where a supernet of chains kept blocks."
        ),
    ] = None,
    compare_samplers: Annotated[
        str | None,
        typer.Option(
            help="Several samplers, such as tpe,evolution,random, each with all evaluations, beside each other."
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="inprocess or ray.")] = "inprocess",
    ray_address: Annotated[
        str | None, typer.Option(help="Cluster for --engine ray (a local one by default) and for devices on its nodes.")
    ] = None,
    evaluations: Annotated[int | None, typer.Option(help="Architectures to evaluate; 80, or 100 of assembly.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    task: Annotated[
        str | None,
        typer.Option(
            help="File or hub id with text (or text pair) and label, or words and tags: quality is a figure on it, and "
            "the chosen model learns it."
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Model fine-tuned on --task to teach the chosen one; by default one made of the supernet."),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Epochs in which the chosen model learns --task; 4.")] = None,
    exits: Annotated[
        str | None,
        typer.Option(
            help="expected or worst: search models that leave early where they are sure, and which of their latencies "
            "the budget binds."
        ),
    ] = None,
    kind: options.Kind = None,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/<time> by default.")] = None,
    storage: Annotated[str | None, typer.Option(help="Database URL of the trials; SQLite in the run folder.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Run folder to continue; only --evaluations can change.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> int:
    """Find the best encoder within a latency budget, export it and show that it meets the budget.

    Every device, length and batch together is a goal, and the model meets the budgets of all of them.

    Example: nas search --latency-ms 10 --device cpu

    Example: nas search --device cpu:10ms --device board:20ms --seq-len 32,128
    """
    from nas import api
    from nas.errors import InvalidInputError
    from nas.progress import choose_progress
    from nas.rundir import fresh_path

    if resume is not None:
        _refuse_beside_resume(context)
    if compare_samplers is not None and is_given(context, "sampler"):
        raise InvalidInputError("--compare-samplers names everything that searches; leave --sampler out")
    folder = resume or out or fresh_path()
    try:
        result = api.search(
            latency_ms,
            device=device or "cpu",
            runtime=runtime,
            precision=None if precision is None else options.names("--precision", precision),
            threads=threads,
            cpus=None if cpus is None else options.whole_numbers("--cpus", cpus),
            batch_size=options.whole_numbers("--batch-size", batch_size),
            seq_len=options.whole_numbers("--seq-len", seq_len),
            percentile=percentile,
            max_memory_mb=max_memory_mb,
            max_size_mb=max_size_mb,
            supernet=supernet,
            space=space,
            narrow=narrow,
            sampler=sampler,
            compare_samplers=() if compare_samplers is None else options.names("--compare-samplers", compare_samplers),
            engine=engine,
            ray_address=ray_address,
            evaluations=evaluations,
            seed=seed,
            task=task,
            teacher=teacher,
            epochs=epochs,
            exits=exits,
            kind=kind,
            text=text,
            text_pair=text_pair,
            label=label,
            out=None if resume else folder,
            storage=storage,
            resume=resume,
            command=command_line(context),
            progress=choose_progress(quiet=quiet),
        )
    except KeyboardInterrupt as interruption:
        raise Interrupted(_how_to_resume(folder)) from interruption
    from nas.cli.tables import print_result, verdict

    if as_json:
        print_json(result.to_dict())
        for sentence in verdict(result):
            say(sentence)
    else:
        print_result(result)
    return result.exit_code


def _refuse_beside_resume(context: typer.Context) -> None:
    """A resumed search takes what it searches for from its run folder; asking for something else would be ignored."""
    from nas.errors import InvalidInputError

    given = {name for name in context.params if is_given(context, name)} - _BESIDE_RESUME
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given))
        raise InvalidInputError(f"--resume takes everything but --evaluations from the run folder; leave out {options}")


def _how_to_resume(folder: Path) -> str:
    from nas.rundir import RUN_FILE

    return f"continue with: nas search --resume {folder}" if (folder / RUN_FILE).exists() else "nothing was written"
