"""int8 folders: every form has the same weights, zeros stay zero, and the stored file comes to the exported weights."""

import json

import numpy as np
import onnx
import pytest
import torch
from finish_cases import SMALL, task_model
from safetensors.numpy import load_file
from task_cases import CLASSES, TEXT, war_or_peace, write_rows

import nas
from nas.cli.main import main
from nas.export.export import export_model
from nas.finish.fake_quant import ActivationRange
from nas.finish.model import load_model, save_task_model
from nas.finish.sparsity import Lock, Pattern, SparsityFacts, choose_masks, prunable, read_lock, write_lock
from nas.finish.storage import read_sparse
from search_spaces.architecture import Architecture
from supernet.encoder import Encoder


@pytest.fixture(scope="module")
def task(tmp_path_factory, paragraphs):
    return write_rows(tmp_path_factory.mktemp("task") / "task.jsonl", war_or_peace(paragraphs))


@pytest.fixture(scope="module")
def sparse_dir(tmp_path_factory, tokenizer_dir, task):
    """A task model, half of whose weights are zero and locked, that learnt its task."""
    folder = tmp_path_factory.mktemp("sparse")
    model = task_model(SMALL, CLASSES, tokenizer_dir)
    weights = prunable(model.encoder)
    scores = {name: weight.detach().abs() for name, weight in weights.items()}
    Lock(weights, choose_masks(scores, 0.5, Pattern(), "uniform")).after_step()
    facts = SparsityFacts("unstructured", "uniform", "magnitude", 0.5)
    save_task_model(model, folder / "fresh", add=lambda place: write_lock(place, model.encoder, facts))
    nas.finetune(folder / "fresh", folder / "tuned", task=task, epochs=10, lr=2e-3, batch_size=16)
    return folder / "tuned"


def masks(folder):
    return {name: weight != 0 for name, weight in prunable(load_model(folder).encoder).items()}


def check_sparse_int8(folder, source):
    """What holds of every mode's folder."""
    before, after = masks(source), masks(folder)
    assert all(not (after[name] & ~before[name]).any() for name in before)
    assert read_lock(folder, load_model(folder).encoder) is not None
    matrices, floats = read_sparse(folder)
    state = {name: tensor.numpy() for name, tensor in load_model(folder).encoder.state_dict().items()}
    for name, array in state.items():
        stored = matrices[name].dense() if name in matrices else floats[name]
        assert stored.tobytes() == np.ascontiguousarray(array).tobytes(), name
    sizes = json.loads((folder / "sizes.json").read_text())
    assert sizes["bytes"]["onnx_file"] == (folder / "model.int8.onnx").stat().st_size


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_a_sparse_task_model_is_rounded_as_it_is(sparse_dir, task, tmp_path, mode):
    found = nas.quantize(sparse_dir, tmp_path / "int8", mode=mode, task=task)
    check_sparse_int8(tmp_path / "int8", sparse_dir)
    assert found.sparsity == 0.5
    assert found.to_dict()["times_smaller"]["file"] > 3
    assert nas.evaluate(tmp_path / "int8", task=task).agreement["onnx-int8"] > 0.9


def test_training_to_be_rounded_keeps_the_lock_and_the_answers(sparse_dir, task, tmp_path):
    found = nas.quantize(sparse_dir, tmp_path / "int8", mode="qat", task=task, steps=60, batch_size=16, lr=1e-3)
    check_sparse_int8(tmp_path / "int8", sparse_dir)
    before, after = (nas.evaluate(folder, task=task).scores for folder in (sparse_dir, tmp_path / "int8"))
    assert after["onnx-int8"]["accuracy"] >= before["torch"]["accuracy"] - 0.05
    assert found.scores["validation"]["accuracy"] > 0.8
    kinds = {node.op_type for node in onnx.load(tmp_path / "int8" / "model.int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds


def test_an_encoder_learns_to_be_rounded_on_text(tokenizer_dir, corpus, tmp_path):
    torch.manual_seed(0)
    export_model(Encoder(SMALL, TEXT).eval(), tokenizer_dir, tmp_path / "dense")
    found = nas.quantize(
        tmp_path / "dense", tmp_path / "int8", mode="qat", corpora=[str(corpus)], steps=12, batch_size=8, seq_len=16
    )
    assert found.explained > 0.9
    assert not (tmp_path / "int8" / "sizes.json").exists()
    values = load_file(tmp_path / "int8" / "model.safetensors")["encoder.layer.0.intermediate.dense.weight"]
    steps = values / (np.abs(values).max() / 64)
    assert np.abs(steps - np.round(steps)).max() < 1e-3


def test_a_run_that_was_killed_ends_with_the_same_ranges(sparse_dir, task, tmp_path, monkeypatch):
    """The ONNX file holds weights and ranges."""
    options = {"mode": "qat", "task": task, "steps": 20, "batch_size": 16, "lr": 1e-3}
    nas.quantize(sparse_dir, tmp_path / "whole", **options)
    before = {path: path.read_bytes() for path in sparse_dir.rglob("*") if path.is_file()}
    follow, seen = ActivationRange._follow, []

    def dies(self, activations):
        follow(self, activations)
        seen.append(self)
        if len(seen) == 12 * 15:  # twelve linear maps, in the middle of a later step
            raise KeyboardInterrupt

    monkeypatch.setattr(ActivationRange, "_follow", dies)
    with pytest.raises(KeyboardInterrupt):
        nas.quantize(sparse_dir, tmp_path / "killed", **options)
    assert not (tmp_path / "killed").exists()
    monkeypatch.setattr(ActivationRange, "_follow", follow)
    nas.quantize(sparse_dir, tmp_path / "killed", **options, resume=True)
    whole, killed = ((tmp_path / name / "model.int8.onnx").read_bytes() for name in ("whole", "killed"))
    assert whole == killed
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("mode", ["dynamic", "static", "qat"])
def test_narrow_layers_are_rounded_too(tokenizer_dir, corpus, tmp_path, mode):
    torch.manual_seed(0)
    narrow = Architecture.bert(3, 32, 64, 2, num_narrow_layers=1)
    export_model(Encoder(narrow, TEXT).eval(), tokenizer_dir, tmp_path / "narrow")
    length = {"steps": 8} if mode == "qat" else {}
    text = {"corpora": [str(corpus)], "batch_size": 4, "seq_len": 16}
    nas.quantize(tmp_path / "narrow", tmp_path / "out", mode=mode, **text, **length)
    row = next(line for line in (tmp_path / "out" / "README.md").read_text().splitlines() if "model.int8.onnx" in line)
    assert float(row.split("|")[-2]) > 0.98  # the lowest cosine to the float model's states


def test_what_makes_no_sense_is_refused_in_one_sentence(sparse_dir, tmp_path, capsys):
    out = str(tmp_path / "out")
    for arguments, said in (
        (["quantize", str(sparse_dir), "--mode", "int4"], "unknown mode"),
        (["quantize", str(sparse_dir), "--mode", "static"], "give --task or --corpus"),
        (["quantize", str(sparse_dir), "--mode", "qat"], "either a task (--task) or text (--corpus)"),
        (["quantize", str(tmp_path / "absent")], "absent"),
        (["prune", str(sparse_dir), "--sparsity", "1", "--task", "x.csv"], "above 0 and below 1"),
        (["prune", str(sparse_dir), "--sparsity", "0", "--task", "x.csv"], "above 0 and below 1"),
        (
            ["prune", str(sparse_dir), "--pattern", "2:4", "--sparsity", "0.9", "--task", "x.csv"],
            "leave --sparsity out",
        ),
        (["prune", str(sparse_dir)], "either a task (--task) or text (--corpus)"),
        (["prune", str(sparse_dir), "--steps", "0", "--task", "x.csv"], "steps must be"),
    ):
        assert main([*arguments, "--out", out, "--quiet"]) == 2
        error = capsys.readouterr().err.strip()
        assert said in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_sparse_model_is_not_pruned_again(sparse_dir, task, tmp_path, capsys):
    assert main(["prune", str(sparse_dir), "--task", task, "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert "sparse already" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
