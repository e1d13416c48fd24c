"""Where this project keeps what outlives a run, and the bounds of every number a user may give."""

import os
from dataclasses import dataclass
from pathlib import Path

from nas.errors import InvalidInputError, unknown_name
from search_spaces.errors import shown
from search_spaces.files import expanded


def cache_dir() -> Path:
    """The folder of device profiles: ``$NAS_CACHE``, else ``~/.cache/tiny-plm-nas``. It may not exist yet.

    Raises:
        InvalidInputError: ``$NAS_CACHE`` is not an absolute path, or there is no home folder to fall back to.
    """
    return _folder("NAS_CACHE", "the cache", ".cache")


def config_dir() -> Path:
    """The folder of ``devices.toml``: ``$NAS_CONFIG``, else ``~/.config/tiny-plm-nas``. It may not exist yet.

    Raises:
        InvalidInputError: ``$NAS_CONFIG`` is not an absolute path, or there is no home folder to fall back to.
    """
    return _folder("NAS_CONFIG", "the list of devices", ".config")


def _folder(variable: str, what: str, below_home: str) -> Path:
    given = os.environ.get(variable, "")
    if given:
        path = expanded(given)
        if not path.is_absolute():
            raise InvalidInputError(f"{variable} must be an absolute path, got {given!r}")
        return path
    try:
        return Path.home() / below_home / "tiny-plm-nas"
    except RuntimeError as error:
        raise InvalidInputError(f"there is no home folder for {what}; set {variable} to a folder") from error


@dataclass(frozen=True, slots=True)
class Bound:
    """The law of one number.

    Attributes:
        lowest: Smallest value; itself allowed for whole numbers, excluded for real ones.
        highest: Largest value, itself allowed.
        whole: Whether the number must be whole.
    """

    lowest: float
    highest: float
    whole: bool = True

    def __str__(self) -> str:
        if self.whole:
            return f"a whole number from {self.lowest:.0f} to {self.highest:.0f}"
        return f"a number above {self.lowest:g} and at most {self.highest:.10g}"

    def allows(self, value: object) -> bool:
        """Whether a value keeps this law; booleans, NaN and infinities never do."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        return (self.lowest <= value if self.whole else self.lowest < value) and value <= self.highest


BOUNDS: dict[str, Bound] = {
    "latency_ms": Bound(0, 600_000, whole=False),
    "seconds_each": Bound(0, 3_600, whole=False),
    "sustained_s": Bound(0, 3_600, whole=False),
    "max_memory_mb": Bound(0, 10_000_000, whole=False),
    "max_size_mb": Bound(0, 10_000_000, whole=False),
    "evaluations": Bound(1, 100_000),
    "samples": Bound(1, 1_000),
    "num_subnets": Bound(5, 1_000),
    "threads": Bound(1, 1_024),
    "batch_size": Bound(1, 4_096),
    "seq_len": Bound(1, 65_536),
    "seed": Bound(0, 2**32 - 1),
    "steps": Bound(1, 100_000_000),
    "minutes": Bound(0, 100_000, whole=False),
    "lr": Bound(0, 1, whole=False),
    "epochs": Bound(0, 10_000, whole=False),
    "accumulate": Bound(1, 4_096),
}


def check_bound(name: str, value: object) -> None:
    """Checks a number against the law of its name.

    Args:
        name: A key of :data:`BOUNDS`.
        value: What was given.

    Raises:
        InvalidInputError: The value is out of bounds, not finite, or not a number.
    """
    if name not in BOUNDS:
        raise unknown_name("bound", name, BOUNDS)
    if not BOUNDS[name].allows(value):
        raise InvalidInputError(f"{name} must be {BOUNDS[name]}, got {shown(value)}")


def check_bounds(**values: object) -> None:
    """Checks several numbers; those that are None were not given and pass.

    Raises:
        InvalidInputError: One of them breaks its law.
    """
    for name, value in values.items():
        if value is not None:
            check_bound(name, value)


def check_percentile(value: object) -> None:
    """Checks which percentile of a latency a budget shall bind.

    Raises:
        InvalidInputError: Not 50, 90 or 99.
    """
    if isinstance(value, bool) or value not in (50, 90, 99):
        raise InvalidInputError(f"percentile must be 50, 90 or 99, got {value!r}")
