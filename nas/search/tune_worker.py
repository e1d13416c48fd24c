"""What runs in Ray's worker processes. It imports little, since every worker that starts waits for that."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from analysis.trial import MAX_REASON
from nas.search.objective import EvaluatorFactory, Failure, evaluate
from search_spaces.architecture import Architecture


@dataclass(frozen=True)
class Task:
    """What a worker is asked: to evaluate an architecture, or to stop where that is None."""

    serial: int
    architecture: str | None


class Slots:
    """An actor that holds the newest task of each worker."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}
        self._changed = asyncio.Condition()

    async def put(self, worker: str, task: Task) -> None:
        async with self._changed:
            self._tasks[worker] = task
            self._changed.notify_all()

    async def take(self, worker: str, after: int) -> Task:
        """The worker's task, as soon as there is one with a serial number above the one it did last."""
        async with self._changed:
            await self._changed.wait_for(lambda: worker in self._tasks and self._tasks[worker].serial > after)
            return self._tasks[worker]


class Worker(tune.Trainable):  # type: ignore[misc]  # ray has no types
    """Builds an evaluator once and evaluates one architecture a step."""

    def setup(self, config: dict[str, Any], make_evaluator: EvaluatorFactory, slots: Any) -> None:
        logging.getLogger("ray").setLevel(logging.ERROR)
        self._slots, self._last, self._broken = slots, -1, ""
        try:
            self._evaluator = make_evaluator()
        except Exception as error:
            self._broken = f"{type(error).__name__}: {error}"[:MAX_REASON]

    def step(self) -> dict[str, Any]:
        if self._broken:
            return {"broken": self._broken, "done": True}
        task: Task = ray.get(self._slots.take.remote(self.trial_id, self._last))
        self._last = task.serial
        if task.architecture is None:
            return {"serial": task.serial, "done": True}
        outcome = evaluate(self._evaluator, Architecture.from_json(task.architecture))
        if isinstance(outcome, Failure):
            return {"serial": task.serial, "stage": outcome.stage, "reason": outcome.reason}
        return {"serial": task.serial, "quality": outcome}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a worker that is started again needs only its slot."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing, as there is nothing saved."""
