"""``nas exits`` from a model and a file to model folders and a report, and what it refuses."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from exit_cases import TEXT

import nas
from nas.cli.main import main
from nas.errors import InvalidInputError
from nas.export.export import export_model
from nas.finish import exit_run
from nas.finish.exit_export import load_exits
from nas.finish.exit_run import ExitsRequest
from nas.finish.exits import AdaptiveModel
from nas.finish.sparsity import Lock, Pattern, SparsityFacts, choose_masks, prunable, read_lock, write_lock
from search_spaces.architecture import Architecture
from supernet.encoder import Encoder


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer_dir):
    """Encoders of several shapes, and tasks for them."""
    folder = tmp_path_factory.mktemp("exits")
    torch.manual_seed(0)
    for name, shape in {
        "encoder": Architecture.bert(3, 32, 48, 2),
        "narrow": Architecture.bert(3, 32, 48, 2, num_narrow_layers=1),
        "flat": Architecture.bert(1, 32, 48, 2),
    }.items():
        export_model(Encoder(shape, TEXT).eval(), tokenizer_dir, folder / name)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 120)
    texts = [f"the {'union' if label else 'people'} of {rng.integers(100)}" for label in labels]
    splits = ["train"] * 80 + ["validation"] * 20 + ["test"] * 20
    table = pd.DataFrame({"text": texts, "label": np.array(["bad", "good"])[labels], "split": splits})
    table.to_csv(folder / "task.csv", index=False)
    table.assign(label=np.array(["no", "yes"])[labels]).to_csv(folder / "other.csv", index=False)
    table.assign(label=labels + 0.5).to_csv(folder / "numbers.csv", index=False)
    return folder


FAST = {"epochs": 1, "lr": 3e-3, "batch_size": 16, "timed": 3}


@pytest.fixture(scope="module")
def made(place):
    """A finished run that was interrupted while it taught its second model."""
    out, teach, calls = place / "out", exit_run.teach_exits, []

    def teach_and_stop(*args, **kwargs):
        calls.append(args[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return teach(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exit_run, "teach_exits", teach_and_stop)
        with pytest.raises(KeyboardInterrupt):
            nas.exits(place / "encoder", out, task=str(place / "task.csv"), taus=(0.1,), **FAST)
        assert not out.exists()
        written = (place / "out.unfinished" / "dact-tau0.1" / "exits.json").stat().st_mtime_ns
        with pytest.raises(InvalidInputError, match="--resume"):
            nas.exits(place / "encoder", out, task=str(place / "task.csv"), taus=(0.1,), **FAST)
        with pytest.raises(InvalidInputError, match="another request"):
            nas.exits(place / "encoder", out, task=str(place / "task.csv"), taus=(0.2,), resume=True, **FAST)
        result = nas.exits(place / "encoder", out, task=str(place / "task.csv"), taus=(0.1,), resume=True, **FAST)
    assert calls == [0.1, None, None]
    assert (out / "dact-tau0.1" / "exits.json").stat().st_mtime_ns == written, "it was taught again"
    return out, result


def test_a_run_leaves_a_folder_for_each_way_and_nothing_half_done(made, place):
    out, result = made
    assert {entry.name for entry in out.iterdir()} == {
        "run.json",
        "task-model",
        "dact-tau0.1",
        "pabee",
        "confidence",
        "summary.json",
        "report.html",
    }
    assert not (place / "out.unfinished").exists()
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(result.to_dict()))
    assert set(result.areas) == {"dact", "pabee", "confidence"}
    assert all(sum(model.point.exits) == 20 for model in result.made)
    titles = ["dact-tau0.1", "pabee", "confidence"]
    assert [model.title for model in result.made] == [*titles, *(f"{title} in int8" for title in titles)]
    assert all(model.timing is not None for model in result.made)
    for made_in in (result.made[0], result.made[3]):  # stopping changes no answer, whatever the graphs round
        assert made_in.point.agreement == 1
        assert made_in.point.accuracy == made_in.point.accuracy_whole


def test_what_is_said_of_int8_is_what_its_graphs_answer_text_by_text(made, place):
    out, result = made
    table = pd.read_csv(place / "task.csv")
    for model in result.made[3:]:
        adaptive = AdaptiveModel.load(out / model.name, precision="int8")
        for split, point in (
            ("test", model.point.to_dict()),
            ("validation", adaptive.description.facts["validation_int8"]),
        ):
            texts = table[table["split"] == split]
            answers = [adaptive.predict([text])[0] for text in texts["text"]]
            right = np.mean([answer.label == label for answer, label in zip(answers, texts["label"], strict=True)])
            assert point["accuracy"] == pytest.approx(right)
            assert point["layers"] == pytest.approx(np.mean([answer.layers for answer in answers]))


def test_the_report_loads_nothing_and_says_what_was_measured(made):
    out, result = made
    text = (out / "report.html").read_text()
    assert "default-src 'none'" in text
    assert "dact-tau0.1" in text
    assert "one thread" in text
    assert "the fine-tuned model in int8" in text
    assert f"{result.areas['pabee']:.4f}" in text


def test_eval_and_predict_take_such_folders(made, place, capsys):
    out, result = made
    found = nas.evaluate(out / "dact-tau0.1", task=str(place / "task.csv"))
    assert found.scores["torch"]["accuracy"] == pytest.approx(result.made[0].point.accuracy)
    assert found.scores["torch"]["layers"] == pytest.approx(result.made[0].point.layers)
    assert (found.agreement["onnx"], found.agreement["never stopping"]) == (1.0, 1.0)
    assert found.agreement["onnx-int8"] > 0.8
    answers = AdaptiveModel.load(out / "pabee").predict(["the union of 7", "the people of 8"])
    for runtime in ("torch", "onnx"):
        predicted = list(nas.predict(out / "pabee", ["the union of 7", "the people of 8"], runtime=runtime))
        assert [one.label for one in predicted] == [answer.label for answer in answers]
        assert predicted[0].probability == pytest.approx(answers[0].probability, abs=1e-4)
    alone = AdaptiveModel.load(out / "pabee", precision="int8").predict(["the union of 7"], batch_size=1)
    (predicted,) = nas.predict(out / "pabee", ["the union of 7"], runtime="onnx-int8")
    assert predicted.probability == pytest.approx(alone[0].probability, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"taus": (-0.1,)}, "tau, the price of a layer, must be a number above 0"),
        ({"taus": (float("nan"),)}, "tau"),
        ({"taus": (0.1, 0.1)}, "prices that differ"),
        ({"taus": (0.12345671, 0.12345674)}, "prices that differ in six digits"),
        ({"taus": ()}, "at least one tau"),
        ({"methods": ("dakt",)}, "dakt"),
        ({"methods": ()}, "at least one method"),
        ({"num_timed": -1}, "timed"),
        ({"early": "last"}, "pooling must be first or mean"),
    ],
)
def test_a_request_that_breaks_a_law_is_refused(fields, reason):
    with pytest.raises(InvalidInputError, match=reason):
        ExitsRequest(**fields)


@pytest.mark.parametrize(
    ("model", "task", "reason"),
    [
        ("narrow", "no such file", "position 0 only"),
        ("flat", "no such file", "one layer"),
        ("encoder", "numbers.csv", "regression"),
        ("out/task-model", "other.csv", "not among the 2 labels"),
        ("out/task-model", "numbers.csv", "classes, not fractions"),
        ("nowhere", "task.csv", "nowhere"),
        ("out/pabee", "task.csv", "holds a model with exits, which nas eval"),
    ],
)
def test_models_and_tasks_that_do_not_go_together_are_refused_and_leave_nothing(made, place, model, task, reason):
    with pytest.raises(InvalidInputError, match=reason):
        nas.exits(place / model, place / "refused", task=str(place / task), **FAST)
    assert not list(place.glob("refused*"))


def test_the_exits_of_a_sparse_model_keep_its_pattern(place, tokenizer_dir):
    torch.manual_seed(0)
    encoder = Encoder(Architecture.bert(3, 32, 48, 2), TEXT).eval()
    weights = prunable(encoder)
    scores = {name: weight.detach().abs() for name, weight in weights.items()}
    Lock(weights, choose_masks(scores, 0.75, Pattern(), "uniform")).after_step()
    facts = SparsityFacts("unstructured", "uniform", "magnitude", 0.75)
    export_model(encoder, tokenizer_dir, place / "sparse")
    write_lock(place / "sparse", encoder, facts)
    nas.exits(place / "sparse", place / "sparse-exits", task=str(place / "task.csv"), taus=(0.1,), **FAST)
    for name in ("dact-tau0.1", "confidence"):
        taught = load_exits(place / "sparse-exits" / name)[0].encoder
        before, after = prunable(encoder), prunable(taught)
        assert all(torch.equal(after[matrix] != 0, weight != 0) for matrix, weight in before.items())
        assert any(not torch.equal(after[matrix], weight) for matrix, weight in before.items())
        assert read_lock(place / "sparse-exits" / name, taught) is not None
    with torch.no_grad():
        next(iter(weights.values())).add_(1)
    export_model(encoder, tokenizer_dir, place / "broken")
    (place / "broken" / "sparsity.json").write_bytes((place / "sparse" / "sparsity.json").read_bytes())
    with pytest.raises(InvalidInputError, match="does not match the model"):
        nas.exits(place / "broken", place / "refused", task=str(place / "task.csv"), **FAST)


def test_an_occupied_folder_is_refused_before_anything_is_read(made, place):
    with pytest.raises(InvalidInputError, match="already there"):
        nas.exits("nowhere", made[0], task="nowhere")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--tau", "-1"), "tau, the price of a layer"),
        (("--tau", "much"), "--tau must be a number"),
        (("--method", "dact,guess"), "guess"),
        (("--epochs", "0"), "epochs"),
    ],
)
def test_the_command_says_what_is_wrong_and_ends_with_2(place, capsys, words, reason):
    command = ["exits", str(place / "encoder"), "--task", str(place / "task.csv"), "--out", str(place / "refused")]
    assert main([*command, *words]) == 2
    assert reason in capsys.readouterr().err
    assert not list(place.glob("refused*"))
