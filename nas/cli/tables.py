"""The tables a person reads. Imported only by verbs that print one."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from analysis.goal import Goal, worst
from analysis.latency import Latency
from analysis.table import shape
from nas.cli.outcome import say
from nas.reporting import exit_sentences, loading_remark, next_commands
from nas.search.outcome import HEAD, NOTE, PAGE, rows_of
from nas.search.result import FoundModel, SearchResult

_WIDTH_WITHOUT_TERMINAL = 150


def print_result(result: SearchResult) -> None:
    """The fronts on stdout; on stderr the verdict and the next command."""
    if result.comparison:
        print_comparison(result)
    for place in range(len(result.goals)):
        if result.fronts[place]:
            print_front(result, place)
    if result.front:
        console().print(f"quality: {result.quality_name}", markup=False)
    if result.chosen is not None:
        print_chosen(result.chosen, result)
    if result.task_model is not None:
        console().print(_learnt(result.task_model), markup=False, soft_wrap=True)
    if result.exits is not None:
        for line in exit_sentences(result.exits):
            console().print(f"  {line}", markup=False, soft_wrap=True)
    for sentence in verdict(result):
        say(sentence)
    for command in next_commands(result):
        say(f"Next: {command}")


def _learnt(told: Mapping[str, Any]) -> str:
    """How good the task model is, beside its teacher."""
    figures = ", ".join(f"{name} {value:.4f}" for name, value in told["scores"].items())
    theirs = ", ".join(f"{name} {value:.4f}" for name, value in (told["teacher_scores"] or {}).items())
    return f"  {told['split']} split: {figures}" + (f" (its teacher: {theirs})" if theirs else "")


def print_comparison(result: SearchResult) -> None:
    """How each of the samplers did that were compared."""
    table = Table(title="Samplers", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(HEAD):
        table.add_column(name, justify="left" if place in (0, len(HEAD) - 1) else "right", no_wrap=True)
    for row in rows_of(result.comparison):
        table.add_row(*row)
    console().print(table)
    console().print(f"{NOTE} Their fronts: {result.run / PAGE}", markup=False, soft_wrap=True)


def verdict(result: SearchResult) -> list[str]:
    """What did not go as hoped, and what was not measured, in sentences."""
    if not result.is_finished:
        return ["The search is not finished."]
    if result.exit_code == 0:
        if result.chosen is None:
            return []
        remark = loading_remark(result.chosen.trial.architecture)
        caveats = [f"{g.name} was {g.caveat}; run nas measure MODEL there." for g in result.goals if g.caveat]
        return [remark, *caveats] if remark else caveats
    asked = ", ".join(_asked(result))
    said = f"nas: no model meets {asked}" if result.exit_code == 3 else f"nas: too noisy to decide {asked}"
    if result.closest is None:
        return [said]
    return [f"{said}; the closest, {result.closest.key}, {_shortfall(result.closest, result)}"]


def _asked(result: SearchResult) -> list[str]:
    """Everything that was asked, in words."""
    limits = result.limits
    with_names = len(result.goals) > 1
    asked = [goal.asked + (f" on {goal.name}" if with_names else "") for goal in result.goals if goal.asked]
    asked += [] if limits.max_size_bytes is None else [f"{limits.max_size_bytes / 1e6:g} MB on disk"]
    return asked + ([] if limits.max_memory_bytes is None else [f"{limits.max_memory_bytes / 1e6:g} MB of memory"])


def _shortfall(model: FoundModel, result: SearchResult) -> str:
    """What the closest model takes of what it misses most, and by how much that is over."""
    missed = worst(result.standings(model))
    place = next((at for at, goal in enumerate(result.goals) if missed is not None and goal.name == missed.what), None)
    if missed is None or missed.share is None:
        return "could not be measured"
    over = f", {missed.share - 1:.1%} over" if missed.share > 1 else ""
    if place is None:
        return f"needs {missed.said} ({missed.what}){over}"
    latency, goal = model.trial.latencies[place], result.goals[place]
    on = f" on {goal.name}" if len(result.goals) > 1 else ""
    return (
        f"takes {goal.value_s(latency) * 1e3:.2f} ms{on} "
        f"({interval(latency, goal.percentile)}, {latency.source}, {latency.verdict}){over}"
    )


def print_front(result: SearchResult, place: int) -> None:
    """The Pareto front of a goal, fastest first; the chosen model is marked by a star."""
    goal, chosen = result.goals[place], None if result.chosen is None else result.chosen.key
    title = f"Pareto front: {goal.name}" if len(result.goals) > 1 else "Pareto front"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in ("", "quality", "latency ms", "90 % interval", "from", "parameters", "MACs"):
        table.add_column(name, justify="left" if name in ("", "from") else "right", no_wrap=True)
    table.add_column("model")
    for model in result.fronts[place]:
        trial, latency = model.trial, model.trial.latencies[place]
        table.add_row(
            "*" if trial.key == chosen else "",
            f"{trial.quality:.4f}",
            f"{latency.p50_s * 1e3:.2f}",
            interval(latency),
            latency.source if latency.verdict == "ok" else f"{latency.source}, {latency.verdict}",
            _count(trial.num_parameters),
            _count(trial.macs(place)),
            trial.key,
        )
    console().print(table)
    if goal.caveat:
        console().print(f"{goal.name}: {goal.caveat}", markup=False)


def print_chosen(model: FoundModel, result: SearchResult) -> None:
    """The chosen model and why it was chosen."""
    trial = model.trial
    lines = [
        "",
        f"Chosen: {trial.key} ({shape(trial.architecture)})",
        f"  quality {trial.quality:.4f}, {trial.num_parameters:,} parameters, {trial.num_macs:,} MACs",
    ]
    for goal, latency in zip(result.goals, trial.latencies, strict=True):
        on = goal.name if len(result.goals) > 1 else latency.conditions.device
        lines.append(f"  {_latency_words(goal, latency)} on {on} {_evidence(goal, latency)}")
    limited = {one.what: one.said for one in result.standings(model) if one.what not in {g.name for g in result.goals}}
    lines += [f"  {what}: {said}" for what, said in limited.items()]
    lines.append(f"  exported to {model.model_dir}" + (f"; it runs from {model.file}" if result.precisions else ""))
    console().print("\n".join(lines), markup=False, soft_wrap=True)


def _latency_words(goal: Goal, latency: Latency) -> str:
    """The median, and the percentile that is bounded where that is another."""
    value_s = latency.percentile_s(goal.percentile)
    tail = "" if goal.percentile == 50 or value_s is None else f", p{goal.percentile} {value_s * 1e3:.2f} ms,"
    return f"{latency.p50_s * 1e3:.2f} ms{tail} {latency.source}"


def _evidence(goal: Goal, latency: Latency) -> str:
    said = f"({interval(latency, goal.percentile)} ms, {latency.verdict})"
    if goal.caveat:
        within = f"expected within {goal.asked}, " if goal.asked else ""
        return f"{said}: {within}{goal.caveat}"
    return said + (f": within {goal.asked} with 95 % confidence" if goal.asked else "")


def interval(latency: Latency, percentile: int = 50) -> str:
    """A latency's 90 % interval in milliseconds; that of its median where the percentile is not known."""
    low_s, high_s = latency.bounds_s(percentile) or (latency.low_s, latency.high_s)
    return f"{low_s * 1e3:.2f} to {high_s * 1e3:.2f}"


def console() -> Console:
    """Standard output as it is now; wide where it is no terminal, so that tables in files do not wrap."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=_WIDTH_WITHOUT_TERMINAL)


def _count(number: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)
