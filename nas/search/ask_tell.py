"""The conversation between an engine and a sampler: which architecture next, and what came of it.

Both engines hold it the same way, so what is promised is kept here once: nothing is evaluated twice, nothing beyond
the budget is evaluated at all, a finished trial is in the store before the next one is suggested, and a sampler that
has converged, or a space that is used up, ends the search instead of looping for ever.

Every suggestion depends on the seed and on the finished trials alone (and on those in flight, where an engine
evaluates several at a time). Nothing else is carried from one to the next.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import chain, takewhile, zip_longest
from typing import Literal

import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState

from analysis.trial import FailedTrial, OverBudgetTrial, Record, Trial
from nas.errors import InvalidInputError, NasError
from nas.search.designs import budget_filling, size_spanning
from nas.search.objective import Candidate, Failure, Judged, SearchProblem
from nas.search.proposers import Relatives, draws
from nas.search.samplers import (
    BEGIN_WITH_DESIGNS,
    WITH_RELATIVES,
    check_sampler,
    distributions,
    make_proposer,
    make_sampler,
)
from nas.search.store import TrialStore, directions
from search_spaces.architecture import Architecture
from search_spaces.precisions import shapes_of
from search_spaces.spaces import Space

MAX_EVALUATIONS = 100_000
MAX_REPEATS = 3
MAX_OVER_BUDGET_IN_A_ROW = 10
MAX_MUTATIONS = 32
HOPELESS_AFTER = 5
SUGGEST_S, EVALUATE_S = "suggest_s", "evaluate_s"  # attributes of a trial: seconds to name it, and to evaluate it

Ending = Literal["done", "exhausted", "stopped"]
OnEvent = Callable[[Record], None]
ShouldStop = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """An architecture to evaluate. Hand it back to :meth:`AskTell.tell`."""

    candidate: Candidate
    trial: optuna.Trial
    made_s: float = field(default_factory=time.perf_counter)

    @property
    def architecture(self) -> Architecture:
        """What to evaluate."""
        return self.candidate.architecture


class AskTell:
    """One search in progress.

    Args:
        problem: What is searched; restrict it to its budget first.
        store: Where finished trials go, and where those of an earlier run come from.
        sampler: A key of ``SAMPLERS``.
        seed: Of all randomness.
        num_evaluations: How many architectures shall have been evaluated, those of earlier runs included.
        on_event: Told every record after it is in the store.

    Raises:
        InvalidInputError: A name is unknown, a number out of bounds, or the store is of another space.
    """

    def __init__(
        self,
        problem: SearchProblem,
        store: TrialStore,
        *,
        sampler: str,
        seed: int,
        num_evaluations: int,
        on_event: OnEvent | None = None,
    ) -> None:
        check_sampler(sampler)
        if isinstance(num_evaluations, bool) or not 1 <= num_evaluations <= MAX_EVALUATIONS:
            raise InvalidInputError(f"evaluations must be from 1 to {MAX_EVALUATIONS}, got {num_evaluations!r}")
        self.problem, self.store = problem, store
        self._sampler, self._seed, self._num_evaluations = sampler, seed, num_evaluations
        self._proposer = make_proposer(sampler, problem, seed)
        self._on_event = on_event or (lambda record: None)
        self._distributions = distributions(problem.space)
        self._study = _working_copy(problem, store)
        self._records = store.records()
        for record in self._records:
            if isinstance(record, Trial):
                problem.learn(record.architecture, record.latencies)
        self._seen = {record.architecture for record in self._records}
        self._in_flight: set[Architecture] = set()
        self._is_exhausted = False
        self._designs = self._first_designs()

    @property
    def num_evaluated(self) -> int:
        """Architectures evaluated so far, those that failed included, those beyond the budget not."""
        return sum(not isinstance(record, OverBudgetTrial) for record in self._records)

    @property
    def num_in_flight(self) -> int:
        """Suggestions that have not been told about yet."""
        return len(self._in_flight)

    @property
    def ending(self) -> Ending:
        """How the search stands once :meth:`ask` gave None and nothing is in flight."""
        if self.num_evaluated >= self._num_evaluations:
            return "done"
        return "exhausted" if self._is_exhausted else "stopped"

    def ask(self) -> Suggestion | None:
        """The next architecture to evaluate, or None where enough are evaluated or in flight, or none is left.

        Architectures that a sampler suggests beyond the budget are recorded on the way.
        """
        if self._is_exhausted or self.num_evaluated + self.num_in_flight >= self._num_evaluations:
            return None
        began_s = time.perf_counter()
        suggestion = self._first_design() or (self._proposed() if self._proposer else self._sampled())
        if suggestion is None:
            self._is_exhausted = True
            return None
        suggestion.trial.set_user_attr(SUGGEST_S, suggestion.made_s - began_s)
        self._in_flight.add(suggestion.architecture)
        return suggestion

    def tell(self, suggestion: Suggestion, outcome: float | Judged | Failure) -> Record:
        """Records what came of a suggestion, durably.

        Raises:
            NasError: All of the first evaluations failed; the text holds the last reason.
        """
        trial = suggestion.trial
        trial.set_user_attr(EVALUATE_S, time.perf_counter() - suggestion.made_s)
        if isinstance(outcome, Failure):
            trial.set_user_attr("stage", outcome.stage)
            trial.set_user_attr("reason", outcome.reason)
            record = self._finish(suggestion, TrialState.FAIL, None)
        else:
            latencies = suggestion.candidate.latencies
            if isinstance(outcome, Judged):
                latencies = outcome.latencies
                self.problem.learn(suggestion.architecture, latencies)
                trial.set_user_attr("latencies", [latency.to_dict() for latency in latencies])
            quality = outcome.quality if isinstance(outcome, Judged) else outcome
            values = [quality, *(1e3 * latency.p50_s for latency in latencies)]
            record = self._finish(suggestion, TrialState.COMPLETE, values)
        self._in_flight.discard(suggestion.architecture)
        self._check_hope(record)
        return record

    def _finish(self, suggestion: Suggestion, state: TrialState, values: list[float] | None) -> Record:
        if self.problem.is_revised:
            self._constrain(suggestion.trial, self.problem.candidate(suggestion.architecture))
        frozen = self._study.tell(suggestion.trial, values, state)
        record = self.store.add(frozen)
        self._records.append(record)
        self._seen.add(record.architecture)
        self._on_event(record)
        return record

    def _check_hope(self, record: Record) -> None:
        if not isinstance(record, FailedTrial):
            return
        evaluated = [r for r in self._records if not isinstance(r, OverBudgetTrial)]
        if len(evaluated) >= min(HOPELESS_AFTER, self._num_evaluations) and all(
            isinstance(r, FailedTrial) for r in evaluated
        ):
            raise NasError(
                f"all of the first {len(evaluated)} evaluations failed, so the search stopped; the last reason: "
                f"{record.reason}"
            )

    def _is_open(self, architecture: Architecture) -> bool:
        return architecture not in self._seen and architecture not in self._in_flight

    def _first_designs(self) -> list[Architecture]:
        problem = self.problem
        if self._sampler not in BEGIN_WITH_DESIGNS or problem.listed:
            return []
        groups = [_designs(problem, shapes_of(problem.space), precision) for precision in problem.space.precision]
        turns = chain.from_iterable(zip_longest(*groups))
        return [design for design in turns if design is not None][: max(map(len, groups))]

    def _first_design(self) -> Suggestion | None:
        design = next(filter(self._is_open, self._designs), None)
        return None if design is None else self._ask_for(design)

    def _proposed(self) -> Suggestion | None:
        """What a sampler of our own proposes; None where it knows of no more."""
        assert self._proposer is not None
        trials = [record for record in self._records if isinstance(record, Trial)]
        architecture = self._proposer.propose(trials, self._may_evaluate, self._rng("proposal"))
        return None if architecture is None else self._ask_for(architecture)

    def _sampled(self) -> Suggestion | None:
        """What one of Optuna's samplers suggests where that is new and may fit, else anything that is."""
        while self._num_trailing_over_budget() < MAX_OVER_BUDGET_IN_A_ROW:
            suggestion = self._relative() or self._new_from_sampler()
            if suggestion is None:
                break
            if not suggestion.candidate.is_over_budget:
                return suggestion
            self._finish(suggestion, TrialState.PRUNED, None)
        return self._fallback()

    def _relative(self) -> Suggestion | None:
        """A relative of the best, where it is the turn of one and there is one."""
        is_due = (self.num_evaluated + self.num_in_flight) % 2 == 1
        if not is_due or self._sampler not in WITH_RELATIVES:
            return None
        trials = [record for record in self._records if isinstance(record, Trial)]
        architecture = Relatives(self.problem).propose(trials, self._may_evaluate, self._rng("local"))
        return None if architecture is None else self._ask_for(architecture)

    def _new_from_sampler(self) -> Suggestion | None:
        """The sampler's first suggestion that is new; a relative of its last one where all of them are known."""
        architecture = None
        for attempt in range(MAX_REPEATS):
            self._study.sampler = self._fresh_sampler(attempt)
            trial = self._study.ask(self._distributions)
            architecture = self.problem.space.build(trial.params)
            if self._is_open(architecture):
                return self._describe(trial, architecture)
            self._study.tell(trial, state=TrialState.FAIL)
        assert architecture is not None
        rng = self._rng("relative")
        for _ in range(MAX_MUTATIONS):
            architecture = self.problem.space.mutate(architecture, rng)
            if self._may_evaluate(architecture):
                return self._ask_for(architecture)
        return None

    def _fallback(self) -> Suggestion | None:
        """Any architecture that is new and may fit, or None where there is none (or none is found by many draws)."""
        everything = draws(self.problem.space, self._rng("fallback"))
        architecture = next(filter(self._may_evaluate, everything), None)
        return None if architecture is None else self._ask_for(architecture)

    def _may_evaluate(self, architecture: Architecture) -> bool:
        return self._is_open(architecture) and not self.problem.candidate(architecture).is_over_budget

    def _ask_for(self, architecture: Architecture) -> Suggestion:
        """A trial for a given architecture, in Optuna's own way."""
        # A genetic sampler marks the trial with its generation; others need not spend time on what is already decided.
        self._study.sampler = self._fresh_sampler(0) if self._sampler == "nsga2" else RandomSampler(seed=0)
        self._study.enqueue_trial(self.problem.space.values(architecture))
        return self._describe(self._study.ask(self._distributions), architecture)

    def _describe(self, trial: optuna.Trial, architecture: Architecture) -> Suggestion:
        candidate = self.problem.candidate(architecture)
        trial.set_user_attr("key", architecture.key())
        trial.set_user_attr("architecture", architecture.to_dict())
        trial.set_user_attr("num_parameters", candidate.num_parameters)
        trial.set_user_attr("num_macs", candidate.num_macs)
        trial.set_user_attr("latencies", [latency.to_dict() for latency in candidate.latencies])
        if not self.problem.is_revised:
            self._constrain(trial, candidate)
        return Suggestion(candidate, trial)

    def _constrain(self, trial: optuna.Trial, candidate: Candidate) -> None:
        """Has a trial hold by how much it is beyond the budgets; Optuna takes that once."""
        for name, excess in self.problem.constraints(candidate).items():
            trial.set_constraint(name, excess)

    def _num_trailing_over_budget(self) -> int:
        return sum(1 for _ in takewhile(lambda r: isinstance(r, OverBudgetTrial), reversed(self._records)))

    def _fresh_sampler(self, attempt: int) -> BaseSampler:
        return make_sampler(self._sampler, self.problem.space, self._rng(f"sampler {attempt}").getrandbits(32))

    def _rng(self, purpose: str) -> random.Random:
        """Randomness for one purpose of one suggestion: the same whenever the same trials came before."""
        return random.Random(f"{self._seed} {len(self._records) + self.num_in_flight} {purpose}")


def _designs(problem: SearchProblem, shapes: Space, precision: str) -> list[Architecture]:
    """Where a search that learns begins, of one number format."""

    def in_it(shape: Architecture) -> Architecture:
        return replace(shape, precision=precision)

    if not problem.is_bounded:
        return list(map(in_it, size_spanning(shapes)))
    return list(map(in_it, budget_filling(shapes, lambda shape: problem.fits(in_it(shape)))))


def _working_copy(problem: SearchProblem, store: TrialStore) -> optuna.Study:
    """The study in memory that samplers work on, with all finished trials of the store."""
    if store.num_goals != len(problem.goals):
        raise InvalidInputError(
            f"the database is of a search with {store.num_goals} goals, not {len(problem.goals)}; start a new search"
        )
    study = optuna.create_study(directions=directions(len(problem.goals)), sampler=RandomSampler(seed=0))
    for trial in store.trials():
        if trial.distributions != distributions(problem.space):
            raise InvalidInputError(
                f"trial {trial.number} in the database is of another search space; resume with the space it began with"
            )
        study.add_trial(trial)
    return study
