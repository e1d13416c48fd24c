"""``nas measure`` on a target whose latencies are given."""

import numpy as np
import pytest

from analysis.latency import Conditions, measured
from nas.devices import resolve as resolve_module


class FakeTarget:
    """Takes 8 ms for a float model and 4 ms for an int8 one, with the noise it is told."""

    description = "a fake device"
    noise = 0.001

    def __init__(self, **conditions):
        self.conditions = Conditions("cpu", "0123", "fake 1", **conditions)

    def measure(self, models, *, seconds_each, attempts=3, on_result=None):
        p50_s = {"fp32": 0.008, "int8": 0.004}[self.conditions.precision]
        rng = np.random.default_rng(0)
        samples = (p50_s * np.exp(rng.normal(0, self.noise, 20))).tolist()
        return {name: measured(self.conditions, samples, [0.004] * 20, 0.004) for name, _ in models}


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setitem(resolve_module._DEVICES, "cpu", FakeTarget)
    monkeypatch.setattr(FakeTarget, "noise", 0.001)


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
    assert [file["judgement"] for file in ended.data["files"].values()] == judgements
    assert ended.data["files"]["model.onnx"]["p50_ms"] == pytest.approx(8, rel=0.01)


def test_a_budget_that_none_meets(nas, model_dir):
    assert nas("measure", model_dir, "--latency-ms", 3, "--json").data["exit_code"] == 3
    ended = nas("measure", model_dir, "--latency-ms", 3)
    assert ended.code == 3
    assert ended.out.count("exceeds 3 ms") == 2


def test_a_budget_inside_the_interval_is_undecided(nas, model_dir):
    (model_dir / "model.int8.onnx").unlink()
    FakeTarget.noise = 0.05
    low_ms = nas("measure", model_dir, "--json").data["files"]["model.onnx"]["low_ms"]
    ended = nas("measure", model_dir, "--latency-ms", low_ms * 1.001)
    assert ended.code == 5
    assert "undecided" in ended.out


def test_a_measurement_that_says_nothing_ends_with_5(nas, model_dir):
    FakeTarget.noise = 1.5
    ended = nas("measure", model_dir)
    assert ended.code == 5
    assert "inconclusive" in ended.out


def test_conditions_reach_the_target(nas, model_dir, monkeypatch):
    seen = []
    monkeypatch.setitem(
        resolve_module._DEVICES, "cpu", lambda **conditions: seen.append(conditions) or FakeTarget(**conditions)
    )
    nas("measure", model_dir, "--threads", 2, "--batch-size", 4, "--seq-len", 64)
    assert seen[0] == {"threads": 2, "batch_size": 4, "seq_len": 64, "precision": "fp32"}
    assert [conditions["precision"] for conditions in seen] == ["fp32", "int8"]


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
    ],
)
def test_a_number_out_of_bounds_is_said(nas, model_dir, option, value, message):
    ended = nas("measure", model_dir, option, value)
    assert ended.code == 2
    assert message in ended.err


def test_a_folder_without_a_model_is_said(nas, tmp_path):
    ended = nas("measure", tmp_path)
    assert ended.code == 2
    assert "holds no model.onnx or model.int8.onnx" in ended.err


def test_another_device_is_never_measured_instead(nas, model_dir):
    ended = nas("measure", model_dir, "--device", "a100", "--json")
    assert ended.code == 4
    assert "cpu" in ended.err
    assert "a100" in ended.data["error"]
