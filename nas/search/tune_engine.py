"""The engine for several cores or machines: Ray Tune, one long-lived Tune trial a worker.

Starting a Tune trial takes seconds, evaluating an architecture a fraction of one. So a Tune trial is not an
architecture but a worker: it builds its evaluator once, and each of its steps evaluates the next architecture that is
put into its slot. The driver holds the conversation with the sampler and alone writes the store::

    driver (Tune's loop)                 slots (an actor)                worker (a Tune trial)
    suggestion --------- put ---------> newest task of each worker --- take ---> evaluate
    tell, record <------------------------- Tune result -------------------------'

Taking does not empty a slot. When a worker dies Tune starts it again, and it finds its unfinished task where it was.
"""

import contextlib
import importlib.util
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from nas.errors import DeviceNotAvailableError, InvalidInputError, NasError
from nas.search.ask_tell import AskTell, Ending, OnEvent, ShouldStop, Suggestion
from nas.search.objective import EvaluatorFactory, Failure, SearchProblem
from nas.search.store import TrialStore
from nas.search.tune_worker import Slots, Task, Worker

MAX_DEATHS = 2
MAX_STILLBORN = 3
CONNECT_SECONDS = 5.0
OBJECT_STORE_BYTES = 128 * 2**20
_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the caller's to handle
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # the store is the truth; Tune's own state is thrown away
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def run_on_ray(
    problem: SearchProblem,
    store: TrialStore,
    *,
    sampler: str,
    seed: int,
    num_evaluations: int,
    on_event: OnEvent | None = None,
    should_stop: ShouldStop | None = None,
    address: str | None = None,
    num_workers: int | None = None,
    threads: int = 1,
) -> Ending:
    """Searches as :func:`nas.search.optuna_engine.run_in_process` does, with several evaluations at a time.

    With more than one worker the order in which evaluations finish decides what is suggested next, so only a search
    with one worker can be repeated exactly.

    Args:
        problem: What is searched; restrict it to its budget first. Its evaluator factory must be picklable.
        store: Where finished trials go, and where those of an earlier run come from.
        sampler: A key of ``SAMPLERS``.
        seed: Of all randomness.
        num_evaluations: How many architectures shall have been evaluated, those of earlier runs included.
        on_event: Told every record after it is in the store.
        should_stop: Asked before every evaluation.
        address: A running cluster, as ``host:port``, ``ray://host:port`` or ``auto``; None for a local one. The
            project must be installed on its nodes.
        num_workers: Workers; by default as many as the cluster has cores for.
        threads: Threads of a worker.

    Returns:
        ``done``, ``exhausted`` (the space holds no more that fit) or ``stopped``.

    Raises:
        InvalidInputError: An argument breaks its law, or the store cannot be written.
        DeviceNotAvailableError: No cluster answers at the address, or it has too few cores.
        NasError: All of the first evaluations failed, or no worker could be built.
    """
    conversation = AskTell(
        problem, store, sampler=sampler, seed=seed, num_evaluations=num_evaluations, on_event=on_event
    )
    if conversation.num_evaluated >= num_evaluations:
        return conversation.ending
    with _connected(address, threads), tempfile.TemporaryDirectory(prefix="nas-tune-") as folder:
        workers = min(_num_workers(num_workers, threads), num_evaluations - conversation.num_evaluated)
        driver = _Driver(conversation, should_stop or (lambda: False))
        _tune(problem.make_evaluator, driver, workers, threads, Path(folder))
    return conversation.ending


def _tune(make_evaluator: EvaluatorFactory, driver: "_Driver", workers: int, threads: int, folder: Path) -> None:
    trainable = tune.with_resources(
        tune.with_parameters(Worker, make_evaluator=make_evaluator, slots=driver.slots), {"cpu": threads}
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(num_samples=workers),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(folder),
            callbacks=[driver],
            stop=_StopOnError(driver),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=-1),  # the driver counts deaths, an evaluation at a time
        ),
    )
    try:
        tuner.fit()
    finally:
        driver.close()
    if driver.error is not None:
        raise driver.error


@dataclass
class _Assignment:
    """What a worker is busy with."""

    serial: int
    suggestion: Suggestion | None
    deaths: int = 0


class _Driver(tune.Callback):  # type: ignore[misc]  # ray has no types
    """Hands out suggestions and records what comes back, from within Tune's loop.

    Tune turns what a callback raises into an error of its own, so errors are kept, the workers sent home, and the
    first error is raised once Tune has ended.
    """

    def __init__(self, conversation: AskTell, should_stop: ShouldStop) -> None:
        self.slots = ray.remote(num_cpus=0)(Slots).remote()
        self.error: BaseException | None = None
        self._conversation, self._should_stop = conversation, should_stop
        self._assignments: dict[str, _Assignment] = {}
        self._serial, self._num_stillborn = 0, 0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker started, for the first time or after it died; then its task waits for it already."""
        if trial.trial_id not in self._assignments:
            self._assign(trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A worker did its task, was sent home, or could not be built."""
        if "broken" in result:
            self._fail(NasError(f"a worker could not build its evaluator: {result['broken']}"))
            return
        assignment = self._assignments.get(trial.trial_id)
        if assignment is None or assignment.serial != result["serial"] or assignment.suggestion is None:
            return  # a task that was given up, or the farewell
        if "quality" in result:
            self._tell(trial.trial_id, assignment.suggestion, float(result["quality"]))
        else:
            self._tell(trial.trial_id, assignment.suggestion, Failure(result["stage"], result["reason"]))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker died and is started again."""
        assignment = self._assignments.get(trial.trial_id)
        if assignment is None:
            self._num_stillborn += 1
            if self._num_stillborn >= MAX_STILLBORN:
                self._fail(NasError(f"{MAX_STILLBORN} workers died while they built their evaluator; is memory short?"))
            return
        if assignment.suggestion is None:
            return
        assignment.deaths += 1
        if assignment.deaths >= MAX_DEATHS:
            reason = f"the worker's process died {assignment.deaths} times over this architecture"
            self._tell(trial.trial_id, assignment.suggestion, Failure("worker", reason))

    def close(self) -> None:
        """Ends the actor that holds the slots."""
        with contextlib.suppress(Exception):
            ray.kill(self.slots)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves its callbacks, and a search is continued from the store."""
        return {}

    def _tell(self, worker: str, suggestion: Suggestion, outcome: float | Failure) -> None:
        try:
            if self.error is None:
                self._conversation.tell(suggestion, outcome)
        except BaseException as error:
            self._fail(error)
            return
        self._assign(worker)

    def _assign(self, worker: str) -> None:
        suggestion = None
        try:
            if self.error is None and not self._should_stop():
                suggestion = self._conversation.ask()
        except BaseException as error:
            self._fail(error)
        self._serial += 1
        self._assignments[worker] = _Assignment(self._serial, suggestion)
        architecture = None if suggestion is None else suggestion.architecture.to_json()
        self.slots.put.remote(worker, Task(self._serial, architecture))

    def _fail(self, error: BaseException) -> None:
        """Keeps the first error and sends every worker home."""
        self.error = self.error or error
        for worker in list(self._assignments):
            self._assign(worker)


class _StopOnError(tune.Stopper):  # type: ignore[misc]  # ray has no types
    """Ends all workers once the driver holds an error, also those that never came to take a task."""

    def __init__(self, driver: _Driver) -> None:
        self._driver = driver

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._driver.error is not None


def _num_workers(asked: int | None, threads: int) -> int:
    num_cores = int(ray.cluster_resources().get("CPU", 0))
    possible = num_cores // threads
    if possible < 1 or (asked is not None and not 1 <= asked <= possible):
        raise DeviceNotAvailableError(
            f"the Ray cluster has {num_cores} cores, too few for {asked or 1} workers of {threads} threads; "
            "ask for fewer"
        )
    return possible if asked is None else asked


@contextlib.contextmanager
def _connected(address: str | None, threads: int) -> Iterator[None]:
    """Ray, started or joined and left again; one that this process has joined already is used as it is."""
    with _environment(_TUNE_SETTINGS):
        if ray.is_initialized():
            yield
            return
        if address is not None and address != "auto":
            _check_answers(address)
        try:
            ray.init(**ray_arguments(address, threads))
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            place = (
                "a local Ray could not be started" if address is None else f"no Ray cluster at {address!r} can be used"
            )
            raise DeviceNotAvailableError(f"{place}: {str(error).strip().splitlines()[0]}") from error
        try:
            yield
        finally:
            ray.shutdown()


def ray_arguments(address: str | None, threads: int) -> dict[str, Any]:
    """What ``ray.init`` is told, so that workers import this project and use as many threads as they are given."""
    variables = {"OMP_NUM_THREADS": str(threads)}
    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        return {**arguments, "address": address, "runtime_env": {"env_vars": variables}}
    spec = importlib.util.find_spec("search_spaces")
    assert spec is not None
    assert spec.origin is not None
    variables["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(spec.origin).parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    return {
        **arguments,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "runtime_env": {"env_vars": variables},
    }


def _check_answers(address: str) -> None:
    """Knocks at a cluster's door, since Ray itself waits long for one that is not there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise InvalidInputError(f"a Ray address must be host:port, ray://host:port or auto, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise DeviceNotAvailableError(
            f"no Ray cluster answers at {address!r} ({error}); start one there with `ray start --head`, or leave the "
            "address out to use this machine"
        ) from error


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
