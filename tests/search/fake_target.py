"""A device that is not there: its latency is arithmetic on the ONNX file, so the right answer is known."""

from math import prod
from pathlib import Path

import onnx

from analysis.latency import Conditions, Latency, measured

ANCHOR_S = 1e-3
CONDITIONS = Conditions("cpu", "fake", "arithmetic", seq_len=16)


def steady(p50_s: float, conditions: Conditions = CONDITIONS) -> Latency:
    return measured(conditions, [p50_s] * 8, [ANCHOR_S] * 8, ANCHOR_S)


def scattered(p50_s: float) -> Latency:
    """Three rounds that say nothing."""
    return measured(CONDITIONS, [p50_s / 4, p50_s, 4 * p50_s], [ANCHOR_S] * 3, ANCHOR_S)


class FakeTarget:
    """Keeps a list of what it was asked to time."""

    description = "a fake CPU"
    anchor_reference_s = ANCHOR_S
    level_interval = (0.99, 1.01)
    levels = ()

    def __init__(self, conditions: Conditions = CONDITIONS) -> None:
        self.conditions = conditions
        self.asked: list[str] = []

    def recall(self, levels):
        """It has no bad days."""

    def latency(self, name: str, path: Path) -> Latency:
        return steady(weights_in(path) * 2e-9 + 2e-5, self.conditions)

    def measure(self, models, *, seconds_each=3.0, attempts=3, on_result=None):
        found = {}
        for name, path in models:
            self.asked.append(name)
            found[name] = self.latency(name, path)
            if on_result is not None:
                on_result(name, found[name])
        return found


def weights_in(path: Path) -> int:
    """Weights of the layers; the tables are left out, so that shapes and exports of them take the same time."""
    initializers = onnx.load(str(path)).graph.initializer
    return sum(
        prod(tensor.dims) for tensor in initializers if len(tensor.dims) == 2 and "embeddings" not in tensor.name
    )
