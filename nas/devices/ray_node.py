"""A node of a Ray cluster as a target, chosen by its accelerator type or by a custom resource.

A job runs in a process that joins the cluster for as long as the job takes (:mod:`nas.devices.ray_bridge`), so
neither a cluster that hangs or dies nor another cluster that this process has joined is in the way.
"""

import json
import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nas.devices import ray_bridge
from nas.devices.clock import QUIET_THREADS, RUNNER, Event, Job, RunnerError, run_job
from nas.devices.ray_bridge import ACCELERATOR, UNAVAILABLE
from nas.devices.session import RunnerTarget
from nas.devices.target import Settings
from nas.devices.torch_workload import TorchWorkload
from nas.devices.workload import OnnxWorkload
from nas.errors import DeviceNotAvailableError, InconclusiveMeasurementError, InvalidInputError, NasError

BRIDGE = Path(ray_bridge.__file__)
KNOCK_S = 5.0
#: What torch times, on accelerators and processors; the rest is timed on the processor by ``runner.py``.
TORCH_RUNTIMES = ("torch", "torch-graphs", "torch-sparse")
TORCH_PROGRAM = "from nas.devices.torch_runner import start; start()"
#: How long a node that others use is waited for.
WAIT_S = 60.0
_ADDRESS = re.compile(r"(?:ray://)?(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]{1,253}):(?P<port>[0-9]{1,5})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/+-]{0,99}")
_EVERYWHERE = ("CPU", "GPU", "memory", "object_store_memory")


@dataclass(frozen=True, slots=True)
class RayNode:
    """A node of a Ray cluster; where several offer what is asked for, always the first by address.

    Attributes:
        address: ``host:port`` of the cluster this machine belongs to, ``ray://host:port`` of any, or ``auto`` (what
            $RAY_ADDRESS names, or the cluster that was started on this machine).
        accelerator_type: Ray's name for the node's accelerator, such as ``A100``.
        resource: A custom resource of the node, such as ``board`` or ``node:10.0.0.3``; this or the accelerator type.

    Raises:
        InvalidInputError: A field breaks its law.
    """

    address: str
    accelerator_type: str | None = None
    resource: str | None = None

    def __post_init__(self) -> None:
        found = _ADDRESS.fullmatch(self.address)
        if self.address != "auto" and not (found and 0 < int(found["port"]) < 65_536):
            raise InvalidInputError(
                f"a Ray address must be host:port, ray://host:port or auto, got {self.address[:100]!r}"
            )
        if (self.accelerator_type is None) == (self.resource is None):
            raise InvalidInputError("a Ray node is chosen by an accelerator type or by a resource, give one of them")
        for field in ("accelerator_type", "resource"):
            value = getattr(self, field)
            if value is not None and not _NAME.fullmatch(value):
                raise InvalidInputError(f"{field} must be a name of at most 100 letters, got {value[:100]!r}")
        if self.resource in _EVERYWHERE:
            raise InvalidInputError(f"resource must tell one node from others, every node has {self.resource}")
        if self.resource and self.resource.startswith(ACCELERATOR):
            raise InvalidInputError(f"give {self.resource.removeprefix(ACCELERATOR)!r} as accelerator_type")

    def __str__(self) -> str:
        what = self.resource or f"accelerator type {self.accelerator_type}"
        return f"Ray node with {what} at {self.address}"


def check_runtime(accelerator_type: str | None, runtime: str) -> None:
    """Refuses what an accelerator is not timed in; a processor (None) is timed in everything.

    Raises:
        InvalidInputError: The runtime does not run on accelerators.
    """
    if accelerator_type is not None and runtime not in TORCH_RUNTIMES:
        raise InvalidInputError(
            f"an accelerator of a Ray node is timed in {' or '.join(TORCH_RUNTIMES)}, "
            f"got {runtime}; choose one of them, or name the node by a resource to time its processor"
        )


def ray_target(name: str, node: RayNode, settings: Settings) -> RunnerTarget:
    """A node of a Ray cluster, as a target: its accelerator where it is chosen by that, else its processor.

    Every job takes the whole node (the named resource, all processors and GPUs), waits for it for up to a minute, and
    gives it back at its end. The node needs ray, numpy and the runtime, and for torch this package.

    Args:
        name: What latencies measured there are said to be of.
        node: Which node.
        settings: How models are run there.

    Raises:
        InvalidInputError: The runtime does not run on accelerators.
        DeviceNotAvailableError: No cluster answers, no node offers what is asked for, it is in use, or it lacks the
            runtime.
        InconclusiveMeasurementError: The runner there failed.
    """
    check_runtime(node.accelerator_type, settings.runtime)
    settings.check_sparse(on_gpu=node.accelerator_type is not None)
    is_torch = settings.runtime in TORCH_RUNTIMES
    return RunnerTarget(
        name,
        settings,
        run=partial(run_on_node, node),
        workload=TorchWorkload() if is_torch else OnnxWorkload(),
        device="cpu" if node.accelerator_type is None else "cuda:0",  # the first that Ray gives the actor
    )


def run_on_node(node: RayNode, job: Job, *, wait_s: float = WAIT_S) -> Iterator[Event]:
    """Runs one job on the node and yields its events as they come; ``ready`` names the ``node`` it ran on.

    Args:
        node: Where.
        job: What to do.
        wait_s: How long a node that others use is waited for.

    Raises:
        InvalidInputError: The node does not offer the job's runtime.
        DeviceNotAvailableError: No cluster answers, no node offers what is asked for, it is in use, or it lacks the
            runtime.
        InconclusiveMeasurementError: The measuring broke down; events that came before it have been yielded.
    """
    _knock(node.address)
    is_torch = job.header["runtime"] in TORCH_RUNTIMES
    options = {
        "address": node.address,
        "resource": node.resource or f"{ACCELERATOR}{node.accelerator_type}",
        "wait_s": wait_s,
        "program": TORCH_PROGRAM if is_torch else RUNNER.read_text(encoding="utf-8"),
        "variables": QUIET_THREADS,
    }
    command, preamble = (sys.executable, "-P", str(BRIDGE)), json.dumps(options).encode() + b"\n"
    is_joined = False
    try:
        for event in run_job(job, command=command, preamble=preamble):
            is_joined = True
            yield event
    except RunnerError as error:
        raise _explained(error, node, is_joined=is_joined) from error


def _explained(error: RunnerError, node: RayNode, *, is_joined: bool) -> NasError:
    """What a failed job means to who asked for it."""
    if error.kind == UNAVAILABLE:
        return DeviceNotAvailableError(error.reason)
    for kind in (InvalidInputError, DeviceNotAvailableError):
        if error.kind == kind.__name__:
            return kind(f"the {node}: {error.reason.removeprefix(f'{error.kind}: ')}")
    if error.status is not None and not is_joined:  # Ray ends processes that joined a cluster without a head
        return DeviceNotAvailableError(f"no Ray cluster at {node.address!r} can be used: {error.reason}")
    lost = "the cluster lost its head, or what connects to it was killed: " if error.status is not None else ""
    return InconclusiveMeasurementError(
        f"measuring on the {node} broke down: {lost}{error.reason}; measure again, what was measured before is kept"
    )


def _knock(address: str) -> None:
    """Raises where nothing listens: Ray itself waits long for a cluster that is not there."""
    found = _ADDRESS.fullmatch(address)
    if found is None:  # auto
        return
    try:
        socket.create_connection((found["host"].strip("[]"), int(found["port"])), timeout=KNOCK_S).close()
    except OSError as error:
        raise DeviceNotAvailableError(
            f"no Ray cluster answers at {address!r} ({error}); start one there with `ray start --head`"
        ) from error
