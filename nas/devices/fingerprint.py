"""The facts of a machine that its latencies depend on."""

import hashlib
import importlib.metadata
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What must be equal for a latency measured here to hold there.

    Attributes:
        cpu_model: Name of the processor.
        cpu_flags: Digest of its instruction sets.
        num_cores: Cores that this process may use.
        governor: How the clock rate is chosen, ``unknown`` where the system hides it.
        memory_gib: Memory, rounded.
        kernel: Operating system and release.
        environment: ``container``, ``virtual machine``, both or ``bare metal``, as far as can be seen.
        runtime: What runs the models, with its version.
    """

    cpu_model: str
    cpu_flags: str
    num_cores: int
    governor: str
    memory_gib: int
    kernel: str
    environment: str
    runtime: str

    @classmethod
    def of_this_machine(cls) -> "Fingerprint":
        """Reads the facts; those that the system hides are ``unknown``."""
        cpu = _cpu_info()
        flags = " ".join(sorted(cpu.get("flags", cpu.get("Features", "")).split()))
        model = cpu.get("model name") or cpu.get("Hardware") or platform.processor() or platform.machine() or "unknown"
        return cls(
            cpu_model=model,
            cpu_flags=hashlib.sha256(flags.encode()).hexdigest()[:12] if flags else "unknown",
            num_cores=len(available_cpus()),
            governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or "unknown",
            memory_gib=_memory_gib(),
            kernel=f"{platform.system()} {platform.release()}",
            environment=_environment(flags),
            runtime=f"onnxruntime {_version('onnxruntime')}",
        )

    @property
    def digest(self) -> str:
        """A short name that changes with any of the facts."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, str | int]:
        """A JSON-ready form."""
        return asdict(self)

    def __str__(self) -> str:
        cores = "1 core" if self.num_cores == 1 else f"{self.num_cores} cores"
        return f"{self.cpu_model}, {cores}, {self.environment}, {self.runtime}"


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


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, ValueError):
        return ""
