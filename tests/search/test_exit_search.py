"""A search over early exits on a real, tiny supernet: chosen, taught, set to the budget, measured and told of."""

import json
import random

import numpy as np
import pytest
from pipeline_fakes import SPACE, device, supernet_dir

import nas
from analysis.latency import Conditions, predicted
from nas.cli.tables import print_result
from nas.errors import InvalidInputError
from nas.finish import after_search, exits_after_search
from nas.finish.exits import AdaptiveModel
from nas.progress import SilentProgress
from nas.search.exit_policy import Exits, before_evaluation, exits_of, prefixes
from search_spaces.architecture import Architecture
from supernet import adapt

__all__ = ["device", "supernet_dir"]  # fixtures

CONDITIONS = Conditions("cpu", "fake", "arithmetic", seq_len=16)


def latency(p50_ms):
    return predicted(CONDITIONS, p50_ms / 1e3, 0.9 * p50_ms / 1e3, 1.1 * p50_ms / 1e3)


def test_the_expected_latency_is_the_mean_over_where_texts_leave():
    latencies = [latency(1.0), latency(2.0), latency(4.0)]
    expected = Exits(0.9, 0.8, (0.5, 0.25, 0.25)).expected(latencies)
    assert (expected.p50_s, expected.low_s, expected.high_s) == pytest.approx((2e-3, 1.8e-3, 2.2e-3))
    before = before_evaluation(latencies)
    assert (before.p50_s, before.low_s) == pytest.approx((7e-3 / 3, 0.9e-3))


def test_confidences_are_counted_on_the_other_half_than_they_are_fitted_on():
    """Layer 1 knows half of the texts for sure and guesses the others, layer 2 knows all."""
    rng = np.random.default_rng(0)
    labels = np.arange(800) % 2
    knows = rng.random(800) < 0.5
    first = np.where(knows, 8.0 * (2 * labels - 1), 0.2 * rng.standard_normal(800))
    second = 8.0 * (2 * labels - 1)
    logits = np.stack([np.stack([-scores, scores], -1) for scores in (first, second)])
    found = {one.confidence: one for one in exits_of(logits, labels)}
    assert found[None].shares == (0.0, 1.0)
    assert found[None].accuracy == 1.0
    assert found[0.9].shares[0] == pytest.approx(0.5, abs=0.08)
    assert found[0.9].accuracy == 1.0


def test_prefixes_are_the_layers_one_after_the_other():
    shape = Architecture.bert(3, 48, 64, 3)
    assert prefixes(shape) == [Architecture.bert(number, 48, 64, 3) for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def task(tmp_path_factory, paragraphs):
    """Texts that name what is asked: easy enough to leave early."""
    rng, rows = random.Random(0), []
    for number in range(240):
        words = rng.choice(paragraphs).split()[:5]
        words.insert(rng.randrange(6), ["peace", "war"][number % 2])
        split = "train" if number < 180 else "validation" if number < 210 else "test"
        rows.append({"text": " ".join(words), "label": ["calm", "strife"][number % 2], "split": split})
    path = tmp_path_factory.mktemp("task") / "task.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def quick(monkeypatch, device):
    monkeypatch.setattr(after_search, "TEACHER_EPOCHS", 6.0)
    monkeypatch.setattr(after_search, "TEACHER_RATE", 4e-3)
    monkeypatch.setattr(after_search, "RATE", 4e-3)
    monkeypatch.setattr(exits_after_search, "RATE", 2e-3)
    config = adapt.AdaptConfig
    monkeypatch.setattr(adapt, "AdaptConfig", lambda **given: config(steps=40, batch_size=16, seq_len=16, **given))


class StopAt(SilentProgress):
    def __init__(self, phase):
        self.phase = phase

    def start(self, phase, total=None):
        if phase == self.phase:
            raise KeyboardInterrupt


def asked(supernet_dir, task, out, latency_ms=50.0, **more):
    settings = {"seq_len": 16, "supernet": supernet_dir, "evaluations": 6, "epochs": 6, "exits": "expected"} | more
    return nas.search(latency_ms, task=task, out=out, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(("bound", "precision"), [("expected", "fp32"), ("worst", "fp32"), ("expected", "int8")])
def test_it_ends_with_a_model_that_leaves_early_within_the_budget(
    supernet_dir, task, tmp_path, quick, capsys, bound, precision
):
    stopped = StopAt("setting and measuring the exits")
    with pytest.raises(KeyboardInterrupt):
        asked(supernet_dir, task, tmp_path / "run", exits=bound, precision=precision, progress=stopped)
    result = nas.search(resume=tmp_path / "run")
    assert result.exit_code == 0
    told = json.loads(json.dumps(result.to_dict()))["exits"]
    assert (told["bound"], told["split"], told["precision"]) == (bound, "test", precision)
    assert result.chosen.precision == precision
    assert 0 < told["expected_ms"] <= 1.1 * told["worst_ms"]
    assert result.chosen.trial.latency.source == "measured"
    assert result.chosen.trial.latency.p50_s * 1e3 == told["expected_ms" if bound == "expected" else "worst_ms"]
    assert sum(told["shares"]) == pytest.approx(1)
    assert told["accuracy"] > 0.8
    assert told["num_exits"] == result.chosen.trial.architecture.num_layers >= 2
    model = AdaptiveModel.load(told["folder"], precision=precision)
    answers = model.predict(["war on the land", "peace on the land"], batch_size=1)
    assert [answer.label for answer in answers] == ["strife", "calm"]
    assert model.policy.threshold == told["confidence"]
    print_result(result)
    shown = capsys.readouterr().out
    assert f"{told['expected_ms']:.2f} ms as expected" in shown
    assert f"{told['worst_ms']:.2f} ms at worst" in shown
    assert shown.count("which the budget binds") == 1
    assert f"(all measured, in {precision})" in shown
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{told['worst_ms']:.2f} ms at worst" in page
    measured = nas.measure(told["folder"], seq_len=16, exits=bound, seconds_each=0.1)
    assert (measured.binds, set(measured.shares)) == (bound, {"fp32", "int8"})
    scores = nas.evaluate(told["folder"], task=task, split="test").scores
    runtime = "onnx" if precision == "fp32" else "onnx-int8"
    assert scores[runtime]["accuracy"] == pytest.approx(told["accuracy"], abs=0.1)
    assert nas.search(resume=tmp_path / "run").to_dict() == result.to_dict()


@pytest.mark.slow
def test_the_number_format_is_chosen_beside_the_depth(supernet_dir, task, tmp_path, quick):
    result = asked(supernet_dir, task, tmp_path / "run", precision=("fp32", "int8"), evaluations=10)
    assert result.exit_code == 0
    judged = {trial.architecture.precision for trial in result.trials}
    assert judged == {"fp32", "int8"}
    chosen = result.chosen.trial
    assert chosen.architecture.precision == chosen.latency.conditions.precision == result.exits["precision"]
    assert chosen.key.endswith("-int8") == (result.exits["precision"] == "int8")


@pytest.mark.slow
def test_a_budget_that_no_depth_keeps_is_refused_by_measuring(supernet_dir, task, tmp_path, quick):
    result = asked(supernet_dir, task, tmp_path / "run", latency_ms=1e-3)
    assert result.exit_code in (3, 5)
    assert result.chosen is None
    assert not (tmp_path / "run" / "exit-model").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exits": "both"}, "unknown latency for exits to bind 'both'"),
        ({"task": None, "epochs": None}, "exits stop where the answer to a task is decided; add --task"),
        ({"runtime": "torch"}, "timed on this machine's cpu, one text at a time, by onnxruntime on one thread"),
        ({"precision": ("fp32", "int4")}, "int4"),
        ({"seq_len": (16, 32)}, "timed on this machine's cpu"),
        ({"batch_size": 4}, "timed on this machine's cpu"),
        ({"percentile": 90}, "a budget binds the expected or the worst latency; leave --percentile"),
        ({"max_size_mb": 5}, "a budget binds the expected or the worst latency"),
        ({"engine": "ray"}, "exits are searched by one sampler in one process"),
        ({"narrow": True}, "which narrow layers do not give; leave --exits or --narrow out"),
    ],
)
def test_what_cannot_have_exits_is_refused_before_anything_is_written(supernet_dir, task, tmp_path, changes, message):
    with pytest.raises(InvalidInputError, match=message):
        asked(supernet_dir, **{"task": task, "out": tmp_path / "run", **changes})
    assert not (tmp_path / "run").exists()


def test_numbers_have_no_leading_class(supernet_dir, tmp_path):
    rows = [{"text": f"{number} peace", "label": number / 7} for number in range(60)]
    (tmp_path / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InvalidInputError, match="which a regression task does not have; leave --exits out"):
        asked(supernet_dir, str(tmp_path / "numbers.jsonl"), tmp_path / "run")
    assert SPACE.num_layers[0] == 1
