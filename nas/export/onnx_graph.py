"""An encoder as an ONNX graph of standard operators, built node by node.

The graph that is exported is the graph that is timed. It is written with ``onnx.helper`` rather than traced: a search
exports dozens of shapes, so each must take milliseconds, and the nodes are laid out the way ONNX Runtime fuses best
(one matrix product for query, key and value, the score scale folded into the query). Only operators of the standard
domain appear, so that other runtimes open it too.

Shapes: B batch, T tokens, D hidden, N heads, K head width, F feed-forward width, E embedding width, V vocabulary.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from search_spaces.architecture import Architecture, Attention, FeedForward, SepConv, TextSpec
from search_spaces.errors import InvalidInputError

OPSET = 20  # the first with Gelu
IR_VERSION = 9  # the oldest that carries this opset
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT_NAME = "last_hidden_state"
_MASKED = float(np.finfo(np.float32).min)
_POOL_SIZE = 65_521  # prime, so that tiled weights do not repeat along any axis

Weights = Mapping[str, NDArray[np.float32]]


def weight_shapes(architecture: Architecture, text: TextSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every weight, the ones of ``supernet.encoder.Encoder``.

    Raises:
        InvalidInputError: The architecture holds a part that cannot be exported (convolution, narrow layers).
    """
    if architecture.narrow_from is not None:
        raise InvalidInputError("an encoder with narrow layers cannot be exported yet; leave narrow_from out")
    embedding_size = architecture.embedding_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word.weight": (text.vocab_size, embedding_size),
        "embeddings.position.weight": (text.max_positions, embedding_size),
        "embeddings.token_type.weight": (text.type_vocab_size, embedding_size),
        **_norm_shapes("embeddings.norm", embedding_size),
    }
    incoming = architecture.blocks[0].hidden_size
    if embedding_size != incoming:
        shapes |= _linear_shapes("embeddings.project", embedding_size, incoming)
    for index, block in enumerate(architecture.blocks):
        hidden_size = block.hidden_size
        if hidden_size != incoming:
            shapes |= _linear_shapes(f"blocks.{index}.map", incoming, hidden_size)
        for place, sublayer in enumerate(block.sublayers):
            name = f"blocks.{index}.sublayers.{place}"
            match sublayer:
                case Attention():
                    for part in ("query", "key", "value"):
                        shapes |= _linear_shapes(f"{name}.{part}", hidden_size, sublayer.width)
                    shapes |= _linear_shapes(f"{name}.output", sublayer.width, hidden_size)
                case FeedForward(intermediate_size):
                    shapes |= _linear_shapes(f"{name}.up", hidden_size, intermediate_size)
                    shapes |= _linear_shapes(f"{name}.down", intermediate_size, hidden_size)
                case SepConv():
                    raise InvalidInputError(
                        "an encoder with separable convolutions cannot be exported yet; use attention and feed-forward"
                    )
            shapes |= _norm_shapes(f"{name}.norm", hidden_size)
        incoming = hidden_size
    return shapes


def build_graph(
    architecture: Architecture, text: TextSpec, weights: Weights | None, *, seed: int = 0
) -> onnx.ModelProto:
    """Builds the ONNX model of an encoder.

    Args:
        architecture: The shape; without narrowing and convolutions.
        text: What the encoder reads.
        weights: Arrays by the names of :func:`weight_shapes`; None fills in random ones, to time a shape.
        seed: Of the random weights.

    Returns:
        A model with int64 inputs input_ids, attention_mask, token_type_ids, each (B, T), and the float32 output
        last_hidden_state (B, T, D); B and T are dynamic. A text longer than the position table is an error at run time.

    Raises:
        InvalidInputError: The architecture cannot be exported, or the weights do not fit it.
    """
    shapes = weight_shapes(architecture, text)
    if weights is None:
        weights = _random_weights(shapes, seed)
    _check_weights(weights, shapes)
    graph = _Graph(weights)
    hidden = _embeddings(graph, architecture, text)
    mask = _additive_mask(graph)
    for index, block in enumerate(architecture.blocks):
        if f"blocks.{index}.map.weight" in shapes:
            hidden = graph.linear(hidden, f"blocks.{index}.map")
        for place, sublayer in enumerate(block.sublayers):
            name = f"blocks.{index}.sublayers.{place}"
            match sublayer:
                case Attention():
                    update = _attention(graph, name, sublayer, hidden, mask)
                case FeedForward():
                    update = _feed_forward(graph, name, hidden, text)
            hidden = graph.norm(graph.op("Add", update, hidden), f"{name}.norm", text.layer_norm_eps)
    graph.nodes[-1].output[0] = OUTPUT_NAME
    return graph.model(architecture)


class _Graph:
    """Collects nodes and initialisers; values are named after their node."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        """Adds a node and returns the name of its first output; further ones end in ``_1``, ``_2``."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        names = [name, *(f"{name}_{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, inputs, names, name=name, **attributes))
        return name

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Adds an initialiser, once for each name."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def ints(self, *values: int) -> str:
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def linear(self, value: str, name: str) -> str:
        """Adds ``value @ weight.T + bias``."""
        return self.matmul_add(value, name, self.weights[f"{name}.weight"].T, self.weights[f"{name}.bias"])

    def matmul_add(self, value: str, name: str, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> str:
        product = self.op("MatMul", value, self.constant(f"{name}.weight", weight))
        return self.op("Add", product, self.constant(f"{name}.bias", bias))

    def norm(self, value: str, name: str, epsilon: float) -> str:
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.op("LayerNormalization", value, scale, bias, axis=-1, epsilon=epsilon)

    def model(self, architecture: Architecture) -> onnx.ModelProto:
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in INPUT_NAMES]
        shape = ["batch", "sequence", architecture.hidden_size]
        output = helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "encoder", inputs, [output], list(self.initializers.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="tiny-plm-nas")


def _embeddings(graph: _Graph, architecture: Architecture, text: TextSpec) -> str:
    """Adds the sum of the three tables, its norm and, if factorised, the map to the hidden size: (B, T, D)."""
    length = graph.op("Shape", "input_ids", start=1, end=2)  # (1,)
    scalar_length = graph.op("Squeeze", length)
    zero, one = graph.constant("zero", np.array(0, np.int64)), graph.constant("one", np.array(1, np.int64))
    positions = graph.op("Range", zero, scalar_length, one)  # (T,)
    word = graph.op("Gather", graph.weight("embeddings.word.weight"), "input_ids")  # (B, T, E)
    token_type = graph.op("Gather", graph.weight("embeddings.token_type.weight"), "token_type_ids")
    position = graph.op("Gather", graph.weight("embeddings.position.weight"), positions)  # (T, E)
    summed = graph.op("Add", graph.op("Add", word, token_type), position)
    normed = graph.norm(summed, "embeddings.norm", text.layer_norm_eps)
    if architecture.embedding_size == architecture.blocks[0].hidden_size:
        return normed
    return graph.linear(normed, "embeddings.project")


def _additive_mask(graph: _Graph) -> str:
    """Adds (1 - attention_mask) * the lowest float: (B, 1, 1, T)."""
    real = graph.op("Cast", graph.op("Unsqueeze", "attention_mask", graph.ints(1, 2)), to=TensorProto.FLOAT)
    padding = graph.op("Sub", graph.constant("one_float", np.array(1, np.float32)), real)
    return graph.op("Mul", padding, graph.constant("masked", np.array(_MASKED, np.float32)))


def _attention(graph: _Graph, name: str, shape: Attention, hidden: str, mask: str) -> str:
    """Adds multi-head self-attention without residual: (B, T, D)."""
    weights, scale = graph.weights, 1 / np.sqrt(np.float32(shape.head_size))
    parts = [(part, scale if part == "query" else np.float32(1)) for part in ("query", "key", "value")]
    joint_weight = np.concatenate([weights[f"{name}.{part}.weight"].T * factor for part, factor in parts], axis=1)
    joint_bias = np.concatenate([weights[f"{name}.{part}.bias"] * factor for part, factor in parts])
    joint = graph.matmul_add(hidden, f"{name}.query_key_value", joint_weight, joint_bias)  # (B, T, 3NK)
    query = graph.op("Split", joint, outputs=3, axis=-1, num_outputs=3)
    split = graph.ints(0, 0, shape.num_heads, shape.head_size)
    query, key, value = (
        graph.op("Transpose", graph.op("Reshape", part, split), perm=perm)
        for part, perm in ((query, (0, 2, 1, 3)), (f"{query}_1", (0, 2, 3, 1)), (f"{query}_2", (0, 2, 1, 3)))
    )
    scores = graph.op("Add", graph.op("MatMul", query, key), mask)  # (B, N, T, T)
    context = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), value)  # (B, N, T, K)
    merged = graph.op("Reshape", graph.op("Transpose", context, perm=(0, 2, 1, 3)), graph.ints(0, 0, shape.width))
    return graph.linear(merged, f"{name}.output")


def _feed_forward(graph: _Graph, name: str, hidden: str, text: TextSpec) -> str:
    """Adds two linear maps with the activation between them, without residual: (B, T, D)."""
    activation = {"gelu": "Gelu", "relu": "Relu"}[text.hidden_act]
    return graph.linear(graph.op(activation, graph.linear(hidden, f"{name}.up")), f"{name}.down")


def _random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, NDArray[np.float32]]:
    """Fills every weight from one small pool of normal numbers: far faster than drawing them all."""
    pool = np.random.default_rng(seed).normal(0, 0.02, _POOL_SIZE).astype(np.float32)
    filled = {}
    for index, (name, shape) in enumerate(shapes.items()):
        values = np.resize(np.roll(pool, 997 * index), shape)
        filled[name] = values + np.float32(1) if name.endswith("norm.weight") else values
    return filled


def _check_weights(weights: Weights, shapes: Mapping[str, tuple[int, ...]]) -> None:
    if weights.keys() != shapes.keys():
        missing, extra = sorted(shapes.keys() - weights.keys())[:3], sorted(weights.keys() - shapes.keys())[:3]
        raise InvalidInputError(f"weights must be named as in the encoder; missing: {missing}, not known: {extra}")
    for name, shape in shapes.items():
        if weights[name].shape != shape or weights[name].dtype != np.float32:
            found = f"{weights[name].dtype} {weights[name].shape}"
            raise InvalidInputError(f"{name} must be float32 of shape {shape}, got {found}")


def _linear_shapes(name: str, incoming: int, outgoing: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outgoing, incoming), f"{name}.bias": (outgoing,)}


def _norm_shapes(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}
