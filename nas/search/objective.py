"""What a search optimises: quality, which costs an evaluation, and latencies, which predictors tell at once."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from analysis.goal import Goal
from analysis.latency import Latency
from analysis.trial import MAX_REASON
from nas.errors import InfeasibleBudgetError, InvalidInputError
from search_spaces.architecture import Architecture, TextSpec
from search_spaces.choices import AS_HIDDEN
from search_spaces.cost import num_macs, num_parameters
from search_spaces.precisions import AnySpace, forms_of, shapes_of
from search_spaces.space import SearchSpace

MAX_GOALS = 8

Evaluator = Callable[[Architecture], "float | Judged"]
EvaluatorFactory = Callable[[], Evaluator]
Proxy = Callable[[Architecture], float]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An architecture with all that is known of it before its quality is.

    Attributes:
        architecture: The shape, and perhaps what it runs in.
        latencies: Its predicted latencies, one for each goal.
        num_parameters: Weights and biases, embeddings included.
        num_macs: Multiply-accumulates of one forward pass under the first latency's conditions.
        is_over_budget: Whether even the lower bound of a prediction is beyond its budget, or there are too many
            parameters.
    """

    architecture: Architecture
    latencies: tuple[Latency, ...]
    num_parameters: int
    num_macs: int
    is_over_budget: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """What an evaluator found where latencies depend on what it sees, as those of models with exits do.

    Attributes:
        quality: Larger is better.
        latencies: One for each goal.
    """

    quality: float
    latencies: tuple[Latency, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an evaluation gave no number.

    Attributes:
        stage: ``quality`` where the evaluator failed, ``worker`` where its process was lost.
        reason: One sentence.
    """

    stage: str
    reason: str


@dataclass(frozen=True)
class SearchProblem:
    """A search space, how its architectures are judged, and what they must keep to.

    Attributes:
        space: What may be chosen.
        text: The tables every candidate has.
        predict: Latencies of an architecture before it is evaluated, one for each goal; pure and quick.
        make_evaluator: Makes the quality evaluator; takes no argument and can be pickled, so that a worker in another
            process makes its own.
        goals: What the latencies are of, with the budgets.
        max_parameters: The most parameters allowed, by what an architecture runs in; empty where there is no limit.
        proxies: Makes, by name, what scores an architecture without its quality; for samplers that search by one.
        assembled: What the sampler ``assembly`` names, in order.
        listed: What alone may be evaluated, whichever sampler is asked; empty where the whole space may be.
        is_revised: Whether evaluators find latencies too, see :class:`Judged`.
    """

    space: AnySpace
    text: TextSpec
    predict: Callable[[Architecture], Sequence[Latency]]
    make_evaluator: EvaluatorFactory
    goals: tuple[Goal, ...]
    max_parameters: Mapping[str, int] = field(default_factory=dict)
    proxies: Mapping[str, Callable[[], Proxy]] = field(default_factory=dict)
    assembled: tuple[Architecture, ...] = ()
    listed: tuple[Architecture, ...] = ()
    is_revised: bool = False
    _known: dict[Architecture, Candidate] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.goals) <= MAX_GOALS:
            raise InvalidInputError(f"a search must have 1 to {MAX_GOALS} goals, got {len(self.goals)}")

    @property
    def is_bounded(self) -> bool:
        """Whether anything must be kept to; else the whole front is asked for."""
        return bool(self.max_parameters) or any(goal.budget_s is not None for goal in self.goals)

    def candidate(self, architecture: Architecture) -> Candidate:
        """What is known of an architecture before it is evaluated; remembered."""
        found = self._known.get(architecture)
        if found is None:
            latencies = tuple(self.predict(architecture))
            conditions = latencies[0].conditions
            parameters = num_parameters(architecture, self.text)
            found = Candidate(
                architecture,
                latencies,
                parameters,
                num_macs(architecture, conditions.seq_len, conditions.batch_size),
                self._excess(architecture, parameters, latencies) is not None,
            )
            self._known[architecture] = found
        return found

    def learn(self, architecture: Architecture, latencies: tuple[Latency, ...]) -> Candidate:
        """Takes over the latencies that an evaluation found in place of those that were expected before it."""
        self._known[architecture] = replace(self.candidate(architecture), latencies=latencies)
        return self._known[architecture]

    def constraints(self, candidate: Candidate) -> dict[str, float]:
        """By how much the expected latencies and the size are beyond what is allowed, by name; 0 or less is within."""
        found = {
            f"latency {goal.name}": latency.p50_s - goal.budget_s
            for goal, latency in zip(self.goals, candidate.latencies, strict=True)
            if goal.budget_s is not None
        }
        if self.max_parameters:
            most = self.max_parameters[candidate.architecture.precision]
            found["parameters"] = float(candidate.num_parameters - most)
        return found

    def fits(self, architecture: Architecture) -> bool:
        """Whether every prediction is within its budget by its upper bound, as a measurement will have to show."""
        candidate = self.candidate(architecture)
        if self.max_parameters and candidate.num_parameters > self.max_parameters[architecture.precision]:
            return False
        pairs = zip(self.goals, candidate.latencies, strict=True)
        return all(goal.budget_s is None or latency.meets(goal.budget_s) for goal, latency in pairs)

    def is_expected_within(self, architecture: Architecture) -> bool:
        """Whether an architecture's expected latencies and its size are within what is allowed."""
        return all(excess <= 0 for excess in self.constraints(self.candidate(architecture)).values())

    def use(self, architecture: Architecture) -> float | None:
        """How much of its tightest latency budget an architecture is expected to take; None without a budget."""
        pairs = zip(self.goals, self.candidate(architecture).latencies, strict=True)
        return max(
            (latency.p50_s / goal.budget_s for goal, latency in pairs if goal.budget_s is not None), default=None
        )

    def restricted(self) -> "SearchProblem":
        """The same problem without the choices that cannot fit even where every other dimension is smallest.

        Raises:
            InfeasibleBudgetError: The smallest architecture is predicted to be beyond a budget.
        """
        smallest = self.space.smallest()
        if not self.is_bounded:
            return self
        least = [self.candidate(form) for form in forms_of(self.space, smallest)]
        if all(candidate.is_over_budget for candidate in least):
            excess = self._excess(least[0].architecture, least[0].num_parameters, least[0].latencies)
            raise InfeasibleBudgetError(
                f"nothing in {self.space.name!r} fits: its smallest, {smallest.key()}, {excess}; "
                "allow that, or give a space with smaller choices"
            )
        values = self.space.values(smallest)
        if "num_narrow_layers" in values:  # the deeper ones are least where more of their layers are narrow
            values["num_narrow_layers"] = self.space.dimensions["num_narrow_layers"][0]
        upper: dict[str, int] = {}
        for name, choices in self.space.dimensions.items():
            if AS_HIDDEN in choices or isinstance(choices[0], str):
                continue
            fitting = [choice for choice in choices if self._may_fit({**values, name: choice})]
            # What may be chosen for a block of a chain may be for all.
            bound = (
                name
                if isinstance(shapes_of(self.space), SearchSpace)
                else name.removeprefix("block_").lstrip("0123456789_")
            )
            upper[bound] = max(upper.get(bound, 0), *fitting)
        return replace(self, space=self.space.restrict(upper))

    def _may_fit(self, values: dict[str, Any]) -> bool:
        """Whether a choice is not ruled out in every number format."""
        forms = forms_of(self.space, self.space.build(values))
        return not all(self.candidate(form).is_over_budget for form in forms)

    def _excess(self, architecture: Architecture, parameters: int, latencies: Sequence[Latency]) -> str | None:
        """What is beyond its limit for certain, in words; None where nothing is."""
        if self.max_parameters and parameters > (most := self.max_parameters[architecture.precision]):
            return f"has {parameters:,} parameters, and {most:,} are allowed"
        for goal, latency in zip(self.goals, latencies, strict=True):
            if goal.budget_s is not None and latency.exceeds(goal.budget_s):
                on = f" on {goal.name}" if len(self.goals) > 1 else ""
                return (
                    f"is predicted to take at least {latency.low_s * 1e3:.3g} ms{on}, "
                    f"and {goal.budget_s * 1e3:g} ms are allowed"
                )
        return None


def evaluate(evaluator: Evaluator, architecture: Architecture) -> float | Judged | Failure:
    """Asks an evaluator; what it raises, and anything but a finite number, becomes a :class:`Failure`."""
    try:
        found = evaluator(architecture)
        quality = found.quality if isinstance(found, Judged) else float(found)
    except Exception as error:
        return Failure("quality", f"{type(error).__name__}: {error}".strip()[:MAX_REASON])
    if not math.isfinite(quality):
        return Failure("quality", f"the evaluator gave {quality}, which is no quality")
    return found if isinstance(found, Judged) else quality
