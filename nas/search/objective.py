"""What a search optimises: quality, which costs an evaluation, and latency, which the predictor tells at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from analysis.latency import Latency
from analysis.trial import MAX_REASON
from nas.errors import InfeasibleBudgetError, InvalidInputError
from search_spaces.architecture import Architecture, TextSpec
from search_spaces.choices import AS_HIDDEN
from search_spaces.cost import num_macs, num_parameters
from search_spaces.space import SearchSpace

Evaluator = Callable[[Architecture], float]
EvaluatorFactory = Callable[[], Evaluator]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An architecture with all that is known of it before its quality is.

    Attributes:
        architecture: The shape.
        latency: Its predicted latency.
        num_parameters: Weights and biases, embeddings included.
        num_macs: Multiply-accumulates of one forward pass under the latency's conditions.
        is_over_budget: Whether even the lower bound of the prediction is beyond the budget.
    """

    architecture: Architecture
    latency: Latency
    num_parameters: int
    num_macs: int
    is_over_budget: bool


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
    """A search space, how its architectures are judged, and the budget.

    Attributes:
        space: What may be chosen.
        text: The tables every candidate has.
        predict: Latency of an architecture from its shape; pure and quick.
        make_evaluator: Makes the quality evaluator; takes no argument and can be pickled, so that a worker in another
            process makes its own.
        budget_s: The longest latency allowed, or None for the whole front.
    """

    space: SearchSpace
    text: TextSpec
    predict: Callable[[Architecture], Latency]
    make_evaluator: EvaluatorFactory
    budget_s: float | None = None
    _known: dict[Architecture, Candidate] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.budget_s is not None and not (math.isfinite(self.budget_s) and self.budget_s > 0):
            raise InvalidInputError(f"a latency budget must be a positive number of seconds, got {self.budget_s!r}")

    def candidate(self, architecture: Architecture) -> Candidate:
        """What is known of an architecture before it is evaluated; remembered."""
        found = self._known.get(architecture)
        if found is None:
            latency = self.predict(architecture)
            conditions = latency.conditions
            found = Candidate(
                architecture,
                latency,
                num_parameters(architecture, self.text),
                num_macs(architecture, conditions.seq_len, conditions.batch_size),
                self.budget_s is not None and latency.exceeds(self.budget_s),
            )
            self._known[architecture] = found
        return found

    def restricted(self) -> "SearchProblem":
        """The same problem without the choices that cannot fit even where every other dimension is smallest.

        Raises:
            InfeasibleBudgetError: The smallest architecture is predicted to be beyond the budget.
        """
        smallest = self.space.smallest()
        if self.budget_s is None:
            return self
        if self.candidate(smallest).is_over_budget:
            low_s = self.candidate(smallest).latency.low_s
            raise InfeasibleBudgetError(
                f"nothing in {self.space.name!r} fits {self.budget_s * 1e3:g} ms: its smallest, {smallest.key()}, is "
                f"predicted to take at least {low_s * 1e3:.3g} ms; allow that, or give a space with smaller choices"
            )
        least = self.space.values(smallest)
        upper = {}
        for name, choices in self.space.dimensions.items():
            fitting = [choice for choice in choices if self._fits({**least, name: choice})]
            if AS_HIDDEN not in choices:
                upper[name] = max(fitting)
        return replace(self, space=self.space.restrict(upper))

    def _fits(self, values: dict[str, int]) -> bool:
        return not self.candidate(self.space.build(values)).is_over_budget


def evaluate(evaluator: Evaluator, architecture: Architecture) -> float | Failure:
    """Asks an evaluator; what it raises, and anything but a finite number, becomes a :class:`Failure`."""
    try:
        quality = float(evaluator(architecture))
    except Exception as error:
        return Failure("quality", f"{type(error).__name__}: {error}".strip()[:MAX_REASON])
    if not math.isfinite(quality):
        return Failure("quality", f"the evaluator gave {quality}, which is no quality")
    return quality
