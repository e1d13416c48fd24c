"""``nas measure`` on a target whose latencies are given."""

import json

import numpy as np
import pytest

from analysis.latency import Conditions, measured
from nas import api
from nas.devices import resolve as resolve_module
from nas.errors import InvalidInputError

BYTES = 32_000_000


class FakeTarget:
    """Takes 8 ms for a float model and 4 ms for an int8 one, twice that at 256 tokens, with the noise it is told."""

    description = "a fake device"
    noise = 0.001
    tail = 1.0

    def __init__(self, settings):
        sizes = {name: getattr(settings, name) for name in ("precision", "threads", "batch_size", "seq_len")}
        self.conditions = Conditions("cpu", "0123", "fake 1", **sizes)

    def measure(self, models, *, seconds_each, attempts=3, on_result=None):
        p50_s = {"fp32": 0.008, "int8": 0.004}[self.conditions.precision] * max(1, self.conditions.seq_len / 128)
        rng = np.random.default_rng(0)
        samples = p50_s * np.exp(rng.normal(0, self.noise, 600))
        samples[::50] *= self.tail
        drift = np.linspace(1, 1 + seconds_each / 100, 600)  # a hot device: both slow down alike
        return {
            name: measured(
                self.conditions, (samples * drift).tolist(), (0.004 * drift).tolist(), 0.004, peak_memory_bytes=BYTES
            )
            for name in models
        }


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(resolve_module, "local_cpu", FakeTarget)
    monkeypatch.setattr(FakeTarget, "noise", 0.001)
    monkeypatch.setattr(FakeTarget, "tail", 1.0)


@pytest.fixture
def model_dir(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(b"x")
    (tmp_path / "model" / "model.int8.onnx").write_bytes(b"x")
    return tmp_path / "model"


@pytest.mark.parametrize(("budget_ms", "judgements"), [(10, ["meets", "meets"]), (6, ["exceeds", "meets"])])
def test_a_budget_that_a_file_meets(nas, model_dir, budget_ms, judgements):
    ended = nas("measure", model_dir, "--latency-ms", budget_ms, "--json")
    assert ended.code == ended.data["exit_code"] == 0
    rows = ended.data["measurements"]
    assert [row["judgement"] for row in rows] == judgements
    assert [row["file"] for row in rows] == ["model.onnx", "model.int8.onnx"]
    assert rows[0]["p50_ms"] == pytest.approx(8, rel=0.01)
    assert rows[0]["texts_per_s"] == pytest.approx(125, rel=0.01)
    assert rows[0]["memory_mb"] == 32


def test_a_budget_that_none_meets(nas, model_dir):
    assert nas("measure", model_dir, "--latency-ms", 3, "--json").data["exit_code"] == 3
    ended = nas("measure", model_dir, "--latency-ms", 3)
    assert ended.code == 3
    assert ended.out.count("exceeds 3 ms") == 2


def test_a_budget_inside_the_interval_is_undecided(nas, model_dir):
    (model_dir / "model.int8.onnx").unlink()
    FakeTarget.noise = 0.05
    low_ms = nas("measure", model_dir, "--json").data["measurements"][0]["low_ms"]
    ended = nas("measure", model_dir, "--latency-ms", low_ms * 1.001)
    assert ended.code == 5
    assert "undecided" in ended.out


def test_a_measurement_that_says_nothing_ends_with_5(nas, model_dir):
    FakeTarget.noise = 3.0
    ended = nas("measure", model_dir)
    assert ended.code == 5
    assert "inconclusive" in ended.out


def test_settings_reach_the_target(nas, model_dir, monkeypatch):
    seen = []
    monkeypatch.setattr(resolve_module, "local_cpu", lambda settings: seen.append(settings) or FakeTarget(settings))
    nas("measure", model_dir, "--threads", 2, "--batch-size", "4,1", "--seq-len", "64,32", "--cpus", "0,1")
    assert [(asked.precision, asked.seq_len, asked.batch_size) for asked in seen] == [
        (precision, length, size) for precision in ("fp32", "int8") for length in (64, 32) for size in (4, 1)
    ]
    assert {(asked.threads, asked.cpus) for asked in seen} == {(2, (0, 1))}
    seen.clear()
    nas("measure", model_dir, "--precision", "int8")
    assert [asked.precision for asked in seen] == ["int8"]


def test_what_would_be_ignored_is_refused(nas, model_dir):
    ended = nas("measure", model_dir, "--ray-address", "garbage")
    assert ended.code == 2
    assert "a Ray address is for a device on it, which cpu is not; leave --ray-address out" in ended.err
    ended = nas("measure", model_dir, "--sustained", 1, "--seconds", 30)
    assert ended.code == 2
    assert "--sustained says how long each is timed; leave --seconds out" in ended.err


def test_threads_and_cores_are_written_beside_the_number(nas, model_dir):
    arguments = ("measure", model_dir, "--threads", 2, "--cpus", "0,1")
    rows = nas(*arguments, "--json").data["measurements"]
    assert [(row["threads"], row["cpus"]) for row in rows] == [(2, [0, 1])] * 2
    assert "on a fake device, 2 threads, cores 0,1\n" in nas(*arguments).out
    assert [(row["threads"], row["cpus"]) for row in nas("measure", model_dir, "--json").data["measurements"]] == [
        (1, None)
    ] * 2
    assert "on a fake device\n" in nas("measure", model_dir).out


@pytest.mark.parametrize("verb", ["measure", "search"])
def test_the_help_says_that_a_devices_own_settings_hold(nas, verb):
    told = " ".join(nas(verb, "--help").out.split())
    assert "the device's own by default, else 1." in told
    assert "the device's own by default, else the idlest." in told


def test_a_budget_binds_under_every_condition(nas, model_dir):
    arguments = ("measure", model_dir, "--precision", "fp32", "--seq-len", "128,256", "--json", "--latency-ms")
    assert nas(*arguments, 10).code == 3  # meets at 128 tokens, exceeds at 256
    assert [row["judgement"] for row in nas(*arguments, 10).data["measurements"]] == ["meets", "exceeds"]
    assert nas(*arguments, 20).code == 0


def test_a_budget_may_bind_the_tail(nas, model_dir):
    FakeTarget.tail = 3.0
    arguments = ("measure", model_dir, "--precision", "fp32", "--latency-ms", 10, "--json", "--percentile")
    codes = {percentile: nas(*arguments, percentile).code for percentile in (50, 90, 99)}
    assert codes == {50: 0, 90: 0, 99: 3}
    row = nas(*arguments, 99).data["measurements"][0]
    assert row["p99_ms"] == pytest.approx(24, rel=0.05)


def test_a_tail_gets_the_samples_it_needs_or_is_told_how_many_it_lacks(nas, model_dir, monkeypatch):
    def measure(target, models, *, seconds_each, attempts=3, on_result=None):
        num = int(seconds_each / (2.5 * 0.008))
        return {name: measured(target.conditions, [0.008] * num, [0.004] * num, 0.004) for name in models}

    monkeypatch.setattr(FakeTarget, "measure", measure)
    arguments = ("measure", model_dir, "--precision", "fp32", "--latency-ms", 10, "--percentile", 99)
    ended = nas(*arguments)
    assert ended.code == 0
    assert "meets 10 ms at p99" in ended.out
    ended = nas(*arguments, "--sustained", 2)
    assert ended.code == 5
    assert "p99 of model.onnx needs 299 samples and 100 were taken; time it for 8 seconds or longer." in ended.out
    assert nas(*arguments, "--sustained", 8).code == 0


def test_a_device_that_slows_down_is_found_out(nas, model_dir):
    drift = nas("measure", model_dir, "--precision", "fp32", "--sustained", 60, "--json").data["measurements"][0][
        "drift"
    ]
    assert drift == pytest.approx(0.5, abs=0.1)
    assert "drift" in nas("measure", model_dir, "--sustained", 60).out
    ended = nas("measure", model_dir, "--json")
    assert ended.data["measurements"][0]["drift"] is None


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--latency-ms", "0", "latency_ms must be a number above 0 and at most 600000, got 0.0"),
        ("--latency-ms", "-5", "latency_ms must be"),
        ("--latency-ms", "nan", "latency_ms must be"),
        ("--latency-ms", "inf", "latency_ms must be"),
        ("--latency-ms", "1e9", "latency_ms must be"),
        ("--threads", "0", "threads must be a whole number from 1 to 1024, got 0"),
        ("--batch-size", "100000", "batch_size must be"),
        ("--seq-len", "0", "seq_len must be"),
        ("--seconds", "0", "seconds_each must be"),
        ("--sustained", "-1", "sustained_s must be"),
        ("--percentile", "95", "percentile must be 50, 90 or 99, got 95"),
        ("--percentile", "0", "percentile must be"),
        ("--seq-len", "32,x", "--seq-len must be a whole number or several"),
        ("--seq-len", "32,32", "--seq-len must be at most 8 different"),
        ("--runtime", "onnx", "onnxruntime"),
        ("--precision", "fp8", "precision must be one of fp32, int8"),
    ],
)
def test_a_number_out_of_bounds_is_said(nas, model_dir, option, value, message):
    ended = nas("measure", model_dir, option, value)
    assert ended.code == 2
    assert message in ended.err


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch"])
def test_a_text_longer_than_the_model_reads_is_refused_before_the_device_is_asked(nas, model_dir, monkeypatch, runtime):
    seen = []
    monkeypatch.setattr(resolve_module, "local_cpu", lambda settings: seen.append(settings) or FakeTarget(settings))
    (model_dir / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 512}))
    ended = nas("measure", model_dir, "--runtime", runtime, "--seq-len", "32,513")
    assert ended.code == 2
    assert "model reads at most 512 tokens, got --seq-len 513" in ended.err
    assert not seen
    assert nas("measure", model_dir, "--runtime", runtime, "--seq-len", 512).code == 0


@pytest.mark.parametrize(("longest", "asked"), [(64, 64), (512, 128), (None, 128)])
def test_by_default_a_text_is_no_longer_than_the_model_reads(nas, model_dir, monkeypatch, longest, asked):
    seen = []
    monkeypatch.setattr(resolve_module, "local_cpu", lambda settings: seen.append(settings) or FakeTarget(settings))
    (model_dir / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": longest}))
    assert nas("measure", model_dir).code == 0
    assert {settings.seq_len for settings in seen} == {asked}


def test_a_number_too_large_for_a_float_is_refused(model_dir):
    with pytest.raises(InvalidInputError, match="latency_ms must be a number above 0"):
        api.measure(model_dir, latency_ms=10**400)


def test_a_folder_without_a_model_is_said(nas, tmp_path):
    ended = nas("measure", tmp_path)
    assert ended.code == 2
    assert "holds no model.onnx or model.int8.onnx" in ended.err


def test_another_device_is_never_measured_instead(nas, model_dir):
    ended = nas("measure", model_dir, "--device", "a100", "--json")
    assert ended.code == 4
    assert "cpu" in ended.err
    assert "a100" in ended.data["error"]
