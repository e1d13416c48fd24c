"""The runner process: a real measurement of tiny models, and every way in which it can go wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from nas.devices import clock
from nas.devices.clock import Job, RunnerError, run_job
from nas.devices.fingerprint import Fingerprint
from nas.devices.ray_node import RayNode, run_on_node
from nas.devices.runner import MAX_STRETCH, PROTOCOL, Energy
from nas.devices.ssh import SshAddress, over_ssh
from nas.devices.torch_workload import run_torch
from nas.errors import InconclusiveMeasurementError, InvalidInputError


def job(models, **changes):
    """Models by name as a job; the first is the anchor too."""
    files = {f"{name}.onnx": path for name, path in models.items()}
    candidates = [{"name": name, "file": f"{name}.onnx"} for name in models]
    facts = {"protocol": PROTOCOL, "runtime": "onnxruntime", "anchor": next(iter(files)), "candidates": candidates}
    facts |= {"threads": 1, "cpus": None, "batch_size": 2, "seq_len": 16, "seconds_each": 0.05, "fill": {}}
    return Job({**facts, **changes}, files)


def results(*arguments, **settings):
    """What a job comes to, less its first event."""
    first, *events = run_job(*arguments, **settings)
    assert first["event"] == "ready"
    return events


def python(code):
    return (sys.executable, "-P", "-c", code)


def answers(command, timeout_s=30.0):
    return list(run_job(Job({}), answer_timeout_s=timeout_s, command=command))


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize("threads", [1, 2])
def test_real_models_are_timed_in_rounds(tiny_models, threads):
    events = results(job(tiny_models, threads=threads), answer_timeout_s=60)
    assert [(event["event"], event["name"]) for event in events] == [("result", "small"), ("result", "large")]
    for event in events:
        assert event["num_rounds"] >= 8
        assert (
            len(event["samples_s"]) % event["num_rounds"] == len(event["anchor_samples_s"]) % event["num_rounds"] == 0
        )
        assert all(time_s > 0 for time_s in event["samples_s"] + event["anchor_samples_s"])
        assert set(event["pressure"]) == {"busy_share", "steal_share", "waiting_share"}


def test_bursts_of_an_earlier_job_are_repeated(tiny_models):
    models = job(tiny_models, anchor_burst=5)
    models.header["candidates"][1]["burst"] = 7
    event = results(models, answer_timeout_s=60)[1]
    assert len(event["samples_s"]) == 7 * event["num_rounds"]
    assert len(event["anchor_samples_s"]) == 5 * event["num_rounds"]


def test_a_model_that_cannot_be_loaded_does_not_stop_the_others(tiny_models, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    models = {"small": tiny_models["small"], "broken": tmp_path / "broken.onnx", "large": tiny_models["large"]}
    events = results(job(models), answer_timeout_s=60)
    assert [event["event"] for event in events] == ["result", "failed", "result"]
    assert events[1]["message"]


def test_the_runners_first_word_names_the_device(tiny_models):
    import onnxruntime

    cpu = max(os.sched_getaffinity(0))
    ready = next(iter(run_job(job(tiny_models, cpus=[cpu]), answer_timeout_s=60)))
    assert (ready["runtime"], ready["cpus"]) == (f"onnxruntime {onnxruntime.__version__}", [cpu])
    assert Fingerprint.from_facts(ready["facts"]) == Fingerprint.of_this_machine()


def test_a_core_that_is_not_there_is_told_with_those_that_are(tiny_models):
    offered = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
    with pytest.raises(RunnerError, match=rf"cpus must be among those offered \({offered}\), got \[1023\]") as caught:
        list(run_job(job(tiny_models, cpus=[1023]), answer_timeout_s=60))
    assert caught.value.kind == InvalidInputError.__name__


@pytest.mark.parametrize(
    "run",
    [
        run_job,
        run_torch,
        pytest.param(
            over_ssh(SshAddress("nowhere.invalid")),
            marks=pytest.mark.skipif(shutil.which("ssh") is None, reason="needs the program ssh"),
        ),
        partial(run_on_node, RayNode("auto", resource="board")),
    ],
    ids=["local", "torch", "ssh", "ray"],
)
def test_an_answer_is_waited_for_as_long_as_a_busy_machine_may_make_it(run, monkeypatch):
    waited = []
    monkeypatch.setattr(clock, "_lines", lambda stream, timeout_s: waited.append(timeout_s) or [b'{"event": "done"}'])
    assert list(run(Job({"runtime": "onnxruntime", "threads": 1, "seconds_each": 3600}))) == []
    assert waited[0] > MAX_STRETCH * 3600


def by_hand(folder, *arguments, stdin=None):
    """The runner as on a machine that is not connected: one file, in a folder without this project."""
    copy = folder / "runner.py"
    copy.write_bytes(clock.RUNNER.read_bytes())
    command = [sys.executable, "-P", "runner.py", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60, cwd=folder)


def test_by_hand_through_pipes_and_by_files_that_are_continued(tiny_models, tmp_path):
    content = b"".join(job(tiny_models).chunks(heartbeat_s=None))
    done = by_hand(tmp_path, stdin=content)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["ready", "result", "result", "done"]
    (tmp_path / "job").write_bytes(content)
    lines = done.stdout.splitlines(keepends=True)
    (tmp_path / "answers").write_bytes(b"".join(lines[:2]) + lines[2][:50])  # stopped in the middle of a line
    assert by_hand(tmp_path, "job", "answers").returncode == 0
    kept, *torn_and_new = (tmp_path / "answers").read_bytes().splitlines(keepends=True)[1:]
    assert kept == lines[1]
    assert torn_and_new[0] == lines[2][:50] + b"\n"
    assert [json.loads(line).get("name") for line in torn_and_new[1:]] == [None, "large", None]


def test_it_leaves_nothing_behind(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    results(job(tiny_models), answer_timeout_s=60)
    events = run_job(job(tiny_models, seconds_each=60), answer_timeout_s=60)
    next(events)
    assert list(tmp_path.glob("nas-*"))
    events.close()
    assert not list(tmp_path.glob("nas-*"))


def test_a_full_disk_there_is_said(tiny_models):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    code = (
        "import runpy, pathlib, sys\n"
        "real = pathlib.Path.open\n"
        "pathlib.Path.open = lambda self, mode='r', *a, **k: real(\n"
        "    pathlib.Path('/dev/full') if 'w' in mode else self, mode, *a, **k)\n"
        f"runpy.run_path({str(clock.RUNNER)!r}, run_name='__main__')"
    )
    with pytest.raises(InconclusiveMeasurementError, match="No space left on device"):
        list(run_job(job(tiny_models), answer_timeout_s=60, command=python(code)))


def test_a_job_of_another_protocol_is_refused(tiny_models):
    with pytest.raises(InconclusiveMeasurementError, match="speaks protocol 2, the job is of 99"):
        list(run_job(job(tiny_models, protocol=99), answer_timeout_s=60))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('warming up...')", "no event: 'warming up...'"),
        ("print('[1, 2]')", "no event"),
        ('print(\'{"event": "failed", "name": "a"}\')', "no event"),
        ("import os; os.write(1, bytes(range(128, 200)) + b'\\n')", "no event"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("raise ImportError('no module named onnxruntime')", "exit status 1; its last words: ImportError: no module"),
        ("pass", "exit status 0"),
        ('print(\'{"event": "error", "message": "RuntimeError: out of memory"}\')', "out of memory"),
    ],
)
def test_a_runner_that_breaks_is_told_in_one_sentence(code, message):
    with pytest.raises(InconclusiveMeasurementError, match=message) as caught:
        answers(python(code))
    assert "measure again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_program_and_a_damaged_job_are_told(tiny_models):
    with pytest.raises(InconclusiveMeasurementError, match="cannot start"):
        answers(("/nowhere/python",))
    with pytest.raises(InconclusiveMeasurementError, match="KeyError"):
        list(run_job(Job({"protocol": PROTOCOL, "fill": {}}), answer_timeout_s=60))


def test_silence_is_not_waited_for_for_ever(monkeypatch, tmp_path):
    monkeypatch.setattr(clock, "START_TIMEOUT_S", 0.0)
    place = tmp_path / "pid"
    code = f"import os, time, pathlib; pathlib.Path({str(place)!r}).write_text(str(os.getpid())); time.sleep(600)"
    with pytest.raises(InconclusiveMeasurementError, match="no answer for 2 seconds"):
        answers(python(code), timeout_s=2.0)
    assert not is_alive(int(place.read_text()))


def test_leaving_early_kills_the_runner_and_its_children():
    code = (
        "import json, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(json.dumps({'event': 'result', 'pid': child.pid}), flush=True); time.sleep(600)"
    )
    events = run_job(Job({}), answer_timeout_s=30, command=python(code))
    child = next(events)["pid"]
    assert is_alive(child)
    events.close()
    assert wait_until(lambda: not is_alive(child))


def test_the_runner_dies_when_its_sender_is_killed(tiny_models, tmp_path):
    header = job(tiny_models, seconds_each=600).header
    files = {f"{name}.onnx": str(path) for name, path in tiny_models.items()}
    code = (
        "from pathlib import Path\nfrom nas.devices import clock\nimport subprocess\nstart = subprocess.Popen\n"
        "def popen(*a, **k):\n    process = start(*a, **k); print(process.pid, flush=True); return process\n"
        f"clock.subprocess.Popen = popen\nfiles = {{name: Path(path) for name, path in {files!r}.items()}}\n"
        f"list(clock.run_job(clock.Job({header!r}, files), answer_timeout_s=600))"
    )
    root = Path(clock.__file__).parents[2]
    sender = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    try:
        runner = int(sender.stdout.readline())
        assert is_alive(runner)
        sender.send_signal(signal.SIGKILL)
        sender.wait()
        assert wait_until(lambda: not is_alive(runner))
    finally:
        sender.kill()
        sender.stdout.close()


def test_the_runner_ends_when_its_sender_falls_silent(tiny_models, tmp_path, monkeypatch):
    """A sender that is stopped, or a connection that is cut without a word, keeps its end of the pipe open."""
    monkeypatch.setattr(clock, "HEARTBEAT_S", 60.0)
    monkeypatch.setattr(clock, "SILENCE_S", 1.0)
    started = time.monotonic()
    with pytest.raises(InconclusiveMeasurementError, match="exit status 3"):
        list(run_job(job(tiny_models, seconds_each=30), answer_timeout_s=60))
    assert time.monotonic() - started < 25


def test_energy_counters_are_read_and_put_right(tmp_path):
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    for name, text in (("name", "package-0"), ("energy_uj", "9000000"), ("max_energy_range_uj", "10000000")):
        (zone / name).write_text(text)
    core = tmp_path / "intel-rapl:0:0"
    core.mkdir()
    (core / "name").write_text("core")
    energy = Energy(tmp_path)
    before = energy.now()
    (zone / "energy_uj").write_text("9500000")
    assert energy.since(before) == 0.5
    (zone / "energy_uj").write_text("250000")
    assert energy.since(before) == 1.25
    assert not Energy(tmp_path / "absent")
