"""What a request names, found and checked before anything is written: devices, goals, supernet, space."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.goal import Goal
from nas.devices.carried import CarriedProfile
from nas.devices.resolve import Device, resolve
from nas.devices.target import Target
from nas.errors import InvalidInputError
from nas.export.onnx_graph import without_unread_positions
from nas.export.task_head import TaskHead
from nas.search.exit_policy import exit_space
from nas.search.request import GoalRequest, SearchRequest
from nas.search.samplers import check_sampler_suits
from search_spaces.architecture import Architecture
from search_spaces.chain_space import ChainSpace
from search_spaces.precisions import AnySpace, PrecisionSpace
from search_spaces.space import SearchSpace
from search_spaces.spaces import Space

if TYPE_CHECKING:
    from supernet.checkpoint import LoadedSupernet


@dataclass(frozen=True)
class Prepared:
    """What a search works with.

    Attributes:
        devices: For each goal the device as it runs an architecture, by :attr:`Architecture.precision`. Where that is
            not searched there is one, under fp32, whatever the goal's settings have it run in.
        goals: What is asked, in the order of the request.
        loaded: The supernet.
        space: What is searched of it.
        samplers: Everything that searches: what was asked for, or what suits the supernet.
        notes: What a person should know of it.
        head: Of the task that the model shall learn, if any: then what is timed of a shape is what its head reads.
    """

    devices: tuple[Mapping[str, Device], ...]
    goals: tuple[Goal, ...]
    loaded: "LoadedSupernet"
    space: AnySpace
    samplers: tuple[str, ...]
    notes: tuple[str, ...] = ()
    head: TaskHead | None = None

    def timed(self, architecture: Architecture) -> Architecture:
        """The shape that is timed for an architecture: for a task, without what its head does not read."""
        return architecture if self.head is None else without_unread_positions(architecture, self.head)

    @property
    def targets(self) -> list[Mapping[str, Target | None]]:
        """What to measure each goal on, by precision as the devices are; None where a profile is all that is known."""
        return [
            {name: None if isinstance(device, CarriedProfile) else device for name, device in devices.items()}
            for devices in self.devices
        ]

    @classmethod
    def of(cls, request: SearchRequest) -> "Prepared":
        """Finds what a request names.

        Raises:
            InvalidInputError: The supernet, the space, the task or a goal breaks a law.
            DeviceNotAvailableError: A device is not there.
        """
        found = [_in_precisions(goal, request.precisions) for goal in request.goals]
        devices = tuple(devices["fp32"] for devices in found)
        goals = goals_of(request, devices)
        from supernet.checkpoint import load_supernet

        loaded = load_supernet(request.supernet)
        if request.task is None and loaded.reference is None:
            raise InvalidInputError(
                f"the supernet in {loaded.folder} was trained without a teacher, so agreement with it is unknown; "
                "search with --task FILE_OR_ID instead"
            )
        for goal in goals:
            if goal.conditions.seq_len > loaded.text.max_positions:
                raise InvalidInputError(
                    f"seq_len must be at most {loaded.text.max_positions}, the longest text of this supernet, "
                    f"got {goal.conditions.seq_len}"
                )
        space, whole = loaded.space if request.space is None else request.space, loaded.space
        if request.narrow:
            space = _narrowed(space)
        if _is_narrow(space):
            whole = _narrowed(whole)
        _check_within(space, whole)
        head = _head(request, loaded, space)
        if request.exits is not None:
            assert head is not None  # the request sees to it
            space = exit_space(head.spec.kind, space)
        samplers = request.samplers or (("tpe",) if request.precisions else (_suitable_sampler(loaded, devices),))
        for sampler in samplers:
            check_sampler_suits(sampler, space, has_texts=loaded.reference is not None, has_blocks=_has_blocks(loaded))
        if "assembly" in samplers:
            _check_measurable(goals)
        untrained = _untrained(request, space, loaded.space)
        notes = (untrained,) if untrained else ()
        searched = PrecisionSpace(space, request.precisions) if request.precisions else space
        return cls(tuple(found), goals, loaded, searched, samplers, notes, head)


def _head(request: SearchRequest, loaded: "LoadedSupernet", space: Space) -> TaskHead | None:
    """What stands on the model that is searched for; None where there is no task."""
    if request.task is None:
        return None
    from supernet.adapt import check_adaptable
    from supernet.task import read_task

    spec = read_task(request.task, request.task_options).spec(loaded.text.max_positions, is_cut=True)
    check_adaptable(spec, space)
    return TaskHead(spec)


def _in_precisions(goal: GoalRequest, precisions: Sequence[str]) -> dict[str, Device]:
    """A goal's device in each precision that is searched, or as its settings have it."""
    if not precisions:
        return {"fp32": resolve(goal.device, goal.settings)}
    return {name: resolve(goal.device, replace(goal.settings, precision=name)) for name in precisions}


def _has_blocks(loaded: "LoadedSupernet") -> bool:
    from supernet.block_table import FILE_NAME

    return isinstance(loaded.space, ChainSpace) and (loaded.folder / FILE_NAME).is_file()


def _suitable_sampler(loaded: "LoadedSupernet", devices: Sequence[Device]) -> str:
    """What searches where nothing is asked for: blocks that were kept are there to be assembled."""
    can_measure = not any(isinstance(device, CarriedProfile) for device in devices)
    return "assembly" if can_measure and _has_blocks(loaded) else "tpe"


def _check_measurable(goals: Sequence[Goal]) -> None:
    for goal in goals:
        if not goal.is_measurable:
            raise InvalidInputError(
                f"{goal.name} is known from a profile, and assembly needs what each operation costs there, which only "
                "a measurement tells; search with --sampler tpe, or where the device is"
            )


def _is_narrow(space: Space) -> bool:
    return isinstance(space, SearchSpace) and space.has_narrowing


def _narrowed(space: Space) -> SearchSpace:
    """The space with narrow layers; a supernet's weights hold those of every encoder of its space."""
    if not isinstance(space, SearchSpace):
        raise InvalidInputError(
            f"the chains of {space.name!r} cannot be narrow, as convolutions need the states of all positions; leave "
            "--narrow out, or search a space of uniform encoders"
        )
    return space.with_narrowing()


def _untrained(request: SearchRequest, space: Space, trained: Space) -> str:
    """What to know where narrow layers are searched with weights that were trained without any, or in another form."""
    if not isinstance(space, SearchSpace) or not isinstance(trained, SearchSpace) or not space.has_narrowing:
        return ""
    known, they = "This supernet was trained without narrow layers, and its position 0 not to stand for a text", "both"
    if trained.has_narrowing:
        forms = [form for form in space.narrow_form if form not in trained.narrow_form]
        if not forms:
            return ""
        known, they = f"This supernet was trained without {forms[0]} layers", "them"
    if request.task is not None:
        return f"{known}; adapting it to the task trains {they}."
    return f"{known}: quality says what its weights give as they are. --task FILE_OR_ID trains {they} for a task."


def goals_of(request: SearchRequest, devices: Sequence[Device]) -> tuple[Goal, ...]:
    """The goals of a request on its devices.

    Raises:
        InvalidInputError: Two are the same, or one asks a profile for what only a measurement tells.
    """
    goals: list[Goal] = []
    for asked, device in zip(request.goals, devices, strict=True):
        profiled_at = device.measured_at if isinstance(device, CarriedProfile) else None
        if profiled_at is not None and request.percentile != 50 and asked.budget_s is not None:
            raise InvalidInputError(
                f"{asked.device} is known from a profile, which predicts medians; leave --percentile "
                f"{request.percentile} out"
            )
        if profiled_at is not None and request.max_memory_mb is not None:
            raise InvalidInputError(
                f"{asked.device} is known from a profile, which says nothing of memory; leave --max-memory-mb out"
            )
        name = _name(asked, device)
        if name in {goal.name for goal in goals}:
            raise InvalidInputError(f"two goals are alike, {name}; leave one out")
        percentile = 50 if asked.budget_s is None else request.percentile
        goals.append(Goal(name, device.description, device.conditions, asked.budget_s, percentile, profiled_at))
    return tuple(goals)


def _name(asked: GoalRequest, device: Device) -> str:
    """The device as it was called, and what is not as usual, e.g. ``board T32 B8 int8``."""
    conditions = device.conditions
    words = [Path(asked.device).name if isinstance(device, CarriedProfile) else asked.device, f"T{conditions.seq_len}"]
    words += [f"B{conditions.batch_size}"] if conditions.batch_size > 1 else []
    words += [conditions.precision] if conditions.precision != "fp32" else []
    words += [f"{conditions.threads} threads"] if conditions.threads > 1 else []
    return " ".join(words)


def _check_within(space: Space, whole: Space) -> None:
    """Checks that a space holds only what a supernet holds, by its extremes and each choice beside one of them."""
    shapes = [space.smallest(), space.largest()]
    for name, choices in space.dimensions.items():
        values = space.values(shapes[name in ("num_narrow_layers", "narrow_form")])  # the largest can have any
        if name == "narrow_form" and isinstance(space, SearchSpace):
            values["num_narrow_layers"] = space.num_narrow_layers[0]
        shapes += [space.build({**values, name: choice}) for choice in choices]
    for shape in shapes:
        if shape not in whole:
            listed = {name: value for name, value in whole.to_dict().items() if name not in ("schema_version", "name")}
            raise InvalidInputError(
                f"the space {space.name!r} holds {shape.key()}, which the supernet does not ({listed}); "
                "narrow the space or train a supernet for it"
            )
