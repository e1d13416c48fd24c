"""Profiles on a fake machine: measured once, resumed, checked on reuse, refused when damaged."""

import json
import math

import numpy as np
import onnx
import pytest

from analysis.latency import Conditions
from nas.devices import profile as profile_module
from nas.devices.predictor import Sample, features
from nas.devices.profile import Profile, choose_shapes, load_or_measure, profile_path
from nas.devices.target import Level
from nas.errors import InconclusiveMeasurementError, InvalidInputError
from nas.progress import SilentProgress
from search_spaces.architecture import Architecture, TextSpec
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


class Notes(SilentProgress):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


def law(path):
    """Recognises a shape by its file: the truth is a sum of its weights' sizes."""
    model = onnx.load(path)
    sizes = {weight.name: math.prod(weight.dims) for weight in model.graph.initializer}
    return 0.1 + sum(size for name, size in sizes.items() if name.startswith("blocks")) / 1e5


@pytest.fixture
def machine(fake):
    return fake(lambda name, path: law(path))


@pytest.fixture
def profiled(machine, tmp_path):
    """A target that was profiled: (target, runner, use), where ``use()`` asks for the predictor again."""
    target, runner = machine
    progress = Notes()

    def use(on=target, num_samples=NUM):
        return load_or_measure(on, SPACE, TEXT, cache_dir=tmp_path, num_samples=num_samples, progress=progress)

    use()
    path = profile_path(tmp_path, target.conditions, SPACE, TEXT)
    return target, runner, use, path, progress


def timed(runner):
    return sum(len(job["candidates"]) for job in runner.jobs)


def test_the_first_use_measures_and_the_second_only_checks(profiled):
    _, runner, use, path, progress = profiled
    assert timed(runner) == NUM
    assert len(Profile.from_json(path.read_text()).samples) == NUM
    seen = set(Profile.from_json(path.read_text()).levels)
    assert seen
    predictor = use()
    assert timed(runner) == NUM + 2
    assert seen < set(Profile.from_json(path.read_text()).levels)  # what one process sees, the next one recalls
    assert not progress.notes
    shape = SPACE.largest()
    assert predictor.predict(shape).source == "predicted"
    assert predictor.predict(shape).p50_s > predictor.predict(SPACE.smallest()).p50_s


def test_an_interrupted_profiling_goes_on(machine, tmp_path):
    target, runner = machine
    runner.failure, runner.fail_after = KeyboardInterrupt(), 3
    progress = Notes()
    with pytest.raises(KeyboardInterrupt):
        load_or_measure(target, SPACE, TEXT, cache_dir=tmp_path, num_samples=NUM, progress=progress)
    path = profile_path(tmp_path, target.conditions, SPACE, TEXT)
    first = Profile.from_json(path.read_text()).samples
    assert len(first) == 3
    runner.fail_after = None
    runner.jobs.clear()
    load_or_measure(target, SPACE, TEXT, cache_dir=tmp_path, num_samples=NUM, progress=progress)
    assert timed(runner) == 2 + NUM - 3  # a check, then what is missing
    assert Profile.from_json(path.read_text()).samples[:3] == first
    assert "interrupted after 3 shapes" in progress.notes[0]


def test_a_runner_that_dies_once_is_started_again_and_twice_is_told(machine, tmp_path):
    target, runner = machine
    deaths = [3]
    calm = runner.answer

    def answer(entry):
        if deaths and len(runner.jobs) == 1 and runner.jobs[0]["candidates"].index(entry) == deaths[0]:
            deaths.pop()
            raise InconclusiveMeasurementError("killed")
        return calm(entry)

    runner.answer = answer
    assert load_or_measure(target, SPACE, TEXT, cache_dir=tmp_path, num_samples=NUM).error.num_samples == NUM
    runner.answer, runner.failure, runner.fail_after = calm, InconclusiveMeasurementError("killed"), 0
    with pytest.raises(InconclusiveMeasurementError, match="killed"):
        load_or_measure(target, SPACE, TextSpec(hidden_act="relu"), cache_dir=tmp_path, num_samples=NUM)


def test_a_slower_machine_moves_the_level_and_says_so(fake, profiled, tmp_path):
    _, _, use, _, progress = profiled
    before = use().predict(SPACE.largest())
    slow, runner = fake(lambda name, path: law(path), level=0.0039)
    after = use(on=slow).predict(SPACE.largest())
    assert timed(runner) == 2
    assert after.p50_s == pytest.approx(1.3 * before.p50_s, rel=0.02)
    assert "+30%" in progress.notes[-1]


def test_a_profile_whose_shapes_disagree_is_measured_anew(fake, profiled):
    _, _, use, _, progress = profiled
    other, runner = fake(lambda name, path: 1.25 * law(path))
    predictor = use(on=other)
    assert timed(runner) == 4 + NUM  # two checks, then everything
    assert "stale" in progress.notes[0]
    assert "measured anew" in progress.notes[0]
    assert predictor.predict(SPACE.largest()).ratio > 1.2 * 0.95 * (0.1 + 0)


def test_more_samples_are_added_to_what_is_there(profiled):
    _, runner, use, _, _ = profiled
    runner.jobs.clear()
    assert use(num_samples=NUM + 6).error.num_samples == NUM + 6
    assert timed(runner) == 2 + 6


@pytest.fixture(scope="module")
def content():
    """A profile's file."""
    conditions = Conditions("cpu", "f00d", "onnxruntime 1.31.1")
    samples = tuple(Sample(shape, 1.0 + number) for number, shape in enumerate(choose_shapes(SPACE, 5, seed=0)))
    levels = (Level(1e9, 0.003), Level(1e9 + 1, 0.0031))
    return Profile(
        conditions, SPACE.to_dict(), samples, 0.003, (0.9, 1.1), "2026-01-02T03:04:05+00:00", levels
    ).to_json()


def test_a_profile_survives_json(content):
    assert Profile.from_json(content).to_json() == content


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"ratio": ', '"ratio": -', 1),
        lambda text: text.replace('"ratio": ', '"ratio": NaN, "was": ', 1),
        lambda text: text.replace('"ratio": 1.0', '"ratio": Infinity', 1),
        lambda text: text.replace('"schema_version": 1', '"schema_version": 7', 1),
        lambda text: text.replace('"threads": 1', '"threads": 0'),
        lambda text: text.replace('"hidden_size": 16', '"hidden_size": -16'),
        lambda text: "[" * 100_000,
        lambda text: "[]",
        lambda text: json.dumps({**json.loads(text), "measured_at": "yesterday"}),
        lambda text: json.dumps({**json.loads(text), "levels": [[1, -1]]}),
        lambda text: json.dumps({**json.loads(text), "levels": 3}),
        lambda text: json.dumps({**json.loads(text), "space": {}}),
    ],
)
def test_a_damaged_profile_is_refused(content, damage):
    with pytest.raises(InvalidInputError):
        Profile.from_json(damage(content))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"threads": 1', '"threads": 2'),
        lambda text: text.replace('"hidden_size": 16', '"hidden_size": 17'),
    ],
)
def test_a_profile_that_cannot_be_used_is_told_and_measured_anew(profiled, damage):
    _, runner, use, path, progress = profiled
    path.write_text(damage(path.read_text()))
    runner.jobs.clear()
    assert use().error.num_samples == NUM
    assert timed(runner) == NUM
    assert "is not used and measured anew" in progress.notes[0]
    assert len(Profile.from_json(path.read_text()).samples) == NUM


def test_a_binary_profile_is_told_too(profiled):
    _, _, use, path, progress = profiled
    path.write_bytes(bytes(range(256)))
    use()
    assert "is not used" in progress.notes[0]


def test_a_sample_that_the_others_contradict_is_timed_again(fake, tmp_path):
    wrong = [True]

    def ratio(name, path):
        value = law(path)
        if wrong and value > 0.2:
            wrong.pop()
            return 2 * value
        return value

    target, runner = fake(ratio)
    predictor = load_or_measure(target, SPACE, TEXT, cache_dir=tmp_path, num_samples=NUM)
    assert timed(runner) > NUM
    assert not wrong
    assert predictor.error.p95 < 0.15


def test_profiles_of_other_questions_do_not_meet(machine, tmp_path):
    target, _ = machine
    here = profile_path(tmp_path, target.conditions, SPACE, TEXT)
    assert here != profile_path(tmp_path, target.conditions, load_space("stock"), TEXT)
    assert here != profile_path(tmp_path, target.conditions, SPACE, TextSpec(hidden_act="relu"))
    longer = type(target)(seq_len=64).conditions
    assert here != profile_path(tmp_path, longer, SPACE, TEXT)


def test_wrong_numbers_and_a_text_too_long_are_refused(machine, tmp_path):
    target, _ = machine
    for num in (0, 1001, 2.5, True):
        with pytest.raises(InvalidInputError, match="num_samples"):
            load_or_measure(target, SPACE, TEXT, cache_dir=tmp_path, num_samples=num)
    with pytest.raises(InvalidInputError, match="seq_len must be at most 64"):
        load_or_measure(target, SPACE, TextSpec(max_positions=64), cache_dir=tmp_path)


def test_a_cache_that_cannot_be_written_is_told(machine, tmp_path):
    target, _ = machine
    (tmp_path / "profiles").write_text("a file where a folder should be")
    with pytest.raises(InvalidInputError, match="cannot write"):
        load_or_measure(target, SPACE, TEXT, cache_dir=tmp_path, num_samples=3)


def test_chosen_shapes_are_distinct_and_hold_the_extremes():
    space = load_space("stock")
    chosen = choose_shapes(space, 40, seed=0)
    assert len(set(chosen)) == 40
    assert chosen == choose_shapes(space, 40, seed=0)
    assert chosen != choose_shapes(space, 40, seed=1)
    assert {space.smallest(), space.largest()} <= set(chosen[:2])
    codes = np.array([encode(space, shape) for shape in chosen])
    assert codes.min(axis=0) == pytest.approx(0)
    assert codes.max(axis=0) == pytest.approx(1)


def test_a_small_space_is_measured_whole(machine, tmp_path):
    target, runner = machine
    small = SearchSpace(name="two", num_layers=(1, 2), hidden_size=(16,), intermediate_size=(32,), head_size=(16,))
    predictor = load_or_measure(target, small, TEXT, cache_dir=tmp_path)
    assert timed(runner) == 2
    assert {sample.architecture for sample in predictor.samples} == set(small.enumerate())
    load_or_measure(target, small, TEXT, cache_dir=tmp_path)
    assert timed(runner) == 3
    assert isinstance(next(iter(small.enumerate())), Architecture)
    assert features(small.largest(), 8, 1)["layers"] == 2
    assert profile_module.BATCH_SIZE >= 1
