"""What a latency can be measured on, and what is asked of it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from analysis.latency import Conditions, Latency
from nas.config import check_bounds
from nas.devices.fingerprint import Fingerprint
from nas.errors import InvalidInputError, unknown_name
from search_spaces.architecture import Architecture, TextSpec

#: The model that every candidate is timed beside: small enough to cost little, large enough to feel what others feel.
ANCHOR = Architecture.bert(2, 256, 512, 8)
#: What models that are built to be timed read; a large vocabulary costs memory and no time.
ANCHOR_VOCAB_SIZE = 1024
#: What can run a model, and the number formats that it runs.
RUNTIMES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "int8"),
    "torch": ("fp32", "fp16", "bf16"),
    "torch-graphs": ("fp32", "fp16", "bf16"),
    "torch-sparse": ("fp32", "fp16", "bf16"),  # on a CPU compressed rows in fp32, on a GPU 2:4 in the two others
}
#: Those that ``runner.py`` knows, which needs nothing of this program where it runs.
RUNNER_RUNTIMES = ("onnxruntime", "openvino")
MAX_CPUS = 1024

OnResult = Callable[[str, Latency], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model shall be run: what a latency depends on beside the device.

    Attributes:
        runtime: A key of :data:`RUNTIMES`.
        precision: Number format, one that the runtime offers.
        threads: Threads within one operator.
        cpus: The cores to run on; None takes the idlest, one for each thread.
        batch_size: Texts at a time.
        seq_len: Tokens a text.

    Raises:
        InvalidInputError: A name is not known, or a number is out of bounds.
    """

    runtime: str = "onnxruntime"
    precision: str = "fp32"
    threads: int = 1
    cpus: tuple[int, ...] | None = None
    batch_size: int = 1
    seq_len: int = 128

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise unknown_name("runtime", self.runtime, RUNTIMES)
        if self.precision not in RUNTIMES[self.runtime]:
            offered = ", ".join(RUNTIMES[self.runtime])
            raise InvalidInputError(f"precision must be one of {offered} in {self.runtime}, got {self.precision!r}")
        check_bounds(threads=self.threads, batch_size=self.batch_size, seq_len=self.seq_len)
        if self.cpus is None:
            return
        is_whole = all(isinstance(cpu, int) and not isinstance(cpu, bool) for cpu in self.cpus)
        if not is_whole or not all(0 <= cpu < MAX_CPUS for cpu in self.cpus) or len(set(self.cpus)) != len(self.cpus):
            raise InvalidInputError(
                f"cpus must be different core numbers from 0 to {MAX_CPUS - 1}, got {list(self.cpus)}"
            )
        if len(self.cpus) < self.threads:
            raise InvalidInputError(f"{self.threads} threads need as many cores, got cpus {list(self.cpus)}")

    def check_sparse(self, *, on_gpu: bool) -> None:
        """Refuses a precision that the sparse kernels of a kind of device do not have; other runtimes have no such law.

        Raises:
            InvalidInputError: It is one.
        """
        if self.runtime == "torch-sparse" and on_gpu == (self.precision == "fp32"):
            raise InvalidInputError(
                f"torch-sparse computes in fp16 or bf16 on a GPU and in fp32 on a CPU, got {self.precision}; name "
                "another with --precision"
            )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; :meth:`from_dict` reads it."""
        return {**asdict(self), "cpus": None if self.cpus is None else list(self.cpus)}

    @classmethod
    def from_dict(cls, data: object) -> "Settings":
        """Reads :meth:`to_dict`'s form; raises InvalidInputError where it is not one."""
        if not isinstance(data, dict) or set(data) != set(cls.__dataclass_fields__):
            raise InvalidInputError(f"settings must hold exactly {', '.join(cls.__dataclass_fields__)}")
        cpus = data["cpus"]
        if cpus is not None and not isinstance(cpus, list):
            raise InvalidInputError(f"cpus must be a list of core numbers, got {cpus!r}")
        return cls(**{**data, "cpus": None if cpus is None else tuple(cpus)})


@dataclass(frozen=True, slots=True)
class Shape:
    """An architecture that is to be timed with random weights.

    Attributes:
        architecture: The shape.
        text: What its encoder reads; the size of the tables does not matter.
    """

    architecture: Architecture
    text: TextSpec


#: What can be timed: a shape, or the folder (or the ONNX file) of an exported model.
Model = Shape | Path


@dataclass(frozen=True, slots=True)
class Level:
    """The anchor's median over about half a second: how fast the machine was just then.

    Attributes:
        at_s: When, in seconds since 1970.
        time_s: The median.
    """

    at_s: float
    time_s: float

    def __post_init__(self) -> None:
        for name in ("at_s", "time_s"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e12:
                raise InvalidInputError(f"a level's {name} must be a positive, finite number of seconds, got {value!r}")


class Target(Protocol):
    """A device with the conditions that its latencies hold for.

    A target is one session: the anchor's reference is the median of its levels over everything measured so far. What
    is recalled of the minutes before widens the level's interval and does not move the reference.
    """

    @property
    def conditions(self) -> Conditions:
        """What every latency of this target holds for."""

    @property
    def description(self) -> str:
        """The device in words."""

    @property
    def fingerprint(self) -> Fingerprint:
        """The facts of the device."""

    @property
    def anchor_reference_s(self) -> float:
        """The anchor's level in this session."""

    @property
    def level_interval(self) -> tuple[float, float]:
        """Between which multiples of the reference the anchor's level moved, 90 % of the time."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """The anchor's levels of this session, behind those that were recalled."""

    def recall(self, levels: Iterable[Level]) -> None:
        """Lets levels of an earlier process widen the level's interval, where they are recent enough."""

    def measure(
        self,
        models: Mapping[str, Model],
        *,
        seconds_each: float = 3.0,
        attempts: int = 3,
        on_result: OnResult | None = None,
    ) -> dict[str, Latency]:
        """Times models.

        Args:
            models: What to time, by a name for each.
            seconds_each: How long to time each model, anchor included.
            attempts: How often a model may be timed until its verdict is ``ok``; rounds are joined.
            on_result: Called with each model's latency, again where a later attempt improved it.

        Raises:
            InvalidInputError: A model cannot be run, or a file is not there.
            DeviceNotAvailableError: The device is gone.
            InconclusiveMeasurementError: The measuring itself broke down.
        """


def timing_text(text: TextSpec, seq_len: int) -> TextSpec:
    """The text specification of models that are only timed: small tables, the same work for each token."""
    return TextSpec(
        vocab_size=ANCHOR_VOCAB_SIZE,
        max_positions=max(seq_len, 128),
        type_vocab_size=min(2, text.type_vocab_size),
        pad_token_id=0,
        hidden_act=text.hidden_act,
        layer_norm_eps=text.layer_norm_eps,
    )
