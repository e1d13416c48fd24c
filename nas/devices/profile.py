"""A device's profile: the measured shapes that a predictor is fitted to, kept on disk and looked after.

One JSON file per fingerprint, conditions and space. It is written after every measured shape, so that an interrupted
profiling goes on where it stopped, and checked whenever it is used again: a few seconds of timing two of its shapes
beside the anchor show whether what it says still holds.
"""

import hashlib
import json
import random
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from analysis.latency import Conditions, Latency
from nas.devices.predictor import LatencyPredictor, Sample
from nas.devices.target import Level, Target, timing_text
from nas.errors import InconclusiveMeasurementError, InvalidInputError
from nas.progress import Progress, SilentProgress
from search_spaces.architecture import Architecture, TextSpec
from search_spaces.files import write_atomic
from search_spaces.space import SearchSpace

SCHEMA_VERSION = 1
MAX_FILE_BYTES = 20_000_000
BATCH_SIZE = 8  # shapes a runner process
CHECK_SECONDS = 1.0
#: By how much a ratio, or the anchor's level, may differ from the profile's before it counts as changed.
TOLERANCE = 0.10
#: A sample this far from its prediction, and this many times the usual error, is timed again.
OUTLIER_ERROR, OUTLIER_TIMES, MAX_OUTLIERS = 0.08, 4.0, 4


@dataclass(frozen=True, slots=True)
class Profile:
    """What is on disk.

    Attributes:
        conditions: What the samples were measured for.
        space: The space they come from, as :meth:`SearchSpace.to_dict`.
        samples: The measured shapes.
        anchor_reference_s: The anchor's level when they were measured.
        level_interval: Between which multiples of it the level moved.
        measured_at: When the last sample was taken, as ISO 8601 in UTC.
        levels: What was seen of the machine's level lately.
    """

    conditions: Conditions
    space: dict[str, Any]
    samples: tuple[Sample, ...]
    anchor_reference_s: float
    level_interval: tuple[float, float]
    measured_at: str
    levels: tuple[Level, ...] = ()

    def predictor(self) -> LatencyPredictor:
        """Fits the predictor of these samples."""
        return LatencyPredictor(self.samples, self.conditions, self.anchor_reference_s, self.level_interval)

    def to_json(self) -> str:
        """The file's content: the predictor's own form, with the space and the time beside it."""
        data = {
            "schema_version": SCHEMA_VERSION,
            "space": self.space,
            "measured_at": self.measured_at,
            "predictor": self.predictor().to_dict(),
            "levels": [[level.at_s, level.time_s] for level in self.levels],
        }
        return json.dumps(data, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Profile":
        """Reads :meth:`to_json`'s form.

        Raises:
            InvalidInputError: It is not JSON, of another schema, or breaks a bound.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"a profile must be JSON: {error}") from error
        names = {"schema_version", "space", "measured_at", "predictor", "levels"}
        if not isinstance(data, dict) or set(data) != names:
            raise InvalidInputError(f"a profile must hold exactly {', '.join(sorted(names))}")
        if data["schema_version"] != SCHEMA_VERSION:
            raise InvalidInputError(f"a profile's schema must be {SCHEMA_VERSION}, got {data['schema_version']!r}")
        try:
            measured_at = datetime.fromisoformat(data["measured_at"]).isoformat()
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"a profile's measured_at must be a date and time: {error}") from error
        pairs = data["levels"]
        if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise InvalidInputError("a profile's levels must be a list of pairs")
        predictor = LatencyPredictor.from_dict(data["predictor"])
        return cls(
            conditions=predictor.conditions,
            space=SearchSpace.from_dict(data["space"]).to_dict(),
            samples=predictor.samples,
            anchor_reference_s=predictor.anchor_reference_s,
            level_interval=predictor.level_interval,
            measured_at=measured_at,
            levels=tuple(Level(*pair) for pair in pairs),
        )


def load_or_measure(
    target: Target,
    space: SearchSpace,
    text: TextSpec,
    *,
    cache_dir: Path,
    seed: int = 0,
    progress: Progress | None = None,
    num_samples: int = 40,
    seconds_each: float = 0.8,
) -> LatencyPredictor:
    """The predictor of a space on a target: from the cache where that still holds, else measured now.

    Args:
        target: What to measure on.
        space: Where the shapes come from.
        text: What the encoders read.
        cache_dir: Folder that profiles are kept in, under ``profiles/``.
        seed: Of the choice of shapes.
        progress: What is told what goes on.
        num_samples: Shapes to measure; fewer where the space holds fewer.
        seconds_each: How long to time each.

    Raises:
        InvalidInputError: A number is out of bounds, a text is longer than the encoders can read, or the cache cannot
            be written.
        InconclusiveMeasurementError: The measuring broke down; what was measured is kept and used next time.
    """
    if not isinstance(num_samples, int) or isinstance(num_samples, bool) or not 1 <= num_samples <= 1000:
        raise InvalidInputError(f"num_samples must be a whole number from 1 to 1000, got {num_samples!r}")
    if target.conditions.seq_len > text.max_positions:
        raise InvalidInputError(
            f"seq_len must be at most {text.max_positions}, the longest text these encoders read, "
            f"got {target.conditions.seq_len}"
        )
    profiling = _Profiling(target, space, text, progress or SilentProgress(), seconds_each)
    return profiling.run(profile_path(cache_dir, target.conditions, space, text), num_samples, seed)


def profile_path(cache_dir: Path, conditions: Conditions, space: SearchSpace, text: TextSpec) -> Path:
    """Where the profile of a space under these conditions is kept."""
    choices = {name: value for name, value in space.to_dict().items() if name != "name"}
    facts = {"conditions": asdict(conditions), "space": choices, "hidden_act": text.hidden_act}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return cache_dir / "profiles" / f"{conditions.device}-{digest}.json"


def choose_shapes(space: SearchSpace, num: int, *, seed: int) -> list[Architecture]:
    """Shapes to measure: the extremes of every dimension, so that nothing lies outside, then plain random draws.

    Draws that keep far from each other predict no better (1.2 to 1.8 % median error either way), and they are not like
    the shapes a search asks for, so that errors on shapes left out promised 90 % and kept 80 %.
    """
    if space.size <= num:
        return sorted(space.enumerate(), key=Architecture.key)
    rng = random.Random(seed)
    corners = [space.smallest(), space.largest()]
    for name, choices in space.dimensions.items():
        for corner, value in ((corners[0], choices[-1]), (corners[1], choices[0])):
            corners.append(space.build({**space.values(corner), name: value}))
    chosen = dict.fromkeys(corners[:num])
    while len(chosen) < num:
        chosen[space.sample(rng)] = None
    return list(chosen)


class _Profiling:
    """One use of a profile: read, check, complete, write."""

    def __init__(
        self, target: Target, space: SearchSpace, text: TextSpec, progress: Progress, seconds_each: float
    ) -> None:
        self.target = target
        self.space = space
        self.text = timing_text(text, target.conditions.seq_len)
        self.progress = progress
        self.seconds_each = seconds_each

    def run(self, path: Path, num_samples: int, seed: int) -> LatencyPredictor:
        wanted = min(num_samples, self.space.size)
        profile = self._read(path)
        if profile is not None:
            checked = self._check(profile)
            if checked is not None and len(checked.samples) >= wanted:
                write_atomic(path, checked.to_json())
                return checked.predictor()
            profile = checked
        samples = list(profile.samples) if profile else []
        known = {sample.architecture for sample in samples}
        shapes = [shape for shape in choose_shapes(self.space, wanted, seed=seed) if shape not in known]
        samples = self._complete(path, samples, shapes[: wanted - len(samples)])
        samples = self._retime_outliers(samples)
        return self._write(path, samples).predictor()

    def _read(self, path: Path) -> Profile | None:
        """The profile on disk, if there is one that can be trusted."""
        if not path.exists():
            return None
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise InvalidInputError(f"a profile holds at most {MAX_FILE_BYTES} bytes")
            profile = Profile.from_json(path.read_text())
            if profile.conditions != self.target.conditions:
                raise InvalidInputError("it was measured under other conditions than its name says")
            for sample in profile.samples:
                self.space.values(sample.architecture)
        except (OSError, UnicodeDecodeError, InvalidInputError) as error:
            self.progress.note(f"The device profile {path} is not used and measured anew: {error}")
            return None
        return profile

    def _check(self, profile: Profile) -> Profile | None:
        """Times two shapes again: the profile as it is, at the machine's present level, or None where it is stale."""
        ranked = sorted(profile.samples, key=lambda sample: sample.ratio)
        shapes = [ranked[len(ranked) * place // 3] for place in (1, 2)] if len(ranked) > 2 else ranked[:1]
        self.progress.start("checking the device profile", len(shapes))
        for attempt in (1, 2):
            latencies = self._measure([sample.architecture for sample in shapes], CHECK_SECONDS * attempt)
            changes = [_ratio(latencies[sample.architecture]) / sample.ratio - 1 for sample in shapes]
            if max(map(abs, changes)) <= TOLERANCE:
                break
        else:
            worst = max(changes, key=abs)
            self.progress.finish()
            self.progress.note(
                f"The device profile of {profile.measured_at} is stale: a shape it holds is now {worst:+.0%} beside "
                "the anchor model. It is measured anew."
            )
            return None
        self.progress.finish(f"measured {profile.measured_at}, still holds")
        self.target.recall(profile.levels)
        change = self.target.anchor_reference_s / profile.anchor_reference_s - 1
        if abs(change) > TOLERANCE:
            self.progress.note(
                f"The anchor model takes {change:+.0%} against {profile.measured_at}, when this profile was measured: "
                "latencies are predicted for the machine as it is now."
            )
        return replace(
            profile,
            anchor_reference_s=self.target.anchor_reference_s,
            level_interval=self.target.level_interval,
            levels=self.target.levels,
        )

    def _complete(self, path: Path, samples: list[Sample], shapes: Sequence[Architecture]) -> list[Sample]:
        """Measures what is missing, keeping every sample on disk as it comes."""
        before = len(samples)
        if not shapes:
            return samples
        if before:
            self.progress.note(f"Going on with a device profile that was interrupted after {before} shapes.")
        self.progress.start(f"profiling {self.target.conditions.device}", before + len(shapes))
        for start in range(0, len(shapes), BATCH_SIZE):
            self._add(path, samples, shapes[start : start + BATCH_SIZE])
        self.progress.finish(f"{len(samples)} shapes")
        return samples

    def _add(self, path: Path, samples: list[Sample], shapes: Sequence[Architecture]) -> None:
        """Measures one batch; a runner that breaks down gets one more chance."""

        def keep(shape: Architecture, latency: Latency) -> None:
            others = [sample for sample in samples if sample.architecture != shape]
            samples[:] = [*others, Sample(shape, _ratio(latency))]
            self._write(path, samples)
            self.progress.update(len(samples), last=shape.key(), ms=round(1e3 * latency.p50_s, 2))

        for is_last in (False, True):
            done = {sample.architecture for sample in samples}
            missing = [shape for shape in shapes if shape not in done]
            try:
                if missing:
                    self._measure(missing, self.seconds_each, keep)
                return
            except InconclusiveMeasurementError:
                if is_last:
                    raise

    def _retime_outliers(self, samples: list[Sample]) -> list[Sample]:
        """Times again the samples that the others contradict, and keeps the values nearer to them."""
        if len(samples) < 10:
            return samples
        errors = np.abs(self._predictor(samples).left_out_errors)
        limit = max(OUTLIER_ERROR, OUTLIER_TIMES * float(np.median(errors)))
        worst = [index for index in np.argsort(-errors)[:MAX_OUTLIERS] if errors[index] > limit]
        if not worst:
            return samples
        latencies = self._measure([samples[index].architecture for index in worst], 2 * self.seconds_each)
        renewed = list(samples)
        for index in worst:
            renewed[index] = Sample(samples[index].architecture, _ratio(latencies[samples[index].architecture]))
        return renewed

    def _measure(
        self, shapes: Iterable[Architecture], seconds_each: float, keep: Any = None
    ) -> dict[Architecture, Latency]:
        """Builds the shapes with random weights and times them."""
        names = {str(number): shape for number, shape in enumerate(shapes)}
        with tempfile.TemporaryDirectory(prefix="nas-profile-") as folder:
            models = [(name, Path(folder) / f"{name}.onnx") for name in names]
            for name, path in models:
                self._build(names[name], path)
            latencies = self.target.measure(
                models,
                seconds_each=seconds_each,
                attempts=1,
                on_result=None if keep is None else lambda name, latency: keep(names[name], latency),
            )
        return {names[name]: latency for name, latency in latencies.items()}

    def _build(self, shape: Architecture, path: Path) -> None:
        import onnx

        from nas.export.onnx_graph import build_graph

        model = build_graph(shape, self.text, None)
        if self.target.conditions.precision == "int8":
            from nas.export.int8 import quantize

            quantize(model, path)
        else:
            onnx.save(model, str(path))

    def _predictor(self, samples: Sequence[Sample]) -> LatencyPredictor:
        target = self.target
        return LatencyPredictor(samples, target.conditions, target.anchor_reference_s, target.level_interval)

    def _write(self, path: Path, samples: Sequence[Sample]) -> Profile:
        profile = Profile(
            conditions=self.target.conditions,
            space=self.space.to_dict(),
            samples=tuple(samples),
            anchor_reference_s=self.target.anchor_reference_s,
            level_interval=self.target.level_interval,
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
            levels=self.target.levels,
        )
        write_atomic(path, profile.to_json())
        return profile


def _ratio(latency: Latency) -> float:
    ratio = latency.ratio
    assert ratio is not None  # a measured latency knows its anchor
    return ratio
