import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_encoders import ARCHITECTURES, TEXT, build_encoder, padded_batch

from nas.export.onnx_graph import INPUT_NAMES, build_graph, weight_shapes
from search_spaces.architecture import Architecture, Attention, Block, FeedForward, SepConv, TextSpec
from search_spaces.errors import InvalidInputError


def arrays(encoder):
    return {name: tensor.numpy() for name, tensor in encoder.state_dict().items()}


def run(model, batch):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(["last_hidden_state"], {name: tensor.numpy() for name, tensor in batch.items()})[0]


def difference(encoder, batch, model=None):
    model = build_graph(encoder.architecture, encoder.text, arrays(encoder)) if model is None else model
    with torch.no_grad():
        reference = encoder(**batch).numpy()
    return np.abs(run(model, batch) - reference).max()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_graph_computes_what_the_encoder_computes_at_every_batch_and_length(name):
    encoder = build_encoder(ARCHITECTURES[name])
    model = build_graph(encoder.architecture, encoder.text, arrays(encoder))
    onnx.checker.check_model(model, full_check=True)
    for batch, tokens in ((1, 1), (1, 64), (3, 17), (5, 2)):
        assert difference(encoder, padded_batch(TEXT, batch, tokens), model) < 1e-5


def test_relu_and_the_norm_epsilon_are_carried_over():
    text = TextSpec(vocab_size=50, max_positions=16, hidden_act="relu", layer_norm_eps=0.3)
    assert difference(build_encoder(ARCHITECTURES["bert"], text), padded_batch(text, 2, 9)) < 1e-5


def test_padding_does_not_change_a_text():
    encoder = build_encoder(ARCHITECTURES["bert"])
    model = build_graph(encoder.architecture, encoder.text, arrays(encoder))
    batch = padded_batch(TEXT, 1, 10)
    padded = {name: torch.nn.functional.pad(tensor, (0, 7)) for name, tensor in batch.items()}
    assert np.abs(run(model, batch) - run(model, padded)[:, :10]).max() < 1e-5


sizes = st.integers(1, 40)
sublayers = st.one_of(st.builds(Attention, st.integers(1, 5), st.integers(1, 12)), st.builds(FeedForward, sizes))
blocks = st.builds(Block, sizes, st.lists(sublayers, min_size=1, max_size=3).map(tuple))


@settings(max_examples=25, deadline=None)
@given(st.builds(Architecture, sizes, st.lists(blocks, min_size=1, max_size=3).map(tuple)), st.integers(0, 99))
def test_any_chain_of_attention_and_feed_forward_can_be_exported(architecture, seed):
    text = TextSpec(vocab_size=11, max_positions=8, type_vocab_size=3)
    encoder = build_encoder(architecture, text, seed)
    assert weight_shapes(architecture, text) == {
        name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()
    }
    # A layer norm over few values may divide by next to nothing; judge by the scale of the values.
    assert difference(encoder, padded_batch(text, 2, 5, seed)) < 1e-3


def test_random_weights_are_ordinary_numbers_and_follow_the_seed():
    first, again, other = (build_graph(ARCHITECTURES["bert"], TEXT, None, seed=seed) for seed in (1, 1, 2))
    assert first.SerializeToString() == again.SerializeToString() != other.SerializeToString()
    for tensor in first.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim:
            nonzero = np.abs(values[values != 0])
            assert np.isfinite(values).all()
            assert nonzero.min() > np.finfo(np.float32).tiny
    assert np.isfinite(run(first, padded_batch(TEXT, 2, 9))).all()


def test_random_weights_make_the_graph_of_real_ones():
    encoder = build_encoder(ARCHITECTURES["bert"])
    real, random = (build_graph(encoder.architecture, TEXT, weights) for weights in (arrays(encoder), None))
    assert real.graph.node == random.graph.node
    assert [tensor.dims for tensor in real.graph.initializer] == [tensor.dims for tensor in random.graph.initializer]


def test_every_operator_is_a_standard_one_and_the_interface_is_the_promised_one():
    model = build_graph(ARCHITECTURES["electra"], TEXT, None)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert tuple(value.name for value in model.graph.input) == INPUT_NAMES
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        assert [dim.dim_param for dim in dims[:2]] == ["batch", "sequence"]
    assert model.graph.output[0].type.tensor_type.shape.dim[2].dim_value == 48


def test_a_text_longer_than_the_position_table_is_an_error_and_not_a_wrong_answer():
    model = build_graph(ARCHITECTURES["bert"], TEXT, None)
    with pytest.raises(Exception, match="ONNXRuntimeError"):
        run(model, padded_batch(TEXT, 1, TEXT.max_positions + 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("embeddings.norm.bias"), "missing: .'embeddings.norm.bias'"),
        (lambda w: w.update(head=np.zeros(3, np.float32)), "not known: .'head'"),
        (lambda w: w.update({"embeddings.norm.bias": np.zeros(3, np.float32)}), r"shape \(48,\), got float32 \(3,\)"),
        (lambda w: w.update({"embeddings.norm.bias": np.zeros(48)}), "must be float32"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    weights = arrays(build_encoder(ARCHITECTURES["bert"]))
    change(weights)
    with pytest.raises(InvalidInputError, match=message):
        build_graph(ARCHITECTURES["bert"], TEXT, weights)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (Architecture(8, (Block(8, (SepConv(3),)),)), "convolutions cannot be exported"),
        (Architecture.bert(2, 8, 8, 1, num_narrow_layers=1), "narrow layers cannot be exported"),
        (Architecture.bert(1, 65_536, 65_536, 64), "at most 2 GiB"),
    ],
)
def test_shapes_that_cannot_be_exported_are_refused(architecture, message):
    with pytest.raises(InvalidInputError, match=message):
        build_graph(architecture, TEXT, None)


def test_the_score_scale_is_the_inverse_root_of_the_head_size():
    encoder = build_encoder(Architecture.bert(1, 12, 8, 2, head_size=5))
    model = build_graph(encoder.architecture, TEXT, arrays(encoder))
    initializers = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    query = encoder.blocks[0].sublayers[0].query
    assert np.allclose(initializers["blocks.0.sublayers.0.query.weight"] * math.sqrt(5), query.weight.detach())
    assert np.allclose(initializers["blocks.0.sublayers.0.query.bias"] * math.sqrt(5), query.bias.detach())
