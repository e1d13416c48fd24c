"""Measures a device's profile, keeps it on disk while it grows, and looks after it.

It is written after every measured shape, so that an interrupted profiling goes on where it stopped, and checked
whenever it is used again: a few seconds of timing two of its shapes beside the anchor show whether what it says still
holds.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from analysis.latency import Latency
from nas.config import check_bounds
from nas.devices.predictor import TRANSFER_BELOW, LatencyPredictor, Prior, Sample
from nas.devices.profile import Profile, profile_path
from nas.devices.shapes import choose_shapes, extremes, shapes_near
from nas.devices.target import Shape, Target, timing_text
from nas.errors import InconclusiveMeasurementError, InvalidInputError
from nas.progress import Progress, SilentProgress
from search_spaces.architecture import Architecture, TextSpec
from search_spaces.files import write_atomic
from search_spaces.spaces import Space

BATCH_SIZE = 8  # shapes a runner process, and shapes chosen at a time near a budget
#: How much of the samples is chosen near the budgets.
NEAR_SHARE = 0.3
CHECK_SECONDS = 1.0
#: By how much a ratio, or the anchor's level, may differ from the profile's before it counts as changed.
TOLERANCE = 0.10
#: A sample this far from its prediction, and this many times the usual error, is timed again.
OUTLIER_ERROR, OUTLIER_TIMES, MAX_OUTLIERS = 0.08, 4.0, 4
#: How many other profiles of the cache, the newest, are looked at for a start.
MAX_PRIORS = 4


@dataclass(frozen=True)
class Design:
    """What shall be measured.

    Attributes:
        shapes: Shapes that are known before anything is measured.
        drawn: Those of them that were drawn at random.
        check: Raises InvalidInputError for a shape that is of another design.
        num_later: How many more are chosen by what the first ones showed.
        later: Chooses so many.
    """

    shapes: Sequence[Architecture]
    drawn: frozenset[Architecture]
    check: Callable[[Architecture], object]
    num_later: int = 0
    later: Callable[[LatencyPredictor, int], list[Architecture]] = lambda predictor, num: []

    @property
    def num_shapes(self) -> int:
        """How many are measured in all."""
        return len(self.shapes) + self.num_later


def load_or_measure(
    target: Target,
    space: Space,
    text: TextSpec,
    *,
    cache_dir: Path,
    seed: int = 0,
    progress: Progress | None = None,
    num_samples: int = 40,
    seconds_each: float = 0.8,
    budgets_s: Sequence[float] = (),
) -> LatencyPredictor:
    """The predictor of a space on a target: from the cache where that still holds, else measured now.

    Args:
        target: What to measure on.
        space: Where the shapes come from.
        text: What the encoders read.
        cache_dir: Folder that profiles are kept in, under ``profiles/``. Where few samples are asked for, its other
            profiles are a start for this one.
        seed: Of the choice of shapes.
        progress: What is told what goes on.
        num_samples: Shapes to measure; fewer where the space holds fewer.
        seconds_each: How long to time each.
        budgets_s: Latencies in whose neighbourhood the predictor shall know best.

    Raises:
        InvalidInputError: A number is out of bounds, a text is longer than the encoders can read, or the cache cannot
            be written.
        InconclusiveMeasurementError: The measuring broke down; what was measured is kept and used next time.
    """
    design = _design(space, num_samples, budgets_s, seed)
    profiling = Profiling(target, space, text, design, seconds_each=seconds_each, progress=progress)
    path = profile_path(cache_dir, target.conditions, space, text)
    if design.num_shapes < TRANSFER_BELOW:
        profiling.priors = _known_priors(path)
    profile, reason = usable(path, profiling)
    if reason:
        profiling.progress.note(f"The device profile {path} is not used and measured anew: {reason}")
    return profiling.run(path, profile).predictor()


def measure_profile(
    target: Target,
    space: Space,
    text: TextSpec,
    path: Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    num_samples: int = 40,
    seconds_each: float = 0.8,
    budgets_s: Sequence[float] = (),
    priors: Sequence[Prior] = (),
) -> Profile:
    """Measures a profile into a file of the caller's, or goes on with the one that was begun there.

    Args:
        target: What to measure on.
        space: Where the shapes come from.
        text: What the encoders read.
        path: The file; absent, or a profile of the same conditions, activation and space.
        seed: Of the choice of shapes.
        progress: What is told what goes on.
        num_samples: Shapes to measure; fewer where the space holds fewer.
        seconds_each: How long to time each.
        budgets_s: Latencies in whose neighbourhood the predictor shall know best.
        priors: Devices or settings that are known already, a start where few samples are asked for.

    Raises:
        InvalidInputError: A number is out of bounds, a text is longer than the encoders can read, or the file is
            something else or cannot be written.
        InconclusiveMeasurementError: The measuring broke down; what was measured is in the file.
    """
    design = _design(space, num_samples, budgets_s, seed)
    profiling = Profiling(target, space, text, design, seconds_each=seconds_each, progress=progress)
    profiling.priors = tuple(priors)
    profile, reason = usable(path, profiling)
    if reason:
        raise InvalidInputError(f"{path} is there and cannot be gone on with: {reason}; name another file or remove it")
    return profiling.run(path, profile)


def _known_priors(path: Path) -> tuple[Prior, ...]:
    """What the other profiles beside ``path`` know, the newest first; files that are no profiles are passed over."""
    priors: list[Prior] = []
    for other in sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True):
        if other != path and len(priors) < MAX_PRIORS:
            with contextlib.suppress(InvalidInputError):
                priors.append(Profile.read(other).predictor().as_prior())
    return tuple(priors)


def _design(space: Space, num_samples: int, budgets_s: Sequence[float], seed: int) -> Design:
    """Extremes and random shapes; where there are budgets, the last ones from their neighbourhood."""
    if not isinstance(num_samples, int) or isinstance(num_samples, bool) or not 1 <= num_samples <= 1000:
        raise InvalidInputError(f"num_samples must be a whole number from 1 to 1000, got {num_samples!r}")
    for budget_s in budgets_s:
        check_bounds(latency_ms=1e3 * budget_s)
    if space.size <= num_samples:
        shapes = choose_shapes(space, num_samples, seed=seed)
        return Design(shapes, frozenset(shapes), space.values)
    num_near = round(NEAR_SHARE * num_samples) if budgets_s else 0
    shapes = choose_shapes(space, num_samples - num_near, seed=seed)
    drawn = frozenset(shapes) - frozenset(extremes(space))

    def near(predictor: LatencyPredictor, num: int) -> list[Architecture]:
        return shapes_near(predictor, space, budgets_s, num, seed=seed)

    return Design(shapes, drawn, space.values, num_near, near)


def usable(path: Path, profiling: "Profiling") -> tuple[Profile | None, str]:
    """The profile in a file, or None and why it cannot be used; no reason where there is no file.

    Raises:
        InvalidInputError: Whether there is one cannot be seen.
    """
    try:
        if not path.exists():
            return None, ""
    except OSError as error:
        raise InvalidInputError(f"cannot reach {path}: {error.strerror}; name a file that you may write") from error
    try:
        profile = Profile.read(path)
        if profile.conditions != profiling.target.conditions:
            raise InvalidInputError("it was measured under other conditions")
        if profile.hidden_act != profiling.text.hidden_act:
            raise InvalidInputError(f"it was measured with another activation, {profile.hidden_act}")
        for sample in profile.samples:
            profiling.design.check(sample.architecture)
    except InvalidInputError as error:
        return None, str(error)
    return profile, ""


class Profiling:
    """One use of a profile: check, complete, write."""

    def __init__(
        self,
        target: Target,
        space: Space,
        text: TextSpec,
        design: Design,
        *,
        seconds_each: float,
        progress: Progress | None = None,
    ) -> None:
        check_bounds(seconds_each=seconds_each)
        if target.conditions.seq_len > text.max_positions:
            raise InvalidInputError(
                f"seq_len must be at most {text.max_positions}, the longest text these encoders read, "
                f"got {target.conditions.seq_len}"
            )
        self.target = target
        self.space = space
        self.design = design
        self.text = timing_text(text, target.conditions.seq_len)
        self.progress = progress or SilentProgress()
        self.seconds_each = seconds_each
        self.priors: tuple[Prior, ...] = ()

    def run(self, path: Path, profile: Profile | None) -> Profile:
        if profile is not None:
            profile = self._check(profile)
        if profile is not None and len(profile.samples) >= self.design.num_shapes:
            write_atomic(path, profile.to_json())
            return profile
        samples = self._complete(path, list(profile.samples) if profile else [])
        return self._write(path, self._retime_outliers(samples))

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

    def _complete(self, path: Path, samples: list[Sample]) -> list[Sample]:
        """Measures what is missing, keeping every sample on disk as it comes."""
        if samples:
            self.progress.note(f"Going on with a device profile that was interrupted after {len(samples)} shapes.")
        self.progress.start(f"profiling {self.target.conditions.device}", self.design.num_shapes)

        def keep(shape: Architecture, latency: Latency) -> None:
            others = [sample for sample in samples if sample.architecture != shape]
            samples[:] = [*others, Sample(shape, _ratio(latency), shape in self.design.drawn)]
            self._write(path, samples)
            self.progress.update(len(samples), last=shape.key(), ms=round(1e3 * latency.p50_s, 2))

        known = {sample.architecture for sample in samples}
        waiting = [shape for shape in self.design.shapes if shape not in known]
        while len(samples) < self.design.num_shapes:
            num = min(BATCH_SIZE, self.design.num_shapes - len(samples))
            batch = waiting[:num] or self.design.later(self._predictor(samples), num)
            waiting = waiting[num:]
            self._measure(batch, self.seconds_each, keep)
        self.progress.finish(f"{len(samples)} shapes")
        return samples

    def _retime_outliers(self, samples: list[Sample]) -> list[Sample]:
        """Times again, for longer, the samples that the others contradict; where that fails they stay as they are."""
        if len(samples) < 10:
            return samples
        errors = np.abs(self._predictor(samples).left_out_errors)
        limit = max(OUTLIER_ERROR, OUTLIER_TIMES * float(np.median(errors)))
        worst = [samples[index] for index in np.argsort(-errors)[:MAX_OUTLIERS] if errors[index] > limit]
        if not worst:
            return samples
        try:
            latencies = self._measure([sample.architecture for sample in worst], 2 * self.seconds_each)
        except InconclusiveMeasurementError as error:
            self.progress.note(f"{len(worst)} samples that the others contradict were not timed again: {error}")
            return samples
        return [
            replace(sample, ratio=_ratio(latencies[sample.architecture])) if sample in worst else sample
            for sample in samples
        ]

    def _measure(
        self,
        shapes: Iterable[Architecture],
        seconds_each: float,
        keep: Callable[[Architecture, Latency], None] | None = None,
    ) -> dict[Architecture, Latency]:
        """Times shapes with random weights; measuring that breaks down gets one more chance with what is missing."""
        named = {shape.key(): shape for shape in shapes}
        done: dict[Architecture, Latency] = {}

        def take(name: str, latency: Latency) -> None:
            done[named[name]] = latency
            if keep is not None:
                keep(named[name], latency)

        for is_last in (False, True):
            missing = {name: Shape(shape, self.text) for name, shape in named.items() if shape not in done}
            try:
                self.target.measure(missing, seconds_each=seconds_each, attempts=1, on_result=take)
                break
            except InconclusiveMeasurementError:
                if is_last:
                    raise
        return done

    def _predictor(self, samples: Sequence[Sample]) -> LatencyPredictor:
        target = self.target
        return LatencyPredictor(
            samples, target.conditions, target.anchor_reference_s, target.level_interval, self.priors
        )

    def _write(self, path: Path, samples: Sequence[Sample]) -> Profile:
        profile = Profile(
            conditions=self.target.conditions,
            fingerprint=self.target.fingerprint,
            description=self.target.description,
            hidden_act=self.text.hidden_act,
            space=self.space.to_dict(),
            samples=tuple(samples),
            anchor_reference_s=self.target.anchor_reference_s,
            level_interval=self.target.level_interval,
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
            levels=self.target.levels,
            prior=self._predictor(samples).prior if self.priors else None,
        )
        write_atomic(path, profile.to_json())
        return profile


def _ratio(latency: Latency) -> float:
    ratio = latency.ratio
    assert ratio is not None  # a measured latency knows its anchor
    return ratio
