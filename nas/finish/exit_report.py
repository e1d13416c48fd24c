"""The report of ``nas exits``: accuracy over layers and over measured time, areas, and where inputs exit."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from analysis.page import figure_html, page, table_html
from analysis.plots import BLUE, GREEN, GREY, ORANGE
from nas.finish.exit_curves import Point
from nas.finish.exit_timing import REPEATS, Timing
from search_spaces.files import write_atomic

#: Line colour, marker and name of each method; what colours say is also said by markers.
METHODS = {
    "dact": (BLUE, "circle", "DACT"),
    "pabee": (ORANGE, "square", "PABEE patience"),
    "confidence": (GREEN, "diamond", "calibrated confidence"),
}


@dataclass(frozen=True)
class Made:
    """One model folder.

    Attributes:
        name: The folder's name below the run's.
        point: What its policy does on the judged split.
        timing: What single texts take in it; None where nothing was timed.
        precision: Which of its graphs ran.
    """

    name: str
    point: Point
    timing: Timing | None = None
    precision: str = "fp32"

    @property
    def title(self) -> str:
        """What it is called."""
        return self.name if self.precision == "fp32" else f"{self.name} in {self.precision}"


@dataclass(frozen=True)
class ExitsResult:
    """What ``nas exits`` made and found out.

    Attributes:
        out: The run's folder.
        model: The task model that the exits were taught to.
        task: Where its texts came from.
        split: The split that figures are of.
        num_texts: Its size.
        num_exits: N.
        accuracy: The fine-tuned task model's.
        accuracy_int8: The same in int8.
        guess: The share of the commonest class.
        curves: Points by method.
        areas: Area under each method's curve.
        made: The model folders, each in float32 and then each in int8.
        reference: What single texts take in the fine-tuned task model; None where nothing was timed.
        reference_int8: The same in int8.
        never: What they take in a model with exits where nothing stops.
    """

    out: Path
    model: str
    task: str
    split: str
    num_texts: int
    num_exits: int
    accuracy: float
    accuracy_int8: float
    guess: float
    curves: Mapping[str, Sequence[Point]]
    areas: Mapping[str, float]
    made: Sequence[Made]
    reference: Timing | None = None
    reference_int8: Timing | None = None
    never: Timing | None = None

    def saved(self, point: Point) -> float:
        """The share of the layers that a point leaves out."""
        return 1 - point.layers / self.num_exits

    def sentences(self) -> list[str]:
        """The result in words, a sentence a model folder and number format, and what int8 does alone."""
        lines = []
        for made in self.made:
            one = made.point
            line = (
                f"{made.title}: {one.layers:.2f} of {self.num_exits} layers ({self.saved(one):.0%} fewer), accuracy "
                f"{one.accuracy:.4f} against {self.accuracy:.4f} of the fine-tuned model"
            )
            if made.timing is not None:
                line += f", {made.timing.ratio:.2f} of its time"
            lines.append(f"{line}; {one.agreement:.1%} of the texts keep the class of never stopping.")
        whole = f"The fine-tuned model in int8, without exits: accuracy {self.accuracy_int8:.4f}"
        return [
            *lines,
            whole + ("." if self.reference_int8 is None else f", {self.reference_int8.ratio:.2f} of its time."),
        ]

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints, and ``summary.json`` holds."""
        return {
            "out": str(self.out),
            "model": self.model,
            "task": self.task,
            "split": self.split,
            "num_texts": self.num_texts,
            "num_exits": self.num_exits,
            "accuracy": self.accuracy,
            "accuracy_int8": self.accuracy_int8,
            "guess": self.guess,
            "reference": None if self.reference is None else self.reference.to_dict(),
            "reference_int8": None if self.reference_int8 is None else self.reference_int8.to_dict(),
            "never_stopping": None if self.never is None else self.never.to_dict(),
            "areas": dict(self.areas),
            "models": [
                {
                    "folder": str(self.out / made.name),
                    "precision": made.precision,
                    **made.point.to_dict(),
                    "layers_saved": self.saved(made.point),
                    "timing": None if made.timing is None else made.timing.to_dict(),
                }
                for made in self.made
            ],
            "curves": {method: [one.to_dict() for one in points] for method, points in self.curves.items()},
        }


def write_report(path: Path, result: ExitsResult) -> None:
    """Writes the report.

    Raises:
        InvalidInputError: It cannot be written.
    """
    figures = [
        figure_html(
            "layers",
            "Accuracy over the average number of layers. DACT is one model for each point, its rules side by side; "
            "the others are one model each, and every point another patience or threshold.",
            layers_figure(result),
        )
    ]
    if result.reference is not None:
        caption = (
            "Accuracy over the median time of single texts, one point a model folder, hollow in int8; the bar reaches "
            "the worst."
        )
        figures.append(figure_html("time", caption, time_figure(result)))
    figures.append(figure_html("exits", "At which exit the texts stop, by model folder.", exits_figure(result)))
    body = [f'<p class="verdict">{html.escape(line)}</p>' for line in result.sentences()]
    body += [*figures, "<h2>Model folders</h2>", _made_table(result), "<h2>Area under the curve</h2>", _areas(result)]
    body += ["<h2>How it was measured</h2>", *(f"<p>{html.escape(line)}</p>" for line in _how(result))]
    write_atomic(path, page(f"Early exits on {Path(result.task).name}", "\n".join(body)))


def layers_figure(result: ExitsResult) -> go.Figure:
    """Accuracy over average layers, a line a method."""
    figure = _figure("average layers", "accuracy")
    for method, points in result.curves.items():
        colour, symbol, name = METHODS[method]
        ordered = sorted(points, key=lambda one: one.layers)
        figure.add_trace(
            go.Scatter(
                x=[one.layers for one in ordered],
                y=[one.accuracy for one in ordered],
                mode="lines+markers",
                name=name,
                line={"color": colour},
                marker={"color": colour, "symbol": symbol, "size": 8},
                customdata=[[one.setting, one.agreement] for one in ordered],
                hovertemplate="%{customdata[0]}<br>%{x:.2f} layers, accuracy %{y:.4f}<br>"
                "%{customdata[1]:.1%} as without stopping<extra></extra>",
            )
        )
    figure.add_trace(_reference([result.num_exits], [result.accuracy]))
    return figure


def time_figure(result: ExitsResult) -> go.Figure:
    """Accuracy over measured time, a point a model folder."""
    figure = _figure("time of one text (ms)", "accuracy")
    for made in result.made:
        if made.timing is None:
            continue
        colour, symbol, _ = METHODS[made.point.method]
        symbol += "" if made.precision == "fp32" else "-open"
        median_ms, worst_ms = made.timing.median_s * 1e3, made.timing.worst_s * 1e3
        figure.add_trace(
            go.Scatter(
                x=[median_ms],
                y=[made.point.accuracy],
                mode="markers",
                name=made.title,
                marker={"color": colour, "symbol": symbol, "size": 10},
                error_x={"type": "data", "symmetric": False, "array": [worst_ms - median_ms], "arrayminus": [0]},
                hovertemplate="median %{x:.2f} ms, accuracy %{y:.4f}<extra>" + html.escape(made.title) + "</extra>",
            )
        )
    assert result.reference is not None
    figure.add_trace(_reference([result.reference.median_s * 1e3], [result.accuracy]))
    if result.reference_int8 is not None:
        int8 = ([result.reference_int8.median_s * 1e3], [result.accuracy_int8])
        figure.add_trace(_reference(*int8, name="the fine-tuned model in int8", symbol="star-open"))
    return figure


def exits_figure(result: ExitsResult) -> go.Figure:
    """How many texts stop at each exit, a group of bars a model folder."""
    figure = _figure("exit", "share of the texts")
    for made in result.made:
        figure.add_trace(
            go.Bar(
                x=list(range(1, result.num_exits + 1)),
                y=[count / result.num_texts for count in made.point.exits],
                name=made.title,
                hovertemplate="exit %{x}: %{y:.1%}<extra>" + html.escape(made.title) + "</extra>",
            )
        )
    figure.update_yaxes(tickformat=".0%")
    figure.update_xaxes(dtick=1)
    return figure


def _reference(
    x: list[float], y: list[float], *, name: str = "the fine-tuned model", symbol: str = "star"
) -> go.Scatter:
    marker = {"color": GREY, "symbol": symbol, "size": 14, "line": {"color": "black", "width": 1}}
    return go.Scatter(x=x, y=y, mode="markers", name=name, marker=marker)


def _figure(x: str, y: str) -> go.Figure:
    figure = go.Figure()
    margin = {"l": 70, "r": 30, "t": 30, "b": 60}
    figure.update_layout(template="plotly_white", height=460, margin=margin, legend={"orientation": "h", "y": 1.12})
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y)
    return figure


def _made_table(result: ExitsResult) -> str:
    head = ["folder", "stops by", "average layers", "fewer layers", "accuracy", "without stopping", "same class"]
    head += ["median ms", "mean ms", "worst ms", "time / fine-tuned", "quartiles"]
    whole = ["the fine-tuned model", "", str(result.num_exits), "", f"{result.accuracy:.4f}", "", ""]
    rows = [[*whole, *_times(result.reference)]]
    whole[0], whole[4] = f"{whole[0]} in int8", f"{result.accuracy_int8:.4f}"
    rows.append([*whole, *_times(result.reference_int8)])
    if result.never is not None:
        rows.append([f"{result.made[0].name}, never stopping", *[""] * 6, *_times(result.never)])
    for made in result.made:
        one = made.point
        row = [made.title, one.setting, f"{one.layers:.2f}", f"{result.saved(one):.0%}", f"{one.accuracy:.4f}"]
        rows.append([*row, f"{one.accuracy_whole:.4f}", f"{one.agreement:.2%}", *_times(made.timing)])
    return table_html(head, rows)


def _times(timing: Timing | None) -> list[str]:
    if timing is None:
        return [""] * 5
    times_ms = [f"{value * 1e3:.2f}" for value in (timing.median_s, timing.mean_s, timing.worst_s)]
    return [*times_ms, f"{timing.ratio:.3f}", f"{timing.ratio_low:.3f} to {timing.ratio_high:.3f}"]


def _areas(result: ExitsResult) -> str:
    rows = [[METHODS[method][2], f"{area:.4f}"] for method, area in result.areas.items()]
    return table_html(["method", f"mean accuracy from 1 to {result.num_exits} layers"], rows)


def _how(result: ExitsResult) -> list[str]:
    lines = [
        f"Figures are of {result.num_texts} texts of the {result.split} split. Settings of PABEE and confidence were "
        "chosen on the validation split: the fewest layers at no less than its accuracy without stopping.",
        "Accuracies in int8 are those of the int8 files, a text at a time.",
        "The area is the mean accuracy over average layers along straight lines between a method's points, beginning "
        f"with no layers and the commonest class ({result.guess:.4f}).",
    ]
    if result.reference is not None:
        lines.append(
            f"Times are those of {result.reference.num_texts} texts, each at its own length and alone, on one thread "
            f"of ONNX Runtime on the machine that made this report; each text ran {REPEATS} times in each model, the "
            "models in turn and in random order, and counts with its median. The clock is the thread's own and begins "
            "with the tokens; the host loop is in it. The fine-tuned model is one graph."
        )
    return lines
