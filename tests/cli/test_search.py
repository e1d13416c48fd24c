"""``nas search``: what reaches the pipeline, and what a person and a machine are told of its outcome."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from finished_run import make_run

from nas.devices.target import Settings
from nas.rundir import RunDir
from nas.search import pipeline
from nas.search.request import SearchRequest, split_budget
from nas.search.result import load_result


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("analysis.report.find_browser", lambda: None)


@pytest.fixture
def ends(monkeypatch):
    """Makes the search end as told; holds the requests that reached it."""
    requests = []

    def prepare(outcome, budget_s=1.0):
        def search(request, progress, *, command, **tools):
            requests.append(request)
            progress.start("searching", 10)
            run = make_run(request.run_dir, outcome=outcome, budget_s=budget_s, command=command)
            if outcome == "unfinished":
                raise KeyboardInterrupt
            return load_result(run)

        monkeypatch.setattr(pipeline, "search", search)
        monkeypatch.setattr("nas.finish.after_search.check_task", lambda request: None)
        return requests

    return prepare


def test_options_reach_the_search(nas, ends):
    requests = ends("chosen")
    target = ("--latency-ms", 2.5, "--threads", 2, "--batch-size", 4, "--seq-len", 32, "--task", "t.csv")
    how = ("--sampler", "gp", "--engine", "ray", "--ray-address", "auto", "--evaluations", 9, "--seed", 3)
    where = ("--supernet", "s", "--space", "stock", "--storage", "sqlite:///x.db", "--out", "r")
    nas("search", *target, *how, *where)
    (request,) = requests
    (goal,) = request.goals
    assert (goal.device, goal.budget_s) == ("cpu", 0.0025)
    assert (request.supernet, request.space.name, request.run_dir) == (Path("s"), "stock", Path("r"))
    assert (request.sampler, request.engine, request.ray_address) == ("gp", "ray", "auto")
    assert (request.num_evaluations, request.seed, request.task) == (9, 3, "t.csv")
    assert goal.settings == Settings(threads=2, batch_size=4, seq_len=32)
    assert (request.storage, request.resume) == ("sqlite:///x.db", None)


def test_devices_lengths_and_batches_become_goals(nas, ends):
    requests = ends("chosen")
    devices = ("--device", "cpu:10ms", "--device", "ssh://pi@host:2222:20ms", "--device", "cuda:0")
    more = ("--latency-ms", 5, "--seq-len", "32,128", "--percentile", 90, "--precision", "int8", "--cpus", "0,1")
    nas("search", *devices, *more, "--max-memory-mb", 80, "--max-size-mb", 20.5, "--out", "r")
    (request,) = requests
    asked = [(goal.device, goal.settings.seq_len, goal.budget_s) for goal in request.goals]
    assert asked == [
        ("cpu", 32, 0.01),
        ("cpu", 128, 0.01),
        ("ssh://pi@host:2222", 32, 0.02),
        ("ssh://pi@host:2222", 128, 0.02),
        ("cuda:0", 32, 0.005),
        ("cuda:0", 128, 0.005),
    ]
    assert {(goal.settings.precision, goal.settings.cpus) for goal in request.goals} == {("int8", (0, 1))}
    assert (request.percentile, request.max_memory_mb, request.max_size_mb) == (90, 80, 20.5)
    assert SearchRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == replace(request, run_dir=None)


def test_two_precisions_are_chosen_between(nas, ends):
    requests = ends("chosen")
    nas("search", "--precision", "int8, fp32", "--out", "r")
    (request,) = requests
    assert request.precisions == ("int8", "fp32")
    assert [goal.settings.precision for goal in request.goals] == ["fp32"]
    ended = nas("search", "--precision", "fp32,fp32", "--out", "q")
    assert (ended.code, "a precision is named twice in fp32, fp32; leave one out" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("given", "device", "budget_s"),
    [
        ("cpu", "cpu", None),
        ("cuda:0", "cuda:0", None),
        ("cuda:0:7.5ms", "cuda:0", 0.0075),
        ("ssh://host:2222", "ssh://host:2222", None),
        ("ssh://host:2222:1e1ms", "ssh://host:2222", 0.01),
        ("ssh://user@host:rooms", "ssh://user@host:rooms", None),
        ("a100.json:3ms", "a100.json", 0.003),
    ],
)
def test_a_budget_stands_at_the_end_of_a_device_s_name(given, device, budget_s):
    assert split_budget(given) == (device, budget_s)


def test_json_is_one_object_with_what_was_promised(nas, ends):
    ends("chosen")
    ended = nas("search", "--latency-ms", 1000, "--out", "r", "--json")
    data = ended.data
    assert ended.code == data["exit_code"] == 0
    assert {"run", "device", "budget_ms", "goals", "exit_code", "chosen", "front", "standings"} == set(data)
    assert (data["run"], data["device"], data["budget_ms"]) == ("r", "cpu", 1000)
    model = data["chosen"]
    assert {"key", "architecture", "quality", "latency", "num_parameters", "num_macs", "model_dir"} <= set(model)
    assert {"p50_ms", "p90_ms", "low_ms", "high_ms", "verdict", "source"} <= set(model["latency"])
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
    def interrupt(_request, _progress, *, command, **tools):
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
        (["--device", "cpu:0ms"], 2, "the budget in --device cpu:0ms: latency_ms must be a number above 0"),
        (["--device", "cpu:nanms"], 2, "write it as in board:20ms"),
        (["--device", "cpu:1e9ms"], 2, "write it as in board:20ms"),
        (["--device", "cpu", "--device", "cpu"], 2, "asked for twice"),
        (["--seq-len", "1,2,3", "--batch-size", "1,2,3"], 2, "1 to 8 goals"),
        (["--seq-len", "32,"], 2, "--seq-len must be"),
        (["--seq-len", "0"], 2, "seq_len must be"),
        (["--batch-size", "1,1"], 2, "--batch-size must be"),
        (["--precision", "int4"], 2, "precision must be one of fp32, int8"),
        (["--runtime", "onnxrt"], 2, "onnxruntime"),
        (["--percentile", "95", "--latency-ms", "10"], 2, "percentile must be 50, 90 or 99"),
        (["--percentile", "90"], 2, "add --latency-ms"),
        (["--max-size-mb", "0"], 2, "max_size_mb must be"),
        (["--max-memory-mb", "nan"], 2, "max_memory_mb must be"),
        (["--cpus", "a"], 2, "--cpus must be"),
        (["--cpus", "0", "--threads", "2"], 2, "as many cores"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(nas, options, code, message):
    ended = nas("search", *options, "--out", "r")
    assert ended.code == code
    assert message in ended.err
    assert len(ended.err.splitlines()) <= 2
    assert not Path("r").exists()
