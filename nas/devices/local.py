"""Measures on this machine's CPU: a fresh process on the idlest cores, candidates interleaved with the anchor."""

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.latency import MAX_SECONDS, Conditions, Latency, Pressure, measured
from nas.devices.clock import Event, run_job
from nas.devices.fingerprint import Fingerprint, available_cpus
from nas.devices.target import ANCHOR, Level, OnResult, timing_text
from nas.errors import InconclusiveMeasurementError, InvalidInputError
from search_spaces.architecture import TextSpec

PRECISIONS = ("fp32", "int8")
ANSWER_TIMEOUT_S = 600.0
GROUP_S = 0.5
#: How long what was seen of the machine's level counts, and how much of it is kept. Where a neighbour shares the core,
#: the level jumps by a third and stays for seconds to minutes: a few calm seconds say nothing about the next ones.
RECALL_S = 1800.0
MAX_LEVELS = 600
#: What no session shows by itself: another process lays its memory out anew. Seen between calm runs, see benchmarks.
LAYOUT_SPREAD = 0.03

RunJob = Callable[[Mapping[str, Any]], Iterable[Event]]


@dataclass(frozen=True, slots=True)
class _Sitting:
    """One model's rounds from one runner process."""

    samples_s: tuple[float, ...]
    anchor_samples_s: tuple[float, ...]
    num_rounds: int
    pressure: Pressure

    @property
    def bursts(self) -> tuple[int, int]:
        return len(self.samples_s) // self.num_rounds, len(self.anchor_samples_s) // self.num_rounds


class LocalCpu:
    """This machine's CPU as a target.

    Args:
        threads: Threads within one operator, each on a core of its own.
        batch_size: Texts at a time.
        seq_len: Tokens a text.
        precision: What the models to be timed hold, ``fp32`` or ``int8``; a label, the models come as they are.
        run: Runs one job of ``runner.py``; a fresh process by default.
        now: Seconds since 1970.

    Raises:
        InvalidInputError: A number is out of bounds, or there are fewer cores than threads.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        batch_size: int = 1,
        seq_len: int = 128,
        precision: str = "fp32",
        run: RunJob | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        fingerprint = Fingerprint.of_this_machine()
        if precision not in PRECISIONS:
            raise InvalidInputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self._conditions = Conditions(
            device="cpu",
            fingerprint=fingerprint.digest,
            runtime=fingerprint.runtime,
            precision=precision,
            threads=threads,
            batch_size=batch_size,
            seq_len=seq_len,
        )
        if threads > fingerprint.num_cores:
            raise InvalidInputError(
                f"threads must be at most the {fingerprint.num_cores} cores this process may use, got {threads}"
            )
        self.fingerprint = fingerprint
        self._now = now
        self._run = run or (lambda job: run_job(job, answer_timeout_s=ANSWER_TIMEOUT_S))
        self._levels: list[Level] = []
        self._recalled: tuple[Level, ...] = ()

    @property
    def conditions(self) -> Conditions:
        """What every latency of this target holds for."""
        return self._conditions

    @property
    def description(self) -> str:
        """The device in words."""
        return str(self.fingerprint)

    @property
    def anchor_reference_s(self) -> float:
        """The anchor's level in this session.

        Raises:
            InvalidInputError: Nothing was measured yet.
        """
        if not self._levels:
            raise InvalidInputError("the anchor's level is known only after something was measured")
        return float(np.median([level.time_s for level in self._levels]))

    @property
    def level_interval(self) -> tuple[float, float]:
        """Between which multiples of the reference the anchor's level moved, 90 % of the time, lately included."""
        reference_s = self.anchor_reference_s
        seen = [[level.time_s for level in levels] for levels in (self._levels, self.levels)]
        low = min(np.quantile(times, 0.05) for times in seen) / reference_s
        high = max(np.quantile(times, 0.95) for times in seen) / reference_s
        return min(float(low), 1 - LAYOUT_SPREAD), max(float(high), 1 + LAYOUT_SPREAD)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The anchor's levels of this session, behind those that were recalled."""
        return (*self._recalled, *self._levels)[-MAX_LEVELS:]

    def recall(self, levels: Iterable[Level]) -> None:
        """Lets levels of an earlier process widen the level's interval, where they are recent enough."""
        now_s = self._now()
        recent = {level for level in levels if now_s - RECALL_S <= level.at_s <= now_s}
        self._recalled = tuple(sorted(recent, key=lambda level: level.at_s))

    def measure(
        self,
        models: Sequence[tuple[str, Path]],
        *,
        seconds_each: float = 3.0,
        attempts: int = 3,
        on_result: OnResult | None = None,
    ) -> dict[str, Latency]:
        """Times ONNX models; see :class:`nas.devices.target.Target`."""
        self._check(models, seconds_each, attempts)
        sittings: dict[str, list[_Sitting]] = {name: [] for name, _ in models}
        waiting = list(models)
        with tempfile.TemporaryDirectory(prefix="nas-measure-") as folder:
            anchor = self._write_anchor(Path(folder))
            for _ in range(attempts):
                for event in self._run(self._job(anchor, waiting, sittings, seconds_each)):
                    name = self._take(event, sittings)
                    if on_result is not None:
                        on_result(name, self._latency(sittings[name]))
                waiting = [(name, path) for name, path in models if self._is_open(sittings[name])]
                if not waiting:
                    break
        missing = [name for name, taken in sittings.items() if not taken]
        if missing:
            raise InconclusiveMeasurementError(f"the runner ended without timing {', '.join(missing)}; measure again")
        return {name: self._latency(taken) for name, taken in sittings.items()}

    def _job(
        self,
        anchor: Path,
        models: Iterable[tuple[str, Path]],
        sittings: Mapping[str, Sequence[_Sitting]],
        seconds_each: float,
    ) -> dict[str, Any]:
        bursts = {name: taken[0].bursts for name, taken in sittings.items() if taken}
        candidates = [
            {"name": name, "path": str(path), "burst": bursts[name][0] if name in bursts else None}
            for name, path in models
        ]
        cpus = _idlest_cpus(self._conditions.threads)
        return {
            "anchor": str(anchor),
            "anchor_burst": next(iter(bursts.values()))[1] if bursts else None,
            "candidates": candidates,
            "threads": self._conditions.threads,
            "cpus": cpus,
            "batch_size": self._conditions.batch_size,
            "seq_len": self._conditions.seq_len,
            "seconds_each": seconds_each,
            "spinning": self._conditions.threads
            < len(available_cpus()),  # a spinning thread starves what shares its core
        }

    def _take(self, event: Event, sittings: dict[str, list[_Sitting]]) -> str:
        """Checks one answer and files it."""
        name = event.get("name")
        if name not in sittings:
            raise InconclusiveMeasurementError(
                f"the runner answered about {name!r}, which was not asked; measure again"
            )
        if event["event"] == "failed":
            raise InvalidInputError(f"cannot run {name}: {event['message'][:300]}")
        try:
            sitting = _Sitting(
                tuple(event["samples_s"]),
                tuple(event["anchor_samples_s"]),
                event["num_rounds"],
                Pressure(**event["pressure"]),
            )
            measured(self._conditions, sitting.samples_s, sitting.anchor_samples_s, 1.0, num_rounds=sitting.num_rounds)
            if sittings[name] and sittings[name][0].bursts != sitting.bursts:
                raise InvalidInputError("its bursts are of another size than asked for")
        except (KeyError, TypeError, InvalidInputError) as error:
            raise InconclusiveMeasurementError(
                f"the runner's answer about {name} is damaged: {error}; measure again"
            ) from error
        sittings[name].append(sitting)
        rounds = np.asarray(sitting.anchor_samples_s).reshape(sitting.num_rounds, -1)
        took_s = sum(sitting.samples_s) + sum(sitting.anchor_samples_s)
        groups = np.array_split(rounds, min(max(1, round(took_s / GROUP_S)), sitting.num_rounds))
        at_s = self._now()
        self._levels += [Level(at_s - GROUP_S * ago, float(np.median(group))) for ago, group in enumerate(groups[::-1])]
        del self._levels[:-MAX_LEVELS]
        return str(name)

    def _latency(self, sittings: Sequence[_Sitting]) -> Latency:
        """Joins a model's rounds; those taken under pressure give way where there are calm ones."""
        used = [sitting for sitting in sittings if not sitting.pressure.is_high] or list(sittings)
        return measured(
            self._conditions,
            [time_s for sitting in used for time_s in sitting.samples_s],
            [time_s for sitting in used for time_s in sitting.anchor_samples_s],
            self.anchor_reference_s,
            _joint_pressure(used),
            num_rounds=sum(sitting.num_rounds for sitting in used),
            level_interval=self.level_interval,
        )

    def _is_open(self, sittings: Sequence[_Sitting]) -> bool:
        """Whether timing a model again could improve its verdict: the level's own movement is not its fault."""
        if not sittings:
            return True
        used = [sitting for sitting in sittings if not sitting.pressure.is_high]
        if not used:
            return True
        alone = [time_s for sitting in used for time_s in sitting.samples_s]
        anchor = [time_s for sitting in used for time_s in sitting.anchor_samples_s]
        num_rounds = sum(sitting.num_rounds for sitting in used)
        return measured(self._conditions, alone, anchor, 1.0, num_rounds=num_rounds).verdict != "ok"

    def _write_anchor(self, folder: Path) -> Path:
        import onnx

        from nas.export.onnx_graph import build_graph

        path = folder / "anchor.onnx"
        onnx.save(build_graph(ANCHOR, timing_text(TextSpec(), self._conditions.seq_len), None), str(path))
        return path

    def _check(self, models: Sequence[tuple[str, Path]], seconds_each: float, attempts: int) -> None:
        names = [name for name, _ in models]
        if not models or len(set(names)) != len(names):
            raise InvalidInputError("models to measure must be at least one, each with a name of its own")
        if not 0 < seconds_each <= MAX_SECONDS:
            raise InvalidInputError(f"seconds_each must be above 0 and at most {MAX_SECONDS:.0f}, got {seconds_each!r}")
        if not 1 <= attempts <= 100:
            raise InvalidInputError(f"attempts must be from 1 to 100, got {attempts!r}")
        for name, path in models:
            if not Path(path).is_file():
                raise InvalidInputError(f"the model file of {name} is not there: {path}")


def _joint_pressure(sittings: Sequence[_Sitting]) -> Pressure:
    weights = [sitting.num_rounds for sitting in sittings]

    def mean(name: str) -> float:
        return min(1.0, float(np.average([getattr(sitting.pressure, name) for sitting in sittings], weights=weights)))

    return Pressure(mean("busy_share"), mean("steal_share"), mean("waiting_share"))


def _idlest_cpus(num: int, over_s: float = 0.1) -> list[int]:
    """The cores with the least work just now, later numbers first: the first core often serves interrupts."""
    before = _busy_ticks()
    time.sleep(over_s)
    after = _busy_ticks()
    by_work = sorted(available_cpus(), key=lambda cpu: (after.get(cpu, 0) - before.get(cpu, 0), -cpu))
    return sorted(by_work[:num])


def _busy_ticks() -> dict[int, int]:
    """Ticks that each core spent working since the start, where the system shows them (Linux)."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        fields = [line.split() for line in lines if line.startswith("cpu") and not line.startswith("cpu ")]
        return {int(name[3:]): sum(map(int, ticks[:3])) + sum(map(int, ticks[5:8])) for name, *ticks in fields}
    except (OSError, ValueError):
        return {}
