"""What a search is asked; the run folder keeps it and gives it back."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from analysis.goal import Limits
from nas.config import check_bounds, check_percentile
from nas.devices.defaults import settings_for
from nas.devices.resolve import on_ray
from nas.devices.target import RUNTIMES, Settings
from nas.errors import InvalidInputError, unknown_name
from nas.search.objective import MAX_GOALS
from search_spaces.precisions import check_precisions
from search_spaces.spaces import Space, space_from_dict
from supernet.task_spec import TaskOptions

ENGINES = ("inprocess", "ray")
#: Which latency of a model with exits a budget may bind.
EXIT_BOUNDS = ("expected", "worst")
#: What searches in one precision alone, and why.
_ONE_PRECISION = {
    "assembly": "ranks chains by losses and costs of blocks that are known in one precision",
    "evolution-fast": "draws sizes by a rule",
}
_BUDGET = re.compile(r"(?P<device>.+):(?P<ms>[-+]?[0-9.][^:/@]*|[-+]?nan|[-+]?inf)ms", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class GoalRequest:
    """A device, how a model shall run on it, and how long it may take.

    Attributes:
        device: The device's name.
        settings: Runtime, precision, threads, batch and length.
        budget_s: The longest latency allowed; None for the whole front.
    """

    device: str = "cpu"
    settings: Settings = field(default_factory=Settings)
    budget_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; :meth:`from_dict` reads it."""
        return {"device": self.device, "settings": self.settings.to_dict(), "budget_s": self.budget_s}

    @classmethod
    def from_dict(cls, data: object) -> "GoalRequest":
        """Reads :meth:`to_dict`'s form; raises InvalidInputError where it is not one."""
        if not isinstance(data, dict) or set(data) != {field.name for field in fields(cls)}:
            raise InvalidInputError("a goal must hold a device, settings and a budget")
        return cls(str(data["device"]), Settings.from_dict(data["settings"]), data["budget_s"])


def split_budget(device: str) -> tuple[str, float | None]:
    """Takes the budget off a device's name: ``board:20ms`` is ``board`` and 0.02 s, ``cuda:0`` and others have none.

    Raises:
        InvalidInputError: What stands before ``ms`` is no number, or out of bounds.
    """
    found = _BUDGET.fullmatch(device)
    if found is None:
        return device, None
    try:
        budget_ms = float(found["ms"])
    except ValueError:
        budget_ms = math.nan
    try:
        check_bounds(latency_ms=budget_ms)
    except InvalidInputError as error:
        raise InvalidInputError(f"the budget in --device {device}: {error}; write it as in board:20ms") from error
    return found["device"], budget_ms / 1e3


def goal_requests(
    devices: Sequence[str], budget_s: float | None, *, ray_address: str | None = None, **asked: Any
) -> tuple[GoalRequest, ...]:
    """One goal for each device, batch and length.

    Args:
        devices: Names, each perhaps with a budget of its own behind it, which then wins.
        budget_s: The longest latency allowed where a device has no budget of its own.
        ray_address: A Ray cluster whose nodes devices may be that are known in no other way.
        **asked: What :func:`nas.devices.defaults.settings_for` takes.

    Raises:
        InvalidInputError: There is none, there are more than 8, one is asked twice, or a number is out of bounds.
    """
    goals = []
    for given in devices:
        device, own_s = split_budget(given)
        device = device if ray_address is None else on_ray(device, ray_address)
        goals += [
            GoalRequest(device, settings, budget_s if own_s is None else own_s)
            for settings in settings_for(device, **asked)
        ]
    check_goals(goals)
    return tuple(goals)


def check_goals(goals: Sequence[GoalRequest]) -> None:
    """Raises InvalidInputError where there are no goals, too many, or one twice."""
    if not 1 <= len(goals) <= MAX_GOALS:
        raise InvalidInputError(
            f"a search must have 1 to {MAX_GOALS} goals (a device, a batch and a length each), got {len(goals)}"
        )
    seen = set()
    for goal in goals:
        if (goal.device, goal.settings) in seen:
            settings = goal.settings
            raise InvalidInputError(
                f"{goal.device} with batch {settings.batch_size} and {settings.seq_len} tokens is asked for twice; "
                "leave one out"
            )
        seen.add((goal.device, goal.settings))


@dataclass(frozen=True)
class SearchRequest:
    """What to search for, where and how.

    Attributes:
        goals: Where the model shall run, and how long it may take there.
        precisions: Number formats that the search chooses between; empty where each goal's settings name its own.
        percentile: Which percentile of the latency the budgets bound: 50, 90 or 99.
        max_memory_mb: By how much a process may grow that loads and runs the model, in megabytes of 10^6 bytes.
        max_size_mb: The largest model file, likewise.
        supernet: Folder of the supernet; None for the one that ships.
        space: The part of the supernet's space to search; None for all of it.
        narrow: Whether the space gets every number of narrow layers, in both forms.
        sampler: One of ``SAMPLERS``; None for what suits the supernet.
        compare_samplers: Samplers that shall search beside each other, each with all evaluations; empty where
            ``sampler`` searches alone.
        engine: ``inprocess`` or ``ray``.
        ray_address: The cluster for the ``ray`` engine and for devices that are its nodes; None for a local one.
        seed: Of all randomness.
        num_evaluations: Architectures to evaluate; 80 where None, 100 of ``assembly``.
        task: File or hub id of a labelled task to judge quality by, which the chosen model then learns; None for
            agreement with the teacher.
        task_options: What is named of the task rather than found.
        teacher: Task model that teaches the chosen one; None for the supernet's largest subnet, fine-tuned before.
        epochs: Of the chosen model's fine-tuning; 4 where None.
        exits: Which latency of a model with early exits the budget binds, ``expected`` or ``worst``; None for a model
            without exits.
        run_dir: Folder for the search; None for a new one under ``runs/``.
        storage: Database for the trials as a URL; None for SQLite in the run folder.
        resume: Run folder to continue; everything but ``num_evaluations`` then comes from there.
    """

    goals: tuple[GoalRequest, ...] = (GoalRequest(),)
    precisions: tuple[str, ...] = ()
    percentile: int = 50
    max_memory_mb: float | None = None
    max_size_mb: float | None = None
    supernet: Path | None = None
    space: Space | None = None
    narrow: bool = False
    sampler: str | None = None
    compare_samplers: tuple[str, ...] = ()
    engine: str = "inprocess"
    ray_address: str | None = None
    seed: int = 0
    num_evaluations: int | None = None
    task: str | None = None
    task_options: TaskOptions = field(default_factory=TaskOptions)
    teacher: str | None = None
    epochs: float | None = None
    exits: str | None = None
    run_dir: Path | None = None
    storage: str | None = None
    resume: Path | None = None

    @property
    def samplers(self) -> tuple[str, ...]:
        """Everything that was asked to search; empty where it is left to what suits the supernet."""
        return self.compare_samplers or (() if self.sampler is None else (self.sampler,))

    @property
    def limits(self) -> Limits:
        """What a model may take beside time."""
        size, memory = (None if mb is None else int(mb * 1e6) for mb in (self.max_size_mb, self.max_memory_mb))
        return Limits(size, memory)

    @property
    def command(self) -> str:
        """What asks for the same models, in short: where and when it ran is left out."""
        budgets = {goal.budget_s for goal in self.goals}
        words, devices = ["nas search"], dict[str, None]()
        if len(budgets) == 1:
            words += [f"--latency-ms {budget_s * 1e3:g}" for budget_s in budgets if budget_s is not None]
        for goal in self.goals:
            own = "" if len(budgets) == 1 or goal.budget_s is None else f":{goal.budget_s * 1e3:g}ms"
            devices[f"--device {goal.device}{own}"] = None
        words += devices
        for option, usual in (("seq_len", 128), ("batch_size", 1), ("precision", "fp32"), ("threads", 1)):
            values = list(dict.fromkeys(getattr(goal.settings, option) for goal in self.goals))
            values = list(self.precisions) if option == "precision" and self.precisions else values
            words += [] if values == [usual] else [f"--{option.replace('_', '-')} {','.join(map(str, values))}"]
        words += [] if self.percentile == 50 else [f"--percentile {self.percentile}"]
        words += [] if self.max_memory_mb is None else [f"--max-memory-mb {self.max_memory_mb:g}"]
        words += [] if self.max_size_mb is None else [f"--max-size-mb {self.max_size_mb:g}"]
        words += ["--narrow"] if self.narrow else []
        words += [] if self.exits is None else [f"--exits {self.exits}"]
        return " ".join([*words, f"--seed {self.seed}"])

    def check(self) -> None:
        """Checks every number and name.

        Raises:
            InvalidInputError: One breaks its law.
        """
        from nas.search.samplers import check_sampler

        check_goals(self.goals)
        for goal in self.goals:
            check_bounds(latency_ms=None if goal.budget_s is None else goal.budget_s * 1e3)
        check_bounds(
            seed=self.seed,
            evaluations=self.num_evaluations,
            max_memory_mb=self.max_memory_mb,
            max_size_mb=self.max_size_mb,
            epochs=self.epochs,
        )
        if self.task is None and (self.teacher is not None or self.epochs is not None):
            raise InvalidInputError("a teacher and epochs are for the task that the model learns; add --task")
        if self.task is None and self.task_options != TaskOptions():
            raise InvalidInputError("a kind and columns are those of a task; add --task")
        check_percentile(self.percentile)
        if self.precisions:
            self._check_precisions()
        if self.exits is not None:
            self._check_exits()
        if not isinstance(self.narrow, bool):
            raise InvalidInputError(f"narrow must be true or false, got {self.narrow!r}")
        if self.percentile != 50 and all(goal.budget_s is None for goal in self.goals):
            raise InvalidInputError("a percentile bounds a latency budget; add --latency-ms or leave it out")
        for sampler in self.samplers:
            check_sampler(sampler)
        if len(set(self.samplers)) < len(self.samplers):
            raise InvalidInputError(f"a sampler is named twice in {', '.join(self.samplers)}; leave one out")
        if self.compare_samplers and self.engine != "inprocess":
            raise InvalidInputError("samplers are compared one after the other in one process; leave --engine ray out")
        if self.engine not in ENGINES:
            raise unknown_name("engine", self.engine, ENGINES)
        is_used = self.engine == "ray" or any(goal.device.startswith("ray:") for goal in self.goals)
        if self.ray_address is not None and not is_used:
            raise InvalidInputError(
                "a Ray address is for the engine 'ray' or a device on it; add --engine ray or leave it out"
            )

    def _check_exits(self) -> None:
        if self.exits not in EXIT_BOUNDS:
            raise unknown_name("latency for exits to bind", str(self.exits), EXIT_BOUNDS)
        if self.task is None:
            raise InvalidInputError("exits stop where the answer to a task is decided; add --task")
        given = self.goals[0].settings
        usual = Settings(seq_len=given.seq_len, cpus=given.cpus, precision=given.precision)
        if len(self.goals) > 1 or self.goals[0].device != "cpu" or given != usual:
            raise InvalidInputError(
                "a model with exits is a graph a layer and a host loop, which is timed on this machine's cpu, one text "
                "at a time, by onnxruntime on one thread; leave other devices and settings out"
            )
        if self.limits or self.percentile != 50:
            raise InvalidInputError(
                "with exits a budget binds the expected or the worst latency; leave --percentile, --max-memory-mb and "
                "--max-size-mb out"
            )
        if self.engine != "inprocess" or self.compare_samplers:
            raise InvalidInputError("exits are searched by one sampler in one process; leave --engine ray out")

    def _check_precisions(self) -> None:
        check_precisions(self.precisions)
        for goal in self.goals:
            missing = [name for name in self.precisions if name not in RUNTIMES[goal.settings.runtime]]
            if missing:
                raise InvalidInputError(
                    f"{goal.settings.runtime}, which runs models on {goal.device}, has no {missing[0]}, so there is no "
                    "precision to choose; name one precision, or give --runtime onnxruntime"
                )
        for sampler, why in _ONE_PRECISION.items():
            if sampler in self.samplers:
                raise InvalidInputError(
                    f"{sampler} {why}, so that it cannot choose the precision; search with --sampler tpe, or name one "
                    "precision"
                )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form without the folders of the run itself; :meth:`from_dict` reads it."""
        data = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("run_dir", "resume")}
        data["goals"] = [goal.to_dict() for goal in self.goals]
        data["supernet"] = None if self.supernet is None else str(self.supernet.resolve())
        data["space"] = None if self.space is None else self.space.to_dict()
        data |= {name: list(getattr(self, name)) for name in ("precisions", "compare_samplers")}
        data["task_options"] = asdict(self.task_options)
        return data

    @classmethod
    def from_dict(cls, data: object) -> "SearchRequest":
        """Reads :meth:`to_dict`'s form.

        Raises:
            InvalidInputError: A field is missing, unknown or breaks its law.
        """
        names = {f.name for f in fields(cls)} - {"run_dir", "resume"}
        lists = ("goals", "precisions", "compare_samplers")
        if not isinstance(data, dict) or set(data) != names or not all(isinstance(data[name], list) for name in lists):
            raise InvalidInputError(
                "the run folder does not say what was searched for, or was made by an earlier version; start the "
                "search anew"
            )
        supernet, space = data["supernet"], data["space"]
        request = cls(
            **{
                **data,
                "goals": tuple(map(GoalRequest.from_dict, data["goals"])),
                "supernet": None if supernet is None else Path(str(supernet)),
                "precisions": tuple(data["precisions"]),
                "compare_samplers": tuple(data["compare_samplers"]),
                "space": None if space is None else space_from_dict(space),
                "task_options": TaskOptions.from_dict(data["task_options"]),
            }
        )
        request.check()
        return request
