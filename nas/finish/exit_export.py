"""The folder of a model with exits: a graph for each exit, the weights, the description.

The graphs are cut out of the ones that the exporter builds for a task model that ends at that exit, so that they are
the fast ones, last layer included: a head that reads position 0 alone needs its own layer at that position alone. Early
exits that do so *look ahead*: a text that stops leaves out the rest of their layer, and one that goes on pays for it
besides. That is a gain on long texts; on short ones a layer at one position costs a good part of the whole layer.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save

from nas.export.export import encoder_weights
from nas.export.huggingface import copy_tokenizer
from nas.export.int8 import quantize
from nas.export.onnx_graph import (
    INPUT_NAMES,
    IR_VERSION,
    OPSET,
    build_graph,
    weight_shapes,
    without_unread_positions,
)
from nas.export.parity import TEXTS, TOLERANCE, ParityError
from nas.finish.exit_folder import (
    DESCRIPTION_FILE,
    EXITS_FOLDER,
    GATES_NAME,
    LOGITS_NAME,
    NEXT_NAME,
    STATES_NAME,
    WEIGHTS_FILE,
    Description,
    exit_file,
    read_description,
)
from nas.finish.exit_layers import prefix
from nas.finish.exit_model import ExitModel, TorchLayers
from nas.finish.exits import AdaptiveModel, Batch, Layers, OnnxLayers, padded
from search_spaces.architecture import SepConv
from search_spaces.cost import SEP_CONV_ROUNDS
from search_spaces.files import atomic_folder
from search_spaces.steps import Step, steps
from supernet.checkpoint import load_state, read_tensors
from supernet.encoder import Encoder


def save_exits(
    folder: Path,
    model: ExitModel,
    description: Description,
    tokenizer: Any,
    *,
    int8_facts: Callable[[OnnxLayers], Mapping[str, Any]] | None = None,
) -> None:
    """Writes a model with exits in float32 and int8, and checks every float graph against it; all of it or nothing.

    Args:
        folder: Where to; absent or empty.
        model: In float32.
        description: What it is.
        tokenizer: Its Hugging Face fast tokenizer.
        int8_facts: Finds out from the int8 layers what the description shall say of them.

    Raises:
        InvalidInputError: The place is occupied or cannot be written, the tokenizer does not fit, or the weights are
            not finite float32.
        ParityError: A graph does not compute what the model computes.
    """
    with atomic_folder(folder) as temporary:
        with tempfile.TemporaryDirectory() as tokenizer_dir:
            tokenizer.save_pretrained(tokenizer_dir)
            copy_tokenizer(Path(tokenizer_dir), temporary, description.text)
        (temporary / EXITS_FOLDER).mkdir()
        for place, graph in enumerate(exit_graphs(model)):
            onnx.checker.check_model(graph)
            onnx.save_model(graph, exit_file(temporary, place))
            quantize(graph, exit_file(temporary, place, "int8"))
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        (temporary / WEIGHTS_FILE).write_bytes(save(state))
        if int8_facts is not None:
            told = int8_facts(OnnxLayers(temporary, description, precision="int8"))
            description = replace(description, facts={**description.facts, **told})
        (temporary / DESCRIPTION_FILE).write_text(description.to_json(), encoding="utf-8")
        _check_parity(model, temporary)


def load_exits(folder: Path) -> tuple[ExitModel, Description]:
    """Reads a folder's model, to compute or learn in torch.

    Raises:
        InvalidInputError: It is none, or its weights are missing, damaged or of another shape.
    """
    description = read_description(folder)
    state = read_tensors(folder / WEIGHTS_FILE)
    model = ExitModel(
        Encoder(description.architecture, description.text),
        description.spec,
        pooling=description.pooling,
        early=description.early,
        activation=description.activation,
        has_gates=any(name.startswith("gates.") for name in state),
    )
    load_state(model, state, folder)
    return model.eval(), description


def exit_graphs(model: ExitModel) -> Iterator[onnx.ModelProto]:
    """Yields for each exit the graph from where the one before left off.

    The first reads ``input_ids``, ``attention_mask`` and ``token_type_ids``; the others ``states`` (B * T, D) and
    ``attention_mask``. They give ``logits`` (B, C), ``gates`` (B, 1) where there are some, and ``next_states``
    (B * T, D) unless they leave the states as they are.
    """
    architecture, text = model.encoder.architecture, model.encoder.text
    weights = encoder_weights(model.encoder)
    before: Step | None = None
    for place, layer in enumerate(model.layers):
        shape = prefix(architecture, layer[-1])
        head = model.head(place).exported()
        named = {name: weights[name] for name in weight_shapes(shape, text)}
        assert head.weights is not None
        named |= {f"head.{name}": array for name, array in head.weights.items()}
        graph = build_graph(shape, text, named, head=head).graph
        reached = [step for step in steps(without_unread_positions(shape, head)) if not step.is_narrow][-1]
        if place < len(model.gates):
            _add_gate(graph, {name: tensor.numpy() for name, tensor in model.gates[place].state_dict().items()})
        is_last = place == model.num_exits - 1
        yield _cut(graph, before, None if is_last or (before and before.name == reached.name) else reached)
        before = reached


def _closing_weight(step: Step) -> str:
    """The weight that only the last node of a step reads."""
    if step.sublayer is None:
        return f"{step.name}.weight"
    return f"{step.name}.{f'rounds.{SEP_CONV_ROUNDS - 1}.' * isinstance(step.sublayer, SepConv)}norm.weight"


def _add_gate(graph: onnx.GraphProto, weights: dict[str, NDArray[np.float32]]) -> None:
    """Adds a linear map (B, 1) of the state that the head reads."""
    pooled = next(node.input[0] for node in graph.node if "head.dense.weight" in node.input)
    names = {part: f"gate.{part}" for part in ("weight", "bias")}
    graph.initializer.extend(numpy_helper.from_array(weights[part], name) for part, name in names.items())
    graph.node.append(helper.make_node("Gemm", [pooled, *names.values()], [GATES_NAME], name=GATES_NAME, transB=1))


def _cut(graph: onnx.GraphProto, begin: Step | None, end: Step | None) -> onnx.ModelProto:
    """The part of a task model's graph behind a step; ``end`` is the step whose states are given out too."""
    ends = {weight: node.output[0] for node in graph.node for weight in node.input}
    start = None if begin is None else ends[_closing_weight(begin)]
    outputs = {name: name for name in (LOGITS_NAME, GATES_NAME) if any(name in node.output for node in graph.node)}
    outputs |= {} if end is None else {NEXT_NAME: ends[_closing_weight(end)]}
    renamed = {tensor: name for name, tensor in outputs.items()}
    if start is not None:  # the mask has the shape of the ids, which is all that is asked of them behind the embeddings
        renamed |= {start: STATES_NAME, INPUT_NAMES[0]: INPUT_NAMES[1]}
    nodes, read = _needed(graph, set(outputs.values()), start)
    for node in nodes:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    known = {tensor.name: tensor for tensor in graph.initializer}
    given = {renamed.get(name, name) for name in read if name not in known}
    widths = {name: 1 if name == GATES_NAME else _width(graph, name, end) for name in outputs}
    return helper.make_model(
        helper.make_graph(
            nodes,
            "exit",
            [_input(name, begin) for name in (*INPUT_NAMES, STATES_NAME) if name in given],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [_rows(name), widths[name]]) for name in outputs],
            [known[name] for name in sorted(read) if name in known],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="tiny-plm-nas",
    )


def _needed(graph: onnx.GraphProto, wanted: set[str], start: str | None) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that lead from ``start`` and the inputs to what is wanted, in order, and all that they read."""
    nodes, read = [], set(wanted)
    for node in reversed(graph.node):
        if start not in node.output and not read.isdisjoint(node.output):
            nodes.append(node)
            read.update(node.input)
    made = {name for node in nodes for name in node.output}
    return nodes[::-1], read - made


def _input(name: str, begin: Step | None) -> Any:
    if name == STATES_NAME:
        assert begin is not None
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [_rows(name), begin.hidden_size])
    return helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])


def _rows(name: str) -> str:
    return "rows" if name in (STATES_NAME, NEXT_NAME) else "batch"


def _width(graph: onnx.GraphProto, name: str, end: Step | None) -> int:
    if name == NEXT_NAME:
        assert end is not None
        return end.hidden_size
    return int(graph.output[0].type.tensor_type.shape.dim[1].dim_value)


def _check_parity(model: ExitModel, folder: Path) -> None:
    """Compares what every exit answers in torch and in ONNX Runtime, on real, padded text."""
    from tokenizers import Tokenizer

    adaptive = AdaptiveModel.load(folder)
    tokenizer: Tokenizer = adaptive.tokenizer
    limit = model.encoder.text.max_positions
    encoded = tokenizer.encode_batch(list(TEXTS))
    batch = padded([one.ids[:limit] for one in encoded], [one.type_ids[:limit] for one in encoded], model.encoder.text)
    assert isinstance(adaptive.layers, OnnxLayers)
    for place, (ours, theirs) in enumerate(
        zip(answers(TorchLayers(model), batch), answers(adaptive.layers, batch), strict=True)
    ):
        for one, other in zip(ours, theirs, strict=True):
            bound = TOLERANCE * max(1.0, float(np.abs(one).max()))
            if not np.abs(one - other).max() <= bound:
                raise ParityError(
                    f"{exit_file(Path(), place)} must equal its source to {bound:.1e}, got "
                    f"{np.abs(one - other).max():.1e}; nothing was written, check for weights of extreme size"
                )


def answers(layers: Layers, batch: Batch) -> Iterator[list[NDArray[np.float64]]]:
    """Yields what each exit gives where nothing stops: its logits (B, C) and, where it has a gate, that (B,)."""
    hidden: Any = None
    for place in range(layers.num_exits):
        hidden, logits, gates = layers.advance(place, hidden, batch)
        yield [logits] if gates is None else [logits, gates]
