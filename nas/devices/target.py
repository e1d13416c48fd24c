"""What a latency can be measured on."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from analysis.latency import Conditions, Latency
from search_spaces.architecture import Architecture, TextSpec
from search_spaces.errors import InvalidInputError

#: The model that every candidate is timed beside: small enough to cost little, large enough to feel what others feel.
ANCHOR = Architecture.bert(2, 256, 512, 8)
#: What models that are built to be timed read; a large vocabulary costs memory and no time.
ANCHOR_VOCAB_SIZE = 1024

OnResult = Callable[[str, Latency], None]


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
        models: Sequence[tuple[str, Path]],
        *,
        seconds_each: float = 3.0,
        attempts: int = 3,
        on_result: OnResult | None = None,
    ) -> dict[str, Latency]:
        """Times ONNX models.

        Args:
            models: Name and file of each.
            seconds_each: How long to time each model, anchor included.
            attempts: How often a model may be timed until its verdict is ``ok``; rounds are joined.
            on_result: Called with each model's latency, again where a later attempt improved it.

        Raises:
            InvalidInputError: A name occurs twice, or a model cannot be run.
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
