"""A small space with a known quality and a known latency: whole searches in a second."""

import math
from dataclasses import dataclass

from analysis.latency import Conditions, Latency, predicted
from nas.search.objective import SearchProblem
from search_spaces.architecture import Architecture, TextSpec
from search_spaces.cost import num_macs
from search_spaces.space import SearchSpace

CONDITIONS = Conditions("cpu", "fake", "arithmetic", seq_len=16)
TEXT = TextSpec(vocab_size=50, max_positions=32)
SPACE = SearchSpace(
    "small", num_layers=(1, 2, 3, 4), hidden_size=(32, 64, 96), intermediate_size=(32, 64, 128, 256), head_size=(16,)
)


def predict(architecture: Architecture) -> Latency:
    p50_s = num_macs(architecture, CONDITIONS.seq_len) * 1e-9
    return predicted(CONDITIONS, p50_s, p50_s * 0.95, p50_s * 1.05)


def quality(architecture: Architecture) -> float:
    """Grows with every size, ever more slowly; best proportions lie in between."""
    layer = architecture.bert_layer
    assert layer is not None
    hidden, wide = architecture.hidden_size, layer[1].intermediate_size
    balance = math.log(wide / (1.5 * hidden)) ** 2
    return 1 - 0.5 / architecture.num_layers - 8 / hidden - 0.03 * balance


def make_evaluator():
    return quality


def failing(architecture: Architecture) -> float:
    raise RuntimeError("the corpus is gone")


def make_failing():
    return failing


@dataclass(frozen=True)
class MakeFlaky:
    """An evaluator that fails on one depth and is not a number on another."""

    failing_depth: int = 2
    nan_depth: int = 0

    def __call__(self):
        return self.judge

    def judge(self, architecture: Architecture) -> float:
        if architecture.num_layers == self.failing_depth:
            raise ValueError("bad depth")
        return math.nan if architecture.num_layers == self.nan_depth else quality(architecture)


def problem(budget_s=None, make=make_evaluator, space=SPACE) -> SearchProblem:
    return SearchProblem(space, TEXT, predict, make, budget_s).restricted()


def outline(records):
    """What must be equal between two runs: everything but the clock."""
    return [(type(r).__name__, r.number, r.key, getattr(r, "quality", None)) for r in records]
