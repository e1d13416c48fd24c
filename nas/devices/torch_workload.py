"""What travels to the torch runner: Hugging Face configurations, and the weights of exported models.

A shape is its configuration alone and gets random weights where it is timed; an exported folder is its configuration
and ``model.safetensors``. Either way the runner builds the class that the export loads as.
"""

import importlib.metadata
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nas.devices import runner
from nas.devices.clock import Event, Job, RunnerError, run_job
from nas.devices.target import ANCHOR, Model, Settings, Shape, timing_text
from nas.devices.workload import ANCHOR_FILE, Packed
from nas.errors import DeviceNotAvailableError, InvalidInputError
from nas.export.huggingface import hub_config
from search_spaces.architecture import TextSpec

#: Starts the torch runner of this package, wherever it lies.
PROGRAM = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); "
    "from nas.devices.torch_runner import start; start()"
)
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
MAX_CONFIG_BYTES = 10_000_000


def torch_facts(runtime: str) -> dict[str, str | int]:
    """The facts of this machine (:func:`nas.devices.runner.facts`) for ``torch`` or ``torch-graphs``."""
    torch, transformers = (importlib.metadata.version(package) for package in ("torch", "transformers"))
    return {**runner.facts("torch"), "runtime": f"{runtime} {torch} (transformers {transformers})"}


def run_torch(job: Job) -> Iterator[Event]:
    """Runs one job of the torch runner in a fresh process on this machine.

    Its threads wait for each other as torch has them do, by spinning, unless that would starve what shares their cores.

    Raises:
        InvalidInputError: The device does not offer the job's runtime.
        DeviceNotAvailableError: The device does not work, or is in use.
        InconclusiveMeasurementError: The measuring broke down; events that came before it have been yielded.
    """
    spins = job.header["threads"] < len(runner.available_cpus())
    waiting = "os.environ.pop('OMP_WAIT_POLICY', None)" if spins else "os.environ['OMP_WAIT_POLICY'] = 'PASSIVE'"
    return run_program(job, f"import os; {waiting}; {PROGRAM}")  # read when torch is first loaded


def run_program(job: Job, program: str) -> Iterator[Event]:
    """Runs one job in a Python program that speaks as ``runner.py`` does; raises what :func:`run_torch` does."""
    command = (sys.executable, "-P", "-c", program)
    try:
        yield from run_job(job, command=command)
    except RunnerError as error:
        for kind in (InvalidInputError, DeviceNotAvailableError):
            if error.kind == kind.__name__:
                raise kind(error.reason.removeprefix(f"{error.kind}: ")) from error
        raise


class TorchWorkload:
    """Models for torch: shapes as configurations, exported folders whole."""

    def pack(self, models: Mapping[str, Model], settings: Settings) -> Packed:
        """Packs models and the anchor; see :class:`nas.devices.workload.Workload`."""
        anchor = Shape(ANCHOR, timing_text(TextSpec(), settings.seq_len))
        files: dict[str, bytes | Path] = {ANCHOR_FILE: _content(_shape_config(anchor, settings), settings)}
        candidates = {}
        for number, (name, model) in enumerate(models.items()):
            candidates[name] = f"{number}.json"
            if isinstance(model, Shape):
                config = _shape_config(model, settings)
            else:
                config = _folder_config(name, model)
                files[f"{number}.safetensors"] = model / "model.safetensors"
            files[candidates[name]] = _content(config, settings)
        return Packed(candidates, files)


def _shape_config(shape: Shape, settings: Settings) -> dict[str, Any]:
    return hub_config(shape.architecture, timing_text(shape.text, settings.seq_len))


def _folder_config(name: str, folder: Path) -> dict[str, Any]:
    """The configuration of an exported folder; raises InvalidInputError where it is none."""
    path = folder / "config.json"
    for file in (path, folder / "model.safetensors"):
        if not file.is_file():
            raise InvalidInputError(
                f"torch times a Hugging Face folder with config.json and model.safetensors, {name} lacks {file}; "
                "give such a folder, or --runtime onnxruntime for an ONNX file"
            )
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise InvalidInputError(f"{path} must be at most {MAX_CONFIG_BYTES} bytes; give an exported folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path} must be JSON: {error}; give an exported folder") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InvalidInputError(f"{path} must be a JSON object with a model_type; give an exported folder")
    return config


def _content(config: Mapping[str, Any], settings: Settings) -> bytes:
    return json.dumps({**config, "dtype": DTYPES[settings.precision]}).encode()
