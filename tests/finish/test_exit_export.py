"""The folder of a model with exits: its graphs, its answers without torch, and what happens where it is damaged."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from exit_cases import EXIT_SHAPES, SPEC, TEXT, exit_model, padded_batch

from nas.errors import InvalidInputError
from nas.export.export import encoder_weights
from nas.export.int8 import quantize
from nas.export.onnx_graph import build_graph, weight_shapes
from nas.export.parity import ParityError
from nas.finish import exit_export, exit_layers
from nas.finish.exit_export import load_exits, save_exits
from nas.finish.exit_folder import Description, exit_file, is_adaptive, read_description
from nas.finish.exit_model import TorchLayers
from nas.finish.exits import AdaptiveModel, run
from nas.finish.halting import Confidence, Dact, Patience
from search_spaces.architecture import Architecture


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_dir)


def describe(model, policy=None):
    return Description(
        model.encoder.architecture,
        model.encoder.text,
        model.spec,
        model.pooling,
        model.early,
        model.activation,
        "dact" if model.has_gates else "joint",
        0.1 if model.has_gates else None,
        model.num_exits,
        policy or Dact(),
        {"accuracy": 0.5},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    place = tmp_path_factory.mktemp("exits") / "model"
    model = exit_model("bert", seed=5)
    save_exits(place, model, describe(model), tokenizer)
    return place


@pytest.mark.parametrize("shape", EXIT_SHAPES)
def test_every_int8_graph_answers_as_the_int8_task_model_that_ends_there(tmp_path, tokenizer, shape):
    """ONNX Runtime quantises the single graph of each prefix: what is cut out of it must round as it does."""
    model = exit_model(shape, pooling="first", early="mean", seed=4)
    save_exits(tmp_path / "model", model, describe(model), tokenizer)
    batch = padded_batch(1, 20)
    layers = AdaptiveModel.load(tmp_path / "model", precision="int8").layers
    found = [logits for logits, *_ in exit_export.answers(layers, batch)]
    weights = encoder_weights(model.encoder)
    for place, layer in enumerate(model.layers):
        prefix, head = exit_layers.prefix(model.encoder.architecture, layer[-1]), model.head(place).exported()
        named = {name: weights[name] for name in weight_shapes(prefix, TEXT)}
        named |= {f"head.{name}": array for name, array in head.weights.items()}
        quantize(build_graph(prefix, TEXT, named, head=head), tmp_path / "whole.onnx")
        (whole,) = onnxruntime.InferenceSession(tmp_path / "whole.onnx").run(None, batch)
        np.testing.assert_allclose(found[place], whole, atol=1e-5)
    floats = [logits for logits, *_ in exit_export.answers(AdaptiveModel.load(tmp_path / "model").layers, batch)]
    assert np.abs(floats[-1] - found[-1]).max() > 1e-4, "nothing was rounded"


@pytest.mark.parametrize("poolings", [("first", "first"), ("first", "mean"), ("mean", "mean")])
@pytest.mark.parametrize("shape", EXIT_SHAPES)
def test_every_graph_answers_as_torch_does_and_stops_where_torch_stops(
    tmp_path, tokenizer, paragraphs, shape, poolings
):
    model = exit_model(shape, pooling=poolings[0], early=poolings[1], seed=4)
    save_exits(tmp_path / "model", model, describe(model), tokenizer)
    adaptive = AdaptiveModel.load(tmp_path / "model")
    texts = [text[:110] for text in paragraphs[:40]]
    for _, batch in adaptive._batches(texts, None, 16):
        for policy in (Dact("margin"), Dact("paper"), Patience(1), Confidence(0.5, (1.0,) * model.num_exits)):
            ours, passed = run(TorchLayers(model), batch, policy)
            theirs, exits = run(adaptive.layers, batch, policy)
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
            np.testing.assert_array_equal(passed, exits)


@pytest.mark.parametrize("rule", ["margin", "paper"])
def test_stopping_gives_the_answers_of_never_stopping_in_any_company(folder, paragraphs, rule):
    model = AdaptiveModel.load(folder).with_policy(Dact(rule))
    texts = [text[:110] for text in paragraphs[:60]]
    whole = [answer.label for answer in model.predict(texts, halts=False)]
    for batch_size in (1, 7, 60):
        found = model.predict(texts, batch_size=batch_size)
        assert [answer.label for answer in found] == whole
        assert min(answer.layers for answer in found) < 4
    order = np.random.default_rng(0).permutation(60)
    assert [answer.label for answer in model.predict([texts[i] for i in order])] == [whole[i] for i in order]


def test_an_exit_looks_ahead_at_position_0_only(folder):
    """Where a text stops at exit n, layer n was computed at position 0 alone: no states leave the graph of exit 2."""
    import onnx

    graphs = [onnx.load(str(exit_file(folder, place))).graph for place in range(4)]
    outputs = [{output.name for output in graph.output} for graph in graphs]
    assert outputs == [
        {"logits", "gates", "next_states"},
        {"logits", "gates"},
        {"logits", "gates", "next_states"},
        {"logits"},
    ]
    inputs = [{given.name for given in graph.input} for graph in graphs]
    assert inputs[0] == {"input_ids", "attention_mask", "token_type_ids"}
    assert inputs[1:] == [{"states", "attention_mask"}] * 3


def test_a_folder_is_read_back_in_torch(folder):
    model, description = load_exits(folder)
    original = exit_model("bert", seed=5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, original.state_dict()[name])
    assert torch.is_grad_enabled(), "writing or reading turned learning off"
    assert description == describe(original)


def test_a_user_needs_neither_torch_nor_transformers(folder):
    code = f"""
import sys
from nas.finish.exits import AdaptiveModel
answers = AdaptiveModel.load({str(folder)!r}).predict(["the union", "of the people"])
assert all(answer.label in ("bad", "so so", "good") and 1 <= answer.layers <= 4 for answer in answers)
print([name for name in ("torch", "transformers", "onnx", "pandas") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_texts_that_the_model_was_not_made_for_are_refused(folder):
    model = AdaptiveModel.load(folder)
    with pytest.raises(InvalidInputError, match="single texts, got pairs"):
        model.predict(["a"], ["b"])
    with pytest.raises(InvalidInputError, match="64 tokens"):
        model.predict(["word " * 100])
    assert model.predict([]) == []


def test_longer_texts_are_cut_where_that_was_asked_for(tmp_path, tokenizer):
    model = exit_model("bert", spec=replace(SPEC, is_cut=True, max_tokens=8))
    save_exits(tmp_path / "model", model, describe(model), tokenizer)
    assert len(AdaptiveModel.load(tmp_path / "model").predict(["word " * 100])) == 1


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "exits.json").unlink(), "holds no model with exits"),
        (lambda folder: (folder / "exits.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "exits.json").write_text("[]"), "damaged"),
        (lambda folder: edit(folder, num_exits=3), "num_exits must be 4"),
        (lambda folder: edit(folder, policy={"kind": "dact", "rule": "any"}), "rule of DACT"),
        (lambda folder: edit(folder, pooling="max"), "pooling"),
        (lambda folder: exit_file(folder, 2).unlink(), r"exit-3\.onnx is missing"),
        (lambda folder: exit_file(folder, 2).write_bytes(b"no graph"), r"exit-3\.onnx is missing or damaged"),
        (lambda folder: edit(folder, task={**SPEC_JSON, "labels": ["a", "b"]}), "of another model"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json"),
    ],
)
def test_a_damaged_folder_is_refused(folder, tmp_path, damage, reason):
    shutil.copytree(folder, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(InvalidInputError, match=reason):
        AdaptiveModel.load(tmp_path / "model")


SPEC_JSON = {"kind": "classification", "is_pair": False, "max_tokens": 64, "is_cut": False}


def edit(folder, **fields):
    data = json.loads((folder / "exits.json").read_text())
    (folder / "exits.json").write_text(json.dumps(data | fields))


def test_weights_of_another_shape_are_refused(folder, tmp_path, tokenizer):
    shutil.copytree(folder, tmp_path / "model")
    edit(tmp_path / "model", architecture=Architecture.bert(4, 48, 64, 4).to_dict())
    with pytest.raises(InvalidInputError, match="another space"):
        load_exits(tmp_path / "model")


def test_a_folder_whose_graphs_are_wrong_is_not_written(tmp_path, tokenizer, monkeypatch):
    model = exit_model("bert")
    graphs = list(exit_export.exit_graphs(exit_model("bert", seed=9)))
    monkeypatch.setattr(exit_export, "exit_graphs", lambda model: iter(graphs))
    with pytest.raises(ParityError, match=r"exit-1\.onnx"):
        save_exits(tmp_path / "model", model, describe(model), tokenizer)
    assert not (tmp_path / "model").exists()
    assert not is_adaptive(tmp_path / "model")


def test_what_a_folder_says_survives_reading(folder):
    description = read_description(folder)
    assert description.text == TEXT
    assert json.loads(description.to_json()) == json.loads((folder / "exits.json").read_text())
