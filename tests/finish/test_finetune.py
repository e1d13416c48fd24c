import json
import random

import pytest
import torch
from task_cases import TEXT, numbers_and_words, tokenizer_of, war_or_peace, write_rows

import nas
from nas.errors import InvalidInputError
from nas.export.export import export_model
from nas.finish.augmentation import augmented
from nas.finish.distillation import HiddenMaps, ask, match_layers, recorded
from nas.finish.evaluation import logits_of, torch_run
from nas.finish.finetune import unfinished
from nas.finish.model import load_task_model
from nas.progress import SilentProgress
from search_spaces.architecture import Architecture
from supernet.encoder import Encoder
from supernet.task import load_task
from supernet.task_losses import teacher_loss
from supernet.task_spec import TaskOptions

QUICK = {"epochs": 8, "lr": 4e-3, "batch_size": 16}


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory, tokenizer_dir, movies):
    """A larger encoder, fine-tuned on the movies."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(2)
    export_model(Encoder(Architecture.bert(3, 48, 96, 4), TEXT).eval(), tokenizer_dir, folder / "encoder")
    nas.finetune(folder / "encoder", folder / "task", task=movies, **QUICK)
    return folder / "task"


class StopAfter(SilentProgress):
    """Ends the work as Ctrl-C does, at an update of a phase."""

    def __init__(self, phase, updates):
        self.phase, self.updates, self.now = phase, updates, ""

    def start(self, phase, total=None):
        self.now = phase

    def update(self, done, **facts):
        if self.now == self.phase and done >= self.updates:
            raise KeyboardInterrupt


def test_labels_alone_teach_a_task(tmp_path, encoder_dir, movies):
    before = {path: path.read_bytes() for path in encoder_dir.rglob("*") if path.is_file()}
    found = nas.finetune(encoder_dir, tmp_path / "m", task=movies, **QUICK)
    assert found.test.scores["accuracy"] > 0.9
    assert before == {path: path.read_bytes() for path in encoder_dir.rglob("*") if path.is_file()}
    assert not unfinished(tmp_path / "m").exists()
    summary = json.loads((tmp_path / "m" / "finetune.json").read_text())
    assert summary["test"] == found.test.scores
    card, report = ((tmp_path / "m" / name).read_text() for name in ("README.md", "report.html"))
    assert f"| accuracy | {found.test.scores['accuracy']:.4f} |" in card
    assert "the test split of movies.jsonl, 40 texts" in card
    assert "figure-answers" in report
    assert "https://cdn" not in report.partition("</head>")[2]


@pytest.mark.parametrize("student", ["encoder_dir", "narrow_dir"])
def test_a_teacher_teaches_by_logits_and_states(tmp_path, request, student, movies, teacher_dir):
    found = nas.finetune(
        request.getfixturevalue(student), tmp_path / "m", task=movies, teacher=teacher_dir, augment=1, distil_epochs=1,
        label_weight=0, **QUICK | {"lr": 2e-3},
    )  # fmt: skip
    assert set(found.history.losses[0]) == {"hidden", "teacher"}
    assert found.history.losses[-1]["hidden"] < 1  # it explains some of what the teacher's states say
    assert found.test.scores["accuracy"] > 0.9


def test_an_interrupted_run_leaves_nothing_and_resumes_to_the_same_model(tmp_path, encoder_dir, movies, teacher_dir):
    settings = {"task": movies, "teacher": teacher_dir, "epochs": 3, "distil_epochs": 1, "lr": 2e-3, "batch_size": 16}
    whole = nas.finetune(encoder_dir, tmp_path / "whole", **settings)
    for phase, updates in (("asking the teacher", 1), ("distilling on the task's text", 3), ("fine-tuning", 11)):
        with pytest.raises(KeyboardInterrupt):
            nas.finetune(encoder_dir, tmp_path / "b", resume=True, progress=StopAfter(phase, updates), **settings)
        assert not (tmp_path / "b").exists()
    with pytest.raises(InvalidInputError, match="unfinished run; repeat the command with --resume"):
        nas.finetune(encoder_dir, tmp_path / "b", **settings)
    resumed = nas.finetune(encoder_dir, tmp_path / "b", resume=True, **settings)
    assert resumed.history.losses == whole.history.losses
    first, second = (load_task_model(tmp_path / name).state_dict() for name in ("whole", "b"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_tags_and_numbers_are_learnt_too(tmp_path, encoder_dir, narrow_dir):
    words = write_rows(tmp_path / "words.jsonl", numbers_and_words(120))
    for source in (encoder_dir, narrow_dir):
        found = nas.finetune(source, tmp_path / f"{source.name}-tags", task=words, epochs=6, lr=3e-3, batch_size=16)
        assert found.validation.scores["token_accuracy"] > 0.95
    rng = random.Random(0)
    rows = [{"text": " ".join(rng.choices(["state", "union"], k=6))} for _ in range(160)]
    rows = [row | {"label": 1000 + 50.5 * row["text"].count("union")} for row in rows]
    numbers = write_rows(tmp_path / "numbers.jsonl", rows)
    found = nas.finetune(encoder_dir, tmp_path / "numbers", task=numbers, epochs=20, lr=3e-3, batch_size=16)
    assert found.validation.scores["pearson"] > 0.8
    again = nas.evaluate(tmp_path / "numbers", task=numbers, split="validation")
    assert again.scores["torch"]["rmse"] == pytest.approx(found.validation.scores["rmse"], rel=1e-4)
    assert again.scores["onnx"]["rmse"] == pytest.approx(found.validation.scores["rmse"], rel=1e-4)


def test_a_head_that_answers_the_task_is_kept(tmp_path, teacher_dir, movies):
    before = nas.evaluate(teacher_dir, task=movies).scores["torch"]
    found = nas.finetune(teacher_dir, tmp_path / "more", task=movies, epochs=1, lr=1e-9)
    assert found.test.scores == before


def test_a_head_of_another_pooling_is_kept_where_none_is_named(tmp_path, encoder_dir, movies):
    """By every step that trains it on, whatever the seed of a fresh head would be."""
    nas.finetune(encoder_dir, tmp_path / "mean", task=movies, pooling="mean", **QUICK)
    before = nas.evaluate(tmp_path / "mean", task=movies).scores["torch"]
    found = nas.finetune(tmp_path / "mean", tmp_path / "more", task=movies, epochs=0.01, lr=1e-9, seed=5)
    assert found.test.scores == before
    assert load_task_model(tmp_path / "more").head.pooling == "mean"
    rounded = {"mode": "qat", "task": movies, "steps": 1, "lr": 1e-9, "seed": 5, "batch_size": 16}
    nas.quantize(tmp_path / "mean", tmp_path / "int8", **rounded)
    after = nas.evaluate(tmp_path / "int8", task=movies).scores["torch"]
    assert after["accuracy"] == pytest.approx(before["accuracy"], abs=0.03)
    nas.finetune(tmp_path / "mean", tmp_path / "first", task=movies, pooling="first", epochs=0.01, lr=1e-9, seed=5)
    assert load_task_model(tmp_path / "first").head.pooling == "first"


def test_a_run_does_not_go_on_with_other_labels(tmp_path, encoder_dir, paragraphs):
    rows = war_or_peace(paragraphs)
    source = write_rows(tmp_path / "task.jsonl", rows)
    settings = {"task": source, "epochs": 3, "lr": 2e-3, "batch_size": 16}
    with pytest.raises(KeyboardInterrupt):
        nas.finetune(encoder_dir, tmp_path / "out", progress=StopAfter("fine-tuning", 11), **settings)
    other = {"calm": "strife", "strife": "calm"}
    write_rows(tmp_path / "task.jsonl", [row | {"label": other[row["label"]]} for row in rows])
    with pytest.raises(InvalidInputError, match="was started with another data"):
        nas.finetune(encoder_dir, tmp_path / "out", resume=True, **settings)


def test_states_that_are_too_many_to_keep_are_asked_for_again(teacher_dir, movies, monkeypatch, tmp_path, encoder_dir):
    teacher = load_task_model(teacher_dir)
    task = load_task(movies, teacher.tokenizer, TaskOptions(), text=TEXT)
    kept = ask(teacher, task.train, task.spec, layers=(0, 2))
    monkeypatch.setattr("nas.finish.distillation.MAX_STATES_BYTES", 1000)
    again = ask(teacher, task.train, task.spec, layers=(0, 2))
    assert not again.states
    for indices in ([5, 30, 7], [2]):
        batch = task.train.batch(indices)
        for layer in (0, 2):
            theirs = kept.batch_states(layer, batch)
            torch.testing.assert_close(again.batch_states(layer, batch), theirs, atol=2e-3, rtol=2e-3)
    notes = []
    progress = SilentProgress()
    monkeypatch.setattr(progress, "note", notes.append)
    settings = {"task": movies, "teacher": teacher_dir, "epochs": 1, "lr": 2e-3, "batch_size": 16}
    found = nas.finetune(encoder_dir, tmp_path / "out", progress=progress, **settings)
    assert "hidden" in found.history.losses[0]
    assert notes == ["The teacher's states of all texts are beyond 2 GB: it is asked again in each step."]


def test_a_teacher_is_asked_once_and_says_what_it_says(teacher_dir, movies, encoder_dir):
    teacher = load_task_model(teacher_dir)
    task = load_task(movies, teacher.tokenizer, TaskOptions(), text=TEXT)
    examples = augmented(task.train, 1, teacher.tokenizer, seed=3)
    lessons = ask(teacher, examples, task.spec, layers=(0, 2))
    batch = examples.batch([5, 230, 7])
    with recorded(teacher.encoder, [1, 5]) as seen, torch.no_grad():
        logits = teacher(**batch.inputs)
    assert torch.allclose(lessons.batch_logits(batch), logits, atol=1e-5)
    real = batch.attention_mask.bool()
    for layer, place in ((0, 1), (2, 5)):
        assert torch.allclose(lessons.batch_states(layer, batch)[real], seen[place][real], atol=2e-3)
    swapped = type(task.spec)("classification", ("strife", "calm"))
    assert ask(teacher, task.train, swapped).logits[0].tolist() == pytest.approx(lessons.logits[0][::-1].tolist())


def test_a_map_to_a_teacher_that_is_the_student_explains_everything(teacher_dir, movies):
    teacher = load_task_model(teacher_dir)
    task = load_task(movies, teacher.tokenizer, TaskOptions(), text=TEXT)
    matches = match_layers(teacher.architecture, teacher.architecture)
    assert matches == ((1, 0), (3, 1), (5, 2))
    lessons = ask(teacher, task.train, task.spec, layers=(0, 1, 2))
    maps = HiddenMaps(teacher.architecture, 48, matches)
    maps.fit(teacher, task.train, lessons)
    batch = task.train.batch(range(20))
    logits, unexplained = maps.loss(teacher, batch, lessons)
    assert float(unexplained.detach()) < 0.05  # what the ridge holds back; chance is 1
    assert float(teacher_loss("classification", logits, lessons.batch_logits(batch))) < 1e-5


def test_copies_change_words_and_leave_places_and_special_tokens(tmp_path, tokenizer_dir):
    tokenizer = tokenizer_of(tokenizer_dir)
    path = write_rows(tmp_path / "t.jsonl", numbers_and_words())
    examples = load_task(path, tokenizer, TaskOptions(), text=TEXT).train
    doubled = augmented(examples, 2, tokenizer, seed=0)
    count, special = len(examples), set(tokenizer.all_special_ids)
    assert len(doubled) == 3 * count
    assert doubled.input_ids[:count] == examples.input_ids
    assert doubled.positions == examples.positions * 3
    changed = 0
    for place in range(count, 3 * count):
        for old, new in zip(examples.input_ids[place % count], doubled.input_ids[place], strict=True):
            assert (old in special) == (new in special)
            changed += old != new
        assert set(doubled.labels[place]) == {-100}
    assert 0.05 < changed / sum(map(len, doubled.input_ids[count:])) < 0.15
    assert augmented(examples, 2, tokenizer, seed=0).input_ids == doubled.input_ids


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"augment": 1}, "need a teacher's answers; give --teacher"),
        ({"augment": 99, "teacher": True}, "augment must be from 0 to 20"),
        ({"metric": "pearson"}, "unknown metric of a classification task 'pearson'"),
        ({"pooling": "max"}, "pooling must be first or mean"),
        ({"epochs": 0}, "epochs must be from"),
        ({"lr": -1}, "lr must be a number above 0"),
        ({"temperature": 0}, "temperature must be from 0.1"),
        ({"kind": "ranking"}, "kind must be one of classification, regression, tagging"),
        ({"task": "no-such-file.csv"}, "cannot be read"),
    ],
)
def test_bad_input_is_named_before_any_work(tmp_path, encoder_dir, movies, teacher_dir, wrong, message):
    settings = {"task": movies} | wrong | ({"teacher": teacher_dir} if "teacher" in wrong else {})
    with pytest.raises(InvalidInputError, match=message):
        nas.finetune(encoder_dir, tmp_path / "m", **settings)
    assert not list(tmp_path.iterdir())


def test_a_teacher_of_another_task_and_a_place_that_is_taken_are_refused(tmp_path, encoder_dir, teacher_dir):
    words = write_rows(tmp_path / "words.jsonl", numbers_and_words(60))
    with pytest.raises(InvalidInputError, match=r"the teacher must answer this task .tagging, labels NUM, WORD"):
        nas.finetune(encoder_dir, tmp_path / "m", task=words, teacher=teacher_dir)
    with pytest.raises(InvalidInputError, match="already there and not empty"):
        nas.finetune(encoder_dir, tmp_path, task=words)
    with pytest.raises(InvalidInputError, match="has no head"):
        nas.finetune(encoder_dir, tmp_path / "m", task=words, teacher=encoder_dir)


def test_a_teacher_with_its_own_tokenizer_teaches_by_its_answers(
    tmp_path, encoder_dir, teacher_dir, movies, paragraphs
):
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    folder = tmp_path / "other"
    folder.mkdir()
    learner = BertWordPieceTokenizer(lowercase=True)
    learner.train_from_iterator(paragraphs, vocab_size=300, show_progress=False)
    learner.save_model(str(folder))
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    torch.manual_seed(3)
    export_model(Encoder(Architecture.bert(1, 16, 32, 2), TEXT).eval(), folder, tmp_path / "student")
    found = nas.finetune(tmp_path / "student", tmp_path / "m", task=movies, teacher=teacher_dir, epochs=1)
    assert set(found.history.losses[0]) == {"teacher", "label"}
    with pytest.raises(InvalidInputError, match="a teacher that reads the same tokens"):
        nas.finetune(tmp_path / "student", tmp_path / "n", task=movies, teacher=teacher_dir, distil_epochs=1)


def test_the_three_verbs_from_the_command_line(tmp_path, as_json, command, encoder_dir, movies, monkeypatch):
    import io
    import sys

    out = tmp_path / "m"
    trained = as_json(
        "finetune", encoder_dir, "--task", movies, "--out", out, "--epochs", 8, "--lr", 4e-3, "--batch-size", 16
    )
    evaluated = as_json("eval", out, "--task", movies)
    assert evaluated["scores"]["torch"] == pytest.approx(trained["scores"]["test"])
    assert set(evaluated["scores"]) == {"torch", "onnx", "onnx-int8"}
    assert evaluated["agreement"]["onnx"] == 1
    assert evaluated["largest_difference"]["onnx"] < 1e-4
    monkeypatch.setattr(sys, "stdin", io.StringIO("They wished for war.\n\npeace at last\n"))
    war, peace = as_json("predict", out)
    assert (war["text"], war["label"], peace["label"]) == ("They wished for war.", "strife", "calm")
    assert war["probabilities"]["strife"] == war["probability"] > 0.5
    for content, said in (
        (b"\xef\xbb\xbfwar\n", ""),
        (b"caf\xe9\n", "cannot read standard input: it is not UTF-8 text"),
    ):
        stream = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", errors="surrogateescape")
        monkeypatch.setattr(sys, "stdin", stream)
        code, printed, err = command("predict", out)
        assert (code, said in err, "\ufeff" in printed) == (2 if said else 0, True, False)
    code, _, err = command("predict", out, tmp_path / "absent.txt")
    assert (code, "cannot read" in err) == (2, True)
    code, _, err = command("finetune", encoder_dir, "--task", movies, "--out", out)
    assert (code, err.count("\n")) == (2, 1)


def test_lines_of_pairs_and_of_words_are_answered(tmp_path, narrow_dir, encoder_dir, paragraphs):
    rows = [{"text": paragraphs[i][:30], "text_pair": paragraphs[i + 30][:30], "label": i % 2} for i in range(30)]
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    nas.finetune(encoder_dir, tmp_path / "p", task=pairs, epochs=0.2)
    (answer,) = nas.predict(tmp_path / "p", ["one text\tanother"])
    model = load_task_model(tmp_path / "p")
    encoded = model.tokenizer("one text", "another", return_tensors="pt")
    with torch.no_grad():
        share = model(**encoded).softmax(-1)[0].max()
    assert answer.probability == pytest.approx(float(share), abs=1e-6)
    with pytest.raises(InvalidInputError, match="two texts a line, separated by one tab; line 2 has 1"):
        list(nas.predict(tmp_path / "p", ["a\tb", "alone"]))
    words = write_rows(tmp_path / "words.jsonl", numbers_and_words(60))
    nas.finetune(narrow_dir, tmp_path / "w", task=words, epochs=0.5)
    for runtime in ("torch", "onnx"):
        one, two = nas.predict(tmp_path / "w", ["the union 22", "of"], runtime=runtime)
        assert (one.words, len(one.label), len(one.probability)) == (["the", "union", "22"], 3, 3)
        assert len(two.label) == 1
    with pytest.raises(InvalidInputError, match="lines 1 to 1: a text may have 64 tokens"):
        list(nas.predict(tmp_path / "w", ["word " * 90]))
    assert len(logits_of(torch_run(model), load_task(pairs, model.tokenizer, TaskOptions(), text=TEXT).validation)) == 6
