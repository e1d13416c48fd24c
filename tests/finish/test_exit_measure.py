"""``nas measure`` on a model with exits: each exit, what is expected, the worst case, and what a budget binds."""

import json
import re

import numpy as np
import pytest
from exit_cases import exit_model, padded_batch

import nas
from nas.errors import InvalidInputError
from nas.finish import exit_measure
from nas.finish.exit_export import save_exits
from nas.finish.exit_measure import StopAt
from nas.finish.exit_run import describe
from nas.finish.exits import AdaptiveModel, run
from nas.finish.halting import Dact, Patience

COUNTS = [10, 5, 5, 0]  # of 20 validation texts
INT8_COUNTS = [5, 5, 5, 5]
BOTH = {"seq_len": 16, "seconds_each": 0.05}
ASKED = BOTH | {"precision": "fp32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_dir):
    from transformers import AutoTokenizer

    place, model = tmp_path_factory.mktemp("measured") / "dact-tau0.1", exit_model("bert", seed=5)
    facts = {"validation": {"exits": COUNTS}, "validation_int8": {"exits": INT8_COUNTS}}
    description = describe(model, 0.1, Dact(), facts)
    save_exits(place, model, description, AutoTokenizer.from_pretrained(tokenizer_dir))
    return place


@pytest.fixture
def even(monkeypatch):
    """A clock by which every layer takes a millisecond, give or take a little."""

    def times_of(models, texts, *, seed=0, repeats=5, progress):
        rng = np.random.default_rng(seed)
        layers = {name: 4 if name == "last" else int(name) + 1 for name in models}
        return {name: 1e-3 * layers[name] * rng.normal(1, 0.01, (repeats, len(texts))) for name in models}

    monkeypatch.setattr(exit_measure, "times_of", times_of)


@pytest.mark.parametrize("policy", [Dact(), Patience(1)])
def test_a_text_is_made_to_stop_at_each_exit_in_turn(folder, policy):
    layers, batch = AdaptiveModel.load(folder).layers, padded_batch(5, 12)
    whole, _ = run(layers, batch, policy, halts=False)
    for place in range(4):
        answers, passed = run(layers, batch, StopAt(policy, place))
        assert passed.tolist() == [place + 1] * 5
    np.testing.assert_allclose(answers, whole)


def test_the_expected_latency_weighs_the_exits_by_where_texts_stopped(folder, even):
    found = nas.measure(folder, **ASKED)
    assert [row.file for row in found.rows] == [
        "expected",
        "exit 1, 50% of the texts",
        "exit 2, 25% of the texts",
        "exit 3, 25% of the texts",
        "worst: exit 4, 0% of the texts",
    ]
    milliseconds = [row.latency.p50_s * 1e3 for row in found.rows]
    assert milliseconds == pytest.approx([1.75, 1, 2, 3, 4], rel=0.02)
    assert found.advice[0].startswith("At 16 tokens a text takes 1.7")
    assert [row.size_bytes for row in found.rows] == sorted(row.size_bytes for row in found.rows[1:])[-1:] + sorted(
        row.size_bytes for row in found.rows[1:]
    )


@pytest.mark.parametrize(
    ("budget_ms", "bind", "exit_code"),
    [
        (2.5, None, 0),
        (2.5, "expected", 0),
        (2.5, "worst", 3),
        (4.5, "worst", 0),
        (1.2, "expected", 3),
        (4.0, "worst", 5),
    ],
)
def test_a_budget_binds_the_latency_that_is_named(folder, even, budget_ms, bind, exit_code):
    found = nas.measure(folder, latency_ms=budget_ms, exits=bind, **ASKED)
    assert found.exit_code == exit_code
    judged = [found.judge(row) for row in found.rows]
    wanted = {0: "meets", 3: "exceeds", 5: "undecided"}[exit_code]
    assert judged[-1 if bind == "worst" else 0] == wanted
    assert {"meets", "exceeds", "undecided"}.isdisjoint(judged[1:-1])
    told = json.loads(json.dumps(found.to_dict()))
    shares = {"fp32": [0.5, 0.25, 0.25, 0]}
    assert (told["binds"], told["shares"], len(told["measurements"])) == (bind or "expected", shares, 5)


def test_each_number_format_has_its_own_graphs_shares_and_judgement(folder, monkeypatch):
    """A clock by which a layer takes 2 ms in fp32 and 1 ms in int8."""
    layer_s = {"fp32": 2e-3, "int8": 1e-3}
    load = AdaptiveModel.load
    loaded = []

    def note(place, *, threads=1, precision="fp32"):
        loaded.append(precision)
        return load(place, threads=threads, precision=precision)

    def times_of(models, texts, *, seed=0, repeats=5, progress):
        """Every precision is timed twice: a pilot, then all its exits."""
        precision = loaded[len(calls) // 2]
        calls.append(precision)
        layers = {name: 4 if name == "last" else int(name) + 1 for name in models}
        return {name: np.full((repeats, len(texts)), layer_s[precision] * layers[name]) for name in models}

    calls = []
    monkeypatch.setattr(AdaptiveModel, "load", note)
    monkeypatch.setattr(exit_measure, "times_of", times_of)
    found = nas.measure(folder, latency_ms=3.0, **BOTH)
    assert loaded == ["fp32", "int8"]
    assert [row.latency.conditions.precision for row in found.rows] == ["fp32"] * 5 + ["int8"] * 5
    assert [row.latency.p50_s * 1e3 for row in found.bound] == pytest.approx([3.5, 2.5])
    assert [found.judge(row) for row in found.bound] == ["exceeds", "meets"]
    assert [found.rows[place].file for place in (5, 9)] == ["int8, expected", "int8, worst: exit 4, 25% of the texts"]
    assert found.exit_code == 0, "int8 alone keeps the budget, and that is enough"
    assert found.advice[0] == "At 16 tokens a text takes 3.50 ms as expected, 8.00 ms at worst, in fp32."
    assert found.advice[1] == "At 16 tokens a text takes 2.50 ms as expected, 4.00 ms at worst, in int8."
    assert found.to_dict()["shares"] == {"fp32": [0.5, 0.25, 0.25, 0], "int8": [0.25] * 4}
    assert found.rows[9].size_bytes < found.rows[4].size_bytes
    for budget_ms, exit_code in ((2.0, 3), (2.5, 5)):
        calls.clear()
        loaded.clear()
        assert nas.measure(folder, latency_ms=budget_ms, **BOTH).exit_code == exit_code


def test_every_length_must_keep_to_the_budget(folder, monkeypatch):
    def times_of(models, texts, *, seed=0, repeats=5, progress):
        length = texts[0]["input_ids"].shape[1]
        return {name: np.full((repeats, len(texts)), 1e-4 * length) for name in models}

    monkeypatch.setattr(exit_measure, "times_of", times_of)
    for budget_ms, exit_code in ((5.0, 0), (2.0, 3)):
        found = nas.measure(folder, latency_ms=budget_ms, **(ASKED | {"seq_len": [16, 32]}))
        assert (found.exit_code, [row.latency.conditions.seq_len for row in found.bound]) == (exit_code, [16, 32])


def test_a_real_clock_finds_later_exits_slower(folder, command):
    code, out, _ = command("measure", folder, "--seq-len", "48", "--seconds", "0.3", "--latency-ms", "1000", "--quiet")
    assert code == 0
    assert "meets 1000 ms" in out
    assert "worst: exit 4" in out
    by_default = nas.measure(folder, seconds_each=0.1)
    assert {row.latency.conditions.seq_len for row in by_default.rows} == {64}, "the model reads no more"
    found = nas.measure(folder, seq_len=48, seconds_each=0.3)
    expected, first, *_, worst = (row.latency.p50_s for row in found.rows)
    assert first < expected < worst
    assert 1.3 * first < worst


def test_what_exits_do_not_have_is_refused(folder, tmp_path, command):
    for words, said in (
        (["--batch-size", "8"], "timed text by text, .* leave --batch-size 8 out"),
        (["--threads", "2"], "leave --threads 2 out"),
        (["--precision", "int4"], "int4"),
        (["--runtime", "torch"], "leave --runtime torch out"),
        (["--seq-len", "65"], "seq_len must be at most 64"),
        (["--percentile", "90", "--latency-ms", "1"], "add --exits worst"),
        (["--exits", "best"], "unknown latency for exits to bind"),
        (["--sustained", "5"], "leave --device, --cpus, --sustained out"),
    ):
        code, _, error = command("measure", folder, "--quiet", *words)
        assert code == 2
        assert len(error.strip().splitlines()) == 1
        assert re.search(said, error)
    with pytest.raises(InvalidInputError, match=r"holds several models with exits; give one of them: dact-tau0\.1"):
        nas.measure(folder.parent)
    (tmp_path / "plain").mkdir()
    with pytest.raises(InvalidInputError, match="leave --exits out"):
        nas.measure(tmp_path / "plain", exits="worst")


def test_a_folder_that_does_not_say_where_texts_stopped_is_refused(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "exits.json"
    for facts, said in (
        ({}, "does not say where its validation texts stopped"),
        ({"validation": {"exits": [1, 2]}}, "counts texts at 2 exits"),
        ({"validation": {"exits": [0, 0, 0, 0]}}, "is damaged"),
        ({"validation": {"exits": COUNTS}}, "does not say where"),
    ):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"facts": facts}))
        with pytest.raises(InvalidInputError, match=said):
            nas.measure(tmp_path / "model", **BOTH)
