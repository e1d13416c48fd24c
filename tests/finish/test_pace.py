"""Minutes in place of steps: how many steps fit, and that a run keeps to what it planned."""

import json
import time

import pytest
import torch
from task_cases import war_or_peace, write_rows

import nas
from nas.errors import InvalidInputError
from nas.finish import pace
from nas.finish.companion import Beside
from nas.finish.finetune import unfinished
from nas.finish.model import load_model
from nas.finish.pace import PLAN_FILE, Pace, measure_pace
from nas.finish.sparsity import read_lock
from nas.finish.training import Hooks, LoopConfig
from nas.progress import SilentProgress
from supernet.examples import Examples


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    monkeypatch.setattr(pace, "MOST_S", 0.1)


@pytest.mark.parametrize(
    ("taken", "every", "evaluations", "steps"),
    [
        (Pace(0.5, 3.0), None, 8, 72),  # 60 s less 24 s of evaluations
        (Pace(0.5, 3.0), 6, 0, 60),  # a step and a sixth of an evaluation take 1 s
        (Pace(0.5, 3.0, 1.0, 10), 6, 0, 50),
        (Pace(0.5, 3.0, 9.0, 10), 6, 0, 6),  # fewer steps than choices: one each
        (Pace(70.0, 3.0), 6, 0, 1),
    ],
)
def test_steps_and_all_that_goes_along_fill_the_time(taken, every, evaluations, steps):
    assert taken.num_steps(60.0, every=every, evaluations=evaluations) == steps


def test_a_pace_is_what_the_parts_took():
    module, examples = torch.nn.Linear(2, 1), Examples([[1, 2]] * 20, [[0, 0]] * 20, [0] * 20, None, 0)

    def loss(batch):
        time.sleep(0.02)
        return {"label": module(torch.ones(1, 2)).square().mean()}

    beside = Beside(Hooks(), num_choices=7, choose=lambda: time.sleep(0.03))
    config = LoopConfig(batch_size=4, precision="fp32")
    found = measure_pace(module, examples, loss, lambda: time.sleep(0.05) or {}, config, beside)
    assert 0.02 <= found.step_s < 0.2
    assert 0.05 <= found.evaluation_s < 0.5
    assert 0.03 <= found.choice_s < 0.3
    assert found.num_choices == 7


class StopAt(SilentProgress):
    """Stops a training once a share of its steps is done."""

    def __init__(self, share):
        self.share, self.total, self.is_training = share, 0, False

    def start(self, phase, total=None):
        self.is_training, self.total = phase in ("training", "fine-tuning"), total

    def update(self, done, **facts):
        if self.is_training and done >= self.share * self.total:
            raise KeyboardInterrupt


@pytest.mark.parametrize("learns", ["text", "task"])
def test_pruning_fits_into_minutes_and_a_resumed_run_keeps_its_plan(
    encoder_dir, corpus, paragraphs, tmp_path, learns, command
):
    model, given = encoder_dir, {"corpora": [str(corpus)], "seq_len": 16}
    if learns == "task":
        source = write_rows(tmp_path / "task.jsonl", war_or_peace(paragraphs))
        nas.finetune(encoder_dir, tmp_path / "dense", task=source, epochs=0.2)
        model, given = tmp_path / "dense", {"task": source}
    out, given = tmp_path / "out", {"minutes": 0.05, "batch_size": 4, "sparsity": 0.8, **given}
    with pytest.raises(KeyboardInterrupt):
        nas.prune(model, out, progress=StopAt(0.6), **given)
    plan = unfinished(out) / PLAN_FILE
    steps = json.loads(plan.read_text())["steps"]
    assert steps > 20
    with pytest.raises(InvalidInputError, match="repeat the command with --resume"):
        nas.prune(model, out, **given)
    with pytest.raises(InvalidInputError, match=r"was started with 0\.05 minutes"):
        nas.prune(model, out, resume=True, **{**given, "minutes": 0.1})
    nas.prune(model, out, resume=True, **given)
    lock, facts = read_lock(out, load_model(out).encoder)
    assert (facts.sparsity, lock.sparsity) == (0.8, pytest.approx(0.8, abs=1e-2))
    assert not unfinished(out).exists()
    nas.prune(model, tmp_path / "whole", **{**given, "minutes": None, "steps": steps})
    one, other = (load_model(folder).encoder.state_dict() for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_training_to_be_rounded_takes_about_its_minutes(encoder_dir, corpus, tmp_path):
    progress = Told()
    began_s = time.monotonic()
    nas.quantize(
        encoder_dir, tmp_path / "out", mode="qat", corpora=[str(corpus)], minutes=0.1, batch_size=4, seq_len=16,
        progress=progress,
    )  # fmt: skip
    assert 0.4 * 6 < progress.trained_s < 2.5 * 6  # the machine's other work comes and goes
    assert time.monotonic() - began_s < 60
    assert "steps a second" in progress.said


class Told(SilentProgress):
    """What was said, and how long the training took by the clock."""

    def __init__(self):
        self.phase, self.began_s, self.trained_s, self.said = "", 0.0, 0.0, ""

    def start(self, phase, total=None):
        self.phase, self.began_s = phase, time.monotonic()

    def finish(self, message=""):
        self.said += message
        if self.phase == "training":
            self.trained_s = time.monotonic() - self.began_s


def test_minutes_are_checked_first(encoder_dir, tmp_path, command):
    for words, said in (
        (["prune", "--minutes", "0", "--corpus", "x.txt"], "minutes must be"),
        (["prune", "--minutes", "1", "--steps", "5", "--corpus", "x.txt"], "give either --steps or --minutes"),
        (["quantize", "--minutes", "1"], "minutes are for qat, which trains, and dynamic does not"),
        (["quantize", "--steps", "7", "--mode", "static"], "steps are for qat, which trains, and static does not"),
        (["quantize", "--teacher", "t"], "teacher is for qat, which trains, and dynamic does not"),
        (["quantize", "--resume"], "dynamic is done in one go; leave --resume out"),
    ):
        code, _, error = command(words[0], encoder_dir, "--out", tmp_path / "out", "--quiet", *words[1:])
        assert code == 2
        assert said in error
    assert not (tmp_path / "out").exists()


def test_minutes_that_hold_too_few_steps_are_refused_before_any_work(encoder_dir, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("nas.finish.text_training.measure_pace", lambda *args: Pace(1.0, 0.1))
    with pytest.raises(InvalidInputError, match="needs at least 20 steps, got"):
        nas.prune(encoder_dir, tmp_path / "out", corpora=[str(corpus)], minutes=0.1)
    with pytest.raises(InvalidInputError, match="needs at least 20 steps, got"):  # nothing that would be in the way
        nas.prune(encoder_dir, tmp_path / "out", corpora=[str(corpus)], minutes=0.2)
