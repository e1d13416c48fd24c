"""From an encoder, or a task model, to a folder that people load: Hugging Face, ONNX, int8, a model card."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from nas.export.card import CardFacts, ExportReport, write_card
from nas.export.huggingface import model_class, write_folder, write_sentence_transformers
from nas.export.int8 import quantize
from nas.export.onnx_graph import build_graph
from nas.export.parity import check_parity
from nas.export.task_head import TaskHead
from search_spaces.errors import InvalidInputError
from search_spaces.files import atomic_folder
from supernet.encoder import Encoder
from supernet.pooling import Pooling, check_pooling, usual_pooling

MODEL_FILES = ("model.safetensors", "model.onnx", "model.int8.onnx")

#: Writes the int8 form of a graph to a file.
WriteInt8 = Callable[[onnx.ModelProto, Path], None]


def export_model(
    encoder: Encoder,
    tokenizer_dir: Path,
    out_dir: Path,
    *,
    facts: CardFacts | None = None,
    with_positions: bool = False,
    pooling: Pooling | None = None,
    write_int8: WriteInt8 = quantize,
    add: Callable[[Path], None] = lambda folder: None,
) -> ExportReport:
    """Exports an encoder, checks every file against it, and writes the model card; all of it or nothing.

    Args:
        encoder: The model, in float32.
        tokenizer_dir: The folder of its Hugging Face tokenizer.
        out_dir: Where the folder shall be; absent or empty.
        facts: What else is known for the card; it can be written again with ``write_card``.
        with_positions: Whether the ONNX files take the positions whose states are wanted as a fourth input; without it
            an encoder with narrow layers gives the state of position 0.
        pooling: Which state stands for a text, as sentence-transformers reads it; by default the mean over the tokens,
            or position 0 of an encoder with narrow layers.
        write_int8: Writes the int8 file; by default activations are quantised as they come.
        add: Writes what else belongs into the folder, before it is in place.

    Returns:
        What is on disk: files, sizes and parities.

    Raises:
        InvalidInputError: The place is occupied or cannot be written, the tokenizer does not fit, the weights are not
            finite float32, or the mean is asked of an encoder with narrow layers.
        ParityError: A file does not compute what the encoder computes.
    """
    pooling = pooling or usual_pooling(encoder.architecture)
    check_pooling(encoder.architecture, pooling)
    weights = encoder_weights(encoder)
    with atomic_folder(out_dir) as folder:
        place = (folder, out_dir, tokenizer_dir, write_int8)
        report = _write(place, encoder, encoder, weights, None, with_positions=with_positions)
        write_sentence_transformers(folder, encoder.architecture, encoder.text, pooling)
        report = replace(report, pooling=pooling)
        add(folder)
        write_card(folder, report, facts or CardFacts())
    return report


def export_task_model(
    model: nn.Module,
    encoder: Encoder,
    head: TaskHead,
    tokenizer_dir: Path,
    out_dir: Path,
    *,
    facts: CardFacts | None = None,
    write_int8: WriteInt8 = quantize,
    add: Callable[[Path], None] = lambda folder: None,
) -> ExportReport:
    """Exports an encoder with a task's head as :func:`export_model` does an encoder.

    The ONNX files give logits. Those of a tagger with narrow layers take ``positions``: the first token of each word.

    Args:
        model: What the files must equal: called with input_ids, attention_mask and token_type_ids, each (B, T), it
            gives logits.
        encoder: Its encoder, in float32.
        head: Its head.
        tokenizer_dir: The folder of its Hugging Face tokenizer.
        out_dir: Where the folder shall be; absent or empty.
        facts: What else is known for the card.
        write_int8: Writes the int8 file; by default activations are quantised as they come.
        add: Writes what else belongs into the folder, before it is in place.

    Raises:
        InvalidInputError: As of :func:`export_model`.
        ParityError: A file does not compute what the model computes.
    """
    assert head.weights is not None
    weights = encoder_weights(encoder) | _finite({f"head.{name}": array for name, array in head.weights.items()})
    with_positions = head.spec.kind == "tagging" and not encoder.keeps_all_positions
    with atomic_folder(out_dir) as folder:
        place = (folder, out_dir, tokenizer_dir, write_int8)
        report = _write(place, model, encoder, weights, head, with_positions=with_positions)
        add(folder)
        write_card(folder, report, facts or CardFacts())
    return report


def _write(
    place: tuple[Path, Path, Path, WriteInt8],
    model: nn.Module,
    encoder: Encoder,
    weights: dict[str, NDArray[np.float32]],
    head: TaskHead | None,
    *,
    with_positions: bool,
) -> ExportReport:
    """Writes every file but the card and checks them."""
    folder, out_dir, tokenizer_dir, write_int8 = place
    architecture, text = encoder.architecture, encoder.text
    kind = model_class(architecture, head)
    body = {name: array for name, array in weights.items() if not name.startswith("head.")}
    write_folder(folder, architecture, text, body, tokenizer_dir, head)
    graph = build_graph(architecture, text, weights, with_positions=with_positions, head=head)
    onnx.checker.check_model(graph)
    onnx.save_model(graph, folder / "model.onnx")
    if write_int8 is not quantize:  # the others round the inputs of linear maps, which absorbed attention has fewer of
        graph = build_graph(architecture, text, weights, with_positions=with_positions, head=head, is_absorbed=False)
    write_int8(graph, folder / "model.int8.onnx")
    parities = check_parity(model, folder, kind, max_positions=text.max_positions, with_positions=with_positions)
    sizes = {name: (folder / name).stat().st_size for name in MODEL_FILES}
    return ExportReport(out_dir, architecture, text, kind, sizes, parities, with_positions, head)


def encoder_weights(encoder: Encoder) -> dict[str, NDArray[np.float32]]:
    """Returns an encoder's weights as arrays by name.

    Raises:
        InvalidInputError: A weight is not float32 or not finite.
    """
    weights: dict[str, NDArray[np.float32]] = {}
    for name, tensor in encoder.state_dict().items():
        if str(tensor.dtype) != "torch.float32":
            raise InvalidInputError(
                f"an encoder is exported in float32, got {name} in {tensor.dtype}; call .float() first"
            )
        weights[name] = tensor.detach().cpu().numpy()
    return _finite(weights)


def _finite(weights: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise InvalidInputError(f"every weight must be finite, {name} is not; train or extract the encoder again")
    return weights
