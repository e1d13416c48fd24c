"""A machine that nothing can reach: the folder is carried there, the runner runs alone, the answers come back."""

import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from nas.devices.by_hand import COMMAND, Question, read_answers, write_job
from nas.devices.carried import CarriedProfile
from nas.devices.target import Settings
from nas.errors import InconclusiveMeasurementError, InvalidInputError
from search_spaces.architecture import TextSpec
from search_spaces.space import SearchSpace

SPACE = SearchSpace("tiny", num_layers=(1, 2), hidden_size=(32,), intermediate_size=(32, 64), head_size=(16,))


def asked(**changes):
    facts = {"settings": Settings(seq_len=16), "space": SPACE, "text": TextSpec(), "num_samples": 4}
    return Question(**{**facts, "seconds_each": 0.02, "seed": 0, **changes})


def run_there(folder):
    """Runs the printed command where nothing of ours can be imported."""
    words = COMMAND.split()
    assert words[0] == "python3"
    return subprocess.run([sys.executable, "-I", *words[1:]], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A folder that was carried there and back."""
    folder = tmp_path_factory.mktemp("far") / "carried"
    assert write_job(folder, asked()) == 4
    assert sorted(file.name for file in folder.iterdir()) == ["job", "runner.py"]
    ended = run_there(folder)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture
def folder(answered, tmp_path):
    """A copy of it to do something to."""
    return shutil.copytree(answered, tmp_path / "back")


def events(folder):
    return [json.loads(line) for line in (folder / "answers").read_text().split("\n") if line]


def write(folder, events):
    (folder / "answers").write_text("".join(json.dumps(event) + "\n" for event in events))


def test_answers_become_a_profile_that_predicts(folder, tmp_path):
    profile = read_answers([folder / "answers"], tmp_path / "board.json")
    carried = CarriedProfile.read("board", tmp_path / "board.json")
    assert carried.profile == profile
    assert carried.settings == Settings(seq_len=16)
    assert profile.conditions.device == "board"
    assert {sample.architecture for sample in profile.samples} == set(SPACE.enumerate())
    assert carried.fingerprint.to_dict() == events(folder)[0]["facts"]
    latency = carried.predictor(SPACE, TextSpec()).predict(SPACE.largest())
    assert 0 < latency.low_s <= latency.p50_s <= latency.high_s


def test_its_date_is_when_the_machine_answered(folder, tmp_path):
    told = events(folder)
    assert all(abs(event["at_s"] - time.time()) < 3600 for event in told)
    write(folder, [{**event, "at_s": 1.7e9 + number} for number, event in enumerate(told)])
    profile = read_answers([folder / "answers"], tmp_path / "board.json")
    assert datetime.fromisoformat(profile.measured_at) == datetime.fromtimestamp(1.7e9 + len(told) - 2, UTC)


@pytest.mark.parametrize("at_s", [None, 60.0, float("nan"), 1e300, 10**400, "1.7e9", True])
def test_without_a_clock_there_its_date_is_that_of_the_file(folder, tmp_path, at_s):
    write(folder, [{**event, "at_s": at_s} for event in events(folder)])
    os.utime(folder / "answers", (1e9, 1e9))
    profile = read_answers([folder / "answers"], tmp_path / "board.json")
    assert datetime.fromisoformat(profile.measured_at) == datetime.fromtimestamp(1e9, UTC)


def test_a_run_that_was_stopped_is_gone_on_with(folder, tmp_path):
    first, *results, _ = events(folder)
    torn = json.dumps(results[2])[:40]
    write(folder, [first, *results[:2]])
    with (folder / "answers").open("a") as file:
        file.write(torn)
    with pytest.raises(InconclusiveMeasurementError, match=f"2 of 4 shapes are not answered yet; .*{COMMAND}"):
        read_answers([folder / "answers"], tmp_path / "board.json")
    assert not (tmp_path / "board.json").exists()
    assert run_there(folder).returncode == 0
    assert len(read_answers([folder / "answers"], tmp_path / "board.json").samples) == 4


def test_answers_may_lie_in_several_files(folder, tmp_path):
    first, *results, done = events(folder)
    write(folder, [first, *results[:2], done])
    (folder / "answers").rename(folder / "answers-1")
    write(folder, [first, *results[2:], done])
    assert len(read_answers([folder / "answers-1", folder / "answers"], tmp_path / "board.json").samples) == 4


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda lines: lines[:0], InvalidInputError, "did not start there: it said nothing"),
        (
            lambda lines: [{"event": "error", "message": "ModuleNotFoundError: no numpy"}],
            InvalidInputError,
            "did not start there: ModuleNotFoundError: no numpy",
        ),
        (
            lambda lines: [*lines[:2], {"event": "error", "message": "MemoryError"}],
            InconclusiveMeasurementError,
            r"3 of 4 shapes are not answered yet \(MemoryError\)",
        ),
        (
            lambda lines: [*lines, {**lines[0], "facts": {**lines[0]["facts"], "cpu_model": "another"}}],
            InvalidInputError,
            "come from different machines",
        ),
        (
            lambda lines: [{**lines[0], "facts": {"cpu_model": "x"}}, *lines[1:]],
            InconclusiveMeasurementError,
            "first answer is damaged",
        ),
        (
            lambda lines: [lines[0], {**lines[1], "samples_s": [float("nan")] * 8}, *lines[2:]],
            InconclusiveMeasurementError,
            "is damaged",
        ),
        (
            lambda lines: [lines[0], {"event": "failed", "name": lines[1]["name"], "message": "no memory"}, *lines[2:]],
            InvalidInputError,
            "cannot run .*: no memory",
        ),
        (
            lambda lines: [lines[0], {"event": "failed", "name": lines[1]["name"]}, *lines[2:]],
            InvalidInputError,
            "cannot run .*: it does not say why",
        ),
        (
            lambda lines: [lines[0], *({**line, "name": line["name"].split()[-1]} for line in lines[1:-1])],
            InconclusiveMeasurementError,
            "4 of 4 shapes are not answered",
        ),
    ],
)
def test_answers_are_checked_like_any_runners(folder, tmp_path, edit, error, message):
    write(folder, edit(events(folder)))
    with pytest.raises(error, match=message):
        read_answers([folder / "answers"], tmp_path / "board.json")


def test_answers_without_their_job_and_to_another_one_are_refused(folder, tmp_path):
    write_job(tmp_path / "other", asked(settings=Settings(seq_len=32)))
    shutil.copy(folder / "answers", tmp_path / "other" / "answers")
    out = tmp_path / "board.json"
    with pytest.raises(InconclusiveMeasurementError, match="4 of 4 shapes are not answered"):
        read_answers([tmp_path / "other" / "answers"], out)
    with pytest.raises(InvalidInputError, match="to different questions"):
        read_answers([folder / "answers", tmp_path / "other" / "answers"], out)
    with pytest.raises(InvalidInputError, match=r"cannot read .*absent"):
        read_answers([folder / "absent"], out)
    with pytest.raises(InvalidInputError, match="at least one file"):
        read_answers([], out)
    for header in (b"", b"{}", b"[]", b"{\n", b'{"question": {"seed": 1}}\n', b"\xff\n", b"[" * 100_000):
        (folder / "job").write_bytes(header)
        with pytest.raises(InvalidInputError, match="is not a job of nas devices profile --write-job"):
            read_answers([folder / "answers"], out)
    (folder / "job").unlink()
    with pytest.raises(InvalidInputError, match="put the answers beside the job"):
        read_answers([folder / "answers"], out)
    assert not out.exists()


def test_a_question_comes_back_as_it_was_asked():
    question = asked(settings=Settings(threads=2, cpus=(0, 1), precision="int8"), seed=7)
    assert Question.from_dict(json.loads(json.dumps(question.to_dict()))) == question


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": Settings(runtime="torch")}, "the runner alone measures onnxruntime and openvino, not torch"),
        ({"num_samples": 0}, "samples must be"),
        ({"num_samples": 10_000}, "samples must be"),
        ({"seconds_each": 0.0}, "seconds_each must be"),
        ({"seconds_each": float("nan")}, "seconds_each must be"),
        ({"seed": -1}, "seed must be"),
        ({"settings": Settings(seq_len=1024)}, "seq_len must be at most 512"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(changes, message):
    with pytest.raises(InvalidInputError, match=message):
        asked(**changes)


def test_a_folder_that_holds_something_is_left_alone(folder):
    with pytest.raises(InvalidInputError, match="already there and not empty"):
        write_job(folder, asked())
    assert (folder / "answers").exists()
