"""The report of a fine-tuning: figures, a confusion matrix and learning curves in one page that works offline."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from analysis.page import figure_html, page, table_html
from analysis.plots import BLUE, GREEN, GREY, ORANGE
from nas.finish.evaluation import Evaluation, flat
from nas.finish.training import History
from search_spaces.files import write_atomic
from supernet.task import Task
from supernet.task_metrics import confusion

_MOST_POINTS = 1000
_COLOURS = {"label": BLUE, "teacher": ORANGE, "hidden": GREEN}


def write_report(
    path: Path, task: Task, history: History, evaluations: Mapping[str, Evaluation | None], metric: str | None
) -> None:
    """Writes the page.

    Args:
        path: The HTML file.
        task: What was learnt.
        history: Of the training.
        evaluations: Answers by split; None where the task has no such split.
        metric: Which figure chose the best weights.
    """
    found = {split: one for split, one in evaluations.items() if one is not None}
    split = "test" if "test" in found else "validation"
    figures = {
        "scores": ("Figures on the validation split after each evaluation.", scores_figure(history, metric)),
        "losses": ("Each part of the loss, as a running mean over 1 % of the steps.", losses_figure(history)),
        "answers": _answers(task, found[split], split),
    }
    drawn = "\n".join(figure_html(name, caption, figure) for name, (caption, figure) in figures.items())
    title = f"{Path(task.name).name}: {task.spec.kind}"
    write_atomic(path, page(title, f"{_scores_table(found)}\n{_facts(task, history)}\n<h2>Figures</h2>\n{drawn}"))


def _answers(task: Task, evaluation: Evaluation, split: str) -> tuple[str, go.Figure]:
    labels = task.split(split).labels
    if task.spec.kind == "regression":
        return f"Answers on the {split} split; on the dotted line they are right.", numbers_figure(
            evaluation.answers,
            list(labels),  # type: ignore[arg-type]  # numbers
        )
    counts = confusion(flat(evaluation.answers), flat(labels), len(task.spec.labels))
    return f"Answers on the {split} split: rows are what is right, columns what was answered.", confusion_figure(
        counts, task.spec.labels
    )


def confusion_figure(counts: "np.ndarray[tuple[int, int], np.dtype[np.int64]]", labels: Sequence[str]) -> go.Figure:
    """How often each label was answered by each: colours are shares of a row, the counts are written in it."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = go.Figure(
        go.Heatmap(
            z=shares.tolist(),
            x=list(labels),
            y=list(labels),
            text=counts.tolist(),
            texttemplate="%{text}" if len(labels) <= 20 else None,
            hovertemplate="%{y} answered as %{x}: %{text} (%{z:.1%})<extra></extra>",
            colorscale="Blues",
            zmin=0,
            zmax=1,
        )
    )
    side = 360 + 18 * len(labels)
    figure.update_layout(template="plotly_white", height=side, margin={"l": 90, "r": 30, "t": 30, "b": 90})
    figure.update_xaxes(title_text="answered", type="category")
    figure.update_yaxes(title_text="right", type="category", autorange="reversed")
    return figure


def numbers_figure(answers: Sequence[float], labels: Sequence[float]) -> go.Figure:
    """Answered against right numbers."""
    figure = _figure("right", "answered")
    marker = {"color": BLUE, "size": 5, "opacity": 0.6}
    figure.add_trace(go.Scatter(x=list(labels), y=list(answers), mode="markers", name="texts", marker=marker))
    ends = [min(*labels, *answers), max(*labels, *answers)]
    figure.add_trace(go.Scatter(x=ends, y=ends, mode="lines", name="equal", line={"color": GREY, "dash": "dot"}))
    return figure


def scores_figure(history: History, metric: str | None) -> go.Figure:
    """The figures that are better when larger, over the steps; the best weights are marked."""
    figure = _figure("step", "figure on the validation split")
    names = [name for name in (history.scores[0] if history.scores else {}) if name not in ("step", "rmse", "mae")]
    for name in names:
        figure.add_trace(
            go.Scatter(
                x=[score["step"] for score in history.scores],
                y=[score[name] for score in history.scores],
                mode="lines+markers",
                name=name,
                line={"width": 3 if name == metric else 1},
            )
        )
    if history.best_step:
        figure.add_vline(x=history.best_step, line={"color": ORANGE, "dash": "dash"}, annotation_text="best")
    return figure


def losses_figure(history: History) -> go.Figure:
    """Each part of the loss over the steps."""
    figure = _figure("step", "loss")
    window = max(1, len(history.losses) // 100)
    every = max(1, len(history.losses) // _MOST_POINTS)
    for name in history.losses[0] if history.losses else ():
        values = np.array([losses[name] for losses in history.losses])
        means = np.convolve(values, np.ones(window) / window, mode="valid")
        steps = np.arange(window, len(values) + 1)
        figure.add_trace(
            go.Scatter(
                x=steps[::every].tolist(),
                y=means[::every].tolist(),
                mode="lines",
                name=name,
                line={"color": _COLOURS.get(name, GREY)},
            )
        )
    return figure


def _figure(x: str, y: str) -> go.Figure:
    figure = go.Figure()
    legend = {"orientation": "h", "y": 1.08}
    margin = {"l": 70, "r": 30, "t": 30, "b": 60}
    figure.update_layout(template="plotly_white", height=420, margin=margin, legend=legend)
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y)
    return figure


def _scores_table(found: Mapping[str, Evaluation]) -> str:
    names = list(next(iter(found.values())).scores)
    rows = [(split, *(f"{one.scores[name]:.4f}" for name in names)) for split, one in found.items()]
    return table_html(("split", *names), rows)


def _facts(task: Task, history: History) -> str:
    stopped = ", stopped early" if history.stopped_early else ""
    labels = f", {len(task.spec.labels)} labels" if task.spec.labels else ""
    said = (
        f"{len(task.train):,} training texts{labels}. The best weights are those after step {history.best_step:,} of "
        f"{len(history.losses):,} taken ({history.num_steps:,} meant{stopped}), in {history.elapsed_s:,.0f} s."
    )
    return f"<p>{html.escape(said)}</p>"
