"""Times models: one file, standard library + numpy + onnxruntime, to be run in a fresh process on the device.

Nothing else of this project is imported, so the file can be copied to any machine with python3 and onnxruntime, or be
sent there through a pipe. On a machine that nothing can reach it is run by hand; the second form goes on where an
earlier run was stopped::

    python3 runner.py < job > answers
    python3 runner.py job answers

The job is one JSON line and the bytes of the files that it names, one after the other::

    {"protocol": 2, "runtime": "onnxruntime", "device": "cpu", "threads": 1, "cpus": [1] or null, "batch_size": 1,
     "seq_len": 128, "seconds_each": 1.0, "anchor": FILE, "anchor_burst": 3 or null,
     "candidates": [{"name": NAME, "file": FILE, "burst": 4 or null, "memory": false}, ...],
     "files": [{"name": FILE, "size": BYTES, "deflated": false}, ...], "fill": {"weights.float32": BYTES, ...},
     "heartbeat_s": 30 or null}

``fill`` names files that are made here, of random numbers or zeros: graphs that came without their weights refer to
them, so that kilobytes travel and not megabytes. The answers are one JSON line per event::

    {"event": "ready", "protocol": 2, "runtime": "onnxruntime 1.31.1", "facts": {...}, "cpus": [1]}
    {"event": "result", "name": NAME, "samples_s": [...], "anchor_samples_s": [...], "num_rounds": R,
     "pressure": {...}, "peak_memory_bytes": N or null, "energy_j": X or null, "throttled": [...]}
    {"event": "failed", "name": NAME, "message": TEXT}        this candidate could not be run; the others are
    {"event": "done"}                                         or {"event": "error", "kind": TYPE, "message": TEXT}

A round is a burst of the anchor and a burst of the candidate in random order, so that neither drift nor a rhythm of the
machine favours one. The first run of a burst is not counted: it finds the caches full of the other model, which is
not what a loop over one model, or a user of one model, sees. Burst sizes are chosen here (a few milliseconds) unless
the job repeats those of an earlier job, so that its rounds can be joined to the earlier ones. A few candidates are
timed together: each is come back to several times, and then all are answered.

With one thread the clock is the thread's own: time in which the scheduler lets others run does not count, and is told
as ``waiting_share`` instead; with four busy processes on two cores that kept ratios within 2 % where the wall clock's
were 20 % off. With more threads, and where the runtime computes on threads of its own, it is the wall clock. No clock
of another machine is ever looked at, save that a job without ``heartbeat_s``, which is run by hand, has ``"at_s"`` in
every event, the seconds since 1970: for the date of what was measured.

With ``heartbeat_s`` the job's sender keeps standard input open and writes to it now and then; its end, or as much
silence, means that the sender is gone, and the runner ends too, as it does when its parent process changes.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path
from typing import Any

PROTOCOL = 2
MIN_ROUNDS, MAX_ROUNDS = 8, 4000
MIN_BURST, MAX_BURST = 2, 64
BURST_S = 0.008
MAX_STRETCH = 2.5  # how much longer than asked for a busy machine may make it
WARM_UP_RUNS, WARM_UP_S = 3, 0.1
MEMORY_RUNS = 3
NUM_VISITS = 4  # how often each candidate is come back to
MAX_TOGETHER, TOGETHER_S = 16, 30.0  # how many candidates are visited in turn, and how long they may take together
POOL_SIZE = 65_521  # prime, so that repeated weights do not repeat along any axis
CHUNK_BYTES = 1 << 20
FOLDER_PREFIX = "nas-runner-"
LEFT_OVER_S = 3600.0
GONE = 3  # exit status of a runner whose sender is gone
POWERCAP = "/sys/class/powercap"


class OrphanedError(Exception):
    """Who asked for the job is gone."""


class InvalidInputError(ValueError):
    """The job asks for what this machine does not offer; who sent it knows the error by this name."""


# --- what this machine is


def facts(runtime: str = "onnxruntime") -> dict[str, str | int]:
    """What the latencies of this machine depend on; what the system hides is ``unknown`` or 0."""
    cpu = _cpu_info()
    flags = " ".join(sorted(cpu.get("flags", cpu.get("Features", "")).split()))
    model = cpu.get("model name") or cpu.get("Hardware") or platform.processor() or platform.machine() or "unknown"
    return {
        "cpu_model": model,
        "cpu_flags": hashlib.sha256(flags.encode()).hexdigest()[:12] if flags else "unknown",
        "num_cores": len(available_cpus()),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or "unknown",
        "memory_gib": _memory_gib(),
        "kernel": f"{platform.system()} {platform.release()}",
        "environment": _environment(flags),
        "machine": platform.machine() or "unknown",
        "runtime": f"{runtime} {_version(runtime)}",
        "accelerator": "none",
    }


def available_cpus() -> list[int]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _cpu_info() -> dict[str, str]:
    """The first core's entries of /proc/cpuinfo."""
    pairs = (line.split(":", 1) for line in _read("/proc/cpuinfo").split("\n\n")[0].splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _memory_gib() -> int:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, OSError, ValueError):
        return 0


def _environment(flags: str) -> str:
    control_groups = _read("/proc/1/cgroup")
    in_container = Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()
    in_container = in_container or any(word in control_groups for word in ("docker", "kubepods", "containerd", "lxc"))
    found = ["container"] * in_container + ["virtual machine"] * ("hypervisor" in flags.split())
    return " in a ".join(found) or "bare metal"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except (OSError, ValueError):
        return ""


# --- one model


class Model:
    """One ONNX model with inputs to run it on; loaded until it is unloaded."""

    def __init__(self, path: Path, job: dict[str, Any], burst: int | None = None) -> None:
        self._path, self._job = path, job
        self.run_once: Any = _session(path, job)
        runs_itself = job["runtime"] == "onnxruntime" and job["threads"] == 1 and job.get("device", "cpu") == "cpu"
        self.clock = time.thread_time if runs_itself else time.perf_counter
        self.run_s = self._warm_up()
        self.burst = burst or burst_for(self.run_s, job["seconds_each"])

    def load(self) -> None:
        """Loads it anew, most likely elsewhere in memory."""
        self.run_once = _session(self._path, self._job)
        self.time(WARM_UP_RUNS)

    def unload(self) -> None:
        """Gives its memory back."""
        self.run_once = None

    def time(self, num_runs: int) -> list[float]:
        """Seconds of each of ``num_runs`` runs, after one that is not counted."""
        self.run_once()
        times = []
        for _ in range(num_runs):
            start = self.clock()
            self.run_once()
            times.append(self.clock() - start)
        return times

    def _warm_up(self) -> float:
        times = self.time(WARM_UP_RUNS)
        while sum(times) < WARM_UP_S:
            times += self.time(WARM_UP_RUNS)
        return max(1e-7, sorted(times)[len(times) // 2])


def burst_for(run_s: float, seconds_each: float) -> int:
    """How many runs make a burst; longer ones where a long measurement would come to too many rounds."""
    burst_s = max(BURST_S, seconds_each / (2 * MAX_ROUNDS))
    most = max(MAX_BURST, round(burst_s / BURST_S * MAX_BURST))
    return max(MIN_BURST, min(most, round(burst_s / run_s)))


def _session(path: Path, job: dict[str, Any]) -> Any:
    """A function of no arguments that runs the model once."""
    if job["runtime"] == "openvino":
        return _openvino(path, job)
    if job["runtime"] != "onnxruntime":
        raise ValueError(f"this runner knows onnxruntime and openvino, not {job['runtime']!r}")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    spinning = job["threads"] < len(_CPUS)  # a spinning thread starves what shares its core
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    kind, _, number = job.get("device", "cpu").partition(":")
    providers: list[Any] = ["CPUExecutionProvider"]
    if kind == "cuda":
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise RuntimeError("this onnxruntime has no CUDA provider: pip install onnxruntime-gpu there")
        providers = [("CUDAExecutionProvider", {"device_id": int(number or 0)})]
    session = ort.InferenceSession(str(path), options, providers=providers)
    if kind == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError("onnxruntime fell back to the CPU: its CUDA provider does not work there")
    inputs = {node.name: _input(node.name, job["batch_size"], job["seq_len"]) for node in session.get_inputs()}
    outputs = [node.name for node in session.get_outputs()]
    return lambda: session.run(outputs, inputs)


def _openvino(path: Path, job: dict[str, Any]) -> Any:
    import openvino as ov

    core = ov.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": job["threads"],
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
    request = compiled.create_infer_request()
    inputs = {
        port.get_any_name(): _input(port.get_any_name(), job["batch_size"], job["seq_len"]) for port in compiled.inputs
    }
    return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)


def _input(name: str, batch_size: int, seq_len: int) -> Any:
    """Texts without padding: a padded position costs what a real one costs."""
    import numpy as np

    shape = (batch_size, seq_len)
    if name == "attention_mask":
        return np.ones(shape, np.int64)
    if name == "input_ids":
        return np.broadcast_to(np.arange(seq_len, dtype=np.int64) % 8, shape).copy()
    return np.zeros(shape, np.int64)


def peak_memory_bytes(load: Any) -> int | None:
    """By how much a process grows that loads a model and runs it; None where processes cannot be forked.

    Args:
        load: Loads a model and returns what runs it once; called in the child only.
    """
    if not hasattr(os, "fork") or not Path("/proc/self/status").exists():
        return None
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            before = _resident_bytes("VmRSS")
            run_once = load()
            for _ in range(MEMORY_RUNS):
                run_once()
            os.write(writing, str(max(0, _resident_bytes("VmHWM") - before)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        text = answer.read(32)
    os.waitpid(child, 0)
    return int(text) if text.isdigit() else None


def _resident_bytes(field: str) -> int:
    line = next(line for line in _read("/proc/self/status").splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


# --- what else the machine does


class Energy:
    """The joules that the machine's processors count (RAPL), where it lets us read them.

    Args:
        root: The folder of Linux's powercap framework.
    """

    def __init__(self, root: str | Path = POWERCAP) -> None:
        self.zones = []
        with contextlib.suppress(OSError, ValueError):
            for zone in sorted(Path(root).glob("*:*")):
                if (zone / "name").read_text().startswith("package"):
                    int((zone / "energy_uj").read_text())
                    self.zones.append((zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())))

    def __bool__(self) -> bool:
        return bool(self.zones)

    def now(self) -> list[int]:
        """The counters in microjoules."""
        return [int(counter.read_text()) for counter, _ in self.zones]

    def since(self, before: list[int]) -> float:
        """Joules since an earlier reading; counters that ran over are put right."""
        spent = 0
        for start, end, (_, whole) in zip(before, self.now(), self.zones, strict=True):
            spent += end - start if end >= start else end - start + whole
        return spent / 1e6


def _activity() -> dict[str, float]:
    """Clocks of this process and of the machine's cores, where the system shows them (Linux)."""
    clocks = {"now": time.monotonic()}
    cpus: set[int] = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    with contextlib.suppress(OSError, ValueError, IndexError):
        tasks = list(Path("/proc/self/task").iterdir())
        clocks["waiting"] = max(int((task / "schedstat").read_text().split()[1]) for task in tasks) / 1e9
    for cpu in cpus:
        count = _read(f"/sys/devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count").strip()
        clocks["throttles"] = clocks.get("throttles", 0) + (int(count) if count.isdigit() else 0)
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


def _pressure(activity: dict[str, float]) -> dict[str, float]:
    """What others did meanwhile, from how far the clocks of :func:`_activity` went on."""

    def share(part: str, whole: str) -> float:
        return min(1.0, max(0.0, activity.get(part, 0.0) / activity[whole])) if activity.get(whole, 0.0) > 0 else 0.0

    return {
        "busy_share": share("other_busy", "other_total"),
        "steal_share": share("steal", "total"),
        "waiting_share": share("waiting", "now"),
    }


def idlest_cpus(num: int, over_s: float = 0.1) -> list[int]:
    """The cores with the least work just now, later numbers first: the first core often serves interrupts."""
    before = _busy_ticks()
    time.sleep(over_s)
    after = _busy_ticks()
    by_work = sorted(available_cpus(), key=lambda cpu: (after.get(cpu, 0) - before.get(cpu, 0), -cpu))
    return sorted(by_work[:num])


def _busy_ticks() -> dict[int, int]:
    """Ticks that each core spent working since the start, where the system shows them (Linux)."""
    try:
        lines = _read("/proc/stat").splitlines()
        fields = [line.split() for line in lines if line.startswith("cpu") and not line.startswith("cpu ")]
        return {int(name[3:]): sum(map(int, ticks[:3])) + sum(map(int, ticks[5:8])) for name, *ticks in fields}
    except ValueError:
        return {}


# --- the job


class Rounds:
    """The rounds in which a candidate is interleaved with the anchor; both have ``time``, ``burst`` and ``run_s``.

    Args:
        anchor: What every candidate is compared with.
        candidate: What is timed.
        seconds: About how long all rounds shall take.
    """

    def __init__(self, anchor: Any, candidate: Any, seconds: float) -> None:
        round_s = sum(model.run_s * (model.burst + 1) for model in (anchor, candidate))
        self.num_rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, round(seconds / round_s)))
        self.expected_s = self.num_rounds * round_s
        self._anchor, self._candidate, self._seconds = anchor, candidate, seconds
        self._order = random.Random(self.num_rounds)
        self._samples: dict[Any, list[float]] = {anchor: [], candidate: []}
        self._done, self._took_s, self._spent_j = 0, 0.0, 0.0
        self._energy = Energy()
        self._activity: dict[str, float] = {}

    def go_on(self, share: float, is_orphaned: Any) -> None:
        """Makes rounds until that share of them is done, or of the time that they may take."""
        before, started_s = _activity(), time.perf_counter()
        left_s = share * MAX_STRETCH * self._seconds - self._took_s
        least = share * MIN_ROUNDS
        while self._done < share * self.num_rounds and (self._done < least or time.perf_counter() - started_s < left_s):
            if is_orphaned():
                raise OrphanedError
            self._round()
        self._took_s += time.perf_counter() - started_s
        for name, value in _activity().items():
            self._activity[name] = self._activity.get(name, 0.0) + value - before.get(name, value)

    def _round(self) -> None:
        pair = (self._anchor, self._candidate)
        for model in pair if self._order.random() < 0.5 else pair[::-1]:
            counted = self._energy.now() if self._energy and model is self._candidate else None
            self._samples[model] += model.time(model.burst)
            if counted is not None:
                self._spent_j += self._energy.since(counted)
        self._done += 1

    def result(self) -> dict[str, Any]:
        """What a ``result`` event tells of them."""
        return {
            "samples_s": self._samples[self._candidate],
            "anchor_samples_s": self._samples[self._anchor],
            "num_rounds": self._done,
            "pressure": _pressure(self._activity),
            "energy_j": self._spent_j / (self._done * (self._candidate.burst + 1)) if self._energy else None,
            "throttled": ["too hot"] if self._activity.get("throttles", 0) > 0 else [],
        }


def measure(anchor: Any, candidate: Any, seconds: float, is_orphaned: Any) -> dict[str, Any]:
    """Interleaves a candidate with the anchor for about ``seconds``, in one go."""
    rounds = Rounds(anchor, candidate, seconds)
    rounds.go_on(1.0, is_orphaned)
    return rounds.result()


_CPUS: list[int] = available_cpus()  # before this process pins itself


def take_files(job: dict[str, Any], stream: Any, folder: Path) -> None:
    """Reads the files that follow the job's line and makes those that are filled here."""
    for entry in job["files"]:
        path, left = folder / Path(entry["name"]).name, entry["size"]
        inflate = zlib.decompressobj() if entry.get("deflated") else None
        with path.open("wb") as file:
            while left:
                _expect_within(job.get("heartbeat_s"))
                chunk = stream.read1(min(left, CHUNK_BYTES))
                if not chunk:
                    raise OrphanedError
                left -= len(chunk)
                file.write(inflate.decompress(chunk) if inflate else chunk)
    _expect_within(None)
    for name, size in job["fill"].items():
        _fill(folder / Path(name).name, size)


def _expect_within(seconds: float | None) -> None:
    """Raises OrphanedError in the main thread when that time passes; None calls it off."""

    def end(*_: object) -> None:
        raise OrphanedError

    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, seconds or 0)


def _fill(path: Path, size: int) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    if path.name.endswith("float32"):
        pool = (0.02 * rng.standard_normal(POOL_SIZE)).astype(np.float32).tobytes()
    elif path.name.endswith("int8"):
        pool = rng.integers(-64, 64, POOL_SIZE, np.int8).tobytes()
    else:
        pool = bytes(POOL_SIZE)
    with path.open("wb") as file:
        for start in range(0, size, len(pool)):
            file.write(pool[: size - start])


def pin(job: dict[str, Any]) -> list[int] | None:
    """Pins this process to the cores that the job names, or to the idlest; returns them where that can be done.

    Raises:
        InvalidInputError: This process may not use a core that the job names.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    cpus: list[int] = job["cpus"] or idlest_cpus(job["threads"])
    offered = available_cpus()
    if absent := sorted(set(cpus) - set(offered)):
        raise InvalidInputError(f"cpus must be among those offered ({', '.join(map(str, offered))}), got {absent}")
    os.sched_setaffinity(0, cpus)
    return cpus


def run(job: dict[str, Any], folder: Path, emit: Any, is_orphaned: Any, answered: frozenset[str] = frozenset()) -> None:
    """Does the whole job; ``emit`` takes each event, candidates already answered are left out."""
    candidates = [entry for entry in job["candidates"] if entry["name"] not in answered]
    known = facts(job["runtime"])
    ready = {"event": "ready", "protocol": PROTOCOL, "runtime": known["runtime"], "facts": known, "cpus": None}
    if not candidates:  # only what is here is asked, and loading the runtime takes longer than the answer
        for library in (job["runtime"], "numpy"):
            if importlib.util.find_spec(library) is None:
                raise ModuleNotFoundError(f"No module named {library!r}")
        emit(ready)
        return
    ready["cpus"] = pin(job)
    __import__(job["runtime"])
    memory = {}
    for entry in candidates:  # forked before this process has sessions, and threads, of its own
        if entry.get("memory"):
            memory[entry["name"]] = peak_memory_bytes(lambda file=entry["file"]: _session(folder / file, job))
    emit(ready)
    anchor = Model(folder / job["anchor"], job, job.get("anchor_burst"))
    gc.collect()
    gc.disable()
    while candidates:
        events = _timed(anchor, candidates, job, folder, is_orphaned)
        for event in events:
            emit({**event, "peak_memory_bytes": memory.get(event["name"])} if event["event"] == "result" else event)
        del candidates[: len(events)]


def _timed(
    anchor: Any, entries: list[dict[str, Any]], job: dict[str, Any], folder: Path, is_orphaned: Any
) -> list[dict[str, Any]]:
    """Times the first few candidates in several visits to each, for which it is loaded anew.

    So the slow and fast times of the machine fall on all of them, and none is stuck with one place in memory: where a
    model's weights come to lie changes what it takes by some hundredths. They are as many as should be answered within
    :data:`TOGETHER_S`, or one, so that a slow machine is not silent for long.
    """
    candidates: dict[str, Model] = {}
    rounds: dict[str, Rounds] = {}
    failed: dict[str, dict[str, Any]] = {}
    taken: list[str] = []

    def visit(entry: dict[str, Any], number: int) -> None:
        name = entry["name"]
        try:
            if number == 1:
                candidates[name] = Model(folder / entry["file"], job, entry.get("burst"))
                rounds[name] = Rounds(anchor, candidates[name], job["seconds_each"])
            else:
                candidates[name].load()
            rounds[name].go_on(number / NUM_VISITS, is_orphaned)
            candidates[name].unload()
        except OrphanedError:
            raise
        except Exception as error:
            failed[name] = {"event": "failed", "name": name, "message": f"{type(error).__name__}: {error}"}
            candidates.pop(name, None)
            rounds.pop(name, None)

    for entry in entries[:MAX_TOGETHER]:
        visit(entry, 1)
        taken.append(entry["name"])
        if sum(one.expected_s for one in rounds.values()) + job["seconds_each"] > TOGETHER_S:
            break
    for number in range(2, NUM_VISITS + 1):
        for entry in entries[: len(taken)]:
            if entry["name"] not in failed:
                visit(entry, number)
    return [failed.get(name) or {"event": "result", "name": name, **rounds[name].result()} for name in taken]


def end_with_sender(heartbeat_s: float, folder: Path) -> None:
    """Ends this process when standard input ends or is silent for too long."""
    while select.select([0], [], [], heartbeat_s)[0] and os.read(0, 4096):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(GONE)


def sweep() -> None:
    """Removes the folders of runners that were killed an hour ago or longer."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        try:
            os.kill(int(folder.name[len(FOLDER_PREFIX) :].partition("-")[0]), 0)
        except ProcessLookupError:
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > LEFT_OVER_S:
                    shutil.rmtree(folder, ignore_errors=True)
        except (OSError, ValueError):
            continue


def serve(job: dict[str, Any], stream: Any, emit: Any, do: Any, answered: frozenset[str] = frozenset()) -> int:
    """Takes a job's files into a folder of its own, does it, and leaves nothing behind; returns the exit status.

    Args:
        job: The job's line.
        stream: What its files are read from.
        emit: Takes each event.
        do: :func:`run`, or what else does a job of this form.
        answered: Candidates that need no answer.
    """
    parent, heartbeat_s = os.getppid(), job.get("heartbeat_s")
    folder = None
    try:
        if job.get("protocol") != PROTOCOL:
            raise ValueError(f"this runner speaks protocol {PROTOCOL}, the job is of {job.get('protocol')!r}")
        sweep()
        folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-"))
        take_files(job, stream, folder)
        if heartbeat_s:
            threading.Thread(target=end_with_sender, args=(heartbeat_s, folder), daemon=True).start()
        do(job, folder, emit, lambda: bool(heartbeat_s) and os.getppid() != parent, answered)
        last = {"event": "done"}
    except (OrphanedError, BrokenPipeError):
        return GONE
    except Exception as error:
        last = {"event": "error", "kind": type(error).__name__, "message": f"{type(error).__name__}: {error}"}
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(BrokenPipeError):
        emit(last)
    return 0 if last["event"] == "done" else 1


def main(do: Any = run) -> int:
    """Reads the job from standard input, or the file named first, and answers on standard output or the other file."""
    job_path, answers_path = sys.argv[1:3] if len(sys.argv) == 3 else (None, None)
    answered: set[str] = set()
    if answers_path is None:
        answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # whatever a library prints must not look like an answer
    else:
        for line in _read(answers_path).splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a torn last line is done again
                event = json.loads(line)
                answered |= {event["name"]} if event["event"] in ("result", "failed") else set()
        answers = Path(answers_path).open("a", buffering=1)  # noqa: SIM115 - open until this process ends
        answers.write("\n" * (not _read(answers_path).endswith("\n")))

    def emit(event: dict[str, Any]) -> None:
        dated = event if job.get("heartbeat_s") else {**event, "at_s": time.time()}
        answers.write(json.dumps(dated) + "\n")

    job: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        stream: Any = sys.stdin.buffer if job_path is None else stack.enter_context(Path(job_path).open("rb"))
        try:
            header = json.loads(stream.readline())
            if not isinstance(header, dict):
                raise ValueError("a job must be a JSON object")
            job = header
        except ValueError as error:
            emit({"event": "error", "kind": type(error).__name__, "message": f"no job: {error}"})
            return 1
        return serve(job, stream, emit, do, frozenset(answered))


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # the thread that waits for the end of standard input would hold a normal exit up
