import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from search_spaces.errors import InvalidInputError
from search_spaces.space import SearchSpace
from supernet.adapt import AdaptConfig, adapt, load_adapted, task_to_adapt
from supernet.checkpoint import load_supernet
from supernet.course import split_budget
from supernet.evaluate import TaskQuality, TeacherAgreement
from supernet.extract import extract
from supernet.partitions import PartitionedSupernet, split_space
from supernet.teacher import load_tokenizer
from supernet.train import train
from supernet.trainer import TrainingConfig

SPACE = SearchSpace("tiny", (1, 2, 3), (32, 64), (64, 128), head_size=(16,))
CONFIG = TrainingConfig(
    steps=9, batch_size=8, seq_len=24, precision="fp32", checkpoint_every=2, learning_rate=2e-3, partitions=2
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _train(out, teacher_dir, corpus, config=CONFIG, **options):
    return train(out, space=SPACE, corpora=[str(corpus)], config=config, teacher=str(teacher_dir), **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, teacher_dir, corpus):
    torch.set_num_threads(1)
    seen = []
    out = _train(tmp_path_factory.mktemp("run") / "supernet", teacher_dir, corpus, on_status=seen.append)
    return out, seen


def test_the_whole_gets_a_third_and_its_parts_even_shares_of_the_rest():
    assert [budget.steps for budget in split_budget(CONFIG)] == [3, 3, 3]
    assert [budget.steps for budget in split_budget(replace(CONFIG, steps=12, partitions=3))] == [4, 2, 3, 3]
    minutes = [budget.minutes for budget in split_budget(replace(CONFIG, steps=None, minutes=9.0))]
    assert minutes == pytest.approx([3, 3, 3])
    assert [budget.partitions for budget in split_budget(CONFIG)] == [1, 1, 1]
    assert split_budget(replace(CONFIG, partitions=1)) == [replace(CONFIG, partitions=1)]
    with pytest.raises(InvalidInputError, match="2 partitions need at least 3 steps, got 2"):
        split_budget(replace(CONFIG, steps=2))


def test_training_in_parts_leaves_a_supernet_of_supernets(trained):
    out, seen = trained
    loaded = load_supernet(out)
    assert isinstance(loaded.supernet, PartitionedSupernet)
    assert loaded.space == SPACE
    assert loaded.training["steps"] == 9
    assert set(loaded.training["held_out"]) == {"tiny", "tiny-1of2", "tiny-2of2"}
    for place, part in enumerate(split_space(SPACE, 2), 1):
        assert load_supernet(out / f"part-{place}").space == part
        assert (out / f"part-{place}" / "tokenizer" / "tokenizer.json").exists()
    assert [status.step for status in seen if status.loss is not None] == list(range(1, 10))
    fractions = [status.fraction for status in seen]
    assert fractions == sorted(fractions)
    assert (seen[-1].fraction, seen[-1].remaining_s) == (1, 0)
    architecture = SPACE.smallest()
    assert TeacherAgreement(loaded)(architecture) == pytest.approx(
        TeacherAgreement(load_supernet(out / "part-1"))(architecture)
    )
    assert extract(loaded.supernet, SPACE.largest()).architecture == SPACE.largest()


def test_a_part_goes_on_from_the_whole(trained):
    out, seen = trained
    _, first, second = (status.held_out for status in seen if status.loss is None)
    whole = json.loads((out / "training" / "curve.jsonl").read_text().splitlines()[-1])["held_out"]
    assert second["largest"] == pytest.approx(whole["largest"], abs=2e-5)
    assert first["smallest"] == pytest.approx(whole["smallest"], abs=2e-5)


@pytest.mark.parametrize("step", [2, 3, 5, 8])
def test_a_run_cut_in_any_part_walks_the_same_path(trained, tmp_path, teacher_dir, corpus, step):
    class CutError(Exception):
        pass

    def cut(status):
        if status.step == step:
            raise CutError

    out = tmp_path / "supernet"
    with pytest.raises(CutError):
        _train(out, teacher_dir, corpus, on_status=cut)
    assert not (out / "supernet.json").exists()
    _train(out, teacher_dir, corpus, resume=True)
    assert load_supernet(out).digest == load_supernet(trained[0]).digest


@pytest.mark.slow
def test_a_run_killed_in_any_part_resumes_to_the_same_supernet(tmp_path, teacher_dir, corpus):
    """SIGKILL, again and again, at random moments behind the first checkpoint."""
    program = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[4])\n"
        "from test_few_shot import CONFIG, _train\n"
        "out = Path(sys.argv[1])\n"
        "config = replace(CONFIG, steps=150, checkpoint_every=5)\n"
        "_train(out, sys.argv[2], sys.argv[3], config, resume=any(out.rglob('latest')))\n"
    )

    def command(out):
        return [sys.executable, "-c", program, str(out), str(teacher_dir), str(corpus), str(Path(__file__).parent)]

    whole, out, kills = tmp_path / "whole", tmp_path / "killed", 0
    subprocess.run(command(whole), check=True)
    rng = random.Random(time.time_ns())
    for _ in range(5):
        process = subprocess.Popen(command(out), stderr=subprocess.DEVNULL)
        started = time.monotonic()
        while process.poll() is None and not any(out.rglob("latest")):
            time.sleep(0.02)
            assert time.monotonic() - started < 120
        time.sleep(rng.uniform(0, 4) if kills == 0 else rng.uniform(4, 14))  # later ones have to start first
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills
    if not (out / "supernet.json").exists():
        subprocess.run(command(out), check=True)
    assert load_supernet(out).digest == load_supernet(whole).digest
    for curve in whole.rglob("curve.jsonl"):
        assert _steps(out / curve.relative_to(whole)) == _steps(curve)


def _steps(curve):
    rows = map(json.loads, curve.read_text().splitlines())
    return [{name: row[name] for name in ("step", "losses", "held_out")} for row in rows]


def test_more_parts_than_the_space_has_are_refused_before_anything_is_read(tmp_path):
    with pytest.raises(InvalidInputError, match="cannot be split into 4 parts"):
        _train(tmp_path / "s", "nowhere", "nowhere.txt", replace(CONFIG, partitions=4))
    with pytest.raises(InvalidInputError, match="need at least 3 steps"):
        _train(tmp_path / "s", "nowhere", "nowhere.txt", replace(CONFIG, steps=1))


def test_a_supernet_in_parts_is_adapted_to_a_task_as_one(trained, tmp_path, tokenizer_dir):
    path = tmp_path / "task.jsonl"
    rows = [{"text": f"{word} of the nation", "label": word} for word in ("peace", "war") * 20]
    path.write_text("\n".join(map(json.dumps, rows)))
    loaded, config = load_supernet(trained[0]), AdaptConfig(steps=2, batch_size=4, seq_len=16)
    task = task_to_adapt(str(path), load_tokenizer(str(tokenizer_dir)), loaded.text, config)
    adapt(loaded, task, tmp_path / "adapted", config)
    adapted = load_adapted(tmp_path / "adapted")
    assert isinstance(adapted.supernet, PartitionedSupernet)
    assert 0 <= TaskQuality(adapted)(SPACE.smallest()) <= 1
