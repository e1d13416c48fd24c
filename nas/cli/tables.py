"""The tables a person reads. Imported only by verbs that print one."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from analysis.latency import Latency
from analysis.table import shape
from analysis.trial import Trial
from nas.measurement import Measurement

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDTH_WITHOUT_TERMINAL = 150
_JUDGEMENTS = {
    "meets": "meets {budget}",
    "exceeds": "[bold]exceeds {budget}[/bold]",
    "undecided": "[bold]undecided[/bold] for {budget}",
}


def print_front(front: "Sequence[Trial]", *, quality_name: str, chosen: str | None = None) -> None:
    """The Pareto front, fastest first; the chosen model is marked by a star."""
    table = Table(title="Pareto front", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in ("", quality_name, "latency ms", "90 % interval", "from", "parameters", "MACs"):
        table.add_column(name, justify="left" if name in ("", "from") else "right", no_wrap=True)
    table.add_column("key", no_wrap=True)
    table.add_column("shape")
    for trial in front:
        latency = trial.latency
        table.add_row(
            "*" if trial.key == chosen else "",
            f"{trial.quality:.4f}",
            f"{latency.p50_s * 1e3:.2f}",
            interval(latency),
            latency.source if latency.verdict == "ok" else f"{latency.source}, {latency.verdict}",
            _count(trial.num_parameters),
            _count(trial.num_macs),
            trial.key,
            shape(trial.architecture),
        )
    console().print(table)


def print_measurement(measurement: Measurement) -> None:
    """One row for each file of a model."""
    table = Table(title=f"{measurement.model_dir} on {measurement.description}", title_justify="left", box=None)
    for name in ("file", "p50 ms", "90 % interval", "p90 ms", "verdict", "budget"):
        table.add_column(name, justify="left" if name in ("file", "verdict", "budget") else "right")
    budget = "" if measurement.budget_s is None else f"{measurement.budget_s * 1e3:g} ms"
    for name, latency in measurement.latencies.items():
        table.add_row(
            name,
            f"{latency.p50_s * 1e3:.2f}",
            interval(latency),
            "-" if latency.p90_s is None else f"{latency.p90_s * 1e3:.2f}",
            latency.verdict,
            _JUDGEMENTS[measurement.judge(name)].format(budget=budget) if budget else "-",
        )
    console().print(table)


def interval(latency: Latency) -> str:
    """A latency's 90 % interval in milliseconds."""
    return f"{latency.low_s * 1e3:.2f} to {latency.high_s * 1e3:.2f}"


def console() -> Console:
    """Standard output as it is now; wide where it is no terminal, so that tables in files do not wrap."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=_WIDTH_WITHOUT_TERMINAL)


def _count(number: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)
