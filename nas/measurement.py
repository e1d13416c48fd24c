"""What ``nas measure`` finds out about an exported model: a latency for each of its forms and each text it reads."""

import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analysis.latency import MIN_SAMPLES, Latency
from nas.devices.target import RUNTIMES, Settings
from nas.devices.workload import MODEL_FILES
from nas.errors import InvalidInputError
from nas.export.sparse_files import BLOCKS_FILE, LOCK_FILE, TABLES_FILE
from nas.progress import Progress

MB = 10**6
HALF_PRECISIONS = ("fp16", "bf16")
#: What GPUs have kernels for.
GPU_PATTERN = "2:4"
#: Tokens of a text where nothing is asked for.
USUAL_LENGTH = 128
#: A percentile needs so many samples, and each takes about three runs of the model, the anchor's included.
RUNS_A_SAMPLE = 3
#: The longest that a model is timed for a percentile's sake alone.
MAX_TAIL_SECONDS = 60.0


def latency_json(latency: Latency) -> dict[str, Any]:
    """A latency as the command line prints it: milliseconds, without the samples."""
    return {
        "p50_ms": latency.p50_s * 1e3,
        "p90_ms": None if latency.p90_s is None else latency.p90_s * 1e3,
        "p99_ms": None if latency.p99 is None else latency.p99.value_s * 1e3,
        "low_ms": latency.low_s * 1e3,
        "high_ms": latency.high_s * 1e3,
        "texts_per_s": latency.throughput,
        "memory_mb": None if latency.peak_memory_bytes is None else latency.peak_memory_bytes / MB,
        "energy_mj": None if latency.energy_j is None else latency.energy_j * 1e3,
        "throttled": [] if latency.pressure is None else list(latency.pressure.throttled),
        "verdict": latency.verdict,
        "source": latency.source,
    }


@dataclass(frozen=True)
class Row:
    """One form of a model under one condition.

    Attributes:
        file: The file's name; ``.`` for the Hugging Face folder itself.
        size_bytes: What it takes on disk.
        latency: What was measured, conditions included.
    """

    file: str
    size_bytes: int
    latency: Latency

    @property
    def runtime(self) -> str:
        """What ran it, without the version."""
        return self.latency.conditions.runtime.split()[0]

    @property
    def form(self) -> tuple[str, str, str]:
        """What was measured, whatever the texts: file, runtime and precision."""
        return self.file, self.runtime, self.latency.conditions.precision


@dataclass(frozen=True)
class Measurement:
    """The latencies of one exported model.

    Attributes:
        model_dir: Its folder.
        device: The target's name.
        description: The device in words.
        rows: What was measured, in the order that it was asked for.
        budget_s: What they are judged by, or None.
        percentile: Of the latency that the budget binds.
        is_sustained: Whether it was timed long enough to tell how far it slows down as the device warms up.
        pattern: Of a sparse model, what its lock says; else None.
        cpus: The cores that were asked for; None for the idlest.
    """

    model_dir: Path
    device: str
    description: str
    rows: tuple[Row, ...]
    budget_s: float | None = None
    percentile: int = 50
    is_sustained: bool = False
    pattern: str | None = None
    cpus: tuple[int, ...] | None = None

    def judge(self, row: Row) -> str:
        """Whether a row ``meets`` or ``exceeds`` the budget, or is ``undecided``; its verdict without a budget."""
        latency = row.latency
        if self.budget_s is None:
            return latency.verdict
        if latency.verdict == "inconclusive":
            return "undecided"
        if latency.meets(self.budget_s, self.percentile):
            return "meets"
        return "exceeds" if latency.exceeds(self.budget_s, self.percentile) else "undecided"

    @property
    def exit_code(self) -> int:
        """0 where a form meets the budget under all conditions asked for (or, without one, all could be measured).

        3 where every form is shown to exceed it under some condition, 5 where that is open.
        """
        judged = {form: {self.judge(row) for row in self.rows if row.form == form} for form in self.forms}
        if any(judgements <= {"meets", "ok", "noisy"} for judgements in judged.values()):
            return 0
        return 3 if all("exceeds" in judgements for judgements in judged.values()) else 5

    @property
    def forms(self) -> list[tuple[str, str, str]]:
        """The measured forms, each once."""
        return list(dict.fromkeys(row.form for row in self.rows))

    @property
    def advice(self) -> list[str]:
        """Where samples are too few for the percentile, how long to time; of a sparse model, which form was fastest."""
        return [*self._lacking, *self._comparison]

    @property
    def _lacking(self) -> list[str]:
        """What the percentile lacks, a sentence for each row that it leaves undecided."""
        needed = MIN_SAMPLES[self.percentile]
        return [
            f"p{self.percentile} of {row.file} needs {needed} samples and {len(row.latency.samples_s)} were taken; "
            f"time it for {math.ceil(_tail_seconds(row.latency.p50_s, self.percentile))} seconds or longer."
            for row in self.rows
            if self.judge(row) == "undecided" and row.latency.bounds_s(self.percentile) is None
        ]

    @property
    def _comparison(self) -> list[str]:
        """Of a sparse model, which form was fastest, by measurement alone; one sentence for each kind of text."""
        if self.pattern is None:
            return []
        conditions = dict.fromkeys(
            (row.latency.conditions.batch_size, row.latency.conditions.seq_len) for row in self.rows
        )
        said = [_fastest(self.rows, *one) for one in conditions]
        if ":" in self.pattern and self.device == "cpu":
            said.append(f"Kernels for {self.pattern} exist on NVIDIA GPUs only; they were not measured.")
        return said

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "model_dir": str(self.model_dir),
            "device": self.device,
            "description": self.description,
            "budget_ms": None if self.budget_s is None else self.budget_s * 1e3,
            "percentile": self.percentile,
            "exit_code": self.exit_code,
            "advice": self.advice,
            "measurements": [
                {
                    "file": row.file,
                    "size_mb": row.size_bytes / MB,
                    "runtime": row.latency.conditions.runtime,
                    "precision": row.latency.conditions.precision,
                    "threads": row.latency.conditions.threads,
                    "cpus": None if self.cpus is None else list(self.cpus),
                    "batch_size": row.latency.conditions.batch_size,
                    "seq_len": row.latency.conditions.seq_len,
                    **latency_json(row.latency),
                    "drift": row.latency.drift if self.is_sustained else None,
                    "judgement": self.judge(row),
                }
                for row in self.rows
            ],
        }


def measure_model(
    model_dir: Path,
    *,
    device: str,
    settings: Sequence[Settings],
    budget_s: float | None = None,
    percentile: int = 50,
    seconds_each: float = 3.0,
    is_sustained: bool = False,
    progress: Progress,
) -> Measurement:
    """Times an exported model.

    Args:
        model_dir: Its folder.
        device: Where.
        settings: What to time it under.
        budget_s: What to judge it by.
        percentile: Which percentile of the latency the budget binds.
        seconds_each: How long to time each; longer where the percentile needs the samples.
        is_sustained: Whether each is timed once and without a break, to see it slow down.
        progress: What is told about it.

    Raises:
        InvalidInputError: The folder holds no such form, it cannot be run under these conditions, or a text is longer
            than it reads.
        DeviceNotAvailableError: No such device is known here, or it is known from a profile only.
        InconclusiveMeasurementError: The measuring itself broke down.
    """
    from nas.devices.resolve import live

    _check_lengths(model_dir, settings)
    rows, description = [], ""
    if not is_sustained and budget_s is not None and percentile != 50:
        seconds_each = max(seconds_each, min(MAX_TAIL_SECONDS, _tail_seconds(budget_s, percentile)))
    progress.start("measure", len(settings))
    for done, asked in enumerate(settings, 1):
        path = form(model_dir, asked)
        target = live(device, asked)
        attempts = 1 if is_sustained else 3
        latency = target.measure({path.name: path}, seconds_each=seconds_each, attempts=attempts)[path.name]
        rows.append(Row("." if path == model_dir else path.name, _size_bytes(path, asked.runtime), latency))
        description = description or target.description
        progress.update(done, file=path.name, p50_ms=latency.p50_s * 1e3)
    progress.finish()
    pattern = sparse_pattern(model_dir)
    return Measurement(
        model_dir,
        device,
        description,
        tuple(rows),
        budget_s,
        percentile,
        is_sustained,
        pattern,
        settings[0].cpus,
    )


def _tail_seconds(run_s: float, percentile: int) -> float:
    """About how long to time a model of so many seconds a run, so that a percentile has the samples that it needs."""
    return RUNS_A_SAMPLE * MIN_SAMPLES[percentile] * run_s


def longest_text(model_dir: Path) -> int | None:
    """The most tokens that a folder's configuration says that the model reads; None where it says nothing."""
    longest = _config(model_dir).get("max_position_embeddings")
    return longest if isinstance(longest, int) and longest > 0 else None


def _check_lengths(model_dir: Path, settings: Sequence[Settings]) -> None:
    """Refuses texts that are longer than what the folder's configuration says that the model reads."""
    longest, asked = longest_text(model_dir), max(one.seq_len for one in settings)
    if longest is not None and longest < asked:
        raise InvalidInputError(f"{model_dir.name} reads at most {longest} tokens, got --seq-len {asked}")


def _fastest(rows: Sequence[Row], batch_size: int, seq_len: int) -> str:
    """Which form was fastest on texts of one kind; what its interval does not tell apart from it is named too."""
    here = [row for row in rows if row.latency.conditions.batch_size == batch_size]
    here = sorted((row for row in here if row.latency.conditions.seq_len == seq_len), key=lambda row: row.latency.p50_s)
    best = here[0].latency
    apart = [row for row in here if row.latency.low_s > best.high_s]
    close = [_named(row) for row in here[1:] if row not in apart]
    said = f"Fastest at {batch_size} x {seq_len}: {_named(here[0])}"
    said += f", not told apart by this measurement from {' and '.join(close)}" if close else ""
    slower = [f"{_named(row)} takes {row.latency.p50_s / best.p50_s:.2f}x" for row in apart]
    return said + (f"; {', '.join(slower)}." if slower else ".")


def _named(row: Row) -> str:
    name = row.runtime if row.file == "." else f"{row.file} in {row.runtime}"
    precision = row.latency.conditions.precision
    name += f" in {precision}" if precision in HALF_PRECISIONS else ""
    return f"{name} ({row.latency.p50_s * 1e3:.2f} ms)"


def sparse_pattern(model_dir: Path) -> str | None:
    """The pattern that a model folder is locked to; None where it has no lock.

    Raises:
        InvalidInputError: The lock cannot be read.
    """
    path = model_dir / LOCK_FILE
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["pattern"])[:20]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}; restore the folder") from error


def with_gpu_sparse_forms(settings: Sequence[Settings], model_dir: Path) -> list[Settings]:
    """What a sparse model is measured in beside its usual form on a GPU where it is 2:4: in fp16, dense and sparse.

    Args:
        settings: In float32, for torch.
        model_dir: The model's folder, with a lock.
    """
    if sparse_pattern(model_dir) != GPU_PATTERN or not _is_stock(model_dir):
        return list(settings)
    runtimes = ("torch", "torch-sparse")
    return [*settings, *(replace(asked, runtime=name, precision="fp16") for name in runtimes for asked in settings)]


def with_sparse_forms(settings: Sequence[Settings], model_dir: Path) -> list[Settings]:
    """What a sparse model is measured in beside its ONNX files, on a CPU: torch, dense and sparse, and OpenVINO.

    Args:
        settings: In every precision, for ONNX Runtime.
        model_dir: The model's folder, with a lock.
    """
    found = list(settings)
    floats = [asked for asked in settings if asked.precision == "fp32"]
    if _is_stock(model_dir):
        found += [replace(asked, runtime=runtime) for runtime in ("torch", "torch-sparse") for asked in floats]
    if importlib.util.find_spec("openvino") is not None:
        found += [replace(asked, runtime="openvino") for asked in settings]
    return found


def precisions_of(model_dir: Path, runtime: str) -> tuple[str, ...]:
    """The precisions that an exported model can be timed in.

    Raises:
        InvalidInputError: None at all.
    """
    found = tuple(
        precision
        for precision in RUNTIMES[runtime]
        if (path := _form(model_dir, runtime, precision)) is not None and path.exists()
    )
    if runtime.startswith("torch"):  # one folder in every precision: as it was exported, unless asked otherwise
        found = found[:1]
    if not found:
        wanted = "config.json" if runtime.startswith("torch") else " or ".join(MODEL_FILES.values())
        raise InvalidInputError(f"{model_dir} holds no {wanted}; give the folder that nas search or nas export made")
    return found


def form(model_dir: Path, settings: Settings) -> Path:
    """What is timed of an exported model under these settings: one of its ONNX files, or the folder itself.

    Raises:
        InvalidInputError: It is not there.
    """
    path = _form(model_dir, settings.runtime, settings.precision)
    if path is None:
        raise InvalidInputError(f"{model_dir} holds no {settings.precision} model for {settings.runtime}")
    return path


def _form(model_dir: Path, runtime: str, precision: str) -> Path | None:
    if runtime.startswith("torch"):
        return model_dir if (model_dir / "config.json").is_file() else None
    path = model_dir / MODEL_FILES[precision]
    return path if path.is_file() else None


def _is_stock(model_dir: Path) -> bool:
    """Whether a folder is of a class that transformers itself has."""
    config = _config(model_dir)
    return bool(config) and "auto_map" not in config


def _config(model_dir: Path) -> dict[str, Any]:
    """What a folder's Hugging Face configuration says; nothing where it has none that can be read."""
    try:
        config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _size_bytes(path: Path, runtime: str) -> int:
    if path.is_file():
        return path.stat().st_size
    stored = [path / name for name in (BLOCKS_FILE, TABLES_FILE)]
    if runtime == "torch-sparse" and all(file.is_file() for file in stored):
        return sum(file.stat().st_size for file in stored)
    return sum(file.stat().st_size for file in path.glob("model*.safetensors"))


def with_precisions(settings: Sequence[Settings], precisions: Sequence[str]) -> list[Settings]:
    """Every setting in every precision."""
    return [replace(asked, precision=precision) for precision in precisions for asked in settings]
