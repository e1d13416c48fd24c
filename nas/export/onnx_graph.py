"""An encoder as an ONNX graph of standard operators, built node by node.

The graph that is exported is the graph that is timed. It is written with ``onnx.helper`` rather than traced: a search
exports dozens of shapes, so each must take milliseconds. Only operators of the standard domain appear, so that other
runtimes open it too. The layout is the one that was fastest in ONNX Runtime on a CPU (``benchmarks/onnx_graph.py``):

* batch and tokens are one axis outside the attention scores, so that every linear map is one Gemm with its bias inside,
  and ONNX Runtime does not fuse residual and norm into SkipLayerNormalization, whose CPU kernel is the slower one;
* the score scale is folded into the query's weights.

Shapes: B batch, T tokens, D hidden, N heads, K head width, F feed-forward width, E embedding width, V vocabulary.
"""

import math
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from search_spaces.architecture import Architecture, Attention, FeedForward, SepConv, TextSpec
from search_spaces.errors import InvalidInputError

OPSET = 20  # the first with Gelu
IR_VERSION = 9  # the oldest that carries this opset
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT_NAME = "last_hidden_state"
_MAX_WEIGHTS_BYTES = 2**31 - 2**20  # protobuf's limit, less room for the nodes
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
        InvalidInputError: The architecture cannot be exported, is too large for one file, or the weights do not fit it.
    """
    shapes = weight_shapes(architecture, text)
    size_bytes = 4 * sum(map(math.prod, shapes.values()))
    if size_bytes > _MAX_WEIGHTS_BYTES:
        raise InvalidInputError(
            f"an ONNX file holds at most 2 GiB, the weights take {size_bytes:,} bytes; choose smaller sizes"
        )
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
    return graph.model(hidden, architecture.hidden_size)


class _Graph:
    """Fills one model proto in place: weights are large, and onnx.helper would copy them three times over."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.proto = onnx.ModelProto(ir_version=IR_VERSION, producer_name="tiny-plm-nas")
        self.proto.opset_import.add(version=OPSET)
        self.proto.graph.name = "encoder"
        self._constants: set[str] = set()
        self._shapes: dict[tuple[int, ...], str] = {}

    def op(self, kind: str, *inputs: str, **attributes: int | float | list[int]) -> str:
        """Adds a node and returns the name of its output."""
        name = f"{kind.lower()}_{len(self.proto.graph.node)}"
        self.proto.graph.node.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Adds an initialiser, once for each name."""
        if name not in self._constants:
            self._constants.add(name)
            self.proto.graph.initializer.add(
                name=name,
                dims=value.shape,
                data_type=helper.np_dtype_to_tensor_dtype(value.dtype),
                raw_data=np.asarray(value, order="C").astype(value.dtype.newbyteorder("<"), copy=False).tobytes(),
            )
        return name

    def ints(self, *values: int) -> str:
        return self.constant("ints_" + "_".join(map(str, values)).replace("-", "minus"), np.array(values, np.int64))

    def batch_shape(self, *sizes: int) -> str:
        """Returns the shape (B, T, *sizes) of this run."""
        if not self._shapes:
            self._shapes[()] = self.op("Shape", "input_ids")
        if sizes not in self._shapes:
            self._shapes[sizes] = self.op("Concat", self._shapes[()], self.ints(*sizes), axis=0)
        return self._shapes[sizes]

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def linear(self, rows: str, name: str, *, factor: float = 1.0) -> str:
        """Adds ``factor * (rows @ weight.T + bias)``: (B * T, D) to (B * T, D_out)."""
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        if factor != 1:
            weight, bias = weight * np.float32(factor), bias * np.float32(factor)
        weight_name, bias_name = self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)
        return self.op("Gemm", rows, weight_name, bias_name, transB=1)

    def norm(self, value: str, name: str, epsilon: float) -> str:
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.op("LayerNormalization", value, scale, bias, axis=-1, epsilon=epsilon)

    def model(self, rows: str, hidden_size: int) -> onnx.ModelProto:
        """Declares inputs and output; ``rows`` (B * T, D) become the last hidden state."""
        graph = self.proto.graph
        self.op("Reshape", rows, self.batch_shape(hidden_size))
        graph.node[-1].output[0] = OUTPUT_NAME
        for name in INPUT_NAMES:
            graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]))
        shape = ["batch", "sequence", hidden_size]
        graph.output.append(helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, shape))
        return self.proto


def _embeddings(graph: _Graph, architecture: Architecture, text: TextSpec) -> str:
    """Adds the sum of the three tables, its norm and, if factorised, the map to the hidden size: (B * T, D)."""
    zero, one = graph.constant("zero", np.array(0, np.int64)), graph.constant("one", np.array(1, np.int64))
    length = graph.op("Squeeze", graph.op("Shape", "input_ids", start=1, end=2), graph.ints(0))
    positions = graph.op("Range", zero, length, one)  # (T,)
    word = graph.op("Gather", graph.weight("embeddings.word.weight"), "input_ids")  # (B, T, E)
    token_type = graph.op("Gather", graph.weight("embeddings.token_type.weight"), "token_type_ids")  # (B, T, E)
    position = graph.op("Gather", graph.weight("embeddings.position.weight"), positions)  # (T, E)
    summed = graph.op("Add", graph.op("Add", word, token_type), position)
    rows = graph.op("Reshape", summed, graph.ints(-1, architecture.embedding_size))  # (B * T, E)
    normed = graph.norm(rows, "embeddings.norm", text.layer_norm_eps)
    if architecture.embedding_size == architecture.blocks[0].hidden_size:
        return normed
    return graph.linear(normed, "embeddings.project")


def _additive_mask(graph: _Graph) -> str:
    """Adds (1 - attention_mask) * the lowest float: (B, 1, 1, T)."""
    real = graph.op("Cast", graph.op("Unsqueeze", "attention_mask", graph.ints(1, 2)), to=TensorProto.FLOAT)
    padding = graph.op("Sub", graph.constant("one_float", np.array(1, np.float32)), real)
    return graph.op("Mul", padding, graph.constant("lowest", np.array(np.finfo(np.float32).min)))


def _attention(graph: _Graph, name: str, shape: Attention, hidden: str, mask: str) -> str:
    """Adds multi-head self-attention without residual: (B * T, D)."""
    heads = graph.batch_shape(shape.num_heads, shape.head_size)
    scale = float(shape.head_size) ** -0.5
    query, key, value = (
        graph.op(
            "Transpose", graph.op("Reshape", graph.linear(hidden, f"{name}.{part}", factor=factor), heads), perm=perm
        )
        for part, factor, perm in (
            ("query", scale, [0, 2, 1, 3]),  # (B, N, T, K)
            ("key", 1.0, [0, 2, 3, 1]),  # (B, N, K, T)
            ("value", 1.0, [0, 2, 1, 3]),  # (B, N, T, K)
        )
    )
    scores = graph.op("Add", graph.op("MatMul", query, key), mask)  # (B, N, T, T)
    context = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), value)  # (B, N, T, K)
    rows = graph.op("Reshape", graph.op("Transpose", context, perm=[0, 2, 1, 3]), graph.ints(-1, shape.width))
    return graph.linear(rows, f"{name}.output")


def _feed_forward(graph: _Graph, name: str, hidden: str, text: TextSpec) -> str:
    """Adds two linear maps with the activation between them, without residual: (B * T, D)."""
    activation = {"gelu": "Gelu", "relu": "Relu"}[text.hidden_act]
    return graph.linear(graph.op(activation, graph.linear(hidden, f"{name}.up")), f"{name}.down")


def _random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, NDArray[np.float32]]:
    """Cuts every weight from one small pool of normal numbers, tiled: far faster than drawing them all."""
    pool = np.random.default_rng(seed).normal(0, 0.02, _POOL_SIZE).astype(np.float32)
    tiled = np.resize(pool, max(map(math.prod, shapes.values())) + _POOL_SIZE)
    weights = {}
    for index, (name, shape) in enumerate(shapes.items()):
        start = 997 * index % _POOL_SIZE
        weights[name] = tiled[start : start + math.prod(shape)].reshape(shape)
        if name.endswith("norm.weight"):
            weights[name] = 1 + weights[name]
    return weights


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
