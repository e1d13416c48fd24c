"""Times Hugging Face models in torch, on a CPU or an NVIDIA GPU; jobs and answers are those of ``runner.py``.

It needs torch, transformers and this package where it runs, in a process of its own::

    python -m nas.devices.torch_runner < job > answers

A job's files are configurations: the JSON of a Hugging Face ``config.json`` whose ``dtype`` says the number format. A
file of the same name that ends in ``.safetensors`` holds the weights; without one they are random. What is built is
what ``AutoModel`` makes of the configuration, or its kin for task models, head included, with ``chain_encoder`` read by
the classes that our exports carry. No code that comes with a model is ever run.

The job's ``device`` is ``cpu`` or ``cuda:N``. On a CPU the clock is that of ``runner.py``. On a GPU a time is what
passes between two CUDA events, one recorded before the forward pass and one behind it, with the stream empty at both
ends: launching kernels counts where the GPU waits for it. With the runtime ``torch-graphs`` the pass is captured once
as a CUDA graph and replayed. With ``torch-sparse`` matrices that are mostly zero are held in compressed rows on a CPU;
on a GPU those with two zeros in every four weights of a row are held as its sparse kernels want them (2:4; Mishra et
al., 2021, arXiv 2104.08378). Matrix products of fp32 are computed as fp32 (torch's default, no TF32).
"""

import gc
import importlib
import inspect
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from nas.devices import runner
from nas.devices.gpu import Watch, accelerator, cuda_problem
from nas.devices.torch_workload import torch_facts
from nas.devices.workload import ANCHOR_FILE
from nas.errors import DeviceNotAvailableError, InvalidInputError
from nas.export.modeling_chain_encoder import (
    ChainEncoderConfig,
    ChainEncoderForSequenceClassification,
    ChainEncoderForTokenClassification,
    ChainEncoderModel,
)

RUNTIMES = ("torch", "torch-graphs", "torch-sparse")
SPARSE_FROM = 0.5  # share of zeros from which a matrix is held in compressed rows
CAPTURE_WARM_UP_RUNS = 3
ENERGY_S = 1.0
#: What a configuration may say that would have other code than the library's own loaded.
_NOT_DATA = ("auto_map", "attn_implementation", "_attn_implementation", "quantization_config")

AutoConfig.register("chain_encoder", ChainEncoderConfig, exist_ok=True)
_CLASSES = {
    "Model": (AutoModel, ChainEncoderModel),
    "ForSequenceClassification": (AutoModelForSequenceClassification, ChainEncoderForSequenceClassification),
    "ForTokenClassification": (AutoModelForTokenClassification, ChainEncoderForTokenClassification),
}
for _auto, _ours in _CLASSES.values():
    _auto.register(ChainEncoderConfig, _ours, exist_ok=True)


# --- one model


class Timed(runner.Model):
    """One torch module with inputs to run it on."""

    peak_memory_bytes: int | None = None

    def __init__(self, path: Path, job: dict[str, Any], burst: int | None = None) -> None:
        self.run_once = prepare(path, job)
        self.clock = time.thread_time if job["threads"] == 1 else time.perf_counter
        self.run_s = self._warm_up()
        self.burst = burst or runner.burst_for(self.run_s, job["seconds_each"])


class TimedOnGpu(Timed):
    """The same on a GPU, timed by CUDA events; ``peak_memory_bytes`` is what it took of the GPU's memory."""

    def __init__(self, path: Path, job: dict[str, Any], burst: int | None = None) -> None:
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        super().__init__(path, job, burst)
        self.peak_memory_bytes = torch.cuda.max_memory_allocated() - before

    def time(self, num_runs: int) -> list[float]:
        """Seconds of each of ``num_runs`` passes, after one that is not counted."""
        start, end = self.events
        self.run_once()
        torch.cuda.synchronize()
        times = []
        for _ in range(num_runs):
            start.record()
            self.run_once()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1000)  # it counts milliseconds
        return times


def prepare(path: Path, job: dict[str, Any]) -> Callable[[], object]:
    """Loads a model and returns what runs it once on texts without padding."""
    device = torch.device(job["device"])
    model = load(path).to(device).eval()
    if job["runtime"] == "torch-sparse":
        if model.config.model_type == ChainEncoderConfig.model_type:
            raise InvalidInputError("torch-sparse runs BertModel and ElectraModel only; choose --runtime torch")
        layers = model.base_model.encoder  # a pooler that passes a state on unchanged is mostly zero too
        compressed = compress_rows(layers) if device.type == "cpu" else compress_pairs(layers)
        if not compressed and path.name != ANCHOR_FILE:
            wanted = "half zero; prune it" if device.type == "cpu" else "2:4; prune it with --pattern 2:4"
            raise InvalidInputError(f"torch-sparse has nothing to gain: no matrix of this model is {wanted}")
    ids = torch.arange(job["seq_len"], device=device).remainder(min(8, model.config.vocab_size))
    ids = ids.expand(job["batch_size"], -1).contiguous()  # (B, T)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    taken = inspect.signature(model.forward).parameters
    inputs: dict[str, Tensor] = {name: tensor for name, tensor in given.items() if name in taken}

    @torch.inference_mode()
    def run_once() -> object:
        return model(**inputs)

    return _captured(run_once) if job["runtime"] == "torch-graphs" else run_once


class SparseLinear(torch.nn.Module):
    """A linear map whose matrix (O, I) is held in compressed sparse rows."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.matrix, self.bias = linear.weight.detach().to_sparse_csr(), linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps (..., I) to (..., O)."""
        columns = self.matrix @ inputs.reshape(-1, inputs.shape[-1]).T  # (O, N)
        outputs = columns.T.reshape(*inputs.shape[:-1], -1)
        return outputs if self.bias is None else outputs + self.bias


def compress_rows(model: torch.nn.Module) -> int:
    """Puts :class:`SparseLinear` in the place of every linear map whose matrix is mostly zero; returns how many."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, torch.nn.Linear) and float((child.weight == 0).float().mean()) >= SPARSE_FROM
    ]
    for parent, name, child in found:
        setattr(parent, name, SparseLinear(child))
    return len(found)


def compress_pairs(model: torch.nn.Module) -> int:
    """Holds every 2:4 matrix of a model on a GPU as its sparse kernels want it; returns how many.

    Raises:
        InvalidInputError: The kernels take none of them: the GPU is older than Ampere, or no size is a multiple of
            what they need.
    """
    linears = [
        child for child in model.modules() if isinstance(child, torch.nn.Linear) and is_two_of_four(child.weight)
    ]
    refused: list[RuntimeError] = []
    for linear in linears:
        try:
            weight = torch.sparse.to_sparse_semi_structured(linear.weight.detach())
        except RuntimeError as error:  # a size or a GPU that the kernels do not take
            refused.append(error)
        else:
            linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    if linears and len(refused) == len(linears):
        reason = str(refused[0]).splitlines()[0][:200]
        raise InvalidInputError(f"torch-sparse cannot run this model here: {reason}; choose --runtime torch")
    return len(linears) - len(refused)


def is_two_of_four(weight: Tensor) -> bool:
    """Whether at least two of every four weights that follow each other in a row of (O, I) are zero."""
    if weight.shape[1] % 4:
        return False
    return bool((weight.detach().reshape(-1, 4) == 0).sum(1).min() >= 2)


def load(path: Path) -> PreTrainedModel:
    """The module of a configuration file, with the weights that lie beside it or with random ones."""
    config = {key: value for key, value in json.loads(path.read_bytes()).items() if key not in _NOT_DATA}
    dtype = getattr(torch, config["dtype"])
    weights, folder = path.with_suffix(".safetensors"), path.with_suffix(".model")
    if weights.exists():
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        weights.replace(folder / "model.safetensors")
    kind = str(next(iter(config.get("architectures") or ()), ""))
    auto = next((found for end, (found, _) in _CLASSES.items() if kind.endswith(end)), AutoModel)
    model: PreTrainedModel
    if folder.exists():
        model = auto.from_pretrained(folder, local_files_only=True, dtype=dtype)
    else:
        model = auto.from_config(AutoConfig.for_model(**config)).to(dtype)
    return model


def _captured(run_once: Callable[[], object]) -> Callable[[], object]:
    """A CUDA graph of one pass; its inputs and outputs stay where they are."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries make what they keep before the capture, off the stream in use
        for _ in range(CAPTURE_WARM_UP_RUNS):
            run_once()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run_once()

    def replay() -> object:
        graph.replay()
        return output

    return replay


# --- the device


def open_device(job: dict[str, Any]) -> str | None:
    """Makes sure that the job's device works with its runtime; returns a GPU's UUID."""
    device = torch.device(job["device"])
    if job["runtime"] not in RUNTIMES or device.type not in ("cpu", "cuda"):
        raise InvalidInputError(
            f"this runner knows {' and '.join(RUNTIMES)} on cpu and cuda, got {job['runtime']} on {device}"
        )
    if device.type == "cpu":
        if job["runtime"] == "torch-graphs":
            raise InvalidInputError("torch-graphs replays CUDA graphs, which a CPU has not; choose --runtime torch")
        return None
    if (problem := cuda_problem()) is not None:
        raise DeviceNotAvailableError(f"{device} cannot be measured: {problem}")
    torch.cuda.set_device(device)
    torch.zeros(1, device=device)
    torch.cuda.synchronize()  # from here on this process is one of those that nvidia-smi lists
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def energy_j(run_once: Callable[[], object], uuid: str) -> float | None:
    """Joules that the whole GPU spends on one pass of many in a row; None where NVML or the GPU does not tell."""
    try:
        nvml = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        return None
    try:
        nvml.nvmlInit()
        gpu = nvml.nvmlDeviceGetHandleByUUID(uuid)
        before_mj, started_s, num_runs = nvml.nvmlDeviceGetTotalEnergyConsumption(gpu), time.perf_counter(), 0
        while time.perf_counter() - started_s < ENERGY_S:
            run_once()
            torch.cuda.synchronize()
            num_runs += 1
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) - before_mj) / 1000 / num_runs
    except nvml.NVMLError:
        return None


# --- the job


def run(job: dict[str, Any], folder: Path, emit: Any, is_orphaned: Any, answered: frozenset[str] = frozenset()) -> None:
    """Does the whole job; see :func:`nas.devices.runner.run`.

    Raises:
        InvalidInputError: The job names a runtime that this runner or the device does not offer.
        DeviceNotAvailableError: The GPU does not work, or another process began to use it.
    """
    job = {"device": "cpu", **job}
    known, all_cpus = torch_facts(job["runtime"]), set(runner.available_cpus())
    cpus = runner.pin(job)
    torch.set_num_threads(job["threads"])
    torch.set_num_interop_threads(1)
    transformers.utils.logging.disable_progress_bar()
    uuid = open_device(job)
    if uuid is not None:
        known["accelerator"] = f"{accelerator(uuid)}, CUDA {torch.version.cuda}"
    candidates = [entry for entry in job["candidates"] if entry["name"] not in answered]
    memory = {}
    for entry in candidates if uuid is None else ():  # forked before this process has threads of its own
        if entry.get("memory"):
            memory[entry["name"]] = runner.peak_memory_bytes(lambda file=entry["file"]: prepare(folder / file, job))
    emit({"event": "ready", "protocol": runner.PROTOCOL, "runtime": known["runtime"], "facts": known, "cpus": cpus})
    if not candidates:
        return
    with ExitStack() as stack:
        watch, timed = None, Timed
        if uuid is not None:
            watch, timed = Watch(uuid, cpus=all_cpus - set(cpus or ()) or all_cpus), TimedOnGpu
            stack.enter_context(closing(watch))
        anchor = timed(folder / job["anchor"], job, job.get("anchor_burst"))

        def answer(entry: dict[str, Any]) -> dict[str, Any]:
            candidate = timed(folder / entry["file"], job, entry.get("burst"))
            result = runner.measure(anchor, candidate, job["seconds_each"], is_orphaned)
            if uuid is None or watch is None:
                return {**result, "peak_memory_bytes": memory.get(entry["name"])}
            return {
                **result,
                "throttled": [*result["throttled"], *watch.take()],
                "peak_memory_bytes": candidate.peak_memory_bytes,
                "energy_j": energy_j(candidate.run_once, uuid) if entry.get("memory") else None,
            }

        gc.disable()
        for entry in candidates:
            gc.collect()  # what is left of the candidate before
            try:
                result = answer(entry)
            except (runner.OrphanedError, DeviceNotAvailableError):
                raise
            except Exception as error:
                emit({"event": "failed", "name": entry["name"], "message": f"{type(error).__name__}: {error}"})
            else:
                emit({"event": "result", "name": entry["name"], **result})


def start() -> None:
    """Reads a job, answers it, and ends this process; see :func:`nas.devices.runner.main`."""
    code = runner.main(run)
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    start()
