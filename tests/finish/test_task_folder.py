import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from finish_cases import SMALL, task_model
from task_cases import CLASSES, NUMBER, TAGS, TEXT

from nas.errors import InvalidInputError
from nas.export.onnx_graph import INPUT_NAMES, build_graph
from nas.export.task_head import TaskHead
from nas.finish.evaluation import OnnxRun, logits_of, torch_run
from nas.finish.heads import new_head
from nas.finish.model import load_model, load_task_model, save_task_model
from search_spaces.architecture import Architecture, Attention, Block, FeedForward, SepConv
from supernet.encoder import Encoder
from supernet.examples import encode_words

NARROW = Architecture.bert(3, 32, 64, 2, num_narrow_layers=2)
CHAIN = Architecture(24, (Block(32, (Attention(2, 16), SepConv(3))), Block(28, (FeedForward(40), Attention(2, 10)))))
FACTORISED = Architecture.bert(2, 32, 64, 2, embedding_size=16)
WORDS = [["we", "the", "people"], ["state"], ["of", "the", "union", "and", "more", "words"]]


@pytest.fixture(scope="module")
def save(tmp_path_factory, tokenizer_dir):
    def saved(architecture, spec, **settings):
        model = task_model(architecture, spec, tokenizer_dir, **settings)
        report = save_task_model(model, tmp_path_factory.mktemp("saved") / "m")
        return model, report

    return saved


def batch(model):
    encoded = model.tokenizer(["We the people.", "A much longer text of the union, of states."], padding=True)
    return {name: torch.tensor(encoded[name]) for name in ("input_ids", "attention_mask", "token_type_ids")}


@pytest.mark.parametrize(
    ("architecture", "spec", "kind"),
    [
        (SMALL, CLASSES, "BertForSequenceClassification"),
        (SMALL, NUMBER, "BertForSequenceClassification"),
        (SMALL, TAGS, "BertForTokenClassification"),
        (FACTORISED, CLASSES, "ElectraForSequenceClassification"),
        (FACTORISED, TAGS, "ElectraForTokenClassification"),
    ],
)
def test_stock_shapes_load_as_stock_classes_and_answer_alike(save, architecture, spec, kind):
    model, report = save(architecture, spec)
    opened, loading = getattr(transformers, kind).from_pretrained(report.folder, output_loading_info=True)
    assert not any(loading.values()), loading
    assert report.model_class == kind
    names = list(spec.labels) or ["value"]
    assert [opened.config.id2label[place] for place in range(len(names))] == names
    with torch.no_grad():
        assert torch.allclose(opened.eval()(**batch(model)).logits, model(**batch(model)), atol=1e-5)
    assert not list(report.folder.glob("*.py"))


@pytest.mark.parametrize("spec", [CLASSES, NUMBER, TAGS], ids=lambda spec: spec.kind)
@pytest.mark.parametrize("architecture", [SMALL, FACTORISED, NARROW, CHAIN], ids=["bert", "electra", "narrow", "chain"])
def test_a_folder_reads_back_as_it_was(save, architecture, spec):
    model, report = save(architecture, spec)
    again = load_task_model(report.folder)
    assert (again.spec, again.architecture, again.text) == (spec, architecture, TEXT)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert torch.equal(load_model(report.folder).encoder.blocks[0].sublayers[0].query.weight,
                       model.encoder.blocks[0].sublayers[0].query.weight)  # fmt: skip


@pytest.mark.parametrize("architecture", [SMALL, NARROW, CHAIN], ids=["bert", "narrow", "chain"])
def test_tags_of_words_are_the_same_in_torch_and_onnx(save, architecture):
    model, report = save(architecture, TAGS)
    examples = encode_words(WORDS, [[0] * len(words) for words in WORDS], model.tokenizer, TEXT, max_tokens=64)
    ours = logits_of(torch_run(model), examples)
    onnx = logits_of(OnnxRun(report.onnx_path), examples)
    assert [len(one) for one in ours] == [3, 1, 6]
    for one, other in zip(ours, onnx, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_shipped_file_answers_alike_with_nothing_of_ours(save, tmp_path):
    model, report = save(NARROW, CLASSES)
    code = (
        "import json, sys; from transformers import AutoModelForSequenceClassification as A, AutoTokenizer as T\n"
        f"f = {str(report.folder)!r}\n"
        "m = A.from_pretrained(f, trust_remote_code=True).eval(); t = T.from_pretrained(f, trust_remote_code=True)\n"
        "print(json.dumps([m(**t(['We the people.'], return_tensors='pt')).logits[0].tolist(), 'nas' in sys.modules]))"
    )
    ended = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    encoded = model.tokenizer(["We the people."], return_tensors="pt")
    with torch.no_grad():
        expected = model(**encoded)[0].tolist()
    logits, has_ours = json.loads(ended.stdout)
    assert np.allclose(logits, expected, atol=1e-5)
    assert not has_ours


def test_mean_pooling_ships_its_file_and_is_refused_of_narrow_layers(save, tokenizer_dir):
    _, report = save(SMALL, CLASSES, pooling="mean")
    assert report.model_class == "ChainEncoderForSequenceClassification"
    assert load_task_model(report.folder).head.pooling == "mean"
    with pytest.raises(InvalidInputError, match="mean pooling needs the states of all positions"):
        new_head(CLASSES, Encoder(NARROW, TEXT), seed=0, pooling="mean")


def test_the_graph_computes_the_last_layer_for_position_0_alone(save):
    import onnx

    _, report = save(SMALL, CLASSES)
    graph = onnx.load(report.onnx_path).graph
    gathers = [node for node in graph.node if node.op_type == "Gather" and len(node.attribute) == 1]
    assert len(gathers) == 1
    last_attention = next(
        place for place, node in enumerate(graph.node) if "blocks.0.sublayers.2.query.weight" in node.input
    )
    assert list(graph.node).index(gathers[0]) < last_attention


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("spec", [CLASSES, NUMBER, TAGS], ids=lambda spec: spec.kind)
def test_a_shape_without_weights_can_be_timed_with_its_head(spec, pooling):
    graph = build_graph(SMALL, TEXT, None, head=TaskHead(spec, pooling))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = {name: np.ones((2, 5), np.int64) for name in INPUT_NAMES}
    (logits,) = session.run(["logits"], inputs)
    assert logits.shape == ((2, 5, 3) if spec is TAGS else (2, spec.num_outputs))


def test_another_teachers_head_is_read(tmp_path, teacher_dir):
    """A RoBERTa and a DistilBERT for classification answer as they do in Transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher_dir)
    torch.manual_seed(0)
    bert = transformers.BertConfig(
        vocab_size=600, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64, num_labels=3,
    )  # fmt: skip
    distil = transformers.DistilBertConfig(
        vocab_size=600, dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=64, num_labels=3
    )
    for name, config in (("bert", bert), ("distil", distil)):
        model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        ours = load_task_model(tmp_path / name)
        inputs = tokenizer(["We the people."], return_tensors="pt")
        inputs.pop("token_type_ids")
        with torch.no_grad():
            assert torch.allclose(ours(**inputs), model(**inputs).logits, atol=1e-5), name
        assert ours.spec.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
        assert ours.spec.is_pair is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 40), "cannot be read|missing or damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be read|missing or damaged"),
    ],
)
def test_a_damaged_folder_is_refused(save, damage, message):
    _, report = save(SMALL, CLASSES, seed=5)
    damage(report.folder)
    with pytest.raises(InvalidInputError, match=message):
        load_task_model(report.folder)


def test_an_encoder_is_no_task_model(teacher_dir):
    with pytest.raises(InvalidInputError, match="has no head"):
        load_task_model(teacher_dir)


def test_weights_that_transformers_would_make_up_are_an_error(save):
    import safetensors.torch

    _, report = save(SMALL, CLASSES, seed=6)
    path = report.folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InvalidInputError, match=r"layer\.1\.output\.dense\.weight is missing"):
        load_task_model(report.folder)
