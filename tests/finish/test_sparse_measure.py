"""Sparse models beside dense ones: compressed rows compute the same, and advice follows from measurements alone."""

import json
import shutil

import numpy as np
import pytest
import torch
from finish_cases import SMALL
from sparse_cases import build_encoder

import nas
from analysis.latency import Conditions, measured
from nas.devices import resolve as resolve_module
from nas.devices import torch_runner
from nas.devices.registry import RayPlace, Registered
from nas.devices.target import Settings
from nas.devices.torch_runner import SparseLinear, compress_pairs, compress_rows, is_two_of_four
from nas.devices.torch_workload import TorchWorkload
from nas.errors import InvalidInputError
from nas.export.export import export_model
from nas.export.sparse_files import BLOCKS_FILE, LOCK_FILE
from nas.finish.sparsity import Lock, Pattern, SparsityFacts, choose_masks, prunable, write_lock

TIMES_S = {"onnxruntime fp32": 0.008, "onnxruntime int8": 0.005, "torch fp32": 0.009, "torch-sparse fp32": 0.004,
           "openvino fp32": 0.0079, "openvino int8": 0.006, "torch fp16": 0.005,
           "torch-sparse fp16": 0.0035}  # fmt: skip


class FakeTarget:
    """Takes as long as TIMES_S says."""

    description = "a fake device"
    seen: list = []  # noqa: RUF012 - of one test

    def __init__(self, settings):
        self.settings = settings
        self.seen.append(settings.runtime)

    def measure(self, models, **options):
        settings = self.settings
        time_s = TIMES_S[f"{settings.runtime} {settings.precision}"]
        conditions = Conditions("cpu", "0123", f"{settings.runtime} 1.0", settings.precision, 1, 1, settings.seq_len)
        samples = time_s * np.exp(np.random.default_rng(0).normal(0, 0.001, 600))
        return {name: measured(conditions, samples.tolist(), [0.004] * 600, 0.004) for name in models}


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(resolve_module, "local_cpu", FakeTarget)
    monkeypatch.setattr(FakeTarget, "seen", [])


@pytest.fixture(scope="module")
def dense_dir(tmp_path_factory, tokenizer_dir):
    folder = tmp_path_factory.mktemp("measured") / "dense"
    export_model(build_encoder(SMALL), tokenizer_dir, folder)
    return folder


@pytest.fixture(scope="module")
def sparse_dir(tmp_path_factory, tokenizer_dir):
    folder, encoder = tmp_path_factory.mktemp("measured") / "sparse", build_encoder(SMALL)
    weights = prunable(encoder)
    scores = {name: weight.detach().abs() for name, weight in weights.items()}
    Lock(weights, choose_masks(scores, 0.5, Pattern.parse("2:4"), "uniform")).after_step()
    facts = SparsityFacts("2:4", "uniform", "magnitude", 0.5)
    export_model(encoder, tokenizer_dir, folder, add=lambda place: write_lock(place, encoder, facts))
    return folder


def test_a_dense_model_is_measured_as_before(dense_dir):
    found = nas.measure(dense_dir, seq_len=64)
    assert FakeTarget.seen == ["onnxruntime", "onnxruntime"]
    assert found.advice == []


def test_a_sparse_model_is_measured_in_every_form_and_the_fastest_is_named(sparse_dir):
    found = nas.measure(sparse_dir, seq_len=64)
    assert FakeTarget.seen[:4] == ["onnxruntime", "onnxruntime", "torch", "torch-sparse"]
    assert [row.form for row in found.rows][:4] == [
        ("model.onnx", "onnxruntime", "fp32"),
        ("model.int8.onnx", "onnxruntime", "int8"),
        (".", "torch", "fp32"),
        (".", "torch-sparse", "fp32"),
    ]
    assert found.advice[0].startswith("Fastest at 1 x 64: torch-sparse (4.00 ms); ")
    assert "model.int8.onnx in onnxruntime (5.00 ms) takes 1.25x" in found.advice[0]
    assert "2:4 exist on NVIDIA GPUs only; they were not measured" in found.advice[1]
    assert found.to_dict()["advice"] == found.advice


def test_on_a_gpu_a_model_of_two_of_four_is_measured_in_half_precision_dense_and_sparse(sparse_dir, monkeypatch):
    """No GPU is here: who asks for one finds the fake in its place, and nothing else is changed."""
    monkeypatch.setattr(resolve_module, "live", lambda device, settings: FakeTarget(settings))
    monkeypatch.setattr(resolve_module, "place_of", lambda name: None)  # as of a GPU of this machine
    found = nas.measure(sparse_dir, device="cuda", seq_len=64, latency_ms=4)
    assert [row.form for row in found.rows] == [
        (".", "torch", "fp32"),
        (".", "torch", "fp16"),
        (".", "torch-sparse", "fp16"),
    ]
    assert [found.judge(row) for row in found.rows] == ["exceeds", "exceeds", "meets"]
    assert found.advice == [
        "Fastest at 1 x 64: torch-sparse in fp16 (3.50 ms); torch in fp16 (5.00 ms) takes 1.43x, "
        "torch (9.00 ms) takes 2.57x."
    ]


def test_a_processor_that_is_timed_in_torch_is_not_asked_for_what_gpus_have(sparse_dir, monkeypatch):
    place = Registered(RayPlace("auto", resource="board"), {"runtime": "torch"})
    monkeypatch.setattr(resolve_module, "live", lambda device, settings: FakeTarget(settings))
    monkeypatch.setattr(resolve_module, "place_of", lambda name: place)
    nas.measure(sparse_dir, device="board", seq_len=64)
    assert FakeTarget.seen == ["torch"]


def test_what_the_intervals_do_not_tell_apart_is_not_called_faster(sparse_dir, monkeypatch):
    monkeypatch.setitem(TIMES_S, "torch-sparse fp32", 0.0050005)
    advice = nas.measure(sparse_dir, seq_len=64).advice[0]
    assert "in onnxruntime (5.00 ms), not told apart by this measurement from torch-sparse (5.00 ms);" in advice


def test_each_form_is_judged_by_itself(sparse_dir):
    found = nas.measure(sparse_dir, latency_ms=4.5, seq_len=64)
    assert found.exit_code == 0
    assert [found.judge(row) for row in found.rows][:4] == ["exceeds", "exceeds", "exceeds", "meets"]


def test_compressed_rows_are_left_out_where_the_class_is_ours(sparse_dir, tmp_path):
    shutil.copytree(sparse_dir, tmp_path / "chain")
    path = tmp_path / "chain" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "ours"}}))
    nas.measure(tmp_path / "chain", seq_len=64)
    assert not any(runtime.startswith("torch") for runtime in FakeTarget.seen)


def test_what_was_asked_for_is_measured_alone(sparse_dir):
    nas.measure(sparse_dir, precision="int8", seq_len=64)
    nas.measure(sparse_dir, runtime="torch-sparse", seq_len=64)
    assert FakeTarget.seen == ["onnxruntime", "torch-sparse"]


def test_a_lock_that_cannot_be_read_is_an_error(dense_dir, tmp_path):
    shutil.copytree(dense_dir, tmp_path / "broken")
    (tmp_path / "broken" / LOCK_FILE).write_text("{")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        nas.measure(tmp_path / "broken")


def test_the_stored_files_are_the_size_of_the_sparse_form(sparse_dir, tmp_path):
    nas.quantize(sparse_dir, tmp_path / "int8")
    rows = {row.form: row for row in nas.measure(tmp_path / "int8", seq_len=64).rows}
    assert (
        rows[(".", "torch-sparse", "fp32")].size_bytes
        == json.loads((tmp_path / "int8" / "sizes.json").read_text())["bytes"]["model_file"]
    )
    assert rows[(".", "torch", "fp32")].size_bytes == (tmp_path / "int8" / "model.safetensors").stat().st_size
    assert (tmp_path / "int8" / BLOCKS_FILE).is_file()


@pytest.mark.parametrize("has_bias", [True, False])
def test_compressed_rows_compute_the_same(has_bias):
    torch.manual_seed(0)
    linear = torch.nn.Linear(48, 32, bias=has_bias)
    with torch.no_grad():
        linear.weight.mul_(torch.rand_like(linear.weight) > 0.9)
    inputs = torch.randn(2, 7, 48)
    torch.testing.assert_close(SparseLinear(linear)(inputs), linear(inputs))


def test_only_what_is_mostly_zero_is_compressed():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Sequential(torch.nn.Linear(8, 8)))
    with torch.no_grad():
        model[1][0].weight.mul_(torch.eye(8))
    inputs = torch.randn(3, 8)
    before = model(inputs)
    compress_rows(model)
    assert isinstance(model[0], torch.nn.Linear)
    assert isinstance(model[1][0], SparseLinear)
    torch.testing.assert_close(model(inputs), before)


@pytest.mark.parametrize(
    ("rows", "answer"),
    [
        ([[1, 0, 2, 0, 0, 0, 3, 4]], True),
        ([[1, 0, 2, 0, 0, 5, 3, 4]], False),
        ([[0, 0, 0, 0], [0, 1, 2, 0]], True),
        ([[0, 0, 0, 0, 0, 0]], False),
    ],
)
def test_two_of_four_is_told_by_every_four_weights_of_a_row(rows, answer):
    assert is_two_of_four(torch.tensor(rows, dtype=torch.float32)) is answer


def two_linears():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    with torch.no_grad():
        model[1].weight[:, ::2] = 0
    return model


def test_a_gpus_kernels_get_what_is_two_of_four_and_their_refusal_is_told(monkeypatch):
    given = []
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda weight: given.append(weight) or 2 * weight)
    model = two_linears()
    dense, halved = (linear.weight.clone() for linear in model)
    assert compress_pairs(model) == len(given) == 1
    torch.testing.assert_close(model[0].weight, dense)
    torch.testing.assert_close(model[1].weight, 2 * halved)

    def refuse(weight):
        raise RuntimeError("Both dimensions must be a multiple of (32, 64)\nand more")

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", refuse)
    with pytest.raises(InvalidInputError, match=r"model here: Both .* \(32, 64\); choose --runtime torch"):
        compress_pairs(two_linears())
    assert compress_pairs(torch.nn.Sequential(torch.nn.Linear(8, 8))) == 0


def test_a_dense_model_is_not_timed_as_a_sparse_one(dense_dir, sparse_dir):
    job = {"device": "cpu", "runtime": "torch-sparse", "batch_size": 1, "seq_len": 8}
    for folder, is_refused in ((dense_dir, True), (sparse_dir, False)):
        packed = TorchWorkload().pack({"it": folder}, Settings(runtime="torch-sparse", seq_len=8))
        place = folder.parent / "packed"
        place.mkdir(exist_ok=True)
        for name, content in packed.files.items():
            (place / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        if is_refused:
            with pytest.raises(InvalidInputError, match="no matrix of this model is half zero; prune it"):
                torch_runner.prepare(place / packed.candidates["it"], job)
        else:
            torch_runner.prepare(place / packed.candidates["it"], job)()
        torch_runner.prepare(place / packed.anchor, job)()


@pytest.mark.parametrize(("on_gpu", "precision", "is_known"), [(True, "fp16", True), (True, "bf16", True),
    (True, "fp32", False), (False, "fp32", True), (False, "fp16", False)])  # fmt: skip
def test_sparse_kernels_have_their_precisions(on_gpu, precision, is_known):
    settings = Settings(runtime="torch-sparse", precision=precision)
    if is_known:
        settings.check_sparse(on_gpu=on_gpu)
    else:
        with pytest.raises(InvalidInputError, match="fp16 or bf16 on a GPU and in fp32 on a CPU, got"):
            settings.check_sparse(on_gpu=on_gpu)
