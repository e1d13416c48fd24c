"""The report of a search: one HTML file that works offline, the front as CSV, and pictures where a browser is found.

The file loads nothing: plotly's script is inside, and a content security policy forbids the browser to fetch anything.
"""

import html
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from analysis.latency import Latency
from analysis.pareto import hypervolume_over_trials, quality_and_latency, reference_point
from analysis.plots import hypervolume_figure, pareto_figure, prediction_figure, samples_figure, size_figure
from analysis.table import front_of, shape, trials_table
from analysis.trial import Trial
from search_spaces.files import atomic_path, write_atomic

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.5rem } figure { margin: 1.5rem 0 } figcaption { color: #555 }
table { border-collapse: collapse } td, th { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: left }
.number { text-align: right; font-variant-numeric: tabular-nums } .chosen { background: #fff3d6; font-weight: 600 }
.verdict { font-size: 1.15rem } .wide { overflow-x: auto } pre { background: #f4f4f4; padding: 1rem; overflow-x: auto }
"""


@dataclass(frozen=True)
class ReportFacts:
    """What a report says beside the trials.

    Attributes:
        device: The target's name.
        quality_name: What the quality is, e.g. ``agreement with the teacher``.
        budget_s: The budget; None where the whole front was asked for.
        chosen: The model that meets the budget, with its measured latency; None where none does.
        closest: The nearest model where none meets the budget.
        predictions: What had been predicted of architectures that were measured, by key.
        front_keys: Keys of the front; None finds it among the trials.
        how: Rows of "how it was measured": name to text.
        commands: The commands that made the run, and those to go on with.
    """

    device: str
    quality_name: str = "quality"
    budget_s: float | None = None
    chosen: Trial | None = None
    closest: Trial | None = None
    predictions: Mapping[str, Latency] = field(default_factory=dict)
    front_keys: Sequence[str] | None = None
    how: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """What was written.

    Attributes:
        html: The report.
        front_csv: The front.
        pictures: PNG files; empty where no browser was found.
        picture_note: Why there are no pictures, or an empty text.
    """

    html: Path
    front_csv: Path
    pictures: tuple[Path, ...] = ()
    picture_note: str = ""


def write_report(folder: Path, trials: Sequence[Trial], facts: ReportFacts, *, pictures: bool = True) -> ReportFiles:
    """Writes ``report.html``, ``front.csv`` and, where a browser is found, ``report-<figure>.png``.

    Args:
        folder: Where to.
        trials: The evaluated architectures in order, each with the best latency known of it.
        facts: What else the report says.
        pictures: Whether to draw PNGs.

    Raises:
        InvalidInputError: The folder cannot be written.
    """
    table = trials_table(trials, predictions=facts.predictions, front_keys=facts.front_keys)
    figures = _figures(table, trials, facts)
    front = front_of(table)
    with atomic_path(folder / "front.csv") as temporary:
        front.drop(columns="on_front").to_csv(temporary, index=False)
    write_atomic(folder / "report.html", _page(front, figures, facts, ""))  # before a browser may keep us waiting
    drawn, note = _write_pictures(folder, figures) if pictures else ((), "no PNG pictures: they were not asked for")
    if note:
        write_atomic(folder / "report.html", _page(front, figures, facts, note))
    return ReportFiles(folder / "report.html", folder / "front.csv", drawn, note)


def find_browser() -> str | None:
    """The browser that can draw pictures: ``$BROWSER_PATH``, or a Chrome or Chromium on the path; None without one."""
    given = os.environ.get("BROWSER_PATH")
    return given if given and Path(given).exists() else next(filter(None, map(shutil.which, _BROWSERS)), None)


def _figures(table: pd.DataFrame, trials: Sequence[Trial], facts: ReportFacts) -> dict[str, tuple[str, go.Figure]]:
    budget_ms = None if facts.budget_s is None else facts.budget_s * 1e3
    chosen = None if facts.chosen is None else facts.chosen.key
    points = quality_and_latency(trials)
    figures = {
        "front": (
            "Each point is one architecture; the line is the Pareto front, bars are 90 % intervals of the latency.",
            pareto_figure(table, budget_ms=budget_ms, chosen=chosen, quality_name=facts.quality_name),
        ),
        "size": ("The same models by size.", size_figure(table, chosen=chosen, quality_name=facts.quality_name)),
        "prediction": (
            "The predictor steers the search; only measurements decide. On the dotted line the two are equal.",
            prediction_figure(table),
        ),
        "hypervolume": (
            "How much of the plane the front covers after each trial; flat at the end: more trials add little.",
            hypervolume_figure(hypervolume_over_trials(points, reference_point(points))),
        ),
    }
    if facts.chosen is not None and facts.chosen.latency.samples_s:
        caption = "Raw times of the chosen model and of the anchor model it was interleaved with."
        figures["samples"] = (caption, samples_figure(facts.chosen.latency))
    return figures


def _write_pictures(folder: Path, figures: Mapping[str, tuple[str, go.Figure]]) -> tuple[tuple[Path, ...], str]:
    if find_browser() is None:
        return (), "no PNG pictures: they need Chrome or Chromium, and none was found"
    places = {name: folder / f"report-{name}.png" for name in figures}
    partial = [place.with_name(f".{place.name}.partial.png") for place in places.values()]
    try:
        import plotly.io

        plotly.io.write_images([figure for _, figure in figures.values()], partial, width=1100, height=560)
        for temporary, place in zip(partial, places.values(), strict=True):
            temporary.replace(place)
    except Exception as error:  # a browser fails in ways of its own, and a picture is no reason to lose a search
        reason = str(error).strip().splitlines()
        return (), f"no PNG pictures: the browser failed ({reason[0] if reason else type(error).__name__})"
    finally:
        for temporary in partial:
            temporary.unlink(missing_ok=True)
    return tuple(places.values()), ""


def _page(
    front: pd.DataFrame, figures: Mapping[str, tuple[str, go.Figure]], facts: ReportFacts, picture_note: str
) -> str:
    budget = "" if facts.budget_s is None else f" within {facts.budget_s * 1e3:g} ms"
    title = html.escape(f"The best encoder{budget} on {facts.device}")
    drawn = "\n".join(_figure(name, caption, figure) for name, (caption, figure) in figures.items())
    note = f"<p>{html.escape(picture_note)}.</p>" if picture_note else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{title}</title>
<style>{_STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<h1>{title}</h1>
{_verdict(facts)}
<h2>Figures</h2>
{drawn}
<h2>The Pareto front</h2>
{_front_table(front, facts)}
<h2>How it was measured</h2>
{_how(facts)}
{note}
</body>
</html>
"""


def _figure(name: str, caption: str, figure: go.Figure) -> str:
    drawing = figure.to_html(
        full_html=False, include_plotlyjs=False, div_id=f"figure-{name}", config={"displaylogo": False}
    )
    return f"<figure>{drawing}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _verdict(facts: ReportFacts) -> str:
    if facts.chosen is not None:
        return f'<p class="verdict">{_meets(facts.chosen, facts.budget_s)}</p>{_evidence(facts.chosen)}'
    if facts.closest is not None and facts.budget_s is not None:
        miss = facts.closest.latency.p50_s / facts.budget_s - 1
        sentence = f"Nothing fits. The closest model, {facts.closest.key}, misses the budget by {miss:.1%}."
        return f'<p class="verdict">{html.escape(sentence)}</p>{_evidence(facts.closest)}'
    return '<p class="verdict">The whole front was asked for; no model was chosen.</p>'


def _meets(chosen: Trial, budget_s: float | None) -> str:
    latency = chosen.latency
    name = f"<strong>{html.escape(chosen.key)}</strong>"
    if budget_s is None:
        return f"Chosen: {name}."
    high_ms, budget_ms = latency.high_s * 1e3, budget_s * 1e3
    if latency.source == "measured" and latency.meets(budget_s):
        return f"{name} meets the budget: its 95 % upper bound is {high_ms:.2f} ms, the budget {budget_ms:g} ms."
    return f"{name} is {latency.source}; its 95 % upper bound is {high_ms:.2f} ms, the budget {budget_ms:g} ms."


def _evidence(trial: Trial) -> str:
    latency, conditions = trial.latency, trial.latency.conditions
    rows = {
        "shape": shape(trial.architecture),
        "quality": f"{trial.quality:.4f}",
        "latency": f"p50 {_ms(latency.p50_s)}, 90 % interval {_ms(latency.low_s)} to {_ms(latency.high_s)}"
        + ("" if latency.p90_s is None else f", p90 {_ms(latency.p90_s)}"),
        "how sure": f"{latency.source}, {latency.verdict}",
        "under": f"{conditions.device}, {conditions.runtime}, {conditions.precision}, {conditions.threads} thread(s), "
        f"batch {conditions.batch_size}, {conditions.seq_len} tokens",
        "parameters": f"{trial.num_parameters:,}",
        "MACs": f"{trial.num_macs:,}",
    }
    if latency.samples_s:
        rows["samples"] = f"{len(latency.samples_s)} in {latency.num_rounds} rounds, interleaved with an anchor model"
    if latency.ratio is not None:
        rows["ratio to the anchor"] = f"{latency.ratio:.3f}"
    if latency.pressure is not None:
        shares = latency.pressure
        rows["meanwhile"] = (
            f"other cores busy {shares.busy_share:.0%}, "
            f"held up {shares.waiting_share:.1%}, stolen {shares.steal_share:.1%}"
        )
    return _rows(rows)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _front_table(front: pd.DataFrame, facts: ReportFacts) -> str:
    chosen = None if facts.chosen is None else facts.chosen.key
    head = (facts.quality_name, "latency (ms)", "90 % interval", "from", "parameters", "MACs", "model", "shape")
    lines = []
    for row in front.itertuples(index=False):
        cells = (
            f"{row.quality:.4f}",
            f"{row.latency_ms:.2f}",
            f"{row.low_ms:.2f} to {row.high_ms:.2f}",
            f"{row.source}" if row.verdict == "ok" else f"{row.source}, {row.verdict}",
            f"{row.num_parameters:,}",
            f"{row.num_macs:,}",
            str(row.key),
            str(row.shape),
        )
        mark = ' class="chosen"' if row.key == chosen else ""
        aligned = (f'<td class="number">{html.escape(cell)}</td>' for cell in cells[:6])
        plain = (f"<td>{html.escape(cell)}</td>" for cell in cells[6:])
        lines.append(f"<tr{mark}>{''.join((*aligned, *plain))}</tr>")
    header = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f'<div class="wide"><table><tr>{header}</tr>{"".join(lines)}</table></div>'


def _how(facts: ReportFacts) -> str:
    said = (
        "<p>Only exported ONNX models are timed, in a fresh pinned process, in rounds that alternate with an anchor "
        "model. The ratio of the two is what is measured; its interval is a bootstrap over rounds. A model counts as "
        "within the budget when its one-sided 95 % bound is.</p>"
    )
    commands = f"<pre>{html.escape(chr(10).join(facts.commands))}</pre>" if facts.commands else ""
    return said + _rows(facts.how) + commands


def _rows(rows: Mapping[str, str]) -> str:
    cells = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(text))}</td></tr>" for name, text in rows.items())
    return f"<table>{''.join(cells)}</table>"
