"""AutoTinyBERT's evolution, and the rule by which its fast variant draws (Yin et al., 2021, arXiv 2107.13686)."""

import itertools
import math
import random
from collections.abc import Iterator, Sequence

from analysis.pareto import by_rank
from analysis.trial import Trial
from nas.errors import InfeasibleBudgetError, InvalidInputError
from nas.search.objective import SearchProblem
from nas.search.proposers import BAND, MAX_DRAWS, MAX_ENUMERATED, MayEvaluate, draws
from search_spaces.architecture import Architecture
from search_spaces.precisions import AnySpace
from search_spaces.space import SearchSpace

POPULATION = 25
FRESH_SHARE = 0.5


class FastRule:
    """The proportions that AutoTinyBERT found best: 1.6 D <= F <= 1.9 D and 0.7 D <= q/k/v width <= D.

    D is the hidden size and F the feed-forward size. Of the ``stock`` space (D in steps of 32, F in steps of 64) eleven
    pairs keep to it, each in 6 depths: D 160 with F 256, 192 with 320, 224 with 384, 256 with 448, 288 with 512, 320
    with 512 and 576, 352 with 576 and 640, 384 with 640 and 704.

    Args:
        space: What may be drawn.

    Raises:
        InvalidInputError: Nothing in the space keeps to the rule, or its layers are not all alike.
    """

    def __init__(self, space: AnySpace) -> None:
        if not isinstance(space, SearchSpace):
            raise InvalidInputError(
                "evolution-fast keeps to proportions of layers that are all alike, which this space's are not; "
                "use --sampler evolution"
            )
        self._space = space
        self._sizes = list(_sizes_within(space))
        if not self._sizes:
            raise InvalidInputError(_nothing_within(space))
        self._free = {name: c for name, c in space.dimensions.items() if name not in self._sizes[0]}
        self.size = len(self._sizes) * math.prod(map(len, self._free.values()))

    def __contains__(self, architecture: Architecture) -> bool:
        layers, size = architecture.uniform, architecture.hidden_size
        if layers is None:
            return False
        return _is_attention(size, layers.attention.width) and _is_feed_forward(
            size, layers.feed_forward.intermediate_size
        )

    def sample(self, rng: random.Random) -> Architecture:
        """Draws one architecture that keeps to the rule, all sizes of layers alike likely."""
        free = {name: rng.choice(choices) for name, choices in self._free.items()}
        return self._space.build({**free, **rng.choice(self._sizes)})

    def draws(self, rng: random.Random) -> Iterator[Architecture]:
        """Everything that keeps to the rule in random order, or many samples where that is much."""
        if self.size > MAX_ENUMERATED:
            return (self.sample(rng) for _ in range(MAX_DRAWS))
        everything = [
            {**sizes, **dict(zip(self._free, choices, strict=True))}
            for sizes in self._sizes
            for choices in itertools.product(*self._free.values())
        ]
        return map(self._space.build, rng.sample(everything, len(everything)))


def _sizes_within(space: SearchSpace) -> Iterator[dict[str, int]]:
    """Hidden, feed-forward and head sizes that keep to the rule, as values of the space's dimensions."""
    chosen = space.dimensions.keys()
    for hidden_size in space.hidden_size:
        wide = [size for size in space.intermediate_size if _is_feed_forward(hidden_size, size)]
        heads = [
            (num_heads, head_size)
            for head_size in space.head_size
            for num_heads in space.num_heads or (hidden_size // head_size,)
            if _is_attention(hidden_size, num_heads * head_size)
        ]
        for intermediate_size, (num_heads, head_size) in itertools.product(wide, heads):
            sizes = {
                "hidden_size": hidden_size,
                "intermediate_size": intermediate_size,
                "num_heads": num_heads,
                "head_size": head_size,
            }
            yield {name: value for name, value in sizes.items() if name in chosen}


def _is_feed_forward(hidden_size: int, intermediate_size: int) -> bool:
    return 16 * hidden_size <= 10 * intermediate_size <= 19 * hidden_size


def _is_attention(hidden_size: int, width: int) -> bool:
    return 7 * hidden_size <= 10 * width <= 10 * hidden_size


def _nothing_within(space: SearchSpace) -> str:
    size = space.hidden_size[len(space.hidden_size) // 2]
    return (
        f"evolution-fast keeps to 1.6 D <= F <= 1.9 D and 0.7 D <= q/k/v width <= D, nothing in {space.name!r} does; "
        f"use --sampler evolution, or a space with, for hidden_size {size}, an intermediate_size from "
        f"{math.ceil(1.6 * size)} to {math.floor(1.9 * size)} and heads {math.ceil(0.7 * size)} to {size} wide together"
    )


class Evolution:
    """AutoTinyBERT's evolution: mutation only, half of a generation fresh random, all near the latency budget.

    A generation has 25 members. Its parents are the 25 best of all generations before it, drawn with a probability
    that grows with how much better than the worst of them they are. How they mutate is in
    :data:`search_spaces.space.MUTATION`.
    Candidates take 0.85 to 1.1 of the latency budget (of the tightest, where there are several) as it is predicted.

    Departures: what is certain to be beyond a budget is never evaluated and no parent may be expected beyond one, since
    a budget is a promise here; parents are chosen by Pareto rank where no budget is set, which the paper does not need;
    and every loop is bounded: where no new candidate lies in the band, the one nearest to it is proposed. The paper's
    fast variant draws 25 architectures by the rule once; here the evolution goes on within it.

    Args:
        problem: What is searched.
        is_fast: Whether to propose only what keeps to :class:`FastRule`.

    Raises:
        InvalidInputError: Nothing in the space keeps to the rule.
        InfeasibleBudgetError: Something does, but it is beyond the budget.
    """

    def __init__(self, problem: SearchProblem, *, is_fast: bool = False) -> None:
        self._problem = problem
        self._rule = _rule_of(problem) if is_fast else None

    def propose(self, trials: Sequence[Trial], may_evaluate: MayEvaluate, rng: random.Random) -> Architecture | None:
        """A mutated parent or a fresh architecture, new and near the budget; any other that is new where none is."""
        parents = self._parents(trials[: len(trials) - len(trials) % POPULATION])
        nearest: tuple[float, Architecture] | None = None
        for _ in range(MAX_DRAWS):
            child = self._child(parents, rng)
            if (self._rule is not None and child not in self._rule) or not may_evaluate(child):
                continue
            distance = self._distance(child)
            if distance == 0:
                return child
            if nearest is None or distance < nearest[0]:
                nearest = distance, child
        if nearest is not None:
            return nearest[1]
        rest = draws(self._problem.space, rng) if self._rule is None else self._rule.draws(rng)
        return next(filter(may_evaluate, rest), None)

    def _child(self, parents: Sequence[Trial], rng: random.Random) -> Architecture:
        if not parents or rng.random() < FRESH_SHARE:
            return self._problem.space.sample(rng) if self._rule is None else self._rule.sample(rng)
        worst = min(parent.quality for parent in parents)
        gains = [parent.quality - worst for parent in parents]
        is_ranked = self._problem.is_bounded and any(gains)
        (parent,) = rng.choices(parents, gains if is_ranked else None)
        return self._problem.space.mutate(parent.architecture, rng)

    def _distance(self, architecture: Architecture) -> float:
        """How far outside the band an architecture is expected to be, as a share of the budget."""
        use = self._problem.use(architecture)
        return 0.0 if use is None else max(BAND[0] - use, use - BAND[1], 0.0)

    def _parents(self, trials: Sequence[Trial]) -> list[Trial]:
        if self._problem.is_bounded:
            feasible = [trial for trial in trials if self._problem.is_expected_within(trial.architecture)]
            return sorted(feasible, key=lambda trial: -trial.quality)[:POPULATION]
        points = [(trial.quality, *(latency.p50_s for latency in trial.latencies)) for trial in trials]
        return [trials[index] for index in by_rank(points)[:POPULATION]]


def _rule_of(problem: SearchProblem) -> FastRule:
    """The rule on what is left of a space within its budgets."""
    too_much = (
        "nothing that keeps to the rule of evolution-fast is predicted to fit; allow more, or use --sampler evolution"
    )
    try:
        rule = FastRule(problem.space)
    except InvalidInputError as error:
        raise (InfeasibleBudgetError(too_much) if problem.is_bounded else error) from error
    if all(problem.candidate(architecture).is_over_budget for architecture in rule.draws(random.Random(0))):
        raise InfeasibleBudgetError(too_much)
    return rule
