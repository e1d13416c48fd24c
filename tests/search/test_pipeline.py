"""The main job on a real, tiny supernet and a fake device: chosen, exported, measured; interrupted and resumed."""

import json
from dataclasses import replace

import pytest
from fake_target import FakeTarget
from pipeline_fakes import BUDGET_S, SPACE, InterruptingProgress, device, goal, models, request, search, supernet_dir

from analysis.trial import Trial
from nas.devices.target import Level
from nas.errors import DeviceNotAvailableError
from nas.progress import SilentProgress
from nas.rundir import RunDir
from nas.search import pipeline, steering
from nas.search.request import SearchRequest
from nas.search.result import load_result
from search_spaces.errors import InvalidInputError

__all__ = ["device", "supernet_dir"]  # fixtures


def test_the_chosen_model_is_exported_and_meets_the_budget(supernet_dir, tmp_path):
    result = search(request(supernet_dir, tmp_path / "run"))
    assert result.exit_code == 0
    chosen = result.chosen
    assert chosen.trial.latency.source == "measured"
    assert chosen.trial.latency.meets(BUDGET_S)
    within = [trial for trial in result.trials if trial.latency.p50_s <= BUDGET_S]
    assert chosen.trial.quality == max(trial.quality for trial in within)
    assert chosen.key in {model.key for model in result.front}
    for name in ("config.json", "model.safetensors", "model.onnx", "model.int8.onnx", "README.md", "tokenizer.json"):
        assert (chosen.model_dir / name).is_file(), name
    card = (chosen.model_dir / "README.md").read_text()
    assert card.count("arithmetic, ") == 2  # both files' measured latencies
    assert json.loads((tmp_path / "run" / "run.json").read_text())["supernet"]


def test_json_is_what_was_promised(supernet_dir, tmp_path):
    printed = json.loads(json.dumps(search(request(supernet_dir, tmp_path / "run")).to_dict()))
    assert list(printed) == ["run", "device", "budget_ms", "goals", "exit_code", "chosen", "front", "standings"]
    assert (printed["device"], printed["budget_ms"]) == ("cpu", pytest.approx(BUDGET_S * 1e3))
    for model in [printed["chosen"], *printed["front"]]:
        assert set(model) == {
            "key", "architecture", "quality", "precision", "file", "latency", "num_parameters", "num_macs", "size_mb",
            "model_dir",
        }  # fmt: skip
        assert {"p50_ms", "p90_ms", "low_ms", "high_ms", "verdict", "source"} <= set(model["latency"])
    (asked,) = printed["goals"]
    assert (asked["name"], asked["budget_ms"], asked["percentile"]) == ("cpu T16", printed["budget_ms"], 50)
    assert asked["front"] == [model["key"] for model in printed["front"]]
    assert [standing["state"] for standing in printed["standings"]] == ["meets"]
    assert printed["chosen"]["model_dir"] == str(tmp_path / "run" / "model")


def test_read_back_it_is_the_same(supernet_dir, tmp_path):
    result = search(request(supernet_dir, tmp_path / "run"))
    assert load_result(RunDir.open(tmp_path / "run")) == result
    again = search(SearchRequest(resume=tmp_path / "run"))
    assert again == result


def test_nothing_fits(supernet_dir, tmp_path):
    result = search(request(supernet_dir, tmp_path / "run", budget_s=1e-6))
    assert (result.exit_code, result.chosen) == (3, None)
    assert result.closest.key == SPACE.smallest().key()
    assert result.closest.trial.latency.source == "measured"
    assert result.to_dict()["closest"]["model_dir"] is None
    assert not (tmp_path / "run" / "model").exists()


def test_the_whole_front(supernet_dir, tmp_path):
    result = search(request(supernet_dir, tmp_path / "run", budget_s=None))
    assert result.exit_code == 0
    assert result.to_dict()["budget_ms"] is None
    assert result.chosen.trial.quality == max(trial.quality for trial in result.trials)


def test_a_narrower_space_is_kept_to(supernet_dir, tmp_path):
    narrow = replace(SPACE, num_layers=(1, 2), hidden_size=(32, 64))
    result = search(request(supernet_dir, tmp_path / "run", space=narrow))
    assert all(record.architecture in narrow for record in result.records)
    wide = replace(SPACE, num_layers=(1, 4))
    with pytest.raises(InvalidInputError, match=r"holds L4-.* which the supernet does not"):
        search(request(supernet_dir, tmp_path / "wide", space=wide))
    assert not (tmp_path / "wide").exists()


def test_interrupted_anywhere_it_goes_on_to_the_same_end(supernet_dir, tmp_path):
    whole = search(request(supernet_dir, tmp_path / "whole"))
    run_dir, stops = tmp_path / "stopped", 0
    asked = request(supernet_dir, run_dir)
    while True:
        try:
            # Every attempt is let go one step further than the last.
            result = search(asked, InterruptingProgress(stops))
            break
        except KeyboardInterrupt:
            stops += 1
            assert stops < 60
            if (run_dir / "run.json").exists():
                asked = SearchRequest(resume=run_dir)
                assert "conclusion" not in RunDir.open(run_dir).read()
    assert stops >= 5
    assert models(result) == models(whole)
    assert [record.key for record in result.records] == [record.key for record in whole.records]
    assert result.chosen.key == whole.chosen.key


def test_more_evaluations_can_be_added(supernet_dir, tmp_path):
    first = search(request(supernet_dir, tmp_path / "run", num_evaluations=6))
    more = search(SearchRequest(resume=tmp_path / "run", num_evaluations=12))
    whole = search(request(supernet_dir, tmp_path / "whole"))
    assert [r.key for r in more.records][: len(first.records)] == [r.key for r in first.records]
    assert [r.key for r in more.records] == [r.key for r in whole.records]
    assert more.chosen.key == whole.chosen.key


def test_without_a_number_a_fixed_number_is_evaluated(supernet_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(steering, "DEFAULT_EVALUATIONS", 8)
    result = search(request(supernet_dir, tmp_path / "run", num_evaluations=None))
    assert sum(isinstance(record, Trial) for record in result.records) == 8


def test_a_machine_that_changed_cannot_resume(supernet_dir, tmp_path, monkeypatch):
    search(request(supernet_dir, tmp_path / "run", num_evaluations=4))
    run = RunDir.open(tmp_path / "run")
    (kept,) = run.read()["goals"]
    run.update(goals=[{**kept, "conditions": {**kept["conditions"], "fingerprint": "another"}}])
    with pytest.raises(InvalidInputError, match=r"the device of cpu T16 changed since .* began"):
        search(SearchRequest(resume=tmp_path / "run", num_evaluations=6))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"device": "a100"}, DeviceNotAvailableError, "'a100' is not available"),
        ({"engine": "rai"}, InvalidInputError, "Did you mean 'ray'"),
        ({"sampler": "tbe"}, InvalidInputError, "Did you mean 'tpe'"),
        ({"budget_s": 0.0}, InvalidInputError, "latency_ms must be"),
        ({"budget_s": 1e9}, InvalidInputError, "latency_ms must be"),
        ({"num_evaluations": 0}, InvalidInputError, "evaluations must be"),
        ({"goals": (goal(seq_len=65),)}, InvalidInputError, "seq_len must be at most 64"),
        ({"goals": (goal(), goal())}, InvalidInputError, "cpu with batch 1 and 16 tokens is asked for twice"),
        ({"goals": tuple(goal(seq_len=n) for n in range(1, 10))}, InvalidInputError, "1 to 8 goals .* got 9"),
        ({"percentile": 75}, InvalidInputError, "percentile must be 50, 90 or 99"),
        ({"percentile": 90, "budget_s": None}, InvalidInputError, "add --latency-ms"),
        ({"max_size_mb": 0.0}, InvalidInputError, "max_size_mb must be"),
        ({"max_memory_mb": -1.0}, InvalidInputError, "max_memory_mb must be"),
        ({"device": "carried.json", "percentile": 90}, InvalidInputError, "predicts medians; leave --percentile 90"),
        ({"device": "carried.json", "max_memory_mb": 9.0}, InvalidInputError, "leave --max-memory-mb out"),
        ({"ray_address": "auto"}, InvalidInputError, "add --engine ray"),
    ],
)
def test_what_is_refused_leaves_no_folder(supernet_dir, tmp_path, changes, error, text):
    with pytest.raises(error, match=text):
        search(request(supernet_dir, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_an_occupied_folder_is_left_alone(supernet_dir, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InvalidInputError, match="already there and not empty"):
        search(request(supernet_dir, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("damage", ["{", "[]", '{"schema_version": 1}'])
def test_a_broken_predictor_or_request_is_said(supernet_dir, tmp_path, damage):
    run_dir = tmp_path / "run"
    search(request(supernet_dir, run_dir, num_evaluations=3))
    (run_dir / "predictor.json").write_text(damage)
    with pytest.raises(InvalidInputError, match=r"predictor.json is broken"):
        search(SearchRequest(resume=run_dir, num_evaluations=5))
    RunDir.open(run_dir).update(request={})
    with pytest.raises(InvalidInputError, match="does not say what was searched for"):
        search(SearchRequest(resume=run_dir))


def test_quality_by_a_task(supernet_dir, tmp_path, paragraphs):
    lines = ["text,label", *(f'"{text[:60].replace(chr(34), " ")}",{n % 2}' for n, text in enumerate(paragraphs[:60]))]
    (tmp_path / "task.csv").write_text("\n".join(lines))
    result = search(
        request(supernet_dir, tmp_path / "run", task=str(tmp_path / "task.csv"), num_evaluations=4), SilentProgress()
    )
    assert result.quality_name == "task accuracy"
    assert all(0 <= trial.quality <= 1 for trial in result.trials)
    assert (tmp_path / "run" / "adapted" / "task.json").is_file()


def test_the_command_is_kept_from_the_start_and_again_when_resumed(supernet_dir, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        pipeline.search(request(supernet_dir, tmp_path / "run"), InterruptingProgress(0), command="nas search one")
    assert RunDir.open(tmp_path / "run").read()["commands"] == ["nas search one"]
    pipeline.search(SearchRequest(resume=tmp_path / "run"), SilentProgress(), command="nas search two")
    assert RunDir.open(tmp_path / "run").read()["commands"] == ["nas search one", "nas search two"]


def test_a_resumed_search_recalls_how_the_machine_s_level_moved(supernet_dir, tmp_path, device, monkeypatch):
    levels = (Level(1e9, 1e-3), Level(1e9 + 1, 1.2e-3))
    monkeypatch.setattr(FakeTarget, "levels", levels, raising=False)
    search(request(supernet_dir, tmp_path / "run", num_evaluations=4))
    before = len(device)
    search(SearchRequest(resume=tmp_path / "run", num_evaluations=5))
    assert device[before].recalled == levels


def test_a_run_of_an_earlier_version_is_refused_in_a_sentence(supernet_dir, tmp_path):
    run = RunDir.create(tmp_path / "old", facts={"request": {"device": "cpu", "budget_s": 0.01}})
    with pytest.raises(InvalidInputError, match="was made by an earlier version; start the search anew"):
        load_result(run)
