"""Profiles of a device that is not there: measured once, resumed, checked on reuse, refused when damaged."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from analysis.latency import Conditions, measured
from nas.devices.features import features
from nas.devices.fingerprint import Fingerprint
from nas.devices.predictor import LatencyPredictor, Sample
from nas.devices.profile import Profile, profile_path
from nas.devices.profiling import BATCH_SIZE, load_or_measure, measure_profile
from nas.devices.shapes import choose_shapes, shapes_near
from nas.devices.target import Level, Shape
from nas.errors import InconclusiveMeasurementError, InvalidInputError
from nas.progress import SilentProgress
from search_spaces.architecture import TextSpec
from search_spaces.encoding import encode
from search_spaces.presets import load_space
from search_spaces.space import SearchSpace

SPACE = SearchSpace(
    name="tiny",
    num_layers=(1, 2, 3),
    hidden_size=(16, 32, 48, 64),
    intermediate_size=(16, 32, 64, 128),
    head_size=(16,),
)
TEXT = TextSpec(vocab_size=500)
NUM = 14
FACTS = {
    "cpu_model": "Abacus",
    "cpu_flags": "f00d",
    "num_cores": 2,
    "governor": "unknown",
    "memory_gib": 1,
    "kernel": "Linux 1",
    "environment": "bare metal",
    "runtime": "onnxruntime 1.0",
    "machine": "x86_64",
    "accelerator": "none",
}


def law(architecture):
    work = features(architecture, 128, 1)
    return 0.1 + 0.05 * work["layers"] + (work["attention"] + work["feed_forward"]) / 2e7


class Device:
    """A target that answers by a law, with a little noise; ``calls`` holds what it was asked to time."""

    def __init__(self, law=law, *, level=0.003, noise=0.003, **conditions):
        self.law, self.level, self.noise = law, level, noise
        self.rng = np.random.default_rng(0)
        self.fingerprint = Fingerprint.from_facts(FACTS)
        self.conditions = replace(
            Conditions("ssh://me@board", self.fingerprint.digest, "onnxruntime 1.0"), **conditions
        )
        self.description = str(self.fingerprint)
        self.calls, self.own, self.recalled = [], [], ()
        self.failure, self.fail_after = None, math.inf

    anchor_reference_s = property(lambda self: float(np.median([level.time_s for level in self.own])))
    level_interval = (0.97, 1.03)
    levels = property(lambda self: (*self.recalled, *self.own))

    def recall(self, levels):
        self.recalled = tuple(levels)

    def measure(self, models, *, seconds_each=3.0, attempts=3, on_result=None):
        latencies = {}
        for name, shape in models.items():
            if len(self.calls) >= self.fail_after:
                self.fail_after = math.inf if isinstance(self.failure, list) else self.fail_after
                raise self.failure.pop() if isinstance(self.failure, list) else self.failure
            assert isinstance(shape, Shape)
            self.calls.append(shape.architecture)
            self.own.append(Level(1e9 + len(self.calls), self.level))
            times = self.level * self.law(shape.architecture) * np.exp(self.noise * self.rng.standard_normal(12))
            latencies[name] = measured(self.conditions, times.tolist(), [self.level] * 12, self.level)
            if on_result is not None:
                on_result(name, latencies[name])
        return latencies


class Notes(SilentProgress):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


@pytest.fixture
def profiled(tmp_path):
    """A device that was profiled: (device, use), where ``use()`` asks for the predictor again, and its notes."""
    device, progress = Device(), Notes()

    def use(on=device, num_samples=NUM):
        return load_or_measure(on, SPACE, TEXT, cache_dir=tmp_path, num_samples=num_samples, progress=progress)

    use()
    return device, use, profile_path(tmp_path, device.conditions, SPACE, TEXT), progress.notes


def test_the_first_use_measures_and_the_second_only_checks(profiled):
    device, use, path, notes = profiled
    assert len(device.calls) == NUM == len(set(device.calls))
    seen = set(Profile.read(path).levels)
    assert seen
    predictor = use()
    assert len(device.calls) == NUM + 2
    assert seen < set(Profile.read(path).levels)  # what one process sees, the next one recalls
    assert not notes
    assert predictor.predict(SPACE.largest()).source == "predicted"
    assert predictor.predict(SPACE.largest()).p50_s == pytest.approx(0.003 * law(SPACE.largest()), rel=0.05)


def test_a_profile_says_what_it_was_measured_on(profiled):
    _, _, path, _ = profiled
    profile = Profile.read(path)
    assert profile.fingerprint == Fingerprint.from_facts(FACTS)
    assert "Abacus" in profile.description
    assert json.loads(path.read_text())["fingerprint"] == FACTS
    assert path.name.startswith("ssh-me-board-")


def test_an_interrupted_profiling_goes_on(tmp_path):
    device, progress = Device(), Notes()
    device.failure, device.fail_after = KeyboardInterrupt(), 3
    with pytest.raises(KeyboardInterrupt):
        load_or_measure(device, SPACE, TEXT, cache_dir=tmp_path, num_samples=NUM, progress=progress)
    path = profile_path(tmp_path, device.conditions, SPACE, TEXT)
    first = Profile.read(path).samples
    assert len(first) == 3
    device.fail_after = math.inf
    device.calls.clear()
    load_or_measure(device, SPACE, TEXT, cache_dir=tmp_path, num_samples=NUM, progress=progress)
    assert len(device.calls) == 2 + NUM - 3  # a check, then what is missing
    assert Profile.read(path).samples[:3] == first
    assert "interrupted after 3 shapes" in progress.notes[0]


def test_measuring_that_breaks_down_once_goes_on_and_twice_is_told(tmp_path):
    device = Device()
    device.failure, device.fail_after = [InconclusiveMeasurementError("killed")], 3
    predictor = load_or_measure(device, SPACE, TEXT, cache_dir=tmp_path, num_samples=NUM)
    assert predictor.error.num_samples == NUM
    assert len(device.calls) == NUM  # what came before the end was kept
    device = Device()
    device.failure, device.fail_after = InconclusiveMeasurementError("killed"), 5
    relu = TextSpec(hidden_act="relu")
    with pytest.raises(InconclusiveMeasurementError, match="killed"):
        load_or_measure(device, SPACE, relu, cache_dir=tmp_path, num_samples=NUM)
    assert len(Profile.read(profile_path(tmp_path, device.conditions, SPACE, relu)).samples) == 5


def test_a_slower_machine_moves_the_level_and_says_so(profiled):
    _, use, path, notes = profiled
    before = use().predict(SPACE.largest())
    slow = Device(level=0.0039)
    after = use(on=slow).predict(SPACE.largest())
    assert len(slow.calls) == 2
    assert after.p50_s == pytest.approx(1.3 * before.p50_s, rel=0.02)
    assert "+30%" in notes[-1]
    assert Profile.read(path).anchor_reference_s == pytest.approx(0.0039)


def test_a_profile_whose_shapes_disagree_is_measured_anew(profiled):
    _, use, _, notes = profiled
    other = Device(lambda architecture: 1.25 * law(architecture))
    predictor = use(on=other)
    assert len(other.calls) == 4 + NUM  # two checks of two, then everything
    assert "stale" in notes[0]
    assert "measured anew" in notes[0]
    assert predictor.predict(SPACE.largest()).ratio == pytest.approx(1.25 * law(SPACE.largest()), rel=0.05)


def test_more_samples_are_added_to_what_is_there(profiled):
    device, use, _, _ = profiled
    assert use(num_samples=NUM + 6).error.num_samples == NUM + 6
    assert len(device.calls) == NUM + 2 + 6


def test_a_file_of_the_callers_is_filled_gone_on_with_and_not_overwritten(tmp_path):
    device, path = Device(), tmp_path / "board.json"
    device.failure, device.fail_after = KeyboardInterrupt(), 9
    with pytest.raises(KeyboardInterrupt):
        measure_profile(device, SPACE, TEXT, path, num_samples=NUM)
    device.fail_after = math.inf
    profile = measure_profile(device, SPACE, TEXT, path, num_samples=NUM)
    assert len(device.calls) == NUM + 2
    assert profile == Profile.read(path)
    for other, space, text in (
        (Device(seq_len=64), SPACE, TEXT),
        (device, load_space("stock"), TEXT),
        (device, SPACE, TextSpec(hidden_act="relu")),
    ):
        with pytest.raises(InvalidInputError, match="name another file"):
            measure_profile(other, space, text, path, num_samples=NUM)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InvalidInputError, match=r"no regular file; name another file"):
        measure_profile(device, SPACE, TEXT, tmp_path / "folder.json", num_samples=NUM)
    path.write_text("my thesis")
    with pytest.raises(InvalidInputError, match="name another file"):
        measure_profile(device, SPACE, TEXT, path, num_samples=NUM)
    assert path.read_text() == "my thesis"


@pytest.fixture(scope="module")
def profile():
    samples = tuple(Sample(shape, 1.0 + number) for number, shape in enumerate(choose_shapes(SPACE, 5, seed=0)))
    levels = (Level(1e9, 0.003), Level(1e9 + 1, 0.0031))
    fingerprint = Fingerprint.from_facts(FACTS)
    return Profile(
        conditions=Conditions("cpu", fingerprint.digest, "onnxruntime 1.0"),
        fingerprint=fingerprint,
        description="an abacus",
        hidden_act="gelu",
        space=SPACE.to_dict(),
        samples=samples,
        anchor_reference_s=0.003,
        level_interval=(0.9, 1.1),
        measured_at="2026-01-02T03:04:05+00:00",
        levels=levels,
    )


def test_a_profile_survives_json(profile):
    assert Profile.from_json(profile.to_json()) == profile


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"ratio": ', '"ratio": -', 1),
        lambda text: text.replace('"ratio": ', '"ratio": NaN, "was": ', 1),
        lambda text: text.replace('"ratio": 1.0', '"ratio": Infinity', 1),
        lambda text: text.replace('"ratio": 1.0', '"ratio": 1e-300', 1),
        lambda text: text.replace('"ratio": 1.0', f'"ratio": {10**400}', 1),
        lambda text: text.replace('"anchor_reference_s": 0.003', f'"anchor_reference_s": {10**400}', 1),
        lambda text: text.replace("   1.1\n", f"   {10**400}\n", 1),
        lambda text: text.replace('"is_drawn": true', '"is_drawn": 1', 1),
        lambda text: text.replace('"schema_version": 2', '"schema_version": 7', 1),
        lambda text: text.replace('"threads": 1', '"threads": 0'),
        lambda text: text.replace('"hidden_size": 16', '"hidden_size": -16'),
        lambda text: text.replace('"num_cores": 2', '"num_cores": -2'),
        lambda text: "[" * 100_000,
        lambda text: "[]",
        lambda text: json.dumps({**json.loads(text), "measured_at": "yesterday"}),
        lambda text: json.dumps({**json.loads(text), "levels": [[1, -1]]}),
        lambda text: json.dumps({**json.loads(text), "levels": 3}),
        lambda text: json.dumps({**json.loads(text), "space": {}}),
        lambda text: json.dumps({**json.loads(text), "fingerprint": {}}),
        lambda text: json.dumps({**json.loads(text), "description": "\x1b[2J"}),
        lambda text: json.dumps({**json.loads(text), "hidden_act": None}),
        lambda text: json.dumps({**json.loads(text), "surprise": 1}),
    ],
)
def test_a_damaged_profile_is_refused(profile, damage):
    with pytest.raises(InvalidInputError):
        Profile.from_json(damage(profile.to_json()))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b'"threads": 1', b'"threads": 2'),
        lambda content: content.replace(b'"hidden_size": 16', b'"hidden_size": 17'),
        lambda content: bytes(range(256)),
    ],
)
def test_a_cached_profile_that_cannot_be_used_is_told_and_measured_anew(profiled, damage):
    device, use, path, notes = profiled
    path.write_bytes(damage(path.read_bytes()))
    assert use().error.num_samples == NUM
    assert len(device.calls) == 2 * NUM
    assert "is not used and measured anew" in notes[0]
    assert len(Profile.read(path).samples) == NUM


def test_a_sample_that_the_others_contradict_is_timed_again(tmp_path):
    wrong = [2.0]
    device = Device(lambda architecture: law(architecture) * (wrong.pop() if wrong and len(device.calls) > 3 else 1))
    predictor = load_or_measure(device, SPACE, TEXT, cache_dir=tmp_path, num_samples=NUM)
    assert len(device.calls) > NUM
    assert not wrong
    assert predictor.error.p95 < 0.05


def test_a_sample_that_cannot_be_timed_again_stays(tmp_path):
    device, progress = Device(lambda architecture: law(architecture) * (1 + (len(device.calls) == 4))), Notes()
    device.failure, device.fail_after = InconclusiveMeasurementError("killed"), NUM
    predictor = load_or_measure(device, SPACE, TEXT, cache_dir=tmp_path, num_samples=NUM, progress=progress)
    assert predictor.error.num_samples == NUM
    assert "not timed again: killed" in progress.notes[0]


def test_profiles_of_other_questions_do_not_meet(tmp_path):
    conditions = Device().conditions
    here = profile_path(tmp_path, conditions, SPACE, TEXT)
    assert here != profile_path(tmp_path, conditions, load_space("stock"), TEXT)
    assert here != profile_path(tmp_path, conditions, SPACE, TextSpec(hidden_act="relu"))
    assert here != profile_path(tmp_path, replace(conditions, seq_len=64), SPACE, TEXT)
    assert here != profile_path(tmp_path, replace(conditions, device="ssh me board"), SPACE, TEXT)


def test_wrong_numbers_and_a_text_too_long_are_refused(tmp_path):
    for name, values in {
        "num_samples": (0, 1001, 2.5, True),
        "seconds_each": (0, -1, math.nan, 1e9),
        "budgets_s": ((0.0,), (-1.0,), (math.nan,)),
    }.items():
        for value in values:
            with pytest.raises(InvalidInputError, match="latency_ms" if name == "budgets_s" else name):
                load_or_measure(Device(), SPACE, TEXT, cache_dir=tmp_path, **{name: value})
    with pytest.raises(InvalidInputError, match="seq_len must be at most 64"):
        load_or_measure(Device(), SPACE, TextSpec(max_positions=64), cache_dir=tmp_path)


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "profiles").write_text("a file where a folder should be")
    with pytest.raises(InvalidInputError, match="cannot write"):
        load_or_measure(Device(), SPACE, TEXT, cache_dir=tmp_path, num_samples=3)


def test_chosen_shapes_are_distinct_and_hold_the_extremes():
    space = load_space("stock")
    chosen = choose_shapes(space, 40, seed=0)
    assert len(set(chosen)) == 40
    assert chosen == choose_shapes(space, 40, seed=0)
    assert chosen != choose_shapes(space, 40, seed=1)
    assert choose_shapes(space, 28, seed=0) == chosen[:28]
    assert {space.smallest(), space.largest()} <= set(chosen[:2])
    codes = np.array([encode(space, shape) for shape in chosen])
    assert codes.min(axis=0) == pytest.approx(0)
    assert codes.max(axis=0) == pytest.approx(1)


def test_a_small_space_is_measured_whole(tmp_path):
    device = Device()
    small = SearchSpace(name="two", num_layers=(1, 2), hidden_size=(16,), intermediate_size=(32,), head_size=(16,))
    predictor = load_or_measure(device, small, TEXT, cache_dir=tmp_path, budgets_s=(0.001,))
    assert {sample.architecture for sample in predictor.samples} == set(small.enumerate()) == set(device.calls)
    load_or_measure(device, small, TEXT, cache_dir=tmp_path)
    assert len(device.calls) == 3


def test_budgets_draw_samples_near_them_and_only_random_ones_calibrate(tmp_path):
    space, device, budget_s = load_space("stock"), Device(noise=0.01), 0.04
    predictor = load_or_measure(device, space, TEXT, cache_dir=tmp_path, budgets_s=(budget_s,))
    near, rest = device.calls[28:40], device.calls[:28]
    assert rest == choose_shapes(space, 28, seed=0)
    away = [abs(math.log(device.level * law(shape) / budget_s)) for shape in near]
    assert max(away) < 0.2 < np.median([abs(math.log(device.level * law(shape) / budget_s)) for shape in rest])
    drawn = {sample.architecture for sample in predictor.samples if sample.is_drawn}
    assert len(drawn) == 20
    assert drawn == set(rest[8:])
    again = Device(noise=0.01)
    load_or_measure(again, space, TEXT, cache_dir=tmp_path / "other", budgets_s=(budget_s,))
    assert again.calls == device.calls  # the seed and what was measured decide


def test_shapes_near_a_budget_that_nothing_meets_are_the_nearest():
    space = load_space("stock")
    samples = [Sample(shape, law(shape)) for shape in choose_shapes(space, 20, seed=0)]
    predictor = LatencyPredictor(samples, Device().conditions, 0.003)
    chosen = shapes_near(predictor, space, (1e-5,), BATCH_SIZE, seed=0)
    ranked = sorted(space.enumerate(), key=law)
    assert len(set(chosen)) == BATCH_SIZE
    assert not set(chosen) & {sample.architecture for sample in samples}
    assert max(map(ranked.index, chosen)) < 60


def test_a_space_just_larger_than_the_samples_is_not_searched_for_ever(tmp_path):
    predictor = load_or_measure(Device(), SPACE, TEXT, cache_dir=tmp_path, num_samples=47, budgets_s=(0.001,))
    assert predictor.error.num_samples == 47 == SPACE.size - 1


def test_few_samples_start_from_what_the_cache_knows(tmp_path):
    """Another precision of the same board: products cost 60 %, the rest the same."""

    def other_law(architecture):
        return 0.15 + 0.05 * features(architecture, 128, 1)["layers"] + 0.6 * (law(architecture) - 0.1)

    space = load_space("stock")
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "thesis.json").write_text("not a profile")
    load_or_measure(Device(), space, TEXT, cache_dir=tmp_path)
    other = Device(other_law, noise=0.05, precision="int8")
    predictor = load_or_measure(other, space, TEXT, cache_dir=tmp_path, num_samples=12)
    assert predictor.prior is not None
    assert predictor.prior.conditions.precision == "fp32"
    path = profile_path(tmp_path, other.conditions, space, TEXT)
    assert Profile.read(path).predictor().to_dict() == predictor.to_dict()
    assert load_or_measure(other, space, TEXT, cache_dir=tmp_path, num_samples=12).to_dict()["prior"] is not None
