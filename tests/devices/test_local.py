"""The local target on a fake machine: retries, joined rounds, the session's level, damaged answers."""

import math

import numpy as np
import pytest

from nas.devices.local import LocalCpu
from nas.devices.target import Level
from nas.errors import InconclusiveMeasurementError, InvalidInputError

RATIOS = {"small": 0.5, "large": 2.0}


def by_name(name, path):
    return RATIOS[name]


def test_latencies_are_ratio_times_the_level(fake, tiny_models):
    target, runner = fake(by_name)
    latencies = target.measure(tiny_models)
    for name, ratio in RATIOS.items():
        assert latencies[name].p50_s == pytest.approx(0.003 * ratio, rel=0.01)
        assert latencies[name].verdict == "ok"
        assert latencies[name].conditions == target.conditions
    assert len(runner.jobs) == 1


def test_the_reference_is_the_whole_sessions(fake, tiny_models):
    target, runner = fake(by_name)
    for level in (0.003, 0.003, 0.0036):
        runner.level = level
        latency = target.measure(tiny_models)["large"]
    assert latency.p50_s == pytest.approx(0.006, rel=0.01)
    assert latency.high_s >= 0.0072 * 0.99  # at the level just seen, the median is still within the interval
    assert target.anchor_reference_s == pytest.approx(0.003, rel=0.01)


def test_recent_levels_of_another_process_widen_the_interval_and_move_nothing(fake, tiny_models):
    target, _ = fake(by_name, now=lambda: 1e9)
    target.recall([Level(1e9 - 60, 0.0042)] * 3 + [Level(1e9 - 7200, 0.009), Level(1e9 + 5, 0.009)])
    latency = target.measure(tiny_models)["large"]
    assert latency.p50_s == pytest.approx(0.006, rel=0.01)
    assert latency.high_s == pytest.approx(0.0084, rel=0.25)
    assert latency.high_s > 0.0066
    assert max(level.time_s for level in target.levels) == 0.0042
    later, _ = fake(by_name, now=lambda: 1e9 + 7200)
    later.recall(target.levels)
    assert not later.levels


@pytest.mark.parametrize("pair", [(0, 1), (1, math.nan), ("1", 1), (1, True), (1, math.inf)])
def test_a_level_is_checked(pair):
    with pytest.raises(InvalidInputError, match="a level's"):
        Level(*pair)


def test_even_a_calm_session_leaves_room_for_the_next_process(fake, tiny_models):
    target, _ = fake(by_name, noise=1e-6)
    latency = target.measure(tiny_models)["large"]
    assert latency.high_s > latency.p50_s * 1.01


def test_noisy_models_alone_are_timed_again_and_their_rounds_joined(fake, tiny_models):
    target, runner = fake(by_name)
    calm = runner.answer

    def answer(entry):
        runner.noise = 0.25 if entry["name"] == "large" else 0.003
        return calm(entry)

    runner.answer = answer
    seen = []
    latencies = target.measure(tiny_models, attempts=3, on_result=lambda name, latency: seen.append(name))
    assert [[entry["name"] for entry in job["candidates"]] for job in runner.jobs] == [
        ["small", "large"],
        ["large"],
        ["large"],
    ]
    assert seen == ["small", "large", "large", "large"]
    assert (latencies["small"].num_rounds, latencies["large"].num_rounds) == (12, 36)
    assert latencies["large"].verdict == "noisy"
    assert runner.jobs[1]["candidates"][0]["burst"] == 3
    assert runner.jobs[1]["anchor_burst"] == 2


def test_rounds_under_pressure_give_way_to_calm_ones(fake, tiny_models):
    target, runner = fake(lambda name, path: 2.0 if runner.waiting_share == 0 else 3.0)
    calm = runner.answer

    def answer(entry):
        runner.waiting_share = 0.5 if len(runner.jobs) == 1 else 0.0
        return calm(entry)

    runner.answer = answer
    latency = target.measure(tiny_models[:1])["small"]
    assert (latency.verdict, latency.num_rounds, len(runner.jobs)) == ("ok", 12, 2)
    assert latency.p50_s == pytest.approx(0.006, rel=0.01)


def test_lasting_pressure_is_said_and_bounds_the_wall_clock(fake, tiny_models):
    target, runner = fake(by_name)
    runner.waiting_share = 0.3
    latency = target.measure(tiny_models)["large"]
    assert (latency.verdict, len(runner.jobs)) == ("noisy", 3)
    assert latency.high_s >= 0.006 / 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples_s": [math.nan] * 36}, "positive, finite"),
        ({"samples_s": []}, "needs samples"),
        ({"samples_s": "fast"}, "positive, finite"),
        ({"num_rounds": 0}, "damaged"),
        ({"num_rounds": "12"}, "damaged"),
        ({"num_rounds": 5}, "equal rounds"),
        ({"pressure": {"load": 1}}, "damaged"),
        ({"name": "other"}, "not asked"),
    ],
)
def test_a_damaged_answer_is_refused(fake, tiny_models, change, message):
    target, runner = fake(by_name)
    calm = runner.answer
    runner.answer = lambda entry: {**calm(entry), **change}
    with pytest.raises(InconclusiveMeasurementError, match=message):
        target.measure(tiny_models)


def test_a_runner_that_forgets_a_model_is_found_out(fake, tiny_models):
    target, _ = fake(by_name)
    target._run = lambda job: []
    with pytest.raises(InconclusiveMeasurementError, match="without timing small, large"):
        target.measure(tiny_models)


def test_a_model_that_cannot_run_is_the_callers_error(fake, tiny_models):
    target, runner = fake(by_name)
    runner.answer = lambda entry: {"event": "failed", "name": entry["name"], "message": "no such operator"}
    with pytest.raises(InvalidInputError, match="cannot run small: no such operator"):
        target.measure(tiny_models)


def test_what_to_measure_is_checked(fake, tiny_models, tmp_path):
    target, _ = fake(by_name)
    with pytest.raises(InvalidInputError, match="a name of its own"):
        target.measure([tiny_models[0], tiny_models[0]])
    with pytest.raises(InvalidInputError, match="a name of its own"):
        target.measure([])
    with pytest.raises(InvalidInputError, match="not there"):
        target.measure([("ghost", tmp_path / "ghost.onnx")])
    for seconds in (0, -1, math.nan, math.inf):
        with pytest.raises(InvalidInputError, match="seconds_each"):
            target.measure(tiny_models, seconds_each=seconds)
    with pytest.raises(InvalidInputError, match="attempts"):
        target.measure(tiny_models, attempts=0)
    with pytest.raises(InvalidInputError, match="only after"):
        _ = target.anchor_reference_s


def test_a_real_run_orders_real_models(tiny_models):
    target = LocalCpu(seq_len=32)
    latencies = target.measure(tiny_models, seconds_each=0.2, attempts=1)
    assert set(latencies) == {"small", "large"}
    for latency in latencies.values():
        assert latency.source == "measured"
        assert np.median(latency.samples_s) > 0
    assert latencies["small"].ratio < 1  # far smaller than the anchor, on any machine
