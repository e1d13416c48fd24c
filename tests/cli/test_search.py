"""``nas search``: what reaches the pipeline, and what a person and a machine are told of its outcome."""

from pathlib import Path

import pytest
from finished_run import make_run

from nas.rundir import RunDir
from nas.search import pipeline
from nas.search.result import load_result


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("analysis.report.find_browser", lambda: None)


@pytest.fixture
def ends(monkeypatch):
    """Makes the search end as told; holds the requests that reached it."""
    requests = []

    def prepare(outcome, budget_s=1.0):
        def search(request, progress):
            requests.append(request)
            progress.start("searching", 10)
            run = make_run(request.run_dir, outcome=outcome, budget_s=budget_s)
            if outcome == "unfinished":
                raise KeyboardInterrupt
            return load_result(run)

        monkeypatch.setattr(pipeline, "search", search)
        return requests

    return prepare


def test_options_reach_the_search(nas, ends):
    requests = ends("chosen")
    target = ("--latency-ms", 2.5, "--threads", 2, "--batch-size", 4, "--seq-len", 32, "--task", "t.csv")
    how = ("--sampler", "gp", "--engine", "ray", "--ray-address", "auto", "--evaluations", 9, "--seed", 3)
    where = ("--supernet", "s", "--space", "stock", "--storage", "sqlite:///x.db", "--out", "r")
    nas("search", *target, *how, *where)
    (request,) = requests
    assert request.budget_s == 0.0025
    assert (request.supernet, request.space.name, request.run_dir) == (Path("s"), "stock", Path("r"))
    assert (request.sampler, request.engine, request.ray_address) == ("gp", "ray", "auto")
    assert (request.num_evaluations, request.seed, request.threads) == (9, 3, 2)
    assert (request.batch_size, request.seq_len, request.task) == (4, 32, "t.csv")
    assert (request.storage, request.resume) == ("sqlite:///x.db", None)


def test_json_is_one_object_with_what_was_promised(nas, ends):
    ends("chosen")
    ended = nas("search", "--latency-ms", 1000, "--out", "r", "--json")
    data = ended.data
    assert ended.code == data["exit_code"] == 0
    assert {"run", "device", "budget_ms", "exit_code", "chosen", "front"} == set(data)
    assert (data["run"], data["device"], data["budget_ms"]) == ("r", "cpu", 1000)
    model = data["chosen"]
    assert set(model) == {"key", "architecture", "quality", "latency", "num_parameters", "num_macs", "model_dir"}
    assert set(model["latency"]) == {"p50_ms", "p90_ms", "low_ms", "high_ms", "verdict", "source"}
    assert model["latency"]["source"] == "measured"
    assert model["model_dir"] == "r/model"
    assert model in data["front"]
    assert all(other["model_dir"] is None for other in data["front"] if other != model)


def test_a_person_sees_the_front_the_chosen_model_and_the_next_command(nas, ends):
    ends("chosen")
    ended = nas("search", "--latency-ms", 1000, "--out", "r")
    result = load_result(RunDir.open(Path("r")))
    for model in result.front:
        assert model.key in ended.out
    assert f"Chosen: {result.chosen.key}" in ended.out
    assert "within 1000 ms with 95 % confidence" in ended.out
    assert "exported to r/model" in ended.out
    assert "Next: nas export r --out my-model" in ended.err
    assert "phase=searching" in ended.err


def test_the_run_folder_keeps_the_command_the_front_and_the_report(nas, ends):
    ends("chosen")
    nas("search", "--latency-ms", "1000", "--out", "a run")
    assert RunDir.open(Path("a run")).read()["commands"] == ["nas search --latency-ms 1000 --out 'a run'"]
    assert "nas search --latency-ms 1000" in Path("a run/report.html").read_text()
    assert Path("a run/front.csv").read_text().startswith("number,key,")


@pytest.mark.parametrize(
    ("outcome", "code", "sentence"), [("infeasible", 3, "no model meets 0.01 ms"), ("undecided", 5, "too noisy")]
)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_where_nothing_is_chosen_the_closest_is_named(nas, ends, outcome, code, sentence, options):
    ends(outcome, budget_s=1e-5)
    ended = nas("search", "--latency-ms", 0.01, "--out", "r", *options)
    assert ended.code == code
    assert sentence in ended.err
    if options:
        assert ended.data["chosen"] is None
        assert ended.data["exit_code"] == code
        assert ended.data["closest"]["key"] in ended.err


def test_ctrl_c_says_how_to_resume_and_front_shows_what_there_is(nas, ends):
    ends("unfinished")
    ended = nas("search", "--latency-ms", 1000, "--out", "r")
    assert ended.code == 130
    assert "nas: interrupted; continue with: nas search --resume r" in ended.err
    shown = nas("front", "r")
    assert shown.code == 0
    assert "The search is not finished." in shown.err
    assert "Next: nas search --resume r" in shown.err


def test_ctrl_c_before_anything_was_written_says_so(nas, monkeypatch):
    def interrupt(_request, _progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "search", interrupt)
    ended = nas("search", "--latency-ms", 10)
    assert ended.code == 130
    assert "nothing was written" in ended.err


def test_resume_takes_everything_but_evaluations_from_the_run(nas, ends):
    ended = nas("search", "--resume", "r", "--seed", 1, "--latency-ms", 3)
    assert ended.code == 2
    assert "leave out --latency-ms, --seed" in ended.err
    ended = nas("search", "--resume", "r", "--evaluations", 20)
    assert ended.code == 2
    assert "r is not a run folder" in ended.err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--latency-ms", "0"], 2, "latency_ms must be a number above 0"),
        (["--latency-ms", "-1"], 2, "latency_ms must be"),
        (["--latency-ms", "nan"], 2, "latency_ms must be"),
        (["--latency-ms", "600001"], 2, "latency_ms must be"),
        (["--evaluations", "0"], 2, "evaluations must be"),
        (["--threads", "0"], 2, "threads must be"),
        (["--seed", "-1"], 2, "seed must be"),
        (["--space", "stok"], 2, "stock"),
        (["--sampler", "tpee"], 2, "Did you mean 'tpe'"),
        (["--engine", "rya"], 2, "Did you mean 'ray'"),
        (["--ray-address", "auto"], 2, "--engine ray"),
        (["--device", "a100"], 4, "a100"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(nas, options, code, message):
    ended = nas("search", *options, "--out", "r")
    assert ended.code == code
    assert message in ended.err
    assert len(ended.err.splitlines()) <= 2
    assert not Path("r").exists()
