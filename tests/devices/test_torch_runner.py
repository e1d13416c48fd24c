"""Torch as a runtime: the module that is timed is the one that the export loads as, beside the anchor, in a process."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel

from nas.devices.clock import Job
from nas.devices.fingerprint import Fingerprint
from nas.devices.session import RunnerTarget
from nas.devices.target import Settings, Shape, timing_text
from nas.devices.torch_runner import load, open_device, prepare
from nas.devices.torch_workload import TorchWorkload, run_program, run_torch, torch_facts
from nas.errors import DeviceNotAvailableError, InconclusiveMeasurementError, InvalidInputError
from nas.export.huggingface import model_class, write_folder
from nas.export.modeling_chain_encoder import ChainEncoderModel
from nas.export.task_head import TaskHead, stock_activation
from search_spaces.architecture import Architecture, TextSpec
from supernet.encoder import Encoder
from supernet.task_spec import TaskSpec

SEQ_LEN = 32
TEXT = timing_text(TextSpec(), SEQ_LEN)
SETTINGS = Settings(runtime="torch", seq_len=SEQ_LEN)
ARCHITECTURES = {
    "BertModel": Architecture.bert(2, 64, 128, 4),
    "ElectraModel": Architecture.bert(2, 64, 128, 4, embedding_size=32),
    "ChainEncoderModel": Architecture.bert(2, 64, 128, 3, head_size=16),
}
JOB = {"device": "cpu", "runtime": "torch", "threads": 1, "batch_size": 2, "seq_len": SEQ_LEN}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer_dir):
    """An exported folder of each class."""
    made = {}
    for kind, architecture in ARCHITECTURES.items():
        assert model_class(architecture) == kind
        made[kind] = tmp_path_factory.mktemp(kind)
        torch.manual_seed(0)
        weights = {name: tensor.numpy() for name, tensor in Encoder(architecture, TEXT).state_dict().items()}
        write_folder(made[kind], architecture, TEXT, weights, tokenizer_dir)
    return made


def unpack(packed, folder):
    """Puts a job's files where a runner would."""
    for name, content in packed.files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return {name: folder / file for name, file in packed.candidates.items()}


@pytest.fixture(scope="module")
def answers(folders):
    """What one real job says of two shapes and an exported folder: latencies by name, and the runner's events."""
    events = []

    def run(job):
        for event in run_torch(job):
            events.append(event)
            yield event

    target = RunnerTarget(
        "cpu",
        SETTINGS,
        run=run,
        workload=TorchWorkload(),
        fingerprint=Fingerprint.from_facts(torch_facts("torch")),  # the runner's own must equal it
    )
    models = {f"{layers} layers": Shape(Architecture.bert(layers, 128, 512, 4), TextSpec()) for layers in (1, 6)}
    models["folder"] = folders["BertModel"]
    return target.measure(models, seconds_each=0.3, attempts=1), events


@pytest.mark.parametrize("kind", ["classification", "tagging"])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES.values()), ids=list(ARCHITECTURES))
def test_a_task_model_is_timed_with_its_head(architecture, kind, tokenizer_dir, tmp_path):
    torch.manual_seed(0)
    spec = TaskSpec(kind, ("a", "b", "c"))
    activation = stock_activation(architecture)
    shapes = TaskHead(spec, activation=activation).shapes(architecture.hidden_size)
    head = TaskHead(spec, activation=activation, weights={n: np.ones(s, np.float32) for n, s in shapes.items()})
    encoder = Encoder(architecture, TEXT).eval()
    weights = {name: tensor.numpy() for name, tensor in encoder.state_dict().items()}
    (tmp_path / "folder").mkdir()
    write_folder(tmp_path / "folder", architecture, TEXT, weights, tokenizer_dir, head)
    unpacked = unpack(TorchWorkload().pack({"m": tmp_path / "folder"}, SETTINGS), tmp_path)
    model = load(unpacked["m"]).eval()
    ids = torch.arange(6)[None]
    with torch.no_grad():
        logits, states = model(ids).logits, encoder(ids)
    if kind == "tagging":
        assert torch.allclose(logits, states.sum(-1, keepdim=True) + 1, atol=1e-4)
    assert logits.shape == ((1, 6, 3) if kind == "tagging" else (1, 3))


def test_a_deeper_model_takes_longer(answers):
    latencies, _ = answers
    assert latencies["6 layers"].ratio > latencies["1 layers"].ratio
    assert latencies["folder"].p50_s > 0


def test_candidates_are_interleaved_with_the_anchor(answers):
    _, (ready, *results) = answers
    assert ready["runtime"].startswith(f"torch {torch.__version__} (transformers ")
    assert [event["name"] for event in results] == ["1 layers", "6 layers", "folder"]
    for event in results:
        assert event["num_rounds"] >= 8
        assert len(event["samples_s"]) % event["num_rounds"] == 0
        assert len(event["anchor_samples_s"]) % event["num_rounds"] == 0


def test_memory_is_that_of_a_process_of_its_own_and_no_joule_is_invented(answers):
    latencies, _ = answers
    size = sum(np.prod(tensor.shape) for tensor in AutoModel.from_config(hub(ARCHITECTURES["BertModel"])).parameters())
    assert latencies["folder"].peak_memory_bytes >= 4 * size
    assert latencies["1 layers"].peak_memory_bytes is None


def hub(architecture):
    from transformers import BertConfig

    from nas.export.huggingface import hub_config

    return BertConfig(**hub_config(architecture, TEXT))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_shape_and_its_export_are_the_same_class_and_size(folders, kind, tmp_path):
    models = {"shape": Shape(ARCHITECTURES[kind], TextSpec()), "export": folders[kind]}
    paths = unpack(TorchWorkload().pack(models, SETTINGS), tmp_path)
    shape, export = (load(paths[name]) for name in models)
    assert type(shape) is type(export)
    assert type(export).__name__ == kind
    assert shape.num_parameters() == export.num_parameters()
    assert not torch.equal(shape.get_input_embeddings().weight, export.get_input_embeddings().weight)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_is_timed_computes_what_the_export_does(folders, kind, tmp_path):
    (path,) = unpack(TorchWorkload().pack({"export": folders[kind]}, SETTINGS), tmp_path).values()
    loader = ChainEncoderModel if kind == "ChainEncoderModel" else AutoModel
    reference = loader.from_pretrained(folders[kind]).eval()
    ids = torch.arange(SEQ_LEN).remainder(8).expand(2, -1)
    with torch.inference_mode():
        expected = reference(input_ids=ids).last_hidden_state
    torch.testing.assert_close(prepare(path, JOB)().last_hidden_state, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_the_number_format_is_that_asked_for(folders, precision, dtype, tmp_path):
    settings = Settings(runtime="torch", precision=precision, seq_len=SEQ_LEN)
    models = {"shape": Shape(ARCHITECTURES["BertModel"], TextSpec()), "export": folders["BertModel"]}
    packed = TorchWorkload().pack(models, settings)
    paths = unpack(packed, tmp_path)
    for path in (*paths.values(), tmp_path / packed.anchor):
        assert {parameter.dtype for parameter in load(path).parameters()} == {dtype}
    assert prepare(paths["shape"], JOB)().last_hidden_state.dtype == dtype


def test_code_that_comes_with_a_model_is_never_run(folders, tmp_path):
    folder, marker = tmp_path / "model", tmp_path / "ran"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((folders["BertModel"] / "model.safetensors").read_bytes())
    config = json.loads((folders["BertModel"] / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    (path,) = unpack(TorchWorkload().pack({"export": folder}, SETTINGS), tmp_path).values()
    assert type(load(path)).__name__ == "BertModel"
    assert not marker.exists()


def test_what_cannot_be_timed_is_refused(tmp_path):
    pack = TorchWorkload().pack
    onnx = tmp_path / "model.onnx"
    onnx.touch()
    with pytest.raises(InvalidInputError, match="--runtime onnxruntime for an ONNX file"):
        pack({"a": onnx}, SETTINGS)
    (tmp_path / "model.safetensors").touch()
    for text in ("{", "[]", '{"hidden_size": 8}', "[" * 100_000, " " * 10_000_001):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InvalidInputError, match=r"config\.json must"):
            pack({"a": tmp_path}, SETTINGS)


@pytest.mark.parametrize(
    ("job", "error", "message"),
    [
        (
            {"device": "cpu", "runtime": "torch-graphs"},
            InvalidInputError,
            "which a CPU has not; choose --runtime torch",
        ),
        ({"device": "mps", "runtime": "torch"}, InvalidInputError, "on cpu and cuda, got torch on mps"),
        ({"device": "cpu", "runtime": "onnxruntime"}, InvalidInputError, "knows torch and torch-graphs"),
    ],
)
def test_a_device_that_lacks_the_runtime_is_refused(job, error, message):
    with pytest.raises(error, match=message):
        open_device(job)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA works here")
def test_cuda_without_cuda_is_refused():
    with pytest.raises(DeviceNotAvailableError, match="cuda:0 cannot be measured: torch"):
        open_device({"device": "cuda:0", "runtime": "torch"})


@pytest.mark.parametrize("kind", [InvalidInputError, DeviceNotAvailableError])
def test_the_runners_refusal_keeps_its_kind_and_exit_code(kind):
    event = {"event": "error", "kind": kind.__name__, "message": f"{kind.__name__}: not today"}
    with pytest.raises(kind, match=r"^not today$"):
        list(run_program(Job({"seconds_each": 1.0}), f"print({json.dumps(event)!r})"))


def test_a_runner_that_dies_is_told():
    with pytest.raises(InconclusiveMeasurementError, match="exit status 7"):
        list(run_program(Job({"seconds_each": 1.0}), "raise SystemExit(7)"))
