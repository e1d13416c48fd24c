"""Several samplers on the same problem, each with as many evaluations: which finds most, and what does it cost?

Every sampler has a store of its own, so that each can be resumed, and suggests what it would have suggested alone. What
one sampler has evaluated is not evaluated again for another; it counts for both, and both are charged the time it took.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optuna.trial import FrozenTrial

from analysis.pareto import Point, hypervolume, quality_and_latency, reference_point
from analysis.trial import OverBudgetTrial, Record, Trial
from nas.progress import Progress
from nas.search.ask_tell import EVALUATE_S, SUGGEST_S
from nas.search.objective import Evaluator, Judged, SearchProblem
from nas.search.optuna_engine import run_in_process
from nas.search.outcome import HEAD, NOTE, PAGE, SamplerOutcome, rows_of
from nas.search.store import TrialStore
from search_spaces.architecture import Architecture
from search_spaces.files import write_atomic

OpenStore = Callable[[str], TrialStore]


@dataclass(frozen=True)
class Comparison:
    """What several samplers found.

    Attributes:
        problem: What all of them searched.
        frozen: By sampler its trials as Optuna keeps them.
        records: The same as records.
    """

    problem: SearchProblem
    frozen: Mapping[str, Sequence[FrozenTrial]]
    records: Mapping[str, Sequence[Record]]

    @property
    def trials(self) -> dict[str, list[Trial]]:
        """By sampler what it evaluated."""
        return {name: [r for r in records if isinstance(r, Trial)] for name, records in self.records.items()}

    @property
    def outcomes(self) -> list[SamplerOutcome]:
        """How each did, in the order in which they were named."""
        covered = [self._covered(goal) for goal in range(len(self.problem.goals))]
        evaluate_s = self._evaluate_s()
        seen: set[str] = set()
        found = []
        for sampler, records in self.records.items():
            evaluated = [record for record in records if not isinstance(record, OverBudgetTrial)]
            keys = {record.key for record in evaluated}
            suggest_s = sum(float(one.user_attrs.get(SUGGEST_S, 0.0)) for one in self.frozen[sampler])
            best = self._best(self.trials[sampler])
            found.append(
                SamplerOutcome(
                    sampler,
                    len(evaluated),
                    len(keys & seen),
                    suggest_s + sum(evaluate_s[key] for key in keys),
                    None if best is None else best.key,
                    None if best is None else best.quality,
                    () if best is None else tuple(latency.p50_s * 1e3 for latency in best.latencies),
                    tuple(shares[sampler] for shares in covered),
                )
            )
            seen |= keys
        return found

    def _evaluate_s(self) -> dict[str, float]:
        """What an evaluation took where it was not answered from what is known, by architecture key."""
        found: dict[str, float] = {}
        for trial in (trial for trials in self.frozen.values() for trial in trials):
            key = str(trial.user_attrs["key"])
            found[key] = max(found.get(key, 0.0), float(trial.user_attrs.get(EVALUATE_S, 0.0)))
        return found

    def _best(self, trials: Sequence[Trial]) -> Trial | None:
        within = [trial for trial in trials if self.problem.is_expected_within(trial.architecture)]
        return max(within, key=lambda trial: (trial.quality, -trial.latency.p50_s), default=None)

    def _covered(self, goal: int) -> dict[str, float]:
        """By sampler the share of the plane that all cover together, up to the budget where the goal has one."""
        points = {name: quality_and_latency(trials, goal) for name, trials in self.trials.items()}
        together = [point for found in points.values() for point in found]
        reference = self._reference(together, goal)
        whole = hypervolume(together, reference)
        return {name: hypervolume(found, reference) / whole if whole else 0.0 for name, found in points.items()}

    def _reference(self, points: Sequence[Point], goal: int) -> Point:
        quality, longest_s = reference_point(points)
        budget_s = self.problem.goals[goal].budget_s
        return quality, longest_s if budget_s is None else budget_s


def compare(
    problem: SearchProblem,
    samplers: Sequence[str],
    open_store: OpenStore,
    merged: TrialStore,
    *,
    seed: int,
    num_evaluations: int,
    progress: Progress,
) -> Comparison:
    """Searches with each sampler in turn; one that was interrupted goes on where it was.

    Args:
        problem: What is searched, restricted to its budgets.
        samplers: Names out of ``SAMPLERS``.
        open_store: Opens or creates the store of a sampler.
        merged: Gets everything that a sampler came to, once it is done, each architecture once.
        seed: Of every sampler.
        num_evaluations: Of every sampler, those of an interrupted run included.
        progress: What is told about it.

    Raises:
        InvalidInputError: A sampler cannot work on the problem, or a store is broken.
        InfeasibleBudgetError: Nothing that a sampler would propose fits.
        NasError: All of the first evaluations failed.
    """
    shared = _Shared(problem)
    asked = replace(problem, make_evaluator=lambda: shared)
    frozen: dict[str, Sequence[FrozenTrial]] = {}
    records: dict[str, Sequence[Record]] = {}
    for place, sampler in enumerate(samplers, 1):
        with open_store(sampler) as store:
            shared.learn(store.records())
            progress.start(f"searching with {sampler} ({place} of {len(samplers)})", num_evaluations)
            teller = _Teller(progress, store.records())
            ending = run_in_process(
                asked, store, sampler=sampler, seed=seed, num_evaluations=num_evaluations, on_event=teller.see
            )
            frozen[sampler], records[sampler] = store.trials(), store.records()
        _merge(frozen[sampler], merged)
        progress.finish("nothing else fits" if ending == "exhausted" else "")
    return Comparison(asked, frozen, records)


def _merge(trials: Sequence[FrozenTrial], store: TrialStore) -> None:
    """Adds to a store the trials whose architectures it does not hold."""
    kept = {record.key for record in store.records()}
    for trial in trials:
        if trial.user_attrs["key"] not in kept:
            store.add(trial)


class _Shared:
    """An evaluator that is asked once for each architecture, whichever sampler comes to it first."""

    def __init__(self, problem: SearchProblem) -> None:
        self._make = problem.make_evaluator
        self._evaluator: Evaluator | None = None
        self._known: dict[Architecture, float | Judged] = {}

    def learn(self, records: Sequence[Record]) -> None:
        """Takes over what was evaluated before."""
        self._known |= {record.architecture: record.quality for record in records if isinstance(record, Trial)}

    def __call__(self, architecture: Architecture) -> float | Judged:
        if architecture not in self._known:
            self._evaluator = self._evaluator or self._make()
            self._known[architecture] = self._evaluator(architecture)
        return self._known[architecture]


class _Teller:
    """Tells a progress what one sampler does, on top of what it did before an interruption."""

    def __init__(self, progress: Progress, records: Sequence[Record]) -> None:
        self._progress = progress
        self._num_evaluated = sum(not isinstance(record, OverBudgetTrial) for record in records)
        self._best = max((record.quality for record in records if isinstance(record, Trial)), default=-math.inf)

    def see(self, record: Record) -> None:
        """Told every new record."""
        self._num_evaluated += not isinstance(record, OverBudgetTrial)
        if isinstance(record, Trial):
            self._best = max(self._best, record.quality)
        facts = {"highest": round(self._best, 4)} if self._best > -math.inf else {}
        self._progress.update(self._num_evaluated, **facts)


def write_comparison(folder: Path, found: Comparison, quality_name: str) -> Path:
    """Draws the fronts of all samplers together, one figure a goal, into a page that needs nothing else.

    Raises:
        InvalidInputError: The folder cannot be written.
    """
    from analysis.page import figure_html, page, table_html
    from analysis.plots import fronts_figure
    from analysis.table import trials_table

    body = [table_html(HEAD, rows_of(found.outcomes)), f"<p>{NOTE}</p>"]
    for place, goal in enumerate(found.problem.goals):
        tables = {name: trials_table(trials, goal=place) for name, trials in found.trials.items()}
        figure = fronts_figure(tables, goal=goal, quality_name=quality_name)
        body.append(figure_html(f"fronts-{place}", f"{goal.name}: the front of each sampler, by predictions.", figure))
    path = folder / PAGE
    write_atomic(path, page("Samplers compared", "\n".join(body)))
    return path
