import json
import random

import pandas as pd
import pytest
import torch
import transformers
from chain_cases import CHAINS, random_chains
from supernet_cases import SPACES, random_supernet
from task_cases import TEXT, numbers_and_words, write_rows

from search_spaces.architecture import Architecture
from search_spaces.errors import InvalidInputError
from supernet.adapt import AdaptConfig, adapt, load_adapted, task_to_adapt
from supernet.checkpoint import load_supernet, save_supernet
from supernet.evaluate import task_quality
from supernet.extract import extract
from supernet.losses import pool
from supernet.task_spec import TaskOptions

SPACE = SPACES["uniform"]
CONFIG = AdaptConfig(steps=60, batch_size=16, seq_len=16, learning_rate=3e-3)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    return transformers.AutoTokenizer.from_pretrained(tokenizer_dir)


@pytest.fixture
def loaded(tmp_path):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    supernet = random_supernet(SPACE)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.mul_(0.3)
    for layer in supernet.modules():
        if type(layer).__name__ == "ElasticLayerNorm":
            torch.nn.init.ones_(layer.weight)
    save_supernet(tmp_path / "s", supernet, reference=None, training={})
    return load_supernet(tmp_path / "s")


def _task(tmp_path, frame, name="task.csv"):
    frame.to_csv(tmp_path / name, index=False)
    return str(tmp_path / name)


@pytest.fixture
def easy(tmp_path, paragraphs):
    """Whether a text speaks of war or of peace: one word decides."""
    rng = random.Random(0)
    rows = []
    for number in range(200):
        label = number % 2
        words = rng.choice(paragraphs).split()[:6]
        words.insert(rng.randrange(len(words)), "war war" if label else "peace peace")
        rows.append({"text": " ".join(words), "label": ["calm", "strife"][label]})
    return _task(tmp_path, pd.DataFrame(rows))


def test_all_subnets_learn_the_task_together(tmp_path, loaded, easy, tokenizer):
    before = loaded.digest
    task = task_to_adapt(easy, tokenizer, loaded.text, CONFIG)
    adapt(loaded, task, tmp_path / "adapted", CONFIG)
    accuracy = task_quality(tmp_path / "adapted")
    assert accuracy(SPACE.largest()) > 0.8
    assert accuracy(SPACE.smallest()) > 0.65
    assert load_adapted(tmp_path / "adapted").spec.labels == ("calm", "strife")
    assert loaded.digest == before


def test_the_same_seed_adapts_to_the_same_weights(tmp_path, loaded, easy, tokenizer):
    short = AdaptConfig(steps=3, batch_size=8, seq_len=16)
    task = task_to_adapt(easy, tokenizer, loaded.text, short)
    for name in ("a", "b"):
        adapt(loaded, task, tmp_path / name, short)
    assert load_supernet(tmp_path / "a").digest == load_supernet(tmp_path / "b").digest


def test_a_space_with_narrow_layers_adapts_by_position_0(tmp_path, loaded, easy, tokenizer):
    space = SPACE.with_narrowing()
    task = task_to_adapt(easy, tokenizer, loaded.text, CONFIG)
    adapt(loaded, task, tmp_path / "adapted", CONFIG, space=space)
    accuracy = task_quality(tmp_path / "adapted")
    assert load_adapted(tmp_path / "adapted").pooling == "first"
    narrow = Architecture.bert(3, 64, 128, 4, num_narrow_layers=2)
    assert accuracy(narrow) > 0.7
    assert accuracy(space.largest()) > 0.7
    encoder, adapted = extract(accuracy.adapted.supernet, narrow), accuracy.adapted
    (batch,) = adapted.validation.batches(64)
    with torch.no_grad():
        states = encoder(batch.input_ids, batch.attention_mask, batch.token_type_ids)[:, 0]
    assert (adapted.head(states).argmax(-1) == batch.labels).float().mean() == pytest.approx(accuracy(narrow))


def test_a_supernet_of_chains_adapts_too(tmp_path, easy, tokenizer):
    save_supernet(tmp_path / "s", random_chains(CHAINS["factorised"]), reference=None, training={})
    loaded, short = load_supernet(tmp_path / "s"), AdaptConfig(steps=3, batch_size=8, seq_len=16)
    adapt(loaded, task_to_adapt(easy, tokenizer, loaded.text, short), tmp_path / "adapted", short)
    accuracy, chain = task_quality(tmp_path / "adapted"), CHAINS["factorised"].largest()
    adapted, encoder = accuracy.adapted, extract(accuracy.adapted.supernet, chain)
    assert adapted.supernet.config.space == CHAINS["factorised"]
    (batch,) = adapted.validation.batches(64)
    with torch.no_grad():
        states = pool(encoder(batch.input_ids, batch.attention_mask), batch.attention_mask)
    assert (adapted.head(states).argmax(-1) == batch.labels).float().mean() == pytest.approx(accuracy(chain))
    changed = adapted.supernet.operation(0, 0, 48, "feed_forward").up.weight
    assert not torch.equal(changed, loaded.supernet.operation(0, 0, 48, "feed_forward").up.weight)


def test_a_folder_that_does_not_name_its_pooling_was_adapted_by_the_mean(tmp_path, loaded, easy, tokenizer):
    short, path = AdaptConfig(steps=1, batch_size=8, seq_len=16), tmp_path / "a" / "task.json"
    adapt(loaded, task_to_adapt(easy, tokenizer, loaded.text, short), tmp_path / "a", short)
    data = json.loads(path.read_text())
    assert data.pop("pooling") == "mean"
    path.write_text(json.dumps(data))
    assert load_adapted(tmp_path / "a").pooling == "mean"
    with pytest.raises(InvalidInputError, match="mean pooling needs the states of all positions"):
        task_quality(tmp_path / "a")(Architecture.bert(3, 64, 128, 4, num_narrow_layers=2))
    path.write_text(json.dumps({**data, "pooling": "last"}))
    with pytest.raises(InvalidInputError, match="damaged"):
        load_adapted(tmp_path / "a")


def _numbers(tmp_path, name="numbers.csv", scale=1.0):
    """How warlike a text is, by how many of its words are war; always a fraction."""
    rng, rows = random.Random(0), []
    for _ in range(240):
        words = [rng.choice(["war", "peace"]) for _ in range(6)]
        rows.append({"text": " ".join(words), "label": words.count("war") / 4 * scale + 0.25})
    return _task(tmp_path, pd.DataFrame(rows), name)


def test_numbers_are_judged_by_their_correlation_whatever_their_scale(tmp_path, loaded, tokenizer):
    found = {}
    for scale in (1.0, 1000.0):
        task = task_to_adapt(_numbers(tmp_path, scale=scale), tokenizer, loaded.text, CONFIG)
        adapt(loaded, task, tmp_path / "adapted", CONFIG)
        quality = task_quality(tmp_path / "adapted")
        assert quality.name == "task pearson"
        found[scale] = [quality(SPACE.largest()), quality(SPACE.smallest())]
    assert min(found[1.0]) > 0.7
    assert found[1000.0] == pytest.approx(found[1.0], abs=0.05)


def test_tags_are_read_from_the_first_token_of_each_word(tmp_path, loaded, tokenizer):
    source = write_rows(tmp_path / "tags.jsonl", numbers_and_words(120))
    task = task_to_adapt(source, tokenizer, loaded.text, CONFIG)
    adapt(loaded, task, tmp_path / "adapted", CONFIG)
    quality = task_quality(tmp_path / "adapted")
    assert quality.name == "task token accuracy"
    assert quality(SPACE.largest()) > 0.95
    assert quality(SPACE.smallest()) > 0.85
    adapted, encoder, right = quality.adapted, extract(quality.adapted.supernet, SPACE.smallest()), []
    for ids, places, tags in zip(
        adapted.validation.input_ids, adapted.validation.positions, adapted.validation.labels, strict=True
    ):
        with torch.no_grad():
            states = encoder(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))[0, places]
        right += (adapted.head(states).argmax(-1) == torch.tensor(tags)).tolist()
    assert sum(right) / len(right) == pytest.approx(quality(SPACE.smallest()))


def test_entities_are_judged_whole(tmp_path, loaded, tokenizer):
    rows = numbers_and_words(60)
    tagged = [row | {"label": ["B-N" if tag == "NUM" else "O" for tag in row["label"]]} for row in rows]
    short = AdaptConfig(steps=1, batch_size=8)
    task = task_to_adapt(write_rows(tmp_path / "t.jsonl", tagged), tokenizer, loaded.text, short)
    adapt(loaded, task, tmp_path / "adapted", short)
    quality = task_quality(tmp_path / "adapted")
    assert quality.name == "task entity f1"
    assert 0 <= quality(SPACE.largest()) <= 1


def test_tags_and_narrow_layers_do_not_go_together(tmp_path, loaded, tokenizer):
    task = task_to_adapt(write_rows(tmp_path / "t.jsonl", numbers_and_words()), tokenizer, loaded.text, CONFIG)
    with pytest.raises(InvalidInputError, match="narrow layers update position 0 alone; leave --narrow out"):
        adapt(loaded, task, tmp_path / "adapted", CONFIG, space=SPACE.with_narrowing())
    assert not (tmp_path / "adapted").exists()


def test_a_task_is_cut_and_spread_and_never_tested_on(tmp_path, tokenizer):
    rows = [{"text": "word " * 40, "label": number % 2, "split": "train"} for number in range(20)]
    rows += [row | {"split": name} for name in ("validation", "test") for row in rows]
    config = AdaptConfig(seq_len=16, max_validation=5)
    task = task_to_adapt(write_rows(tmp_path / "t.jsonl", rows), tokenizer, TEXT, config)
    assert (set(task.train.lengths), len(task.train), len(task.validation)) == ({16}, 20, 5)
    assert task.test is None
    tags = [{"tokens": ["a"] * 30, "label": ["X", "Y"] * 15}] * 20
    task = task_to_adapt(write_rows(tmp_path / "tags.jsonl", tags), tokenizer, TEXT, config)
    assert set(task.train.lengths) == {32}  # a word that is cut off would have no tag


def test_columns_and_the_kind_are_named_where_they_are_not_found(tmp_path, tokenizer):
    rows = [{"body": f"a {place % 5}", "stars": place % 5} for place in range(40)]
    source = write_rows(tmp_path / "t.jsonl", rows)
    with pytest.raises(InvalidInputError, match="column of labels"):
        task_to_adapt(source, tokenizer, TEXT, CONFIG)
    named = TaskOptions(kind="regression", text="body", label="stars")
    assert task_to_adapt(source, tokenizer, TEXT, CONFIG, named).spec.kind == "regression"


def test_a_damaged_adapted_folder_is_refused(tmp_path, loaded, easy, tokenizer):
    short = AdaptConfig(steps=1, batch_size=8, seq_len=16)
    adapt(loaded, task_to_adapt(easy, tokenizer, loaded.text, short), tmp_path / "a", short)
    path = tmp_path / "a" / "task.json"
    data = json.loads(path.read_text())
    for broken in ({}, data | {"kind": "tagging"}, data | {"labels": [9] * len(data["labels"])}, data | {"rows": []}):
        path.write_text(json.dumps(broken))
        with pytest.raises(InvalidInputError, match="adapted"):
            load_adapted(tmp_path / "a")
