"""The local target on a fake machine: retries, joined rounds, the session's level, damaged answers."""

import json
import math

import numpy as np
import onnx
import pytest

from nas.devices import runner as runner_module
from nas.devices.local import local_cpu
from nas.devices.target import Level, Settings, Shape
from nas.errors import DeviceNotAvailableError, InconclusiveMeasurementError, InvalidInputError
from nas.export.onnx_graph import build_graph
from search_spaces.architecture import Architecture, TextSpec

RATIOS = {"small": 0.5, "large": 2.0}


by_name = RATIOS.__getitem__


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
    target, runner = fake(lambda name: 2.0 if runner.waiting_share == 0 else 3.0)
    calm = runner.answer

    def answer(entry):
        runner.waiting_share = 0.5 if len(runner.jobs) == 1 else 0.0
        return calm(entry)

    runner.answer = answer
    latency = target.measure({"small": tiny_models["small"]})["small"]
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
        ({"energy_j": math.nan}, "energy_j"),
        ({"peak_memory_bytes": "much"}, "peak_memory_bytes"),
        ({"name": "other"}, "not asked"),
    ],
)
def test_a_damaged_answer_is_refused(fake, tiny_models, change, message):
    target, runner = fake(by_name)
    calm = runner.answer
    runner.answer = lambda entry: {**calm(entry), **change}
    with pytest.raises(InconclusiveMeasurementError, match=message):
        target.measure(tiny_models)


def test_what_was_answered_before_the_runner_broke_down_is_kept(fake, tiny_models):
    target, runner = fake(by_name)
    runner.fail_after, runner.failure = 1, InconclusiveMeasurementError("cut")
    calm = runner.answer

    def answer(entry):
        runner.fail_after = None if len(runner.jobs) > 1 else 1
        return calm(entry)

    runner.answer = answer
    seen = []
    latencies = target.measure(tiny_models, on_result=lambda name, latency: seen.append(name))
    asked = [[entry["name"] for entry in job["candidates"]] for job in runner.jobs]
    assert (asked, seen) == ([["small", "large"], ["large"]], ["small", "large"])
    assert set(latencies) == set(tiny_models)
    broken, runner = fake(by_name)
    runner.fail_after, runner.failure = 0, InconclusiveMeasurementError("cut")
    with pytest.raises(InconclusiveMeasurementError, match="cut"):
        broken.measure(tiny_models, attempts=2)


def test_another_device_at_the_end_of_the_line_is_found_out(fake, tiny_models):
    target, runner = fake(by_name)

    def elsewhere(job):
        for event in runner(job):
            yield {**event, "facts": {**event["facts"], "cpu_model": "another"}} if "facts" in event else event

    target._run = elsewhere
    with pytest.raises(InvalidInputError, match=r"no longer what it was .*cpu_model was .*'another'"):
        target.measure(tiny_models)


def test_throttling_is_told_and_no_measurement_under_it_is_ok(fake, tiny_models):
    target, runner = fake(by_name)
    runner.throttled = ["too hot"]
    latency = target.measure(tiny_models)["large"]
    assert (latency.verdict, latency.pressure.throttled) == ("noisy", ("too hot",))


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
    with pytest.raises(InvalidInputError, match="at least one"):
        target.measure({})
    for ghost in (tmp_path / "ghost.onnx", tmp_path):
        with pytest.raises(InvalidInputError, match="model file of ghost is not there"):
            target.measure({"ghost": ghost})
    for seconds in (0, -1, math.nan, math.inf):
        with pytest.raises(InvalidInputError, match="seconds_each"):
            target.measure(tiny_models, seconds_each=seconds)
    with pytest.raises(InvalidInputError, match="attempts"):
        target.measure(tiny_models, attempts=0)
    with pytest.raises(InvalidInputError, match="only after"):
        _ = target.anchor_reference_s


def test_a_real_run_orders_real_models(tiny_models):
    target = local_cpu(Settings(seq_len=32))
    latencies = target.measure(tiny_models, seconds_each=0.2, attempts=1)
    assert set(latencies) == {"small", "large"}
    for latency in latencies.values():
        assert latency.source == "measured"
        assert np.median(latency.samples_s) > 0
    assert latencies["small"].ratio < 1  # far smaller than the anchor, on any machine


def test_a_real_run_of_shapes_needs_no_weights_to_travel():
    shapes = {
        shape.key(): Shape(shape, TextSpec())
        for shape in (Architecture.bert(1, 64, 128, 2), Architecture.bert(12, 384, 1536, 12))
    }
    for precision in ("fp32", "int8"):
        job = local_cpu(Settings(seq_len=32, precision=precision)).job(shapes)
        assert sum(len(chunk) for chunk in job.chunks(heartbeat_s=None)) < 50_000
        assert sum(job.header["fill"].values()) > 20e6
    small = {key: shape for key, shape in shapes.items() if "D64" in key}
    latency = local_cpu(Settings(seq_len=32)).measure(small, seconds_each=0.2, attempts=1)["L1-D64-F128-H2x32"]
    assert 0 < latency.ratio < 1


def test_memory_is_measured_of_models_and_not_of_shapes(tiny_models):
    target = local_cpu(Settings(seq_len=32))
    text = TextSpec(vocab_size=100_000)
    wide = build_graph(Architecture.bert(1, 256, 128, 2), text, None)
    path = tiny_models["small"].with_name("wide.onnx")
    onnx.save(wide, str(path))
    models = {"small": tiny_models["small"], "wide": path, "shape": Shape(Architecture.bert(1, 64, 128, 2), text)}
    found = target.measure(models, seconds_each=0.1, attempts=1)
    assert found["shape"].peak_memory_bytes is None
    table_bytes = 100_000 * 256 * 4
    small, wide = (found[name].peak_memory_bytes for name in ("small", "wide"))
    assert 0 < small < table_bytes / 2
    assert 0.9 * table_bytes < wide - small < 4 * table_bytes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cpus": (999,)}, "cpus must be among"),
        ({"threads": 1024, "cpus": None}, "at most the"),
        ({"cpus": (0, 0)}, "different core numbers"),
        ({"cpus": (-1,)}, "different core numbers"),
        ({"threads": 2, "cpus": (0,)}, "as many cores"),
        ({"runtime": "onnx"}, "onnxruntime"),
        ({"precision": "fp16"}, "precision must be one of fp32, int8 in onnxruntime"),
        ({"seq_len": 0}, "seq_len"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        local_cpu(Settings(**settings))


def test_a_runtime_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr(runner_module, "_version", lambda package: "absent")
    with pytest.raises(DeviceNotAvailableError, match="openvino is not installed here; pip install openvino"):
        local_cpu(Settings(runtime="openvino"))


def test_settings_survive_json():
    settings = Settings(runtime="torch", precision="bf16", threads=2, cpus=(2, 3), batch_size=8, seq_len=32)
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    with pytest.raises(InvalidInputError, match="hold exactly"):
        Settings.from_dict({"runtime": "torch"})


def test_openvino_times_the_same_graphs():
    pytest.importorskip("openvino", reason="pip install 'tiny-plm-nas[openvino]'")
    shape = Shape(Architecture.bert(1, 64, 128, 2), TextSpec())
    target = local_cpu(Settings(runtime="openvino", seq_len=32))
    latency = target.measure({"small": shape}, seconds_each=0.2, attempts=1)["small"]
    assert latency.conditions.runtime.startswith("openvino ")
    assert 0 < latency.p50_s < target.anchor_reference_s
