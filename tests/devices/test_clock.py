"""The runner process: a real measurement of tiny models, and every way in which it can go wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nas.devices import clock
from nas.devices.clock import run_job
from nas.errors import InconclusiveMeasurementError


def job(models, **changes):
    candidates = [{"name": name, "path": str(path)} for name, path in models]
    facts = {"anchor": str(models[0][1]), "candidates": candidates, "threads": 1, "cpus": None, "batch_size": 2}
    return {**facts, "seq_len": 16, "seconds_each": 0.05, **changes}


def python(code):
    return (sys.executable, "-P", "-c", code)


def answers(command, timeout_s=30.0):
    return list(run_job({}, answer_timeout_s=timeout_s, command=command))


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
    events = list(run_job(job(tiny_models, threads=threads), answer_timeout_s=60))
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
    models["candidates"][1]["burst"] = 7
    event = list(run_job(models, answer_timeout_s=60))[1]
    assert len(event["samples_s"]) == 7 * event["num_rounds"]
    assert len(event["anchor_samples_s"]) == 5 * event["num_rounds"]


def test_a_model_that_cannot_be_loaded_does_not_stop_the_others(tiny_models, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    models = [tiny_models[0], ("broken", tmp_path / "broken.onnx"), tiny_models[1]]
    events = list(run_job(job(models), answer_timeout_s=60))
    assert [event["event"] for event in events] == ["result", "failed", "result"]
    assert events[1]["message"]


def test_the_runner_is_pinned_and_its_first_word_names_the_runtime(tiny_models):
    import onnxruntime

    cpu = max(os.sched_getaffinity(0))
    command = [sys.executable, "-P", str(clock.RUNNER)]
    content = json.dumps(job(tiny_models[:1], cpus=[cpu])) + "\n"
    done = subprocess.run(command, input=content, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout.splitlines()[0]) == {
        "event": "ready",
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "cpus": [cpu],
    }


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
        list(run_job({"anchor": str(tiny_models[0][1])}, answer_timeout_s=60))


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
    events = run_job({}, answer_timeout_s=30, command=python(code))
    child = next(events)["pid"]
    assert is_alive(child)
    events.close()
    assert wait_until(lambda: not is_alive(child))


def test_the_runner_dies_when_its_sender_is_killed(tiny_models, tmp_path):
    content = json.dumps(job(tiny_models, seconds_each=600))
    code = (
        "import json\nfrom nas.devices import clock\nimport subprocess\nstart = subprocess.Popen\n"
        "def popen(*a, **k):\n    process = start(*a, **k); print(process.pid, flush=True); return process\n"
        f"clock.subprocess.Popen = popen\nlist(clock.run_job(json.loads({content!r}), answer_timeout_s=600))"
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
