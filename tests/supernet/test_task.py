import json

import datasets
import pandas as pd
import pytest
from task_cases import TEXT, numbers_and_words, tokenizer_of, war_or_peace, write_rows

from nas.errors import InvalidInputError
from supernet.examples import IGNORED
from supernet.task import load_split, load_task
from supernet.task_spec import TaskOptions, TaskSpec


@pytest.fixture(scope="module")
def read(tokenizer_dir):
    tokenizer = tokenizer_of(tokenizer_dir)

    def reading(source, **options):
        return load_task(str(source), tokenizer, TaskOptions(**options), text=TEXT)

    reading.tokenizer = tokenizer
    return reading


@pytest.fixture
def rows(paragraphs):
    return war_or_peace(paragraphs, 40)


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv", "parquet", "csv.gz"])
def test_any_file_says_the_same(tmp_path, read, rows, form):
    frame, path = pd.DataFrame(rows), tmp_path / f"task.{form}"
    if form == "jsonl":
        write_rows(path, rows)
    elif form == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if form == "tsv" else ",")
    task = read(path)
    assert task.spec == TaskSpec("classification", ("calm", "strife"), is_pair=False, max_tokens=64)
    assert (len(task.train), len(task.validation), task.test) == (32, 8, None)
    assert task.train.input_ids[0] == read.tokenizer(rows[0]["text"]).input_ids
    assert task.validation.input_ids[0] == read.tokenizer(rows[4]["text"]).input_ids
    assert list(task.train.labels[:5]) == [0, 1, 0, 1, 1]


def test_in_csv_none_is_a_word_and_among_numbers_a_missing_one(tmp_path, read):
    path = tmp_path / "task.csv"
    rows = [("None", "N/A"), ("null", "None"), ("a b", "some")] * 10
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    task = read(path)
    assert task.spec.labels == ("N/A", "None", "some")
    assert task.train.input_ids[0] == read.tokenizer("None").input_ids
    path.write_text("text,label\n" + "".join(f"a b,{number / 7}\n" for number in range(30)) + "a b,NA\n")
    with pytest.raises(InvalidInputError, match=r"1 of 25 in .* have none"):
        read(path)
    path.write_text("text,label\n" + "".join(f"a b,{label}\n" for label in ("yes", "no", "") * 10))
    with pytest.raises(InvalidInputError, match=r"of 24 in .* have none, the first is row 3"):
        read(path)


def test_elsewhere_a_label_that_is_written_as_a_word_stays_one(tmp_path, read):
    path = write_rows(tmp_path / "t.jsonl", [{"text": "a b", "label": label} for label in ("1", "2", "none") * 10])
    assert read(path).spec.labels == ("1", "2", "none")


def test_splits_come_from_a_column_or_from_a_folders_files(tmp_path, read, rows):
    splits = ["train"] * 20 + ["dev"] * 12 + ["test"] * 8
    whole = write_rows(tmp_path / "whole.jsonl", [row | {"split": s} for row, s in zip(rows, splits, strict=True)])
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("train", "dev", "test"):
        write_rows(folder / f"{name}.jsonl", [row for row, s in zip(rows, splits, strict=True) if s == name])
    (folder / "README.md").write_text("not a split")
    for source in (whole, folder):
        task = read(source)
        assert (len(task.train), len(task.validation), len(task.test)) == (20, 12, 8)
        assert task.test.input_ids[0] == read.tokenizer(rows[32]["text"]).input_ids


@pytest.mark.parametrize(
    "names",
    [
        {"train": ["train-00000-of-00002", "train-00001-of-00002"], "test": ["test-00000-of-00001"]},
        {
            "train": ["data/train-00000-of-00001"],
            "dev": ["data/validation-00000-of-00001"],
            "test": ["data/test-00000"],
        },
        {"train": ["movies-train"], "dev": ["movies_dev"], "test": ["movies.test"]},
        {"train": ["train/a", "train/b"], "dev": ["val/a"], "test": ["test/x"]},
        {"train": ["train"], "dev": ["validation_matched", "validation_mismatched"], "test": ["test"]},
    ],
)
def test_every_file_of_a_split_is_read_and_none_of_another(tmp_path, read, rows, names):
    splits = {"train": rows[:20], "dev": rows[20:32] if "dev" in names else [], "test": rows[32:]}
    for split, files in names.items():
        for place, name in enumerate(files):
            path = tmp_path / "folder" / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_rows(path, splits[split][place :: len(files)])
    task = read(tmp_path / "folder")
    learnt, chosen_by = (20, 12) if "dev" in names else (16, 4)
    assert (len(task.train), len(task.validation), len(task.test)) == (learnt, chosen_by, 8)
    assert sorted(task.test.input_ids) == sorted(read.tokenizer(row["text"]).input_ids for row in rows[32:])


def test_each_file_has_its_own_columns_and_a_test_file_may_have_no_labels(tmp_path, read, rows):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_rows(folder / "train.jsonl", rows[:32])
    write_rows(folder / "test.jsonl", [{"sentence": row["text"], "label": row["label"]} for row in rows[32:]])
    assert len(read(folder).test) == 8
    write_rows(folder / "test.jsonl", [{"text": row["text"]} for row in rows[32:]])
    assert read(folder).test is None
    write_rows(folder / "test.jsonl", rows[32:])
    write_rows(folder / "train.jsonl", [{"text": row["text"]} for row in rows[:32]])
    with pytest.raises(InvalidInputError, match=r"folder \(train\)' must have a column of labels"):
        read(folder)


def test_files_of_a_split_that_are_not_alike_are_refused(tmp_path, read, rows):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_rows(folder / "train.jsonl", rows[:32])
    pairs = [{"text": row["text"], "text_pair": "x", "label": row["label"]} for row in rows]
    tables = [("validation_matched", rows), ("validation_mismatched", pairs), ("train", rows)]
    found = [(name, datasets.Dataset.from_list(part)) for name, part in tables]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("supernet.task_rows.open_table", lambda *args, **kwargs: iter(found))
        with pytest.raises(InvalidInputError, match="must be alike, but only some hold pairs"):
            read("somewhere/on-the-hub")


@pytest.mark.parametrize("label", [{"a": 1}, [["a"]], [{"a": 1}]])
def test_a_label_that_is_none_is_refused(tmp_path, read, label):
    path = write_rows(tmp_path / "t.jsonl", [{"text": "a b", "label": label}] * 20)
    with pytest.raises(InvalidInputError, match="a label must be a class, a number or a list of tags, row 1 of"):
        read(path)


def test_an_infinite_label_among_numbers_is_refused(tmp_path, read):
    path = tmp_path / "t.csv"
    path.write_text("text,label\n" + "".join(f"a b,{number % 3}\n" for number in range(30)) + "c,inf\n" * 2)
    with pytest.raises(InvalidInputError, match="every number to learn must be finite"):
        read(path)


def test_class_names_are_those_of_the_data_and_numbers_keep_their_order(tmp_path, read, rows, monkeypatch):
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["strife", "calm"])}
    )
    table = datasets.Dataset.from_list([{"sentence": row["text"], "label": 0} for row in rows], features=features)
    other = datasets.Dataset.from_list([{"sentence": row["text"], "label": 1} for row in rows], features=features)
    splits = [("train", datasets.concatenate_datasets([table, other])), ("validation", table), ("test", other)]
    monkeypatch.setattr("supernet.task_rows.open_table", lambda *args, **kwargs: iter(splits))
    assert read("somewhere/on-the-hub").spec.labels == ("calm", "strife")
    monkeypatch.undo()
    numbered = write_rows(tmp_path / "n.jsonl", [{"text": "a", "label": place % 12} for place in range(60)])
    assert read(numbered).spec.labels == tuple(map(str, range(12)))


def test_one_of_several_configurations_stands_behind_a_colon(tmp_path, read, rows):
    """A folder laid out as on the hub, which ``datasets`` opens as it opens a hub id."""
    named = [{"sentence": row["text"], "label": row["label"]} for row in rows]
    for name, part in (("cola", named[:20]), ("sst2", named)):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "train.jsonl", part)
    entry = "- config_name: {0}\n  data_files:\n  - split: train\n    path: {0}/train.jsonl\n"
    configs = "".join(map(entry.format, ("cola", "sst2")))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert len(read(f"{tmp_path}:sst2").train) == 32
    assert len(read(f"{tmp_path}:cola").train) == 16
    write_rows(tmp_path / "cola" / "train.jsonl", named[:30])
    assert len(read(f"{tmp_path}:cola").train) == 24
    with pytest.raises(InvalidInputError, match=r"Available: \['cola', 'sst2'\]; name one behind a colon"):
        read(f"{tmp_path}:sst")


def test_a_hub_id_of_several_configurations_needs_one(read, monkeypatch):
    """What ``datasets`` says of a hub id that was given without one."""

    def load_dataset(path):
        raise ValueError(
            "Config name is missing.\nPlease pick one among the available configs: ['cola', 'sst2']\nExample of usage:"
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InvalidInputError, match=r"\['cola', 'sst2'\]; name one behind a colon") as caught:
        read("nyu-mll/glue")
    assert len(str(caught.value).splitlines()) == 1


def test_a_hub_test_split_without_labels_is_left_out(tmp_path, read, rows):
    path = write_rows(
        tmp_path / "t.jsonl",
        [row | {"split": "train"} for row in rows] + [{"text": "x", "label": None, "split": "test"}] * 9,
    )
    assert read(path).test is None


def test_pairs_and_numbers(tmp_path, read, paragraphs):
    rows = [{"text": paragraphs[i][:40], "text_pair": paragraphs[i + 30][:40], "label": i / 4} for i in range(30)]
    task = read(write_rows(tmp_path / "t.jsonl", rows))
    assert (task.spec.kind, task.spec.is_pair, task.spec.num_outputs) == ("regression", True, 1)
    encoded = read.tokenizer(rows[0]["text"], rows[0]["text_pair"])
    assert (task.train.input_ids[0], task.train.token_type_ids[0]) == (encoded.input_ids, encoded.token_type_ids)
    labels = pd.Series(task.train.labels)
    assert task.label_scale == pytest.approx((labels.mean(), labels.std(ddof=0)))
    assert read(tmp_path / "t.jsonl", text="text").spec.is_pair is False


def test_every_word_has_its_first_token_and_its_tag(tmp_path, read):
    rows = [{"tokens": ["Uncharacteristically", "x\u200b", "\u200b", "ok"], "label": ["A", "B", "A", "B"]}] * 20
    task = read(write_rows(tmp_path / "t.jsonl", rows))
    ids, positions = task.train.input_ids[0], task.train.positions[0]
    assert task.spec.kind == "tagging"
    assert task.train.labels[0] == [0, 1, 0, 1]
    assert positions[0] == 1
    assert ids[positions[2]] == read.tokenizer.unk_token_id
    assert read.tokenizer.convert_ids_to_tokens(ids[positions[3] :])[0].startswith("o")


def test_batches_hold_what_the_examples_hold(tmp_path, read):
    task = read(write_rows(tmp_path / "t.jsonl", numbers_and_words()))
    seen = set()
    for batch in task.train.batches(7):
        for place, index in enumerate(batch.indices.tolist()):
            seen.add(index)
            length, words = int(batch.attention_mask[place].sum()), int(batch.words[place].sum())
            assert batch.input_ids[place, :length].tolist() == task.train.input_ids[index]
            assert batch.positions[place, :words].tolist() == task.train.positions[index]
            assert batch.labels[place, :words].tolist() == task.train.labels[index]
            assert set(batch.labels[place, words:].tolist()) <= {IGNORED}
    assert seen == set(range(len(task.train)))


TAGGED = {"tokens": ["a", "b"], "label": ["X", "Y"]}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"text": "a"}] * 20, {}, "must have a column of labels"),
        ([{"text": "a", "label": 1}] * 20, {}, "2 to 1000 labels, got 1"),
        ([{"text": "a", "label": i % 2} for i in range(5)], {}, "too small"),
        ([{"words": "a", "label": i % 2} for i in range(20)], {}, "must have a column of texts"),
        ([{"text": "a", "label": i % 2} for i in range(20)], {"text": "body"}, "no column 'body'; it has text, label"),
        ([{"text": "a", "label": i % 2} for i in range(20)], {"text_pair": "b"}, "no column 'b'"),
        ([{"text": "a", "label": i % 2 or None} for i in range(20)], {}, "every row needs a label"),
        ([{"text": None if i == 3 else "a", "label": i % 2} for i in range(20)], {}, "row 4 .* has None"),
        ([{"text": "a", "label": i / 2} for i in range(20)], {"kind": "classification"}, "classes, not fractions"),
        ([{"text": "a", "label": "xy"[i % 2]} for i in range(20)], {"kind": "regression"}, "needs numbers as labels"),
        ([{"text": "a", "label": i % 2} for i in range(20)], {"kind": "tagging"}, "needs lists of tags"),
        ([TAGGED] * 20, {"kind": "classification"}, "classes, not fractions as labels"),
        ([TAGGED] * 20 + [{"tokens": ["a"], "label": ["X", "Y"]}] * 20, {}, "as many tags"),
        ([{"text": "word " * 90, "label": i % 2} for i in range(20)], {}, "may have 64 tokens.*--seq-len 64"),
        ([{"tokens": ["a"] * 90, "label": ["X", "Y"] * 45}] * 20, {}, "may have 64 tokens.*split long sentences"),
        ([{"text": "a", "label": i % 2} for i in range(20)], {"seq_len": 65}, "from 2 to 64, the longest text"),
        ([{"text": "a", "label": i % 2, "split": "dve"} for i in range(20)], {}, "must say train, validation or test"),
        ([{"text": "a", "label": i % 2, "split": "test"} for i in range(20)], {}, "no training rows"),
        ([{"text": "a", "label": i % 2, "split": "train"} for i in range(20)]
         + [{"text": "a", "label": 7, "split": "test"}] * 4, {}, "label 7 in split 'test' .* is not among the 2"),
    ],
)  # fmt: skip
def test_a_bad_task_is_named_with_its_fault(tmp_path, read, rows, options, message):
    with pytest.raises(InvalidInputError, match=message):
        read(write_rows(tmp_path / "task.jsonl", rows), **options)


def test_texts_beyond_the_limit_are_cut_where_that_was_asked_for(tmp_path, read):
    rows = [{"text": "word " * 90, "label": i % 2} for i in range(20)]
    task = read(write_rows(tmp_path / "t.jsonl", rows), seq_len=20)
    assert set(task.train.lengths) == {20}
    assert (task.spec.max_tokens, task.spec.is_cut) == (20, True)


def test_a_model_is_asked_only_what_it_answers(tmp_path, read, rows):
    spec = TaskSpec("classification", ("strife", "calm"), is_pair=False, max_tokens=64)
    path = write_rows(tmp_path / "t.jsonl", [row | {"split": "test"} for row in rows])
    split, examples = load_split(path, "test", read.tokenizer, TaskOptions(), text=TEXT, expected=spec)
    assert (split, list(examples.labels[:2])) == ("test", [1, 0])  # in the model's order
    with pytest.raises(InvalidInputError, match="no training rows"):
        load_split(path, "train", read.tokenizer, TaskOptions(), text=TEXT, expected=spec)
    pairs = write_rows(tmp_path / "p.jsonl", [row | {"text_pair": "b"} for row in rows])
    with pytest.raises(InvalidInputError, match=r"reads single texts, .* holds pairs; name the one column"):
        load_split(pairs, "test", read.tokenizer, TaskOptions(), text=TEXT, expected=spec)
    pair_spec = TaskSpec("classification", ("strife", "calm"), is_pair=True, max_tokens=64)
    with pytest.raises(InvalidInputError, match="reads pairs of texts"):
        load_split(path, "test", read.tokenizer, TaskOptions(), text=TEXT, expected=pair_spec)
    others = write_rows(tmp_path / "o.jsonl", [row | {"label": "storm"} for row in rows])
    with pytest.raises(InvalidInputError, match=r"label 'storm' in task .* is not among the 2 labels"):
        load_split(others, "test", read.tokenizer, TaskOptions(), text=TEXT, expected=spec)
    numbers = TaskSpec("regression", (), is_pair=False, max_tokens=64)
    with pytest.raises(InvalidInputError, match="needs numbers as labels"):
        load_split(path, "test", read.tokenizer, TaskOptions(), text=TEXT, expected=numbers)


def test_what_training_holds_out_is_found_again(tmp_path, read, rows):
    path = write_rows(tmp_path / "t.jsonl", rows)
    task = read(path)
    split, examples = load_split(path, "validation", read.tokenizer, TaskOptions(), text=TEXT, expected=task.spec)
    assert (split, examples.input_ids) == ("validation", task.validation.input_ids)
    split, examples = load_split(path, "test", read.tokenizer, TaskOptions(), text=TEXT, expected=task.spec)
    assert (split, len(examples)) == ("everything", 40)


@pytest.mark.parametrize("content", ["", "not json at all {", json.dumps([1, 2])])
def test_what_is_no_table_is_refused(tmp_path, read, content):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(InvalidInputError, match="task"):
        read(tmp_path / "t.json")
