"""``nas measure``: how fast an exported model is on a device."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli import options
from nas.cli.outcome import is_given, print_json, verb

if TYPE_CHECKING:
    from nas.measurement import Measurement

_JUDGEMENTS = {
    "meets": "meets {budget}",
    "exceeds": "[bold]exceeds {budget}[/bold]",
    "undecided": "[bold]undecided[/bold] for {budget}",
}


@verb
def measure(
    context: typer.Context,
    model_dir: Annotated[Path, typer.Argument(help="Folder of an exported model.")],
    device: Annotated[str, typer.Option(help="Where to measure; nas devices lists them.")] = "cpu",
    latency_ms: Annotated[float | None, typer.Option(help="Budget to judge the model by, in milliseconds.")] = None,
    percentile: Annotated[int, typer.Option(help="Percentile that the budget binds: 50, 90 or 99.")] = 50,
    exits: Annotated[
        str | None, typer.Option(help="expected or worst: which latency of a model with exits the budget binds.")
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="onnxruntime, openvino, torch, torch-graphs or torch-sparse; the device's own by default."),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, int8 ...; all that the model has by default.")] = None,
    threads: options.Threads = None,
    cpus: options.Cpus = None,
    batch_size: options.BatchSizes = "1",
    seq_len: Annotated[
        str | None, typer.Option(help="Tokens a text; several as 32,128; 128 by default, or what the model reads.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long to time each; longer where --percentile needs it.")] = 3.0,
    sustained: Annotated[
        float | None, typer.Option(help="Time each for so many seconds on end and tell how far it slows down.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster whose node the device is, by accelerator type or custom resource.")
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> int:
    """Measure the latency of an exported model, float and int8; of a sparse one on the CPU every form side by side.

    Of a model with exits: what a text takes to each exit, what is expected of all texts, and the worst case.

    With a budget the exit code is 0 where a form of the model meets it, 3 where none does, 5 where that stays open.

    Example: nas measure my-model --device board --latency-ms 20 --seq-len 32,128
    """
    from nas import api
    from nas.errors import InvalidInputError
    from nas.progress import choose_progress

    if sustained is not None and is_given(context, "seconds"):
        raise InvalidInputError("--sustained says how long each is timed; leave --seconds out")
    measurement = api.measure(
        model_dir,
        device=device,
        latency_ms=latency_ms,
        percentile=percentile,
        exits=exits,
        runtime=runtime,
        precision=precision,
        threads=threads,
        cpus=None if cpus is None else options.whole_numbers("--cpus", cpus),
        batch_size=options.whole_numbers("--batch-size", batch_size),
        seq_len=None if seq_len is None else options.whole_numbers("--seq-len", seq_len),
        seconds_each=seconds,
        sustained_s=sustained,
        ray_address=ray_address,
        progress=choose_progress(quiet=quiet),
    )
    if as_json:
        print_json(measurement.to_dict())
    else:
        _print(measurement)
    return measurement.exit_code


def _print(measurement: "Measurement") -> None:
    """One row for each form and condition; columns that say nothing are left out."""
    from rich.table import Table

    from nas.cli.tables import console, interval
    from nas.measurement import MB

    budget = "" if measurement.budget_s is None else f"{measurement.budget_s * 1e3:g} ms"
    budget += "" if measurement.percentile == 50 else f" at p{measurement.percentile}"
    columns: dict[str, list[str]] = {}
    for row in measurement.rows:
        latency, conditions = row.latency, row.latency.conditions
        drift = latency.drift if measurement.is_sustained else None
        energy, memory = latency.energy_j, latency.peak_memory_bytes
        cells = {
            "file": row.file,
            "runtime": row.runtime if len({one.runtime for one in measurement.rows}) > 1 else "",
            "precision": conditions.precision if any(row.file == "." for row in measurement.rows) else "",
            "batch x tokens": f"{conditions.batch_size} x {conditions.seq_len}",
            "p50 ms": f"{latency.p50_s * 1e3:.2f}",
            "90 % interval": interval(latency),
            "p90 ms": "" if latency.p90 is None else f"{latency.p90.value_s * 1e3:.2f}",
            "p99 ms": "" if latency.p99 is None else f"{latency.p99.value_s * 1e3:.2f}",
            "texts/s": f"{latency.throughput:.0f}",
            "MB on disk": f"{row.size_bytes / MB:.1f}",
            "MB in memory": "" if memory is None else f"{memory / MB:.0f}",
            "mJ a pass": "" if energy is None else f"{energy * 1e3:.1f}",
            "drift": "" if drift is None else f"{drift:+.1%}",
            "verdict": latency.verdict,
            "throttled": "" if latency.pressure is None else ", ".join(latency.pressure.throttled),
            "budget": _JUDGEMENTS.get(measurement.judge(row), "").format(budget=budget) if measurement.budget_s else "",
        }
        for name, cell in cells.items():
            columns.setdefault(name, []).append(cell)
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in shown:
        table.add_column(
            name, justify="left" if name in ("file", "runtime", "verdict", "throttled", "budget") else "right"
        )
    for line in zip(*shown.values(), strict=True):
        table.add_row(*(cell or "-" for cell in line))
    threads = measurement.rows[0].latency.conditions.threads
    where = f"{measurement.model_dir} on {measurement.description}"
    where += "" if threads == 1 else f", {threads} threads"
    where += "" if measurement.cpus is None else f", cores {','.join(map(str, measurement.cpus))}"
    console().print(where, markup=False, soft_wrap=True)
    console().print(table)
    for sentence in measurement.advice:
        console().print(sentence, markup=False, soft_wrap=True)
