"""Times ONNX models in ONNX Runtime: one file, standard library + numpy + onnxruntime, to be run in a fresh process.

Nothing else of this project is imported, so the file can be copied to any machine with python3 and onnxruntime::

    python3 runner.py < job.json

It reads one JSON line, the job, and answers with one JSON line per event on standard output::

    {"anchor": PATH, "anchor_burst": 3, "candidates": [{"name": NAME, "path": PATH, "burst": 4}, ...], "threads": 1,
     "cpus": [1] or null, "batch_size": 1, "seq_len": 128, "seconds_each": 1.0, "spinning": true, "keep_open": true}

    {"event": "ready", "runtime": "onnxruntime 1.31.1", "cpus": [1]}
    {"event": "result", "name": NAME, "samples_s": [...], "anchor_samples_s": [...], "num_rounds": R, "pressure": {...}}
    {"event": "failed", "name": NAME, "message": TEXT}        this candidate could not be run; the others are
    {"event": "done"}                                         or {"event": "error", "message": TEXT}

A round is a burst of the anchor and a burst of the candidate in random order, so that neither drift nor a rhythm of the
machine favours one. The first run of a burst is not counted: it finds the caches full of the other model, which is
not what a loop over one model, or a user of one model, sees. Burst sizes are chosen here (a few milliseconds) unless
the job repeats those of an earlier job, so that its rounds can be joined to the earlier ones.

With one thread the clock is the thread's own: time in which the scheduler lets others run does not count, and is told
as ``waiting_share`` instead; with four busy processes on two cores that kept ratios within 2 % where the wall clock's
were 20 % off. With more threads it is the wall clock.

With ``keep_open`` the job's sender keeps standard input open, and its end means that the sender is gone: the runner
ends too, as it does when its parent process changes.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

MIN_ROUNDS, MAX_ROUNDS = 8, 400
MIN_BURST, MAX_BURST = 2, 64
BURST_S = 0.008
MAX_STRETCH = 2.5  # how much longer than asked for a busy machine may make it
WARM_UP_RUNS, WARM_UP_S = 3, 0.1


class OrphanedError(Exception):
    """Who asked for the job is gone."""


class Model:
    """One ONNX session with inputs to run it on."""

    def __init__(self, path: str, job: dict[str, Any], burst: int | None = None) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = job["threads"]
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if job.get("spinning", True) else "0")
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = {
            node.name: _input(node.name, job["batch_size"], job["seq_len"]) for node in self.session.get_inputs()
        }
        self.outputs = [node.name for node in self.session.get_outputs()]
        self.clock = time.thread_time if job["threads"] == 1 else time.perf_counter
        self.run_s = self._warm_up()
        self.burst = burst or max(MIN_BURST, min(MAX_BURST, round(BURST_S / self.run_s)))

    def time(self, num_runs: int) -> list[float]:
        """Seconds of each of ``num_runs`` runs, after one that is not counted."""
        self.session.run(self.outputs, self.inputs)
        times = []
        for _ in range(num_runs):
            start = self.clock()
            self.session.run(self.outputs, self.inputs)
            times.append(self.clock() - start)
        return times

    def _warm_up(self) -> float:
        times = self.time(WARM_UP_RUNS)
        while sum(times) < WARM_UP_S:
            times += self.time(WARM_UP_RUNS)
        return max(1e-7, sorted(times)[len(times) // 2])


def _input(name: str, batch_size: int, seq_len: int) -> Any:
    """Texts without padding: a padded position costs what a real one costs."""
    import numpy as np

    shape = (batch_size, seq_len)
    if name == "attention_mask":
        return np.ones(shape, np.int64)
    if name == "input_ids":
        return np.broadcast_to(np.arange(seq_len, dtype=np.int64) % 8, shape).copy()
    return np.zeros(shape, np.int64)


def measure(anchor: Model, candidate: Model, seconds: float, parent: int) -> dict[str, Any]:
    """Interleaves the candidate with the anchor for about ``seconds``."""
    round_s = sum(model.run_s * (model.burst + 1) for model in (anchor, candidate))
    num_rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, round(seconds / round_s)))
    order = random.Random(num_rounds)
    samples: dict[Model, list[float]] = {anchor: [], candidate: []}
    before = _activity()
    started_s, done = time.perf_counter(), 0
    while done < num_rounds and (done < MIN_ROUNDS or time.perf_counter() - started_s < MAX_STRETCH * seconds):
        if os.getppid() != parent:
            raise OrphanedError
        done += 1
        for model in (anchor, candidate) if order.random() < 0.5 else (candidate, anchor):
            samples[model] += model.time(model.burst)
    return {
        "samples_s": samples[candidate],
        "anchor_samples_s": samples[anchor],
        "num_rounds": done,
        "pressure": _pressure(before, _activity()),
    }


def _activity() -> dict[str, float]:
    """Clocks of this process and of the machine's cores, where the system shows them (Linux)."""
    clocks = {"now": time.monotonic()}
    cpus: set[int] = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    with contextlib.suppress(OSError, ValueError, IndexError):
        tasks = list(Path("/proc/self/task").iterdir())
        clocks["waiting"] = max(int((task / "schedstat").read_text().split()[1]) for task in tasks) / 1e9
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/stat").read_text().splitlines():
            name, *fields = line.split()
            if not name.startswith("cpu") or name == "cpu":
                continue
            ticks = [int(field) for field in fields[:8]]  # user nice system idle iowait irq softirq steal
            other = int(name[3:]) not in cpus
            for key, value in (("total", sum(ticks)), ("steal", ticks[7])):
                clocks[key] = clocks.get(key, 0) + value
            if other:
                clocks["other_total"] = clocks.get("other_total", 0) + sum(ticks)
                clocks["other_busy"] = clocks.get("other_busy", 0) + sum(ticks) - ticks[3] - ticks[4]
    return clocks


def _pressure(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    def share(part: str, whole: str) -> float:
        if part not in before or whole not in before or after.get(whole, 0) <= before[whole]:
            return 0.0
        return min(1.0, max(0.0, (after.get(part, 0) - before[part]) / (after[whole] - before[whole])))

    return {
        "busy_share": share("other_busy", "other_total"),
        "steal_share": share("steal", "total"),
        "waiting_share": share("waiting", "now"),
    }


def run(job: dict[str, Any], emit: Any) -> None:
    """Does the whole job; ``emit`` takes each event."""
    if job.get("cpus") and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job["cpus"])
    import onnxruntime

    parent = os.getppid()
    anchor = Model(job["anchor"], job, job.get("anchor_burst"))
    emit({"event": "ready", "runtime": f"onnxruntime {onnxruntime.__version__}", "cpus": job.get("cpus")})
    gc.collect()
    gc.disable()
    for entry in job["candidates"]:
        try:
            result = measure(anchor, Model(entry["path"], job, entry.get("burst")), job["seconds_each"], parent)
        except OrphanedError:
            raise
        except Exception as error:
            emit({"event": "failed", "name": entry["name"], "message": f"{type(error).__name__}: {error}"})
            continue
        emit({"event": "result", "name": entry["name"], **result})
    emit({"event": "done"})


def _end_with_sender() -> None:
    """Ends this process when standard input ends."""
    while os.read(0, 4096):
        pass
    os._exit(3)


def main() -> int:
    """Reads the job from standard input and answers on standard output."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not look like an answer

    def emit(event: dict[str, Any]) -> None:
        answers.write(json.dumps(event) + "\n")

    try:
        job = json.loads(sys.stdin.buffer.readline())
        if job.get("keep_open"):
            threading.Thread(target=_end_with_sender, daemon=True).start()
        run(job, emit)
    except (OrphanedError, BrokenPipeError):
        return 3
    except Exception as error:
        emit({"event": "error", "message": f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # the thread that waits for the end of standard input would hold a normal exit up
