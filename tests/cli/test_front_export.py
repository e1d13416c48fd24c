"""``nas front`` and ``nas export`` on run folders of real, small searches."""

from pathlib import Path

import pytest
from finished_run import make_run

from nas.search.result import load_result


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("analysis.report.find_browser", lambda: None)


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def test_front_writes_the_report_anew(nas, run):
    ended = nas("front", run.path, "--json")
    assert ended.code == 0
    assert ended.data == load_result(run).to_dict()
    assert run.report_file.stat().st_size > 1_000_000
    assert len(run.front_file.read_text().splitlines()) == 1 + len(ended.data["front"])


def test_front_shows_measured_beside_predicted(nas, run):
    said = nas("front", run.path).out
    assert "measured" in said
    assert "predicted" in said
    assert "quality: teacher agreement" in said


@pytest.mark.parametrize("verb", [["front"], ["export", "--out", "m"]])
@pytest.mark.parametrize("damage", ["absent", "no store", "broken store", "broken conclusion"])
def test_a_run_folder_that_is_none_or_broken_is_one_sentence(nas, run, verb, damage):
    path = run.path
    if damage == "absent":
        path = run.path.parent / "nowhere"
    elif damage == "no store":
        run.store.unlink()
    elif damage == "broken store":
        run.store.write_bytes(run.store.read_bytes()[:5000])
    else:
        run.update(conclusion={"exit_code": 0})
    ended = nas(*verb, path)
    assert ended.code == 2
    assert ended.err.startswith("nas: ")
    assert len(ended.err.splitlines()) <= 2
    assert not Path("m").exists()


def test_export_of_the_chosen_model_is_the_one_in_the_run(nas, run):
    ended = nas("export", run.path, "--out", "m", "--json")
    assert ended.code == 0
    assert ended.data["key"] == load_result(run).chosen.key
    assert Path("m/model.onnx").read_bytes() == b"a model"


def test_an_occupied_place_is_refused_and_left_alone(nas, run):
    Path("m").mkdir()
    Path("m/mine").write_text("x")
    ended = nas("export", run.path, "--out", "m")
    assert ended.code == 2
    assert "already there and not empty" in ended.err
    assert [path.name for path in Path("m").iterdir()] == ["mine"]


def test_an_unknown_pick_is_answered_with_the_nearest(nas, run):
    ended = nas("export", run.path, "--out", "m", "--pick", "fastst")
    assert ended.code == 2
    assert "Did you mean 'fastest'" in ended.err


@pytest.mark.parametrize(("outcome", "why"), [("infeasible", "no model meets"), ("unfinished", "not finished")])
def test_without_a_chosen_model_there_is_no_best(nas, tmp_path, outcome, why):
    run = make_run(tmp_path / "other", outcome=outcome)
    ended = nas("export", run.path, "--out", "m")
    assert ended.code == 2
    assert why in ended.err


def test_picks_are_what_their_names_say(run):
    from nas.pick import pick_model

    result = load_result(run)
    front = [model.trial for model in result.front]
    assert pick_model(result, "fastest").trial.latency.p50_s == min(trial.latency.p50_s for trial in front)
    assert pick_model(result, "smallest").trial.num_parameters == min(trial.num_parameters for trial in front)
    off_front = next(trial for trial in result.trials if trial.key not in {model.key for model in result.front})
    assert pick_model(result, off_front.key).trial == off_front
