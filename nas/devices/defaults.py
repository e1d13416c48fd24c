"""How models are run on a device unless something else is asked for."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas.config import check_bounds
from nas.devices.target import RUNTIMES, Settings
from nas.errors import DeviceNotAvailableError, InvalidInputError


def settings_for(
    name: str,
    *,
    runtime: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    cpus: Sequence[int] | None = None,
    batch_size: int | Sequence[int] = 1,
    seq_len: int | Sequence[int] = 128,
) -> list[Settings]:
    """What to measure on a device: what was asked for, and where nothing was, what the device is registered with.

    Args:
        name: The device; it need not be there.
        runtime: A key of ``RUNTIMES``, or None.
        precision: One that the runtime offers, or None.
        threads: Threads within one operator, or None.
        cpus: The cores to run on, or None.
        batch_size: Texts at a time, one or several.
        seq_len: Tokens a text, one or several.

    Returns:
        One for each batch size and length.

    Raises:
        InvalidInputError: A value is out of bounds.
    """
    given = {"runtime": runtime, "precision": precision, "threads": threads}
    facts: dict[str, Any] = defaults_of(name) | {key: value for key, value in given.items() if value is not None}
    if cpus is not None:
        facts["cpus"] = tuple(cpus)
    if runtime is not None and precision is None and facts.get("precision") not in RUNTIMES.get(runtime, ()):
        facts.pop("precision", None)
    sizes, lengths = ((value,) if isinstance(value, int) else tuple(value) for value in (batch_size, seq_len))
    if not sizes or not lengths:
        raise InvalidInputError("batch_size and seq_len must be at least one number each")
    for size, length in itertools.product(sizes, lengths):
        check_bounds(batch_size=size, seq_len=length)
    return [Settings(**facts, batch_size=size, seq_len=length) for length, size in itertools.product(lengths, sizes)]


def defaults_of(name: str) -> dict[str, Any]:
    """The settings that a device brings along: those of its kind, those it is registered with, or its profile's.

    Raises:
        InvalidInputError: The list of devices is broken, or the profile cannot be read.
    """
    from nas.devices.carried import CarriedProfile
    from nas.devices.gpu import DEFAULT_RUNTIME
    from nas.devices.registry import ProfilePlace
    from nas.devices.resolve import place_of

    try:
        place = place_of(name)
    except DeviceNotAvailableError:
        return {}  # to resolve it says so
    if place is not None and isinstance(place.place, ProfilePlace):
        held = CarriedProfile.read(name, Path(place.place.path)).settings
        return {"runtime": held.runtime, "precision": held.precision, "threads": held.threads}
    usual: dict[str, Any] = {"runtime": DEFAULT_RUNTIME} if is_gpu(name) else {}
    return usual | ({} if place is None else dict(place.defaults))


def is_gpu(name: str) -> bool:
    """Whether a device is measured on a GPU, of this machine or of a Ray node; one that is not known is not.

    Raises:
        InvalidInputError: The list of devices is broken.
    """
    from nas.devices.registry import RayPlace
    from nas.devices.resolve import place_of

    try:
        place = place_of(name)
    except DeviceNotAvailableError:
        return False
    if place is None:
        return name != "cpu"
    return isinstance(place.place, RayPlace) and place.place.accelerator is not None
