"""This machine's CPU as a target: the runner in a fresh process, on the idlest cores."""

import time
from collections.abc import Callable

from nas.devices.clock import run_job
from nas.devices.fingerprint import Fingerprint
from nas.devices.runner import available_cpus
from nas.devices.session import RunJob, RunnerTarget
from nas.devices.target import Settings
from nas.devices.torch_workload import TorchWorkload, run_torch, torch_facts
from nas.devices.workload import OnnxWorkload
from nas.errors import DeviceNotAvailableError, InvalidInputError


def local_cpu(
    settings: Settings | None = None, *, run: RunJob | None = None, now: Callable[[], float] = time.time
) -> RunnerTarget:
    """The target of this machine's CPU.

    Args:
        settings: How models shall be run; the defaults where None.
        run: Runs one job of ``runner.py``; in a fresh process by default.
        now: Seconds since 1970.

    Raises:
        InvalidInputError: There are fewer cores than threads, or a core is not there.
        DeviceNotAvailableError: The runtime is not installed.
    """
    settings = settings or Settings()
    absent = sorted(set(settings.cpus or ()) - set(available_cpus()))
    if absent:
        offered = ", ".join(map(str, available_cpus()))
        raise InvalidInputError(f"cpus must be among those that this process may use ({offered}), got {absent}")
    if settings.runtime == "torch-graphs":
        raise InvalidInputError("torch-graphs replays CUDA graphs, which a CPU has not; choose --runtime torch")
    settings.check_sparse(on_gpu=False)
    is_torch = settings.runtime.startswith("torch")
    fingerprint = (
        Fingerprint.from_facts(torch_facts(settings.runtime))
        if is_torch
        else Fingerprint.of_this_machine(settings.runtime)
    )
    if fingerprint.runtime.endswith(" absent"):
        raise DeviceNotAvailableError(
            f"{settings.runtime} is not installed here; pip install {settings.runtime}, or choose another --runtime"
        )
    return RunnerTarget(
        "cpu",
        settings,
        run=run or (run_torch if is_torch else run_job),
        workload=TorchWorkload() if is_torch else OnnxWorkload(),
        fingerprint=fingerprint,
        now=now,
    )
