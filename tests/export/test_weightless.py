"""Graphs without their weights: small, the same graph, and runnable once the files are made."""

import itertools

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from nas.devices.runner import _fill
from nas.export.int8 import quantize
from nas.export.onnx_graph import build_graph
from nas.export.weightless import without_weights
from search_spaces.architecture import Architecture, Attention, Block, FeedForward, SepConv, TextSpec

TEXT = TextSpec(vocab_size=1024, max_positions=128)
SHAPE = Architecture(64, (Block(96, (SepConv(5), Attention(3, 32), FeedForward(192)) + (Attention(3, 32),) * 2),), 3)


def run(path):
    ids = np.arange(32, dtype=np.int64).reshape(2, 16)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return ort.InferenceSession(str(path)).run(None, feed)[0]


@pytest.fixture(params=["fp32", "int8"])
def model(request, tmp_path):
    built = build_graph(SHAPE, TEXT, None)
    if request.param == "fp32":
        return built
    quantize(built, tmp_path / "int8.onnx")
    return onnx.load(str(tmp_path / "int8.onnx"))


def test_a_filled_graph_runs_and_is_the_same_graph(model, tmp_path):
    before = model.SerializeToString()
    light = without_weights(model)
    assert model.SerializeToString() == before
    assert len(light.graph) < len(before) - 0.99 * sum(light.fill.values())
    (tmp_path / "light.onnx").write_bytes(light.graph)
    for name, size in light.fill.items():
        _fill(tmp_path / name, size)
        assert (tmp_path / name).stat().st_size == size
    found = run(tmp_path / "light.onnx")
    assert found.shape == (2, 1, 96)
    assert np.isfinite(found).all()
    assert found.std() > 0
    whole = onnx.load(str(tmp_path / "light.onnx"))  # onnx's own reading of external data
    onnx.save(whole, str(tmp_path / "whole.onnx"), save_as_external_data=False)
    np.testing.assert_allclose(run(tmp_path / "whole.onnx"), found, atol=1e-6)
    assert list(whole.graph.node) == list(model.graph.node)
    described = [{t.name: (tuple(t.dims), t.data_type) for t in graph.graph.initializer} for graph in (whole, model)]
    assert described[0] == described[1]


def test_no_two_weights_share_their_bytes(model):
    light = onnx.load_from_string(without_weights(model).graph)
    spans = []
    for tensor in light.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            spans.append((place["location"], int(place["offset"]), int(place["offset"]) + int(place["length"])))
    spans.sort()
    assert len(spans) > 20
    for (file, _, end), (next_file, start, _) in itertools.pairwise(spans):
        assert file != next_file or end <= start
