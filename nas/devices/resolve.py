"""From a device's name to a target: the one that is named, or an error; never another one."""

import difflib
from collections.abc import Callable

from nas.devices.fingerprint import Fingerprint
from nas.devices.local import LocalCpu
from nas.devices.target import Target
from nas.errors import DeviceNotAvailableError

_DEVICES: dict[str, Callable[..., Target]] = {"cpu": LocalCpu}


def known_devices() -> dict[str, str]:
    """Every name that :func:`resolve` accepts, with the device in words."""
    return {"cpu": str(Fingerprint.of_this_machine())}


def resolve(name: str, *, threads: int = 1, batch_size: int = 1, seq_len: int = 128, precision: str = "fp32") -> Target:
    """Finds the target of a device's name.

    Args:
        name: A key of :func:`known_devices`.
        threads: Threads within one operator.
        batch_size: Texts at a time.
        seq_len: Tokens a text.
        precision: ``fp32`` or ``int8``.

    Raises:
        DeviceNotAvailableError: No such device is known here.
        InvalidInputError: A number is out of bounds.
    """
    if name not in _DEVICES:
        raise _not_available(name)
    return _DEVICES[name](threads=threads, batch_size=batch_size, seq_len=seq_len, precision=precision)


def _not_available(name: str) -> DeviceNotAvailableError:
    nearest = difflib.get_close_matches(str(name).lower(), _DEVICES, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    known = "; ".join(f"{known} ({words})" for known, words in known_devices().items())
    return DeviceNotAvailableError(
        f"device {str(name)[:60]!r} is not available here.{hint} Known devices: {known}. A latency is only ever "
        "measured on the device that is named: install this program there and search with --device cpu"
    )
