"""``nas measure``: how fast an exported model is here."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.outcome import print_json, verb


@verb
def measure(
    model_dir: Annotated[Path, typer.Argument(help="Folder of an exported model.")],
    device: Annotated[str, typer.Option(help="Where to measure; nas devices lists them.")] = "cpu",
    latency_ms: Annotated[float | None, typer.Option(help="Budget to judge the model by, in milliseconds.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Texts at a time.")] = 1,
    seq_len: Annotated[int, typer.Option(help="Tokens a text.")] = 128,
    seconds: Annotated[float, typer.Option(help="How long to time each file.")] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> int:
    """Measure the latency of an exported model, float and int8.

    With a budget the exit code is 0 where a file meets it, 3 where none does, 5 where that stays open.
    """
    from nas import api
    from nas.progress import choose_progress

    measurement = api.measure(
        model_dir,
        device=device,
        latency_ms=latency_ms,
        threads=threads,
        batch_size=batch_size,
        seq_len=seq_len,
        seconds_each=seconds,
        progress=choose_progress(quiet=quiet),
    )
    if as_json:
        print_json(measurement.to_dict())
        return measurement.exit_code
    from nas.cli.tables import print_measurement

    print_measurement(measurement)
    return measurement.exit_code
