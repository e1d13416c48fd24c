"""The tables a person reads. Imported only by verbs that print one."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from analysis.latency import Latency
from analysis.table import shape
from analysis.trial import Trial
from nas.cli.outcome import say
from nas.measurement import Measurement
from nas.reporting import next_commands
from nas.search.result import FoundModel, SearchResult

_WIDTH_WITHOUT_TERMINAL = 150
_JUDGEMENTS = {
    "meets": "meets {budget}",
    "exceeds": "[bold]exceeds {budget}[/bold]",
    "undecided": "[bold]undecided[/bold] for {budget}",
}


def print_result(result: SearchResult) -> None:
    """The front on stdout; on stderr the verdict and the next command."""
    if result.front:
        print_front([model.trial for model in result.front], result)
    if result.chosen is not None:
        print_chosen(result.chosen, result.budget_s)
    for sentence in verdict(result):
        say(sentence)
    for command in next_commands(result):
        say(f"Next: {command}")


def verdict(result: SearchResult) -> list[str]:
    """What did not go as hoped, in sentences."""
    if not result.is_finished:
        return ["The search is not finished."]
    if result.exit_code == 0 or result.budget_s is None:
        return []
    budget = f"{result.budget_s * 1e3:g} ms"
    said = f"nas: no model meets {budget}" if result.exit_code == 3 else f"nas: too noisy to decide {budget}"
    if result.closest is None:
        return [said]
    latency = result.closest.trial.latency
    over = latency.p50_s / result.budget_s - 1
    how_far = f", {over:.1%} over" if over > 0 else ""
    return [
        f"{said}; the closest, {result.closest.key}, takes {latency.p50_s * 1e3:.2f} ms "
        f"({interval(latency)}, {latency.source}, {latency.verdict}){how_far}"
    ]


def print_front(front: Sequence[Trial], result: SearchResult) -> None:
    """The Pareto front, fastest first; the chosen model is marked by a star."""
    chosen = None if result.chosen is None else result.chosen.key
    table = Table(title="Pareto front", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in ("", "quality", "latency ms", "90 % interval", "from", "parameters", "MACs"):
        table.add_column(name, justify="left" if name in ("", "from") else "right", no_wrap=True)
    table.add_column("model")
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
        )
    console().print(table)
    console().print(f"quality: {result.quality_name}", markup=False)


def print_chosen(model: FoundModel, budget_s: float | None) -> None:
    """The chosen model and why it was chosen."""
    trial, latency = model.trial, model.trial.latency
    meets = "" if budget_s is None else f": within {budget_s * 1e3:g} ms with 95 % confidence"
    lines = [
        "",
        f"Chosen: {trial.key} ({shape(trial.architecture)})",
        f"  quality {trial.quality:.4f}, {trial.num_parameters:,} parameters, {trial.num_macs:,} MACs",
        f"  {latency.p50_s * 1e3:.2f} ms {latency.source} on {latency.conditions.device} "
        f"({interval(latency)} ms, {latency.verdict}){meets}",
        f"  exported to {model.model_dir}",
    ]
    console().print("\n".join(lines), markup=False, soft_wrap=True)


def print_measurement(measurement: Measurement) -> None:
    """One row for each file of a model."""
    table = Table(box=None, pad_edge=False, header_style="bold")
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
    console().print(f"{measurement.model_dir} on {measurement.description}", markup=False, soft_wrap=True)
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
