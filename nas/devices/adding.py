"""Gives a device a name: reads its address, checks what can be checked without a connection, and registers it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.devices import ray_node, registry, ssh
from nas.devices.carried import CarriedProfile
from nas.devices.registry import Place, ProfilePlace, RayPlace, Registered, SshPlace
from nas.devices.resolve import connection, means_this_machine
from nas.devices.target import Settings
from nas.errors import InvalidInputError
from search_spaces.errors import shown
from search_spaces.files import expanded


def add(name: str, address: str, place: Mapping[str, str | None], defaults: Mapping[str, Any]) -> str:
    """Registers a device.

    Args:
        name: What it shall be called.
        address: ``ssh://user@host:port``, ``ray://host:port``, ``ray:host:port``, ``ray:auto``, or a profile file.
        place: What else its place may have: ``python``, ``accelerator``, ``resource``; None where not given.
        defaults: Settings that hold where nothing else is asked.

    Returns:
        The device in words.

    Raises:
        InvalidInputError: The name is taken or means this machine, an argument breaks a law or does not belong to this
            kind of address, or the list of devices is broken.
    """
    registry.check_name(name)
    if means_this_machine(name):
        raise InvalidInputError(f"{name!r} means a GPU of this machine, which needs no adding; choose another name")
    device = Registered(
        _place(address, {field: value for field, value in place.items() if value is not None}), defaults
    )
    if isinstance(device.place, ProfilePlace):
        words = CarriedProfile.read(name, Path(device.place.path)).description
    else:
        connection(device.place)
        if isinstance(device.place, SshPlace):
            ssh.check_runtime(Settings(**defaults))
        elif "runtime" in defaults:
            ray_node.check_runtime(device.place.accelerator, Settings(**defaults).runtime)
        words = str(device)
    registry.add(name, device)
    return words


def _place(address: str, given: Mapping[str, str]) -> Place:
    if address.startswith("ssh://"):
        _only(given, {"python"}, "an ssh device")
        return SshPlace(address, **given)
    if address.startswith("ray:"):
        _only(given, {"accelerator", "resource"}, "a Ray device")
        if len(given) != 1:
            raise InvalidInputError(
                "a node of a Ray cluster is chosen by one thing: give --accelerator A100, or --resource board"
            )
        return RayPlace(address if address.startswith("ray://") else address.removeprefix("ray:"), **given)
    if address.endswith(".json"):
        _only(given, set(), "a profile file")
        return ProfilePlace(str(expanded(address).absolute()))
    raise InvalidInputError(
        f"an address must be ssh://user@host:port, ray://host:port or a profile file that ends in .json, "
        f"got {shown(address)}"
    )


def _only(given: Mapping[str, str], known: set[str], what: str) -> None:
    for name in given:
        if name not in known:
            raise InvalidInputError(f"--{name} does not belong to {what}; leave it out")
