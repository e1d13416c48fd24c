"""From a model folder to an int8 one: as it is, with ranges from real text, or trained to be rounded.

The folder that comes out holds one set of int8 weights in all its forms: float files have the rounded values too, and
of a sparse model the stored files (:mod:`nas.finish.storage`) come to the same values bit for bit. A pattern that is
locked stays locked.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nas.errors import InvalidInputError
from nas.export.card import CardFacts, ExportReport
from nas.export.export import WriteInt8, encoder_weights, export_model
from nas.export.int8 import Int8Matrix, quantize, quantize_static
from nas.export.qdq import quantize_as_trained
from nas.finish.companion import Beside
from nas.finish.fake_quant import TABLE_LEVELS, insert, int8_matrix, remove, row_scale
from nas.finish.finetune import check_free
from nas.finish.model import LoadedEncoder, TaskModel, has_head, load_model, load_task_model, save_task_model
from nas.finish.sparsity import Lock, SparsityFacts, prunable, read_lock, write_lock
from nas.finish.storage import StoredSizes, write_sparse
from nas.finish.training import Hooks
from nas.progress import Progress, ended
from search_spaces.files import expanded
from supernet.data import tokenise
from supernet.encoder import Encoder
from supernet.examples import Examples
from supernet.task import load_task
from supernet.task_spec import TaskOptions

Mode = Literal["dynamic", "static", "qat"]
SIZES_FILE = "sizes.json"
CALIBRATION_TEXTS = 256
CALIBRATION_BATCH = 8


@dataclass(frozen=True)
class Quantized:
    """What rounding left.

    Attributes:
        report: The folder, its files and parities.
        sparsity: What was asked of a sparse model's pruning; else None.
        sizes: Of a sparse model, what its stored files take; else None.
    """

    report: ExportReport
    sparsity: float | None
    sizes: StoredSizes | None


@dataclass
class Rounding:
    """Trains an encoder to be rounded; see :class:`nas.finish.companion.Companion`.

    Attributes:
        source: The folder it came from, for its lock.
        facts: What must be the same when a run is resumed.
        matrices: After :meth:`end`, weights and tables as int8.
        sizes: After :meth:`write`, of a sparse model.
    """

    source: Path
    facts: Mapping[str, Any] = field(default_factory=lambda: {"quantize": "qat"})
    matrices: dict[str, Int8Matrix] = field(default_factory=dict)
    sizes: StoredSizes | None = None
    sparsity: SparsityFacts | None = None

    def begin(self, encoder: Encoder, num_steps: int) -> Beside:
        """Puts rounding into the encoder and holds its lock."""
        found = read_lock(self.source, encoder)
        insert(encoder)
        if found is None:
            return Beside(Hooks())
        self.sparsity = found[1]
        lock = Lock(prunable(encoder), found[0].masks).hold()
        return Beside(Hooks(after_step=lock.after_step), lock.after_step)

    def end(self, encoder: Encoder) -> WriteInt8:
        """Takes the rounding out; the weights stay rounded."""
        weights = remove(encoder)
        self.matrices = {name: linear.weight for name, linear in weights.linears.items()} | dict(weights.tables)
        return lambda model, path: quantize_as_trained(model, weights, path)

    def write(self, folder: Path, encoder: Encoder) -> None:
        """Writes the lock and the stored files of a sparse model."""
        self.sizes = write_stored(folder, encoder, self.matrices, self.sparsity)


def write_stored(
    folder: Path, encoder: Encoder, matrices: Mapping[str, Int8Matrix], sparsity: SparsityFacts | None
) -> StoredSizes | None:
    """Writes what a sparse model's folder holds beside the usual: its lock, its stored files and their sizes.

    Args:
        folder: Being filled; the int8 ONNX file is in it.
        encoder: With rounded weights.
        matrices: The same as int8.
        sparsity: What its folder said of it; None writes nothing.
    """
    if sparsity is None:
        return None
    write_lock(folder, encoder, sparsity)
    sizes = write_sparse(folder, encoder_weights(encoder), matrices)
    sizes = replace(sizes, onnx_file=(folder / "model.int8.onnx").stat().st_size)
    (folder / SIZES_FILE).write_text(json.dumps(sizes.to_dict(), indent=2) + "\n", encoding="utf-8")
    return sizes


def quantize_model(
    source: str | Path,
    out: Path,
    *,
    mode: Literal["dynamic", "static"],
    task: str | None = None,
    corpora: Sequence[str] = (),
    options: TaskOptions | None = None,
    command: str | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Rounds a model without training it, and writes its folder, whole or not at all.

    Args:
        source: A task model's or an encoder's folder.
        out: The folder; must be absent or empty.
        mode: ``dynamic`` rounds activations as they come, ``static`` by ranges found on real text.
        task: Where that text comes from: a task's training texts.
        corpora: Or text files, folders or hub ids.
        options: What is named of the task.
        command: What made it, for the card.
        progress: What is told about it.

    Raises:
        InvalidInputError: An input breaks a law, or the folder is occupied.
    """
    check_free(out)
    with ended(progress) as said:
        said.start("reading the model")
        model = load_task_model(source) if has_head(source) else load_model(source)
        encoder = model.encoder
        found = read_lock(expanded(source), encoder)
        write_int8: WriteInt8 = quantize
        if mode == "static":
            batches = list(calibration_batches(model, task, corpora, options or TaskOptions()))
            write_int8 = partial(quantize_static, batches=batches)
        said.start("rounding and exporting")
        matrices = round_weights(encoder)
        stored: list[StoredSizes | None] = []

        def add(folder: Path) -> None:
            stored.append(write_stored(folder, encoder, matrices, None if found is None else found[1]))

        facts = CardFacts(supernet=Path(str(source)).name, command=command)
        report = _export(model, out, {"facts": facts, "write_int8": write_int8, "add": add})
    return Quantized(report, None if found is None else found[1].sparsity, stored[0])


def _export(model: TaskModel | LoadedEncoder, out: Path, options: dict[str, Any]) -> ExportReport:
    if isinstance(model, TaskModel):
        return save_task_model(model, out, **options)
    with tempfile.TemporaryDirectory() as tokenizer_dir:
        model.tokenizer.save_pretrained(tokenizer_dir)
        return export_model(model.encoder, Path(tokenizer_dir), out, **options)


@torch.no_grad()
def round_weights(encoder: Encoder) -> dict[str, Int8Matrix]:
    """Rounds an encoder's matrices and tables in place, a scale a row, and returns them as int8."""
    matrices = {name: int8_matrix(weight, row_scale(weight)) for name, weight in prunable(encoder).items()}
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Embedding):
            scale = row_scale(module.weight, TABLE_LEVELS)
            matrices[f"{name}.weight"] = int8_matrix(module.weight, scale, TABLE_LEVELS)
    parameters = dict(encoder.named_parameters())
    for name, matrix in matrices.items():
        parameters[name].copy_(torch.from_numpy(matrix.dense()))
    return matrices


def calibration_batches(
    model: TaskModel | LoadedEncoder, task: str | None, corpora: Sequence[str], options: TaskOptions
) -> Iterator[dict[str, NDArray[np.int64]]]:
    """Yields real text as the ONNX graph takes it: of a task's training split, or of a corpus.

    Raises:
        InvalidInputError: Neither is given, or one cannot be read.
    """
    text = model.encoder.text
    if task is not None:
        expected = model.spec if isinstance(model, TaskModel) else None
        examples = load_task(task, model.tokenizer, options, text=text, expected=expected).train
        picks = np.linspace(0, len(examples) - 1, min(CALIBRATION_TEXTS, len(examples))).round().astype(int).tolist()
        yield from _batches(examples, picks)
        return
    if not corpora:
        raise InvalidInputError("--mode static needs real text to find ranges on; give --task or --corpus")
    longest = min(128, text.max_positions)
    chunks, _ = tokenise(corpora, model.tokenizer, seq_len=longest, max_tokens=100_000, with_held_out=False)
    for batch in chunks.spread(CALIBRATION_TEXTS).batches(CALIBRATION_BATCH):
        ids, mask = batch.input_ids.numpy(), batch.attention_mask.numpy()
        yield {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def _batches(examples: Examples, picks: Sequence[int]) -> Iterator[dict[str, NDArray[np.int64]]]:
    for start in range(0, len(picks), CALIBRATION_BATCH):
        batch = examples.batch(picks[start : start + CALIBRATION_BATCH])
        yield {name: getattr(batch, name).numpy() for name in ("input_ids", "attention_mask", "token_type_ids")}
