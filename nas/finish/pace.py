"""How many steps fit into the minutes that a training is given.

A pruning ramp and a learning rate are functions of the share of the run that is over, so the number of steps must be
known when it begins. Some steps are therefore taken, and timed, on a copy of what is trained; the number that fits is
written beside the checkpoint, and a resumed run keeps to it. Where the machine is slower later on, the run takes
longer, and the progress says so.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from nas.errors import InvalidInputError
from nas.finish.checkpoint import has_checkpoint
from nas.finish.companion import Beside
from nas.finish.training import Evaluate, Loop, LoopConfig, Loss
from nas.progress import Progress
from search_spaces.files import write_atomic
from supernet.examples import Examples

PLAN_FILE = "plan.json"
#: Steps that are timed on a copy, at least and, beyond these, for how long.
LEAST_STEPS, MOST_S = 5, 10.0
#: What a copy is told that it will be trained for.
SUPPOSED_STEPS = 10_000


@dataclass(frozen=True)
class Pace:
    """What the parts of a training take, in seconds.

    Attributes:
        step_s: An optimiser step.
        evaluation_s: An evaluation.
        choice_s: What goes along now and then, such as choosing masks, once.
        num_choices: How often, over the whole run; at most once a step.
    """

    step_s: float
    evaluation_s: float
    choice_s: float = 0.0
    num_choices: int = 0

    def num_steps(self, seconds: float, *, every: int | None, evaluations: int) -> int:
        """Steps that fit into a time, at least 1.

        Args:
            seconds: The time.
            every: Steps between two evaluations; None where their number does not depend on the steps.
            evaluations: How many evaluations there are in that case.
        """
        left_s = seconds - (self.evaluation_s * evaluations if every is None else 0)
        each_s = self.step_s + (0 if every is None else self.evaluation_s / every)
        with_all = (left_s - self.num_choices * self.choice_s) / each_s
        with_one_a_step = left_s / (each_s + self.choice_s)
        return max(1, int(max(with_all, with_one_a_step)))


def measure_pace(
    module: nn.Module, examples: Examples, loss: Loss, evaluate: Evaluate, config: LoopConfig, beside: Beside
) -> Pace:
    """Times some steps of a training, an evaluation, and what goes along; the module is changed.

    Args:
        module: A copy of what shall be trained.
        examples: What it learns from.
        loss: Parts of a batch's loss by name.
        evaluate: Figures on validation text.
        config: How it is trained.
        beside: What goes along, begun for :data:`SUPPOSED_STEPS`.
    """
    loop = Loop(module, examples, config, beside.hooks)
    loop.num_steps = SUPPOSED_STEPS
    loop.take_step(loss)  # the first one also makes the optimiser's state
    began_s = time.monotonic()
    while loop.step <= LEAST_STEPS or time.monotonic() - began_s < MOST_S:
        loop.take_step(loss)
    step_s, began_s = (time.monotonic() - began_s) / (loop.step - 1), time.monotonic()
    module.eval()
    with torch.no_grad():
        evaluate()
    evaluation_s, began_s = time.monotonic() - began_s, time.monotonic()
    beside.choose()
    return Pace(step_s, evaluation_s, time.monotonic() - began_s, beside.num_choices)


def planned_steps(
    minutes: float,
    measure: Callable[[int], Pace],
    folder: Path,
    *,
    every: int | None = None,
    evaluations: int = 0,
    resume: bool,
    progress: Progress,
) -> int:
    """The number of steps of a run of so many minutes: what its folder says, or what fits by a measurement now.

    Args:
        minutes: Wall-clock minutes of training, evaluations included.
        measure: Takes :data:`SUPPOSED_STEPS` and times the parts of the run on a copy.
        folder: Of the unfinished run; the plan is kept in it.
        every: Steps between two evaluations.
        evaluations: Where that is None, how many there are in the whole run.
        resume: Whether to go on from an unfinished run.
        progress: What is told about it.

    Raises:
        InvalidInputError: There is an unfinished run and ``resume`` was not asked for, or it was of other minutes.
    """
    path = folder / PLAN_FILE
    if path.exists() and has_checkpoint(folder):
        return _kept_steps(path, minutes, resume=resume)
    progress.start("timing some steps")
    began_s = time.monotonic()
    pace = measure(SUPPOSED_STEPS)
    steps = pace.num_steps(60 * minutes - (time.monotonic() - began_s), every=every, evaluations=evaluations)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"minutes": minutes, "steps": steps, "step_s": pace.step_s}) + "\n")
    beside = f", {pace.choice_s:.2f} s to choose weights" if pace.num_choices else ""
    progress.finish(f"{1 / pace.step_s:.2f} steps a second{beside}; {minutes:g} minutes hold {steps:,} steps")
    return steps


def _kept_steps(path: Path, minutes: float, *, resume: bool) -> int:
    """What an unfinished run planned."""
    folder = path.parent
    if not resume:
        raise InvalidInputError(
            f"{folder} holds an unfinished run; repeat the command with --resume, or remove that folder"
        )
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        kept, steps = float(plan["minutes"]), int(plan["steps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(f"{path} is damaged; remove {folder} and start again") from error
    if kept != minutes:
        raise InvalidInputError(
            f"the run in {folder} was started with {kept:g} minutes; repeat its options, or remove that folder"
        )
    return steps
