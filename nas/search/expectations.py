"""What the trials are expected to take, from predictions corrected by what was measured so far.

Everything is a share of what is allowed: a trial is expected to fit where no budget and no limit is used by more
than 1, whatever the goals are.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from analysis.goal import Goal, Limits, State
from analysis.latency import Latency
from analysis.trial import Trial
from nas.search.conclusion import Latencies
from nas.search.sizes import expected_bytes, expected_memory, least_bytes
from search_spaces.architecture import Architecture

#: How far the upper bound of a good measurement lies above its median, before any was made.
USUAL_HEADROOM = 1.02
#: How much more headroom each export that is not shown to fit asks of the next.
CAUTION = 1.03

Use = Callable[[Trial], float]


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported and measured model."""

    trial: Trial
    latencies: Latencies
    size_bytes: int


@dataclass
class Expectations:
    """What is known near the end of a search.

    Attributes:
        goals: The search's.
        limits: The search's.
        tails: For each goal how many times the median its percentile is thought to be before any shape was timed.
        shapes: Timed shapes.
        timed: The trials whose shapes were timed.
        exports: Exported models.
    """

    goals: Sequence[Goal]
    limits: Limits
    tails: Sequence[float] = ()
    shapes: dict[Architecture, Latencies] = field(default_factory=dict)
    timed: list[Trial] = field(default_factory=list)
    exports: dict[Architecture, Exported] = field(default_factory=dict)

    def add_shape(self, trial: Trial, latencies: Latencies) -> None:
        """Takes note of a timed shape."""
        self.timed.append(trial)
        self.shapes[trial.architecture] = latencies

    def meets_all(self, trial: Trial) -> bool:
        """Whether a trial's shape is shown to meet every budget, and its size and memory are expected to fit."""
        return set(self._states(trial)) <= {"meets"} and self._limits_use(trial) <= 1

    def may_meet_all(self, trial: Trial) -> bool:
        """Whether a measured export could still be shown to keep to everything.

        It could not where a timed shape or the size that can be computed exceeds something, nor where a device that
        cannot be measured is not predicted to meet its budget.
        """
        final = (
            goal.judge(prediction)
            for goal, prediction in zip(self.goals, trial.latencies, strict=True)
            if not goal.is_measurable
        )
        is_open = "exceeds" not in self._states(trial) and all(state == "meets" for state in final)
        return is_open and self._limits_use(trial, is_least=True) <= 1

    def _states(self, trial: Trial) -> list[State]:
        """What is shown of each budget; a shape that was not timed shows nothing."""
        found: list[State] = []
        for place, goal in enumerate(self.goals):
            if goal.budget_s is not None:
                latency = self._shown(trial, place)
                found.append("undecided" if latency is None else goal.judge(latency))
        return found

    def _shown(self, trial: Trial, place: int) -> Latency | None:
        """The latency that counts as evidence: measured, or predicted where nothing can be measured."""
        if not self.goals[place].is_measurable:
            return trial.latencies[place]
        shape = self.shapes.get(trial.architecture)
        return None if shape is None else shape[place]

    def use(self) -> Use:
        """The largest share of anything allowed that a trial is expected to use when it is measured well."""
        headroom = []
        for place, goal in enumerate(self.goals):
            shown = (latencies[place] for latencies in self.shapes.values())
            reach = [_bound_s(goal, latency) / goal.value_s(latency) for latency in shown if latency is not None]
            headroom.append(statistics.median(reach or [USUAL_HEADROOM]))
        return self._use(headroom)

    def cautious_use(self) -> Use:
        """As :meth:`use`, with the headroom that the exports so far turned out to need, and a little more."""
        expected_s, headroom = self._expected_s(), []
        for place, goal in enumerate(self.goals):
            needed = [
                _bound_s(goal, latency) / expected_s(exported.trial, place)
                for exported in self.exports.values()
                if (latency := exported.latencies[place]) is not None
            ]
            headroom.append(CAUTION ** len(self.exports) * max(needed, default=1.0))
        return self._use(headroom)

    def least_use(self) -> Use:
        """The share that a trial uses at least: above 1 it cannot fit, as far as predictions can be trusted."""
        factor = self._factor()

        def least(trial: Trial) -> float:
            uses = [self._limits_use(trial, is_least=not self.exports)]
            for place, goal in enumerate(self.goals):
                if goal.budget_s is None:
                    continue
                shown = self._shown(trial, place)
                if shown is None:
                    uses.append(trial.latencies[place].low_s * factor(trial, place) / goal.budget_s)
                elif goal.judge(shown) == "exceeds":
                    uses.append(goal.value_s(shown) / goal.budget_s)
            return max(uses)

        return least

    def _use(self, headroom: Sequence[float]) -> Use:
        expected_s = self._expected_s()

        def use(trial: Trial) -> float:
            uses = [self._limits_use(trial)]
            for place, goal in enumerate(self.goals):
                if goal.budget_s is not None:
                    extra = headroom[place] if goal.is_measurable else 1.0
                    uses.append(expected_s(trial, place) * extra / goal.budget_s)
            return max(uses)

        return use

    def _expected_s(self) -> Callable[[Trial, int], float]:
        """What a trial's latency on a goal is expected to be: what its shape took, else the corrected prediction."""
        factor = self._factor()

        def expected_s(trial: Trial, place: int) -> float:
            goal, prediction = self.goals[place], trial.latencies[place]
            if not goal.is_measurable:
                return prediction.high_s  # no measurement will narrow it
            shown = self._shown(trial, place)
            return prediction.p50_s * factor(trial, place) if shown is None else goal.value_s(shown)

        return expected_s

    def _factor(self) -> Callable[[Trial, int], float]:
        """For a trial's goal how many times the predicted median the measured percentile is, in its precision."""
        found: dict[tuple[str, int], list[float]] = {}
        for trial in self.timed:
            for place, shape in enumerate(self.shapes[trial.architecture]):
                if shape is not None:
                    ratio = self.goals[place].value_s(shape) / trial.latencies[place].p50_s
                    found.setdefault((trial.architecture.precision, place), []).append(ratio)
        factors = {key: statistics.median(ratios) for key, ratios in found.items()}

        def factor(trial: Trial, place: int) -> float:
            usual = self.tails[place] if self.tails else 1.0
            return factors.get((trial.architecture.precision, place), usual)

        return factor

    def _limits_use(self, trial: Trial, *, is_least: bool = False) -> float:
        """The share of the limits on size and memory; at least 0."""
        uses = [0.0]
        size = max(self._size(trial, place, is_least=is_least) for place in range(len(self.goals)))
        if self.limits.max_size_bytes is not None:
            uses.append(size / self.limits.max_size_bytes)
        if self.limits.max_memory_bytes is not None:
            memory = size if is_least else max(self._memory(trial, place) for place in range(len(self.goals)))
            uses.append(memory / self.limits.max_memory_bytes)
        return max(uses)

    def _size(self, trial: Trial, place: int, *, is_least: bool = False) -> float:
        conditions = trial.latencies[place].conditions
        if is_least:
            return least_bytes(trial.num_parameters, conditions)
        off = [
            exported.size_bytes / expected_bytes(one.num_parameters, one.latencies[place].conditions)
            for exported in self.exports.values()
            for one in (exported.trial,)
        ]
        return expected_bytes(trial.num_parameters, conditions) * statistics.median(off or [1.0])

    def _memory(self, trial: Trial, place: int) -> float:
        off = [
            latency.peak_memory_bytes - expected_memory(exported.size_bytes)
            for exported in self.exports.values()
            if (latency := exported.latencies[place]) is not None and latency.peak_memory_bytes is not None
        ]
        return expected_memory(self._size(trial, place)) + statistics.median(off or [0.0])


def _bound_s(goal: Goal, latency: Latency) -> float:
    """The upper bound of what the budget bounds; of the median where the percentile is not known."""
    bounds_s = latency.bounds_s(goal.percentile)
    return latency.high_s if bounds_s is None else bounds_s[1]
