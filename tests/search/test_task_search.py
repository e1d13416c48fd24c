"""A search for a task on a real, tiny supernet and a fake device: it ends with a model that has learnt the task."""

import json
import random
import shutil

import pytest
import torch
from chain_fakes import SPACE as CHAINS
from chain_fakes import TEXT, kept_blocks
from pipeline_fakes import BUDGET_S, SPACE, device, supernet_dir
from task_cases import numbers_and_words, write_rows

import nas
from nas.errors import InvalidInputError
from nas.export.card import CardFacts
from nas.finish import after_search
from nas.finish.after_search import write_untaught
from nas.finish.evaluation import OnnxRun, evaluate
from nas.finish.model import load_task_model
from nas.progress import SilentProgress
from nas.search import pipeline
from search_spaces.cost import num_parameters
from supernet import adapt
from supernet.adapt import load_adapted
from supernet.chain_supernet import ChainSupernet, ChainSupernetConfig
from supernet.checkpoint import load_supernet, save_supernet
from supernet.extract import extract
from supernet.task import load_task
from supernet.task_spec import TaskOptions

__all__ = ["device", "supernet_dir"]  # fixtures


@pytest.fixture(autouse=True)
def quick(monkeypatch, device):
    """Little training, and the fake device for the last measurement too."""
    monkeypatch.setattr(after_search, "resolve", pipeline.resolve)
    monkeypatch.setattr(after_search, "TEACHER_EPOCHS", 6.0)
    monkeypatch.setattr(after_search, "TEACHER_RATE", 4e-3)
    monkeypatch.setattr(after_search, "RATE", 4e-3)
    config = adapt.AdaptConfig
    monkeypatch.setattr(adapt, "AdaptConfig", lambda **given: config(steps=10, batch_size=16, seq_len=16, **given))


@pytest.fixture(scope="module")
def task(tmp_path_factory, paragraphs):
    rng, rows = random.Random(0), []
    for number in range(240):
        words = rng.choice(paragraphs).split()[:5]
        words.insert(rng.randrange(6), ["peace", "war"][number % 2])
        split = "train" if number < 180 else "validation" if number < 210 else "test"
        rows.append({"text": " ".join(words), "label": ["calm", "strife"][number % 2], "split": split})
    path = tmp_path_factory.mktemp("task") / "task.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tagged(paragraphs):
    return numbers_and_words(200)


def counted(paragraphs):
    """Pairs of texts, and how much more warlike the second one is."""
    rng, rows = random.Random(0), []
    for _ in range(240):
        counts = rng.randint(0, 3), rng.randint(0, 3)
        texts = [" ".join(["war"] * count + ["peace"] * (3 - count)) for count in counts]
        rows.append({"first": texts[0], "second": texts[1], "more": 5000.25 + 50 * (counts[1] - counts[0])})
    return rows


@pytest.mark.parametrize(
    ("rows", "named", "quality", "figure"),
    [
        (tagged, {}, "task token accuracy", "token_accuracy"),
        (counted, {"text": "first", "text_pair": "second", "label": "more"}, "task pearson", "pearson"),
    ],
)
def test_tags_and_numbers_and_pairs_are_searched_for_too(
    supernet_dir, tmp_path, device, paragraphs, rows, named, quality, figure
):
    task = write_rows(tmp_path / "task.jsonl", rows(paragraphs))
    result = asked(supernet_dir, task, tmp_path / "run", evaluations=4, **named)
    assert (result.exit_code, result.quality_name) == (0, quality)
    told = result.to_dict()["task_model"]
    assert (told["split"], told["scores"][figure] > 0.7) == ("validation", True)
    model = load_task_model(result.chosen.model_dir)
    assert model.architecture.key() == result.chosen.key
    found = nas.evaluate(result.chosen.model_dir, task=task, split="validation", **named)
    assert found.scores["torch"] == told["scores"]
    assert nas.search(resume=tmp_path / "run").to_dict() == result.to_dict()
    adapted = load_adapted(tmp_path / "run" / "adapted")
    encoder = extract(adapted.supernet, model.architecture)
    write_untaught(encoder, adapted, supernet_dir / "tokenizer", tmp_path / "untaught", CardFacts())
    before = nas.evaluate(tmp_path / "untaught", task=task, split="validation", **named).scores["torch"]
    if figure == "token_accuracy":  # the head that the supernet was adapted with
        assert before[figure] == pytest.approx(adapted.quality(model.architecture), abs=0.02)
    else:  # among numbers that are far from 0
        assert before["rmse"] < 300


@pytest.fixture
def chain_dir(tmp_path, tokenizer_dir):
    torch.manual_seed(0)
    supernet = ChainSupernet(ChainSupernetConfig(CHAINS, TEXT, 64, 64)).eval()
    torch.nn.init.normal_(supernet.embeddings.word.weight)  # words that are told apart without long training
    save_supernet(tmp_path / "chains", supernet, reference=None, training={})
    kept_blocks().save(tmp_path / "chains", CHAINS)
    shutil.copytree(tokenizer_dir, tmp_path / "chains" / "tokenizer")
    return tmp_path / "chains"


def test_a_chain_learns_a_task_too(chain_dir, task, tmp_path):
    result = asked(chain_dir, task, tmp_path / "run", evaluations=4)
    assert (result.exit_code, result.quality_name) == (0, "task accuracy")
    kept = {block.block for candidates in kept_blocks().blocks for block in candidates}
    assert all(set(trial.architecture.blocks) <= kept for trial in result.trials)
    told = result.to_dict()["task_model"]
    assert told["split"] == "test"
    assert told["scores"]["accuracy"] > result.chosen.trial.quality - 0.1  # whichever it chose
    assert load_task_model(result.chosen.model_dir).architecture.key() == result.chosen.key


class StopAt(SilentProgress):
    def __init__(self, phase):
        self.phase = phase

    def start(self, phase, total=None):
        if phase == self.phase:
            raise KeyboardInterrupt


def asked(supernet_dir, task, out, **more):
    settings = {"seq_len": 16, "supernet": supernet_dir, "evaluations": 8, "task": task, "epochs": 6, "out": out} | more
    return nas.search(BUDGET_S * 1e3, **settings)


def test_it_ends_with_a_task_model_within_the_budget_also_when_interrupted(supernet_dir, task, tmp_path, device):
    with pytest.raises(KeyboardInterrupt):
        asked(supernet_dir, task, tmp_path / "run", progress=StopAt("asking the teacher"))
    with pytest.raises(KeyboardInterrupt):
        nas.search(resume=tmp_path / "run", progress=StopAt("measuring the task model"))
    result = nas.search(resume=tmp_path / "run")
    assert result.exit_code == 0
    assert result.chosen.trial.latency.meets(BUDGET_S)
    told = result.to_dict()["task_model"]
    assert told["split"] == "test"
    assert told["scores"]["accuracy"] > 0.8
    assert told["teacher_scores"]["accuracy"] > 0.8
    model = load_task_model(result.chosen.model_dir)
    assert model.architecture.key() == result.chosen.key
    assert nas.evaluate(result.chosen.model_dir, task=task).scores["torch"] == told["scores"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir()) == [
        "adapted",
        "model",
        "teacher",
    ]
    assert nas.search(resume=tmp_path / "run").to_dict() == result.to_dict()


def test_a_teacher_that_answers_no_task_is_refused_first(supernet_dir, task, tmp_path, teacher_dir):
    with pytest.raises(InvalidInputError, match="has no head"):
        asked(supernet_dir, task, tmp_path / "run", teacher=str(teacher_dir))
    tags = write_rows(tmp_path / "tags.jsonl", numbers_and_words())
    with pytest.raises(InvalidInputError, match=r"tags are read from the states of all words, .* leave --narrow out"):
        asked(supernet_dir, tags, tmp_path / "run", narrow=True)
    with pytest.raises(InvalidInputError, match="no column 'stars'"):
        asked(supernet_dir, task, tmp_path / "run", label="stars")
    with pytest.raises(InvalidInputError, match="a kind and columns are those of a task; add --task"):
        asked(supernet_dir, None, tmp_path / "run", epochs=None, label="stars")
    with pytest.raises(InvalidInputError, match="add --task"):
        asked(supernet_dir, None, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_int8_model_is_judged_timed_and_told_of_as_its_file(supernet_dir, task, tmp_path):
    """A limit on size that only int8 files keep."""
    limit = {"max_size_mb": 0.9 * 4e-6 * num_parameters(SPACE.smallest(), load_supernet(supernet_dir).text)}
    result = asked(supernet_dir, task, tmp_path / "run", precision=("fp32", "int8"), **limit)
    chosen = result.chosen
    assert (result.exit_code, chosen.precision, chosen.trial.latency.conditions.precision) == (0, "int8", "int8")
    assert chosen.size_bytes == (chosen.model_dir / "model.int8.onnx").stat().st_size
    model = load_task_model(chosen.model_dir)
    examples = load_task(task, model.tokenizer, TaskOptions(), text=model.text, expected=model.spec).split("test")
    alone = evaluate(OnnxRun(chosen.model_dir / "model.int8.onnx"), model.spec, examples, batch_size=1)
    assert result.to_dict()["task_model"]["scores"] == alone.scores
    assert alone.scores["accuracy"] > 0.8
    card = (chosen.model_dir / "README.md").read_text()
    assert "computed in int8" in card
    assert card.count("arithmetic, int8") == 1
