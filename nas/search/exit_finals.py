"""From a search over exits to a shape that is shown to be fast enough: the best ones are timed exit by exit."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.goal import Goal
from analysis.latency import Conditions, Latency
from analysis.trial import Trial
from nas.progress import Progress
from nas.search.conclusion import Conclusion
from nas.search.exit_policy import ExitJudge
from nas.search.objective import Evaluator

if TYPE_CHECKING:
    from supernet.encoder import Encoder
    from supernet.task_spec import TaskSpec

MAX_TIMED = 4
#: How much more headroom each shape that is not shown to fit asks of the next.
CAUTION = 1.03

#: Times a trial's layers with a head behind each: the latency of leaving at every one of them.
TimeExits = Callable[[Trial], Sequence[Latency]]
#: The same of an encoder, for a task, with a tokenizer, under given conditions.
TimeTaskExits = Callable[["Encoder", "TaskSpec", Path, Conditions], Sequence[Latency]]


def exit_timer(time_exits: TimeTaskExits | None, adapted_dir: Path, tokenizer_dir: Path) -> TimeExits:
    """Times the exits of trials as they are cut from an adapted supernet, each under the conditions it is judged by."""
    from supernet.adapt import load_adapted
    from supernet.extract import extract

    assert time_exits is not None  # who searches exits brings it
    adapted = load_adapted(adapted_dir)
    of_task = (adapted.spec, tokenizer_dir)
    return lambda trial: time_exits(
        extract(adapted.supernet, trial.architecture.shape), *of_task, trial.latency.conditions
    )


def decide_exits(
    trials: Sequence[Trial], judge: Evaluator, goal: Goal, time_exits: TimeExits, progress: Progress
) -> Conclusion:
    """Finds the best shape whose exits are shown to keep to the budget as the supernet's texts leave.

    Args:
        trials: Evaluated shapes; at least one.
        judge: What evaluated them.
        goal: What is asked.
        time_exits: Times a shape.
        progress: What is told about it.
    """
    assert isinstance(judge, ExitJudge)
    ranked = sorted(trials, key=lambda trial: (-trial.quality, trial.latency.p50_s))
    budget_s = float("inf") if goal.budget_s is None else goal.budget_s
    factor, states = 1.0, dict[str, str]()
    shares: dict[str, float] = {}
    while len(states) < MAX_TIMED:
        waiting = [trial for trial in ranked if trial.key not in states]
        likely = [trial for trial in waiting if trial.latency.p50_s * factor <= budget_s]
        if not likely and states:
            break
        trial = likely[0] if likely else min(waiting, key=lambda one: one.latency.p50_s)
        progress.start(f"timing the exits of {trial.key}")
        _, latency = judge.choose(trial.architecture, time_exits(trial))
        progress.finish(f"{latency.p50_s * 1e3:.2f} ms, where texts leave as in the supernet")
        states[trial.key], shares[trial.key] = goal.judge(latency), latency.p50_s / budget_s
        if states[trial.key] == "meets":
            return Conclusion(0, trial.key, None, {})
        factor = CAUTION ** len(states) * latency.p50_s / trial.latency.p50_s
    closest = min(shares, key=lambda key: shares[key])
    return Conclusion(3 if set(states.values()) == {"exceeds"} else 5, None, closest, {})
