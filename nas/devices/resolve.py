"""From a device's name to the device: the one that is named, or an error; never another one.

A name is looked for in this order: this machine (``cpu``; ``cuda``, ``cuda:1``, or the model of a GPU that is here,
such as ``a100``), the registered devices, ``ssh://user@host``, a node of a Ray cluster (``ray:ADDRESS#A100``), a
profile file (``FILE.json``).
"""

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from nas.devices.carried import CarriedProfile
from nas.devices.fingerprint import Fingerprint
from nas.devices.local import local_cpu
from nas.devices.registry import ProfilePlace, RayPlace, Registered, SshPlace, registered, registry_path
from nas.devices.target import Settings, Target
from nas.errors import DeviceNotAvailableError, InvalidInputError, NasError
from search_spaces.errors import shown
from search_spaces.files import expanded

#: What a name may stand for: what measures, or what was measured elsewhere.
Device = Target | CarriedProfile


def resolve(name: str, settings: Settings | None = None) -> Device:
    """Finds the device of a name.

    Args:
        name: A key of :func:`known_devices`, an alias of a GPU that is here, ``ssh://user@host[:port]``, a node that
            :func:`on_ray` names, or a profile file that ends in ``.json``.
        settings: How models shall be run there; the defaults of the device's own are not looked up.

    Raises:
        DeviceNotAvailableError: No such device is known here, or it does not answer.
        InvalidInputError: The settings are not possible there, or the list of devices is broken.
        InconclusiveMeasurementError: The device's runner does not work.
    """
    found = _find(name)
    if isinstance(found, CarriedProfile):
        found.check(settings or Settings())
        return found
    return found(settings or Settings())


def live(name: str, settings: Settings | None = None) -> Target:
    """Finds the device of a name, one that can be measured on.

    Raises:
        DeviceNotAvailableError: It is known from a profile only; else what :func:`resolve` raises.
    """
    found = _find(name)
    if isinstance(found, CarriedProfile):
        raise DeviceNotAvailableError(
            f"device {name!r} is not here: all that is known of it is the profile {found.path} of "
            f"{found.measured_at[:10]}, which predicts and cannot be asked; run this on the device itself"
        )
    return found(settings or Settings())


def connection(place: SshPlace | RayPlace) -> Callable[[str, Settings], Target]:
    """How to reach a device that is not here, given what it shall be called; nothing is connected to yet.

    Raises:
        InvalidInputError: The address is not one.
    """
    if isinstance(place, SshPlace):
        from nas.devices.ssh import SshAddress, ssh_target

        address = SshAddress.parse(place.address, python=place.python)
        return lambda name, settings: ssh_target(name, address, settings)
    from nas.devices.ray_node import RayNode, ray_target

    node = RayNode(place.address, place.accelerator, place.resource)
    return lambda name, settings: ray_target(name, node, settings)


def known_devices() -> dict[str, str]:
    """Every device that has a name here, in words: this machine's, then the registered ones. None is asked.

    Raises:
        InvalidInputError: The list of registered devices is broken.
    """
    from nas.devices.gpu import known_gpus

    here = {"cpu": str(Fingerprint.of_this_machine())}
    here |= {f"cuda:{gpu.index}": gpu.name for gpu in known_gpus()}
    return here | {name: _words(name, device) for name, device in registered().items()}


def means_this_machine(name: str) -> bool:
    """Whether a name stands for the CPU or a GPU of this machine, whatever is registered."""
    from nas.devices.gpu import known_gpus, match

    return name == "cpu" or match(name, known_gpus()) is not None


def place_of(name: str) -> Registered | None:
    """Where the device of a name is, in words of the registry; None for this machine. It is not asked.

    Neither an address nor a file's name can be registered, so that looking for those first keeps the order.

    Raises:
        DeviceNotAvailableError: No such device is known here.
        InvalidInputError: The list of registered devices is broken, or there is no such home folder.
    """
    if name == "cpu":
        return None
    if name.startswith("ssh://"):
        return Registered(SshPlace(name))
    if name.startswith("ray:") and "#" in name:
        return Registered(_ray_place(name))
    if name.endswith(".json"):
        return Registered(ProfilePlace(str(expanded(name).absolute())))
    if means_this_machine(name):
        return None
    devices = registered()
    if name not in devices:
        raise _not_available(name)
    return devices[name]


def on_ray(name: str, address: str) -> str:
    """The name of a node of a Ray cluster, where a device is known in no other way; else the name as it is.

    Args:
        name: A device's name; on Ray an accelerator type (in any case) or a custom resource.
        address: The cluster's.

    Raises:
        InvalidInputError: The list of registered devices is broken.
    """
    try:
        place_of(name)
    except DeviceNotAvailableError:
        return f"{address if address.startswith('ray:') else f'ray:{address}'}#{name}"
    return name


def _find(name: str) -> CarriedProfile | Callable[[Settings], Target]:
    """The device of a name: its profile, or what makes a target of settings."""
    found = place_of(name)
    if found is None:
        from nas.devices.gpu import gpu_target

        return local_cpu if name == "cpu" else partial(gpu_target, name)
    if isinstance(found.place, ProfilePlace):
        return CarriedProfile.read(Path(name).name, Path(found.place.path))
    try:
        return partial(connection(found.place), name.replace("ssh://", "ssh "))
    except InvalidInputError as error:
        where = "" if name.startswith(("ssh://", "ray:")) else f"{registry_path()}, device {name!r}: "
        raise InvalidInputError(f"{where}{error}") from error


def _ray_place(name: str) -> RayPlace:
    """Reads ``ray:ADDRESS#NODE``, the node by its accelerator type or a custom resource."""
    from ray.util import accelerators

    address, _, node = name.rpartition("#")
    types = {value.upper(): value for key, value in vars(accelerators).items() if key.isupper()}
    address = address if address.startswith("ray://") else address.removeprefix("ray:")
    if node.upper() in types:
        return RayPlace(address, accelerator=types[node.upper()])
    return RayPlace(address, resource=node)


def _words(name: str, device: Registered) -> str:
    """A registered device in words; one whose profile is gone is listed all the same."""
    if not isinstance(device.place, ProfilePlace):
        return str(device)
    try:
        return CarriedProfile.read(name, Path(device.place.path)).description
    except NasError as error:
        return str(error)


def _not_available(name: str) -> DeviceNotAvailableError:
    known = known_devices()
    nearest = difflib.get_close_matches(name[:100].lower(), known, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    listed = "; ".join(f"{device} ({words})" for device, words in known.items())
    return DeviceNotAvailableError(
        f"device {shown(name)} is not available here.{hint} Known devices: {listed}. A latency is only ever that of "
        "the device that is named: make another machine known with `nas devices add NAME ssh://USER@HOST`, give a Ray "
        "cluster that has it with --ray-address, or run "
        "`nas devices profile --out FILE.json` there, bring the file here and give it as --device FILE.json"
    )
