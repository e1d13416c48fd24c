"""Trials as a pandas table: one row an architecture, milliseconds and plain columns, for figures and CSV."""

from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from analysis.latency import Latency
from analysis.pareto import pareto_front
from analysis.trial import Trial
from search_spaces.architecture import Architecture, Attention, FeedForward, SepConv

COLUMNS = (
    "number",
    "key",
    "shape",
    "quality",
    "precision",
    "latency_ms",
    "low_ms",
    "high_ms",
    "p90_ms",
    "source",
    "verdict",
    "predicted_ms",
    "predicted_low_ms",
    "predicted_high_ms",
    "num_parameters",
    "num_macs",
    "on_front",
)


def shape(architecture: Architecture) -> str:
    """An architecture in a few words, e.g. ``4 layers, hidden 256, FFN 1024, 8 x 32 heads``."""
    if architecture.precision != "fp32":
        return f"{shape(architecture.shape)}, {architecture.precision}"
    layers = architecture.uniform
    if layers is None:
        kinds = {Attention: "attention", FeedForward: "feed-forward", SepConv: "convolution"}
        chain = architecture.sublayers
        counts = (f"{sum(isinstance(s, kind) for s in chain)} {name}" for kind, name in kinds.items())
        return f"{len(architecture.blocks)} blocks, " + ", ".join(counts)
    words = [
        f"{layers.num_layers} layer{'s' if layers.num_layers > 1 else ''}",
        f"hidden {architecture.hidden_size}",
        f"FFN {layers.feed_forward.intermediate_size}",
        f"{layers.attention.num_heads} x {layers.attention.head_size} heads",
    ]
    if architecture.embedding_size != architecture.hidden_size:
        words.append(f"embedding {architecture.embedding_size}")
    if architecture.narrow_from is not None:
        form = "context first, narrow" if layers.is_context_first else "narrow"
        words.append(f"{form} from sub-layer {architecture.narrow_from}")
    return ", ".join(words)


def trials_table(
    trials: Sequence[Trial],
    *,
    goal: int = 0,
    predictions: Mapping[str, Latency] | None = None,
    front_keys: Collection[str] | None = None,
) -> pd.DataFrame:
    """One row a trial, in the order given.

    Args:
        trials: Each with the best latencies known of it: measured where it was measured.
        goal: Which of their latencies the table is about.
        predictions: What had been predicted of architectures that were measured, by key.
        front_keys: Which architectures are on the front; by default those no other trial dominates.
    """
    known = predictions or {}
    on_front = {trial.key for trial in pareto_front(trials, goal)} if front_keys is None else set(front_keys)
    rows = [_row(trial, goal, known.get(trial.key), trial.key in on_front) for trial in trials]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def front_of(table: pd.DataFrame) -> pd.DataFrame:
    """The rows on the front, fastest first, one an architecture."""
    front = table[table["on_front"].astype(bool)].drop_duplicates("key", keep="last")
    return front.sort_values(["latency_ms", "quality"], kind="stable").reset_index(drop=True)


def _row(trial: Trial, goal: int, prediction: Latency | None, is_on_front: bool) -> dict[str, object]:
    latency = trial.latencies[goal]
    if prediction is None and latency.source == "predicted":
        prediction = latency
    return {
        "number": trial.number,
        "key": trial.key,
        "shape": shape(trial.architecture),
        "quality": trial.quality,
        "precision": latency.conditions.precision,
        "latency_ms": _ms(latency.p50_s),
        "low_ms": _ms(latency.low_s),
        "high_ms": _ms(latency.high_s),
        "p90_ms": _ms(latency.p90_s),
        "source": latency.source,
        "verdict": latency.verdict,
        "predicted_ms": None if prediction is None else _ms(prediction.p50_s),
        "predicted_low_ms": None if prediction is None else _ms(prediction.low_s),
        "predicted_high_ms": None if prediction is None else _ms(prediction.high_s),
        "num_parameters": trial.num_parameters,
        "num_macs": trial.macs(goal),
        "on_front": is_on_front,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
