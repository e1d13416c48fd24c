"""What ``nas measure`` finds out about an exported model: a latency for each of its ONNX files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.latency import Latency
from nas.errors import InvalidInputError
from nas.progress import Progress

MODEL_FILES = {"model.onnx": "fp32", "model.int8.onnx": "int8"}


def latency_json(latency: Latency) -> dict[str, Any]:
    """A latency as the command line prints it: milliseconds, without the samples."""
    return {
        "p50_ms": latency.p50_s * 1e3,
        "p90_ms": None if latency.p90_s is None else latency.p90_s * 1e3,
        "low_ms": latency.low_s * 1e3,
        "high_ms": latency.high_s * 1e3,
        "verdict": latency.verdict,
        "source": latency.source,
    }


@dataclass(frozen=True)
class Measurement:
    """The latencies of one exported model.

    Attributes:
        model_dir: Its folder.
        device: The target's name.
        description: The device in words.
        latencies: By file name.
        budget_s: What they are judged by, or None.
    """

    model_dir: Path
    device: str
    description: str
    latencies: Mapping[str, Latency]
    budget_s: float | None = None

    def judge(self, name: str) -> str:
        """Whether a file ``meets`` or ``exceeds`` the budget, or is ``undecided``; its verdict without a budget."""
        latency = self.latencies[name]
        if self.budget_s is None:
            return latency.verdict
        if latency.verdict == "inconclusive":
            return "undecided"
        return "meets" if latency.meets(self.budget_s) else "exceeds" if latency.exceeds(self.budget_s) else "undecided"

    @property
    def exit_code(self) -> int:
        """0 where a file meets the budget (or, without one, could be measured), 5 where that is open, else 3."""
        judgements = {self.judge(name) for name in self.latencies}
        if judgements & {"meets", "ok", "noisy"}:
            return 0
        return 5 if judgements & {"undecided", "inconclusive"} else 3

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "model_dir": str(self.model_dir),
            "device": self.device,
            "description": self.description,
            "budget_ms": None if self.budget_s is None else self.budget_s * 1e3,
            "exit_code": self.exit_code,
            "files": {
                name: {**latency_json(latency), "judgement": self.judge(name)}
                for name, latency in self.latencies.items()
            },
        }


def measure_model(
    model_dir: Path,
    *,
    device: str,
    budget_s: float | None,
    threads: int,
    batch_size: int,
    seq_len: int,
    seconds_each: float,
    progress: Progress,
) -> Measurement:
    """Times ``model.onnx`` and ``model.int8.onnx`` of an exported model, those that are there.

    Raises:
        InvalidInputError: The folder holds neither, or a file cannot be run under these conditions.
        DeviceNotAvailableError: No such device is known here.
        InconclusiveMeasurementError: The measuring itself broke down.
    """
    from nas.devices.resolve import resolve

    precisions = {name: precision for name, precision in MODEL_FILES.items() if (model_dir / name).is_file()}
    targets = {
        name: resolve(device, threads=threads, batch_size=batch_size, seq_len=seq_len, precision=precision)
        for name, precision in precisions.items()
    }
    if not targets:
        raise InvalidInputError(
            f"{model_dir} holds no {' or '.join(MODEL_FILES)}; give the folder that nas search or nas export made"
        )
    latencies = {}
    progress.start("measure", len(targets))
    for done, (name, target) in enumerate(targets.items(), 1):
        latencies.update(target.measure([(name, model_dir / name)], seconds_each=seconds_each))
        progress.update(done, file=name, p50_ms=latencies[name].p50_s * 1e3)
    progress.finish()
    return Measurement(model_dir, device, next(iter(targets.values())).description, latencies, budget_s)
