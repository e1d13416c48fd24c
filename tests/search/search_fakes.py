"""A small space with a known quality and a known latency: whole searches in a second."""

import math
from dataclasses import dataclass

from analysis.goal import Goal
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


def predict_all(architecture: Architecture) -> tuple[Latency, ...]:
    """Of one goal."""
    return (predict(architecture),)


def quality(architecture: Architecture) -> float:
    """Grows with every size, ever more slowly; best proportions lie in between."""
    layers = architecture.uniform
    assert layers is not None
    hidden, wide = architecture.hidden_size, layers.feed_forward.intermediate_size
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
    goal = Goal("cpu T16", "a fake CPU", CONDITIONS, budget_s)
    return SearchProblem(space, TEXT, predict_all, make, (goal,)).restricted()


# A second device: slower in every layer, and no slower in width, so that it prefers other shapes than the first.
SLOW = Conditions("board", "fake", "arithmetic", seq_len=16)


def predict_slow(architecture: Architecture) -> Latency:
    p50_s = 3e-4 * architecture.num_layers + num_macs(architecture, CONDITIONS.seq_len) * 2e-10
    return predicted(SLOW, p50_s, p50_s * 0.95, p50_s * 1.05)


def predict_both(architecture: Architecture) -> tuple[Latency, ...]:
    return predict(architecture), predict_slow(architecture)


def two_goals(budget_s=None, slow_budget_s=None) -> tuple[Goal, ...]:
    return (
        Goal("cpu T16", "a fake CPU", CONDITIONS, budget_s),
        Goal("board T16", "a fake board", SLOW, slow_budget_s),
    )


def problem_of_two(budget_s=None, slow_budget_s=None, make=make_evaluator) -> SearchProblem:
    return SearchProblem(SPACE, TEXT, predict_both, make, two_goals(budget_s, slow_budget_s)).restricted()


def outline(records):
    """What must be equal between two runs: everything but the clock."""
    return [(type(r).__name__, r.number, r.key, getattr(r, "quality", None)) for r in records]
