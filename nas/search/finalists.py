"""From a steered search to a promise kept: the best candidates are built, timed, exported and timed again.

The predictors only steer. First the shapes of the best candidates are timed side by side on every target, which also
tells how far the predictors are off near the budgets; then the best that fits is exported and the exported model itself
is timed on every target. Only that last measurement decides. Where a device is known from a profile alone, its
prediction stands in, and is called that.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from analysis.goal import Goal, Limits, Standing, overall, standings
from analysis.latency import MIN_SAMPLES, Latency
from analysis.trial import Trial
from nas.devices.target import Shape, Target, timing_text
from nas.measurement import RUNS_A_SAMPLE
from nas.progress import Progress
from nas.search.conclusion import Conclusion, Latencies
from nas.search.expectations import Expectations, Exported
from nas.search.sizes import least_bytes, model_file
from search_spaces.architecture import Architecture, TextSpec

SHAPES_AT_ONCE = 4
MAX_ROUNDS = 4
MAX_EXPORTS = 5
SHAPE_SECONDS = 1.5
EXPORT_SECONDS = 4.0
MAX_SECONDS = 60.0

Export = Callable[[Trial, Path], None]


@dataclass
class Finals:
    """The last phase of a search.

    Args:
        goals: What is asked.
        limits: What is asked beside time.
        targets: What to measure each goal on, by the precision that an architecture runs in; None where a profile is
            all that is known.
        text: What the encoders read.
        export: Exports a trial's model into a folder.
        progress: What is told about it.
        tails: For each goal how many times the median its percentile is thought to be.
        timed: The shape that stands for an architecture when shapes are timed.
    """

    goals: Sequence[Goal]
    limits: Limits
    targets: Sequence[Mapping[str, Target | None]]
    text: TextSpec
    export: Export
    progress: Progress
    tails: Sequence[float] = ()
    timed: Callable[[Architecture], Architecture] = lambda architecture: architecture
    _known: Expectations = field(init=False)

    def decide(self, trials: Sequence[Trial], model_dir: Path) -> Conclusion:
        """Finds the best model that meets every budget and limit, leaving it exported in ``model_dir``.

        Args:
            trials: Evaluated architectures with their predictions; at least one.
            model_dir: Where the chosen model goes; what an interrupted attempt left there is removed.
        """
        ranked = sorted(trials, key=lambda trial: (-trial.quality, trial.latency.p50_s))
        self._known = Expectations(self.goals, self.limits, self.tails)
        if any(goal.budget_s is not None and goal.is_measurable for goal in self.goals):
            self._measure_shapes(ranked)
        while len(self._known.exports) < MAX_EXPORTS and (trial := self._next(ranked)) is not None:
            exported = self._export_and_measure(trial, model_dir)
            found = self._standings(exported)
            if overall(found) == "meets":
                return Conclusion(0, trial.key, None, self._measured(), self._sizes())
            said = ", ".join(f"{one.what} {one.said}" for one in found if one.state != "meets")
            self.progress.note(f"{trial.key} was exported and is not shown to fit ({said}), so the next one is tried.")
        shutil.rmtree(model_dir, ignore_errors=True)
        return self._without_choice(ranked)

    def _measure_shapes(self, ranked: Sequence[Trial]) -> None:
        """Times the shapes that may be the answer, a few at a time, correcting the predictors by what was measured."""
        known = self._known
        self.progress.start("measuring the best candidates")
        for _ in range(MAX_ROUNDS):
            waiting = self._may_be_best(ranked) or self._may_fit_at_all(ranked)
            if not waiting:
                break
            self._time(waiting[:SHAPES_AT_ONCE])
            self.progress.update(len(known.shapes))
        self.progress.finish(f"{len(known.shapes)} shapes")

    def _may_be_best(self, ranked: Sequence[Trial]) -> list[Trial]:
        """Trials not timed yet that are better than the best that fits and should fit themselves, best first."""
        known, use = self._known, self._known.use()
        floor = max((trial.quality for trial in known.timed if known.meets_all(trial)), default=None)
        return [
            trial
            for trial in ranked
            if trial.architecture not in known.shapes and (floor is None or trial.quality > floor) and use(trial) <= 1
        ]

    def _may_fit_at_all(self, ranked: Sequence[Trial]) -> list[Trial]:
        """Where nothing is shown to fit: the trial that should come closest, and those that are not ruled out."""
        known = self._known
        if any(map(known.meets_all, known.timed)):
            return []
        use, least = known.use(), known.least_use()
        by_use = sorted(ranked, key=use)
        waiting = [trial for trial in by_use if trial is by_use[0] or least(trial) <= 1]
        return [trial for trial in waiting if trial.architecture not in known.shapes]

    def _next(self, ranked: Sequence[Trial]) -> Trial | None:
        """What to export next: the best shape that fits, then the best trial that should fit by what exports took.

        An export that is not shown to fit says by how much bounds now lie above what was expected; the next one is
        chosen with that headroom and a little more, so that a restless machine leads to a smaller model and not to no
        answer. Where none has so much, the nearest of the trials that are not ruled out is tried.
        """
        known = self._known
        waiting = [trial for trial in ranked if trial.architecture not in known.exports]
        if not known.exports:
            shown = next(filter(known.meets_all, waiting), None)
            if shown is not None:
                return shown
        else:
            cautious = known.cautious_use()
            likely = next((trial for trial in waiting if cautious(trial) <= 1 and known.may_meet_all(trial)), None)
            if likely is not None:
                return likely
        is_timed = not any(goal.budget_s is not None and goal.is_measurable for goal in self.goals)
        open_ = [
            trial
            for trial in waiting
            if (is_timed or trial.architecture in known.shapes)
            and known.may_meet_all(trial)
            and (not known.exports or known.least_use()(trial) <= 1)
        ]
        return min(open_, key=known.use(), default=None)

    def _without_choice(self, ranked: Sequence[Trial]) -> Conclusion:
        """What to say where no model is shown to fit: whether that is shown of all, and which came closest."""
        known, least, use = self._known, self._known.least_use(), self._known.use()
        is_open = any(least(trial) <= 1 for trial in ranked if trial.architecture not in known.exports) or any(
            overall(self._standings(one)) != "exceeds" for one in known.exports.values()
        )
        shares = {one.trial.key: self._worst_share(one) for one in known.exports.values()}
        if shares:
            closest = min((one.trial for one in known.exports.values()), key=lambda trial: shares[trial.key])
        else:
            closest = min(known.timed or ranked, key=use)
        at_least = max(least_bytes(closest.num_parameters, latency.conditions) for latency in closest.latencies)
        return Conclusion(
            5 if is_open else 3, None, closest.key, self._measured(), {closest.key: at_least, **self._sizes()}
        )

    def _measured(self) -> dict[str, Latencies]:
        shapes = {trial.key: self._known.shapes[trial.architecture] for trial in self._known.timed}
        return shapes | {one.trial.key: one.latencies for one in self._known.exports.values()}

    def _sizes(self) -> dict[str, int]:
        return {one.trial.key: one.size_bytes for one in self._known.exports.values()}

    def _standings(self, exported: Exported) -> list[Standing]:
        """How an exported model stands; where nothing can be measured, its prediction counts."""
        pairs = zip(self.goals, exported.latencies, exported.trial.latencies, strict=True)
        latencies = [latency if goal.is_measurable else prediction for goal, latency, prediction in pairs]
        return standings(self.goals, self.limits, latencies, exported.size_bytes)

    def _worst_share(self, exported: Exported) -> float:
        return max((one.share for one in self._standings(exported) if one.share is not None), default=0.0)

    def _time(self, trials: Sequence[Trial]) -> None:
        """Times shapes on every target that has a budget, each in its precision."""
        by_goal: list[dict[str, Latency]] = []
        for goal, targets in zip(self.goals, self.targets, strict=True):
            by_goal.append({})
            text = timing_text(self.text, goal.conditions.seq_len)
            for precision, target in targets.items():
                models = {
                    trial.key: Shape(self.timed(trial.architecture.shape), text)
                    for trial in trials
                    if trial.architecture.precision == precision
                }
                if models and target is not None and goal.budget_s is not None:
                    seconds = seconds_for(goal, SHAPE_SECONDS)
                    by_goal[-1] |= target.measure(models, seconds_each=seconds, attempts=1)
        for trial in trials:
            self._known.add_shape(trial, tuple(found.get(trial.key) for found in by_goal))

    def _export_and_measure(self, trial: Trial, model_dir: Path) -> Exported:
        self.progress.start(f"exporting {trial.key}")
        if model_dir.exists():
            shutil.rmtree(model_dir)
        self.export(trial, model_dir)
        self.progress.finish()
        latencies: list[Latency | None] = []
        for goal, targets in zip(self.goals, self.targets, strict=True):
            target = targets[trial.architecture.precision]
            if target is None:
                latencies.append(None)
                continue
            on = f" on {goal.name}" if len(self.goals) > 1 else ""
            self.progress.start(f"measuring the exported {trial.key}{on}")
            seconds = seconds_for(goal, EXPORT_SECONDS)
            latency = target.measure({trial.key: model_dir}, seconds_each=seconds)[trial.key]
            self.progress.finish(f"{latency.p50_s * 1e3:.2f} ms, {latency.verdict}")
            latencies.append(latency)
        files = {model_file(latency.conditions) for latency in trial.latencies}
        size = max((model_dir / name).stat().st_size for name in files)
        exported = Exported(trial, tuple(latencies), size)
        self._known.exports[trial.architecture] = exported
        return exported


def seconds_for(goal: Goal, least: float) -> float:
    """How long to time a model, so that there are samples enough for the percentile that the budget bounds."""
    needed = RUNS_A_SAMPLE * MIN_SAMPLES[goal.percentile] * (goal.budget_s or 0.0)
    return max(least, min(MAX_SECONDS, needed * least / SHAPE_SECONDS))
