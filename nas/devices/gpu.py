"""NVIDIA GPUs as targets: listed by nvidia-smi, named by number or by model, refused while something else uses them.

What nvidia-smi lists is not yet a device: a GPU is measured only where torch (or ONNX Runtime) can compute on it, and
the runner's process sees that GPU alone, chosen by its UUID, so that no numbering can lead to another one.
"""

import csv
import logging
import os
import re
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from nas.devices.clock import RUNNER, Event, Job
from nas.devices.session import RunJob, RunnerTarget
from nas.devices.target import Settings
from nas.devices.torch_workload import PROGRAM, TorchWorkload, run_program
from nas.devices.workload import OnnxWorkload
from nas.errors import DeviceNotAvailableError, InvalidInputError

logger = logging.getLogger(__name__)

#: What a GPU is measured with where nothing is said.
DEFAULT_RUNTIME = "torch"
SMI_TIMEOUT_S = 20.0
WATCH_INTERVAL_MS = 200
#: A GPU that is this busy (percent of the time) for so many looks, a second apart, is in use by what we cannot see.
HIDDEN_USE, HIDDEN_LOOKS = 20, 4
#: NVML's bits for clocks that are lower than asked for, in words; the other bits are settings, or an idle GPU.
THROTTLE_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "too hot",
    0x40: "too hot",
    0x80: "power brake",
}
_REASON_FIELDS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # since driver 535, and before
#: Words that make another model of the same number, and parts of a name that say nothing of the model.
_VARIANTS = frozenset({"ti", "super", "laptop", "max", "mobile", "d", "ada"})
_FORM = re.compile(r"(nvidia|geforce|tesla|quadro|\d+gb|sxm\d*|hbm\d*[a-z]?|pcie|nvl)+")


class NvidiaSmiError(DeviceNotAvailableError):
    """nvidia-smi is not there, or did not answer what was asked."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of this machine.

    Attributes:
        index: Its number among those that this process may use, in nvidia-smi's order.
        name: What it calls itself, e.g. ``NVIDIA A100-SXM4-40GB``.
        uuid: What tells it from all others.
        driver: Version of its driver.
    """

    index: int
    name: str
    uuid: str = ""
    driver: str = ""

    def __str__(self) -> str:
        return f"cuda:{self.index} ({self.name})"


@dataclass(frozen=True, slots=True)
class Process:
    """A process that computes on a GPU."""

    pid: int
    program: str


# --- what nvidia-smi says


def known_gpus() -> list[Gpu]:
    """The GPUs that this process may use (``CUDA_VISIBLE_DEVICES``); none where nvidia-smi is absent or fails."""
    try:
        rows = _smi("--query-gpu=index,name,uuid,driver_version")
    except NvidiaSmiError as error:
        logger.debug("no GPU is known: %s", error)
        return []
    gpus = [Gpu(int(row[0]), *row[1:]) for row in rows if len(row) == 4 and row[0].isdecimal()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus
    chosen: list[Gpu] = []
    for entry in filter(None, visible.replace(" ", "").split(",")):
        found = [gpu for gpu in gpus if entry == str(gpu.index) or (entry[:4] == "GPU-" and gpu.uuid.startswith(entry))]
        if len(found) != 1:  # as CUDA does: what stands behind an unknown entry is not visible either
            break
        chosen.append(replace(found[0], index=len(chosen)))
    return chosen


def match(name: str, gpus: Sequence[Gpu]) -> Gpu | None:
    """Finds the GPU that is meant by ``cuda``, ``cuda:1``, or a model such as ``a100``, ``rtx4090``, ``h100-pcie``.

    A model must be whole words of the GPU's own name: ``a10`` is no A100, and ``rtx4070`` no RTX 4070 Ti.

    Raises:
        DeviceNotAvailableError: GPUs of different models go by that name.
    """
    words = str(name).strip().lower()
    if number := re.fullmatch(r"cuda(?::(\d{1,4}))?", words):
        return next((gpu for gpu in gpus if gpu.index == int(number[1] or 0)), None)
    wanted = re.sub(r"[^a-z0-9]", "", words)
    found = [gpu for gpu in gpus if wanted in _aliases(gpu.name)]
    if len({gpu.name for gpu in found}) > 1:
        raise DeviceNotAvailableError(f"{name!r} may be {' or '.join(map(str, found))}; give the number of one")
    return found[0] if found else None


def _aliases(gpu_name: str) -> set[str]:
    """Runs of a name's words that hold a number and leave no variant of it out."""
    words = re.findall(r"[a-z0-9]+", gpu_name.lower())
    runs = (
        "".join(words[start:end])
        for start in range(len(words))
        for end in range(start + 1, len(words) + 1)
        if end == len(words) or words[end] not in _VARIANTS
    )
    return {run for run in runs if re.search(r"\d", run) and not _FORM.fullmatch(run)}


def processes_on(uuid: str) -> list[Process]:
    """The processes that compute on a GPU, this one included.

    Raises:
        NvidiaSmiError: nvidia-smi does not say.
    """
    rows = _smi(f"--id={uuid}", "--query-compute-apps=pid,process_name")
    return [Process(int(row[0]), ", ".join(row[1:])[:80]) for row in rows if row[0].isdecimal()]


def accelerator(uuid: str) -> str:
    """A GPU's name, driver, highest clock and power limit: what its latencies depend on.

    Raises:
        NvidiaSmiError: nvidia-smi does not say.
    """
    rows = _smi(f"--id={uuid}", "--query-gpu=name,driver_version,clocks.max.sm,power.limit")
    if [len(row) for row in rows] != [4]:
        raise NvidiaSmiError(f"nvidia-smi says of {uuid}: {rows!r:.200}")
    name, driver, clock_mhz, power_w = rows[0]
    return f"{name}, driver {driver}, up to {clock_mhz} MHz and {power_w} W"


def throttle_reasons(mask: str) -> tuple[str, ...]:
    """Puts nvidia-smi's mask, such as ``0x0000000000000004``, into words; what is no mask holds none."""
    try:
        bits = int(mask, 16)
    except ValueError:  # "[N/A]", "[Not Supported]"
        return ()
    return tuple(sorted({word for bit, word in THROTTLE_REASONS.items() if bits & bit}))


def check_free(gpu: Gpu) -> None:
    """Makes sure that no other process uses a GPU.

    Raises:
        DeviceNotAvailableError: One does, or nvidia-smi does not say.
    """
    others = [process for process in processes_on(gpu.uuid) if process.pid != os.getpid()]
    if others:
        raise _busy(gpu, others)
    for look in range(HIDDEN_LOOKS):  # in a container, the processes of others are not listed
        time.sleep(1.0 if look else 0.0)
        used = next(iter(_smi(f"--id={gpu.uuid}", "--query-gpu=utilization.gpu")), [""])[0]
        if not used.isdecimal() or int(used) < HIDDEN_USE:
            return
    raise DeviceNotAvailableError(
        f"{gpu} is busy: something that is not seen from here uses it {used} % of the time, and a latency measured "
        "beside it would not be the model's; end it, or name another GPU"
    )


def _busy(gpu: Gpu | str, others: Sequence[Process]) -> DeviceNotAvailableError:
    who = ", ".join(f"{process.pid} ({process.program})" for process in others[:3])
    return DeviceNotAvailableError(
        f"{gpu} is busy: process {who} uses it, and a latency measured beside it would not be the model's; end it, or "
        "name another GPU"
    )


class Watch:
    """Looks at a GPU while it is measured: why its clocks were lowered, and who else came.

    Args:
        uuid: Which GPU.
        newcomers: How many processes are still expected to join those that compute on it now.
        cpus: Cores to look from, so that the one that feeds the GPU is left alone.

    Raises:
        NvidiaSmiError: nvidia-smi does not answer.
    """

    def __init__(self, uuid: str, *, newcomers: int = 0, cpus: Iterable[int] = ()) -> None:
        self._uuid, self._newcomers = uuid, newcomers
        self._known = {process.pid for process in processes_on(uuid)}
        self._query = (f"--id={uuid}", f"--query-gpu={_reason_field(uuid)}")
        self._lines = tempfile.TemporaryFile()  # noqa: SIM115 - open until close()
        self._process = subprocess.Popen(
            ["nvidia-smi", *self._query, "--format=csv,noheader", f"--loop-ms={WATCH_INTERVAL_MS}"],
            stdin=subprocess.DEVNULL,
            stdout=self._lines,
            stderr=subprocess.DEVNULL,
        )
        if cpus and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self._process.pid, cpus)
        self._seen = 0

    def take(self) -> list[str]:
        """The reasons seen since the last call.

        Raises:
            DeviceNotAvailableError: Another process began to use the GPU.
            NvidiaSmiError: nvidia-smi does not answer.
        """
        new = [process for process in processes_on(self._uuid) if process.pid not in self._known]
        if len(new) > self._newcomers:
            raise _busy("the GPU", new)
        self._lines.seek(self._seen)
        text = self._lines.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._seen += len(whole)
        masks = whole.decode(errors="replace").split() or [row[0] for row in _smi(*self._query)]
        return sorted({word for mask in masks for word in throttle_reasons(mask)})

    def close(self) -> None:
        """Stops looking."""
        self._process.kill()
        self._process.wait()
        self._lines.close()


def _reason_field(uuid: str) -> str:
    """What this driver calls the reasons for lower clocks."""
    newer, older = _REASON_FIELDS
    try:
        _smi(f"--id={uuid}", f"--query-gpu={newer}")
    except NvidiaSmiError:
        return older
    return newer


def _smi(*arguments: str) -> list[list[str]]:
    """nvidia-smi's answer, as rows of fields."""
    command = ["nvidia-smi", *arguments, "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=SMI_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise NvidiaSmiError(f"nvidia-smi gave no answer for {SMI_TIMEOUT_S:.0f} seconds") from error
    except OSError as error:
        raise NvidiaSmiError(f"nvidia-smi cannot be run: {error.strerror}") from error
    if answer.returncode:
        said = (answer.stdout + answer.stderr).strip().partition("\n")[0]
        raise NvidiaSmiError(f"nvidia-smi says: {said[:200]}")
    return [[field.strip() for field in row] for row in csv.reader(answer.stdout.splitlines()) if row]


# --- the target


def cuda_problem() -> str | None:
    """Why torch cannot compute on a GPU here, in words; None where it can."""
    import torch  # slow to import, and only a GPU's target needs it here

    version = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{version} is built without CUDA; install a build with CUDA (https://pytorch.org/get-started/locally)"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    why = f": {str(caught[0].message)[:200]}" if caught else ""
    return f"{version} for CUDA {torch.version.cuda} finds no GPU that works{why}"


def gpu_target(name: str, settings: Settings) -> RunnerTarget:
    """A GPU of this machine, as a target.

    Args:
        name: What :func:`match` knows.
        settings: How models shall be run: ``torch``, ``torch-graphs``, ``torch-sparse``, or ``onnxruntime`` with its
            CUDA provider.

    Raises:
        DeviceNotAvailableError: There is no such GPU, nothing here can compute on it, or another process uses it.
        InvalidInputError: The runtime is not one for GPUs.
        InconclusiveMeasurementError: The runner does not work.
    """
    gpus = known_gpus()
    gpu = match(name, gpus)
    if gpu is None:
        listed = ", ".join(map(str, gpus)) or "none"
        raise DeviceNotAvailableError(
            f"there is no GPU {str(name)[:60]!r} in this machine; nvidia-smi lists {listed}. A latency is only ever "
            "measured on the device that is named"
        )
    if settings.runtime == "openvino":
        raise InvalidInputError(f"openvino does not run on {gpu}; choose --runtime torch, torch-graphs or onnxruntime")
    settings.check_sparse(on_gpu=True)
    is_torch = settings.runtime != "onnxruntime"
    problem = cuda_problem() if is_torch else _onnxruntime_problem()
    if problem is not None:
        raise DeviceNotAvailableError(f"{gpu} cannot be measured: {problem}")
    check_free(gpu)
    return RunnerTarget(
        f"cuda:{gpu.index}",
        settings,
        run=_torch_on(gpu) if is_torch else _onnxruntime_on(gpu),
        workload=TorchWorkload() if is_torch else OnnxWorkload(),
        note=f"{name} is {gpu}",
        device="cuda:0",  # the only one that the runner sees
    )


def _onnxruntime_problem() -> str | None:
    import onnxruntime  # an optional build of it

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return None
    return (
        f"onnxruntime {onnxruntime.__version__} has no CUDA provider; install onnxruntime-gpu in its place, or choose "
        "--runtime torch"
    )


def _torch_on(gpu: Gpu) -> RunJob:
    """Runs jobs of the torch runner, which watches the GPU itself."""

    def run(job: Job) -> Iterator[Event]:
        check_free(gpu)
        return run_program(job, _alone(gpu, PROGRAM))

    return run


def _onnxruntime_on(gpu: Gpu) -> RunJob:
    """Runs jobs of ``runner.py``, which knows nothing of GPUs, and watches the GPU from here.

    It counts the processor's joules and the process's memory; neither is the GPU's, so neither is told.
    """

    def run(job: Job) -> Iterator[Event]:
        check_free(gpu)
        candidates = [{**entry, "memory": False} for entry in job.header["candidates"]]
        job = Job({**job.header, "candidates": candidates}, job.files)
        program = f"import runpy; runpy.run_path({str(RUNNER)!r}, run_name='__main__')"
        with closing(Watch(gpu.uuid, newcomers=1)) as watch:
            for event in run_program(job, _alone(gpu, program)):
                if event["event"] == "ready":
                    event["facts"] = {**event["facts"], "accelerator": accelerator(gpu.uuid)}
                if event["event"] == "result":
                    event |= {"throttled": [*event["throttled"], *watch.take()], "energy_j": None}
                yield event

    return run


def _alone(gpu: Gpu, program: str) -> str:
    """A Python program that sees one GPU and no other."""
    return f"import os; os.environ['CUDA_VISIBLE_DEVICES'] = {gpu.uuid!r}; {program}"
