"""What steers a search: for each goal a predictor of its median latency, and how far beyond the median it is bounded.

Both are kept in the run folder, so that a resumed search is steered by the same ones.
"""

import contextlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from analysis.goal import Goal
from nas.config import cache_dir
from nas.devices.carried import CarriedProfile
from nas.devices.operation_table import OperationTable, load_or_measure_table
from nas.devices.predictor import LatencyPredictor
from nas.devices.profile import Profile, profile_path
from nas.devices.profiling import load_or_measure
from nas.devices.resolve import Device
from nas.devices.target import Shape, Target, timing_text
from nas.errors import InvalidInputError
from nas.progress import Progress
from nas.search.designs import budget_filling
from nas.search.finalists import SHAPE_SECONDS, seconds_for
from search_spaces.architecture import Architecture, TextSpec
from search_spaces.chain_space import ChainSpace
from search_spaces.files import write_atomic
from search_spaces.spaces import Space

NUM_TAIL_SHAPES = 3

Predictor = LatencyPredictor | OperationTable


def predictor_file(run: Path, place: int, precision: str = "fp32") -> Path:
    """Where a run keeps the predictor of its goal at a place, from 0, for architectures that run in a precision."""
    of_goal = "" if place == 0 else f"-{place + 1}"
    return run / f"predictor{of_goal}{'' if precision == 'fp32' else f'-{precision}'}.json"


def predictor_for(
    goal: Goal,
    device: Device,
    space: Space,
    text: TextSpec,
    path: Path,
    *,
    is_table: bool = False,
    seed: int,
    progress: Progress,
) -> Predictor:
    """The predictor of a goal: from the run folder, from the profile that was carried here, or measured.

    Args:
        goal: What is asked of the device.
        device: What is measured, or known.
        space: Where the shapes come from.
        text: What the encoders read.
        path: Where the run keeps it.
        is_table: Whether an operation table shall predict: of a chain space, on a device that can be measured.
        seed: Of the choice of shapes.
        progress: What is told about it.

    Raises:
        InvalidInputError: The run's file is broken, or the profile is of something else.
        InconclusiveMeasurementError: The measuring broke down.
    """
    if path.exists():
        try:
            predictor: Predictor = read_predictor(path)
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"{path} is broken ({error}); start a new search") from error
        if not isinstance(device, CarriedProfile):
            _recall(device, space, text, is_table=is_table)
        if isinstance(predictor, OperationTable):
            predictor.check(goal.conditions)
        return predictor
    if isinstance(device, CarriedProfile):
        predictor = device.predictor(space, text)
    elif is_table:
        assert isinstance(space, ChainSpace)  # Prepared sees to it
        predictor = load_or_measure_table(device, space, text, cache_dir=cache_dir(), seed=seed, progress=progress)
    else:
        budgets_s = () if goal.budget_s is None else (goal.budget_s,)
        predictor = load_or_measure(
            device, space, text, cache_dir=cache_dir(), seed=seed, progress=progress, budgets_s=budgets_s
        )
    write_atomic(path, json.dumps(predictor.to_dict()))
    return predictor


def read_predictor(path: Path) -> Predictor:
    """Reads what a run keeps of a goal.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not JSON, or neither a predictor nor a table.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    is_table = isinstance(data, dict) and "entries" in data
    return OperationTable.from_dict(data) if is_table else LatencyPredictor.from_dict(data)


def _recall(target: Target, space: Space, text: TextSpec, *, is_table: bool) -> None:
    """Tells a target of a resumed search how its level moved when the profile in the cache was last used."""
    with contextlib.suppress(InvalidInputError):  # a profile that is gone or broken has nothing to recall
        folder = "tables" if is_table else "profiles"
        target.recall(Profile.read(profile_path(cache_dir(), target.conditions, space, text, folder)).levels)


def measure_tails(
    goals: Sequence[Goal],
    targets: Sequence[Mapping[str, Target | None]],
    predictors: Sequence[Mapping[str, Predictor]],
    space: Space,
    text: TextSpec,
    progress: Progress,
) -> list[float]:
    """For each goal how many times its median the bounded percentile lies, by a few shapes near the budget.

    Predictors know medians. Where a budget bounds another percentile, the search is steered to the budget divided by
    this, and the finals find out what holds for each model. Where precisions are searched it is the median over all.

    Args:
        goals: What is asked.
        targets: What to measure each goal on, by precision; None where it is known from a profile alone.
        predictors: Of each goal, by precision.
        space: Where the shapes come from.
        text: What the encoders read.
        progress: What is told about it.

    Raises:
        InconclusiveMeasurementError: The measuring broke down.
    """
    tails = []
    for goal, by_precision, predictor_of in zip(goals, targets, predictors, strict=True):
        known = {name: target for name, target in by_precision.items() if target is not None}
        if not known or goal.budget_s is None or goal.percentile == 50:
            tails.append(1.0)
            continue
        progress.start(f"finding p{goal.percentile} beside the median on {goal.name}", NUM_TAIL_SHAPES * len(known))
        ratios: list[float] = []
        for name, target in known.items():
            shapes = budget_filling(space, _fits(predictor_of[name], goal.budget_s))
            few = shapes[:NUM_TAIL_SHAPES] or [space.smallest()]
            models = {shape.key(): Shape(shape, timing_text(text, goal.conditions.seq_len)) for shape in few}
            measured = target.measure(models, seconds_each=seconds_for(goal, SHAPE_SECONDS), attempts=1)
            ratios += [goal.value_s(latency) / latency.p50_s for latency in measured.values()]
        tails.append(statistics.median(ratios))
        progress.finish(f"{tails[-1]:.2f} times the median")
    return tails


def _fits(predictor: Predictor, budget_s: float) -> Callable[[Architecture], bool]:
    return lambda shape: predictor.predict(shape).p50_s <= budget_s
