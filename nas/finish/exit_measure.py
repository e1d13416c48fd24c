"""What ``nas measure`` finds out about a model with exits: what a text takes to each exit, expected and at worst.

Texts of one length are sent through the host loop and made to stop at each exit in turn, policy included, so that what
is timed is what runs. Where texts stop on their own depends on what they say: the expected latency weighs the exits by
the validation texts that stopped there when the model was made. The worst case is a text that goes through all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from analysis.latency import Conditions, measured
from nas.devices.session import LAYOUT_SPREAD
from nas.devices.target import Settings
from nas.errors import InvalidInputError, unknown_name
from nas.finish.exit_folder import FACTS, Description, exit_file, is_adaptive, precisions_of, read_description
from nas.finish.exit_timing import times_of
from nas.finish.exits import AdaptiveModel, Batch, padded, run
from nas.finish.halting import Floats, Look, Policy, State
from nas.measurement import Measurement, Row, with_precisions
from nas.progress import Progress

Bound = Literal["expected", "worst"]
NUM_TEXTS = 4
MIN_ROUNDS, MAX_ROUNDS = 10, 2000


@dataclass(frozen=True)
class ExitMeasurement(Measurement):
    """The latencies of a model with exits.

    Attributes:
        shares: Share of the validation texts that stopped at each exit, by precision.
        binds: Which latency the budget binds.
    """

    shares: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    binds: Bound = "expected"

    @property
    def tables(self) -> list[tuple[Row, ...]]:
        """The rows of each precision and length: what is expected, then each exit, the worst case last."""
        each = len(next(iter(self.shares.values()))) + 1
        return [self.rows[start : start + each] for start in range(0, len(self.rows), each)]

    @property
    def bound(self) -> list[Row]:
        """What the budget binds: a row for each precision and length."""
        return [table[0 if self.binds == "expected" else -1] for table in self.tables]

    def judge(self, row: Row) -> str:
        """What the budget says of a row that it binds; the verdict of any other."""
        return super().judge(row) if row in self.bound else row.latency.verdict

    @property
    def exit_code(self) -> int:
        """0 where what is bound meets the budget at every length in some precision, 3 where none does, 5 if open."""
        judged = {name: {self.judge(row) for row in self.bound if _precision(row) == name} for name in self.shares}
        if any(judgements <= {"meets", "ok", "noisy"} for judgements in judged.values()):
            return 0
        return 3 if all("exceeds" in judgements for judgements in judged.values()) else 5

    @property
    def advice(self) -> list[str]:
        """Expected and worst case in words, a sentence for each precision and length."""
        said = []
        for table in self.tables:
            expected, worst = table[0].latency, table[-1].latency
            said.append(
                f"At {worst.conditions.seq_len} tokens a text takes {expected.p50_s * 1e3:.2f} ms as expected, "
                f"{worst.p50_s * 1e3:.2f} ms at worst, in {worst.conditions.precision}."
            )
        return [*said, "Expected is the mean over the exits, weighed by where the validation texts stopped."]

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        shares = {precision: list(shares) for precision, shares in self.shares.items()}
        return {**super().to_dict(), "shares": shares, "binds": self.binds}


def _precision(row: Row) -> str:
    return row.latency.conditions.precision


@dataclass(frozen=True, slots=True)
class StopAt:
    """A policy that is asked at every exit, and stops at a given one whatever it says.

    Attributes:
        policy: What is asked.
        place: Index of the exit, from 0.
    """

    policy: Policy
    place: int
    kind: ClassVar[str] = "stop-at"

    def begin(self, batch_size: int, num_classes: int) -> State:
        """See :class:`nas.finish.halting.Policy`."""
        return self.policy.begin(batch_size, num_classes)

    def look(self, state: State, logits: Floats, gates: Floats | None, *, place: int, left: int) -> Look:
        """See :class:`nas.finish.halting.Policy`."""
        look = self.policy.look(state, logits, gates, place=place, left=left)
        return replace(look, stops=np.full_like(look.stops, place >= self.place))

    def to_dict(self) -> dict[str, Any]:
        """It is never written."""
        raise NotImplementedError


def measure_exits(
    folder: Path,
    settings: Sequence[Settings],
    *,
    budget_s: float | None = None,
    percentile: int = 50,
    binds: str | None = None,
    seconds_each: float = 3.0,
    progress: Progress,
) -> ExitMeasurement:
    """Times a model with exits on this machine, a text at a time, on one thread.

    Args:
        folder: One model folder of ``nas exits``.
        settings: One for each precision and length.
        budget_s: What to judge it by.
        percentile: Which percentile of the worst case the budget binds.
        binds: Which latency it binds, ``expected`` (None) or ``worst``.
        seconds_each: How long to time each exit.
        progress: What is told about it.

    Raises:
        InvalidInputError: The folder is none, or damaged, or is asked for what exits do not have.
    """
    binds = binds or "expected"
    if binds not in get_args(Bound):
        raise unknown_name("latency for exits to bind", binds, get_args(Bound))
    if binds == "expected" and percentile != 50:
        raise InvalidInputError(
            "the expected latency is a mean over texts and has no percentile; add --exits worst, or leave --percentile "
            f"{percentile} out"
        )
    _check_settings(settings)
    from nas.devices.resolve import live

    models = {asked.precision: AdaptiveModel.load(folder, precision=asked.precision) for asked in settings}
    told = next(iter(models.values())).description
    shares = {precision: _shares(folder, told, precision) for precision in models}
    rows, description = [], ""
    for asked in settings:
        if asked.seq_len > told.text.max_positions:
            raise InvalidInputError(
                f"seq_len must be at most {told.text.max_positions}, the longest text of this model, got "
                f"{asked.seq_len}"
            )
        target = live("cpu", asked)
        description = description or target.description
        of_form = (models[asked.precision], shares[asked.precision], target.conditions)
        rows += _measured(folder, *of_form, seconds_each, progress)
    return ExitMeasurement(
        folder, "cpu", description, tuple(rows), budget_s, percentile, shares=shares, binds=binds  # type: ignore[arg-type]
    )  # fmt: skip


def check_one_model(folder: Path) -> None:
    """Refuses the folder of a whole run of ``nas exits``, which holds several models.

    Raises:
        InvalidInputError: It is one.
    """
    names = sorted(entry.name for entry in folder.iterdir() if is_adaptive(entry)) if folder.is_dir() else []
    if names:
        raise InvalidInputError(f"{folder} holds several models with exits; give one of them: {', '.join(names)}")


def _check_settings(settings: Sequence[Settings]) -> None:
    for asked in settings:
        given = {"runtime": asked.runtime, "threads": asked.threads, "batch-size": asked.batch_size}
        usual = {"runtime": "onnxruntime", "threads": 1, "batch-size": 1}
        for name, value in given.items():
            if value != usual[name]:
                raise InvalidInputError(
                    "a model with exits is timed text by text, by its host loop over ONNX Runtime on one thread; "
                    f"leave --{name} {value} out"
                )


def in_its_precisions(folder: Path, settings: Sequence[Settings]) -> list[Settings]:
    """What to time a model with exits under, in every precision that its folder holds; float32 at least.

    Raises:
        InvalidInputError: The folder is none, or damaged, or a setting is none that exits have.
    """
    _check_settings(settings)
    return with_precisions(settings, precisions_of(folder, read_description(folder).num_exits) or ("fp32",))


def _shares(folder: Path, description: Description, precision: str) -> tuple[float, ...]:
    """Where the validation texts stopped when the model was made."""
    try:
        counts = [int(count) for count in description.facts[FACTS[precision]]["exits"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{folder} does not say where its validation texts stopped, so that nothing can be expected; run nas exits "
            "again"
        ) from error
    if len(counts) != description.num_exits or min(counts) < 0 or not sum(counts):
        raise InvalidInputError(f"{folder} is damaged: it counts texts at {len(counts)} exits; run nas exits again")
    return tuple(count / sum(counts) for count in counts)


def _measured(
    folder: Path,
    model: AdaptiveModel,
    shares: Sequence[float],
    conditions: Conditions,
    seconds_each: float,
    progress: Progress,
) -> list[Row]:
    """The expected latency, then that of each exit."""
    stops = {place: _stopping(model, place) for place in range(len(shares))}
    texts = _texts(model, conditions.seq_len)
    last = stops[len(shares) - 1]
    pilot = times_of({"last": last}, texts, repeats=3, progress=progress)["last"]
    rounds = round(seconds_each / (2 * pilot.mean() * len(texts)))
    taken = times_of(
        {str(place): stop for place, stop in stops.items()},
        texts,
        repeats=min(MAX_ROUNDS, max(MIN_ROUNDS, rounds)),
        progress=progress,
    )
    times_s = np.stack([taken[str(place)] for place in stops])  # (exits, rounds, texts)
    expected_s = np.tensordot(np.asarray(shares), times_s, axes=1)
    sizes = np.cumsum([exit_file(folder, place, conditions.precision).stat().st_size for place in stops]).tolist()
    of_form = "" if conditions.precision == "fp32" else f"{conditions.precision}, "
    rows = [_row(f"{of_form}expected", sizes[-1], expected_s, times_s[-1], conditions)]
    for place, share in enumerate(shares):
        name = f"exit {place + 1}, {share:.0%} of the texts"
        name = name if place + 1 < len(shares) else f"worst: {name}"
        rows.append(_row(of_form + name, sizes[place], times_s[place], times_s[-1], conditions))
    return rows


def _row(
    name: str, size: int, times_s: NDArray[np.float64], anchor_s: NDArray[np.float64], conditions: Conditions
) -> Row:
    """A row from times (rounds, texts) and those of the whole model beside them."""
    levels = np.median(anchor_s, axis=1)
    reference_s = float(np.median(levels))
    low, high = (float(np.quantile(levels, share)) / reference_s for share in (0.05, 0.95))
    latency = measured(
        conditions,
        times_s.ravel().tolist(),
        anchor_s.ravel().tolist(),
        reference_s,
        num_rounds=len(times_s),
        level_interval=(min(low, 1 - LAYOUT_SPREAD), max(high, 1 + LAYOUT_SPREAD)),
    )
    return Row(name, size, latency)


def _stopping(model: AdaptiveModel, place: int) -> Callable[[Batch], object]:
    policy = StopAt(model.policy, place)
    return lambda batch: run(model.layers, batch, policy)


def _texts(model: AdaptiveModel, seq_len: int) -> list[Mapping[str, NDArray[np.int64]]]:
    """Texts of so many tokens, each a batch by itself; what they say does not matter where they have to stop."""
    text, rng = model.description.text, np.random.default_rng(0)
    ids = rng.integers(1, text.vocab_size, size=(NUM_TEXTS, seq_len)).tolist()
    return [padded([row], [[0] * seq_len], text) for row in ids]
