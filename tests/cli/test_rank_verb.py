"""``nas rank`` and ``nas search --compare-samplers``: what reaches the work, and what is told of its outcome."""

import json
from pathlib import Path

import pytest
from finished_run import make_run

from analysis.rank import agreements
from nas.rundir import RunDir
from nas.search import pipeline, ranking
from nas.search.outcome import SamplerOutcome
from nas.search.ranking import INHERITED, PARAMETERS, RankResult
from nas.search.result import load_result

TRUTHS = [0.1, 0.5, 0.4, 0.9, 0.7, 0.8]
SCORES = {INHERITED: [1, 3, 2, 6, 4, 5], PARAMETERS: [3, 1, 2, 4, 6, 5]}


@pytest.fixture
def requests(monkeypatch):
    """Stands in for the ranking; holds the requests that reached it."""
    seen = []

    def rank(request, folder, progress, *, command):
        request.check()
        seen.append(request)
        RunDir.create(folder, facts={"commands": [command]})
        if request.seed == 13:
            raise KeyboardInterrupt
        rows = tuple({"key": f"k{place}", "truth": truth} for place, truth in enumerate(TRUTHS))
        found = agreements(SCORES, TRUTHS, baseline=PARAMETERS, k=2)
        return RankResult(folder, "agreement after training alone", "teacher agreement", rows, found)

    monkeypatch.setattr(ranking, "rank", rank)
    return seen


TRAINED = ("--teacher", "t", "--corpus", "a.txt", "--corpus", "b.txt")


def test_options_reach_the_ranking(nas, requests):
    where = ("--supernet", "s", "--num-subnets", 9, "--band", "1.2,2.2", "--out", "r")
    how = ("--minutes", 2, "--batch-size", 16, "--seq-len", 48, "--lr", 0.001, "--seed", 4)
    assert nas("rank", *TRAINED, *where, *how).code == 0
    (request,) = requests
    assert (request.supernet, request.teacher, request.corpora) == (Path("s"), "t", ("a.txt", "b.txt"))
    assert (request.num_subnets, request.band, request.minutes, request.steps) == (9, (1.2, 2.2), 2, None)
    assert (request.batch_size, request.seq_len, request.lr, request.seed) == (16, 48, 0.001, 4)


def test_a_person_gets_a_table_and_a_sentence_and_a_machine_one_object(nas, requests):
    ended = nas("rank", *TRAINED, "--steps", 3, "--out", "r")
    assert "Kendall" in ended.out
    assert "parameters" in ended.out
    assert "Yes, the supernet can be trusted" in ended.out
    assert "rank.html" in ended.err
    data = nas("rank", *TRAINED, "--steps", 3, "--out", "r2", "--json").data
    assert data["agreements"][INHERITED]["kendall"]["value"] == pytest.approx(1)
    assert data["verdict"].startswith("Yes")


def test_ctrl_c_says_how_to_go_on(nas, requests):
    ended = nas("rank", *TRAINED, "--steps", 3, "--out", "r", "--seed", 13)
    assert ended.code == 130
    assert "continue with: nas rank --resume r" in ended.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "3"], "give --teacher and --corpus, or --task"),
        ([*TRAINED], "either --steps or --minutes"),
        ([*TRAINED, "--steps", "0"], "steps must be"),
        ([*TRAINED, "--steps", "3", "--band", "x"], "--band must be two numbers"),
        ([*TRAINED, "--steps", "3", "--band", "1,nan"], "--band must be two finite numbers"),
        ([*TRAINED, "--steps", "3", "--num-subnets", "4"], "num_subnets must be"),
        (["--task", "t.csv", "--minutes", "3"], "--minutes out"),
        (["--resume", "r", "--seed", "3"], "leave out --seed"),
        (["--resume", "r"], "r is not a run folder"),
    ],
)
def test_bad_input_is_one_sentence(nas, requests, options, message):
    ended = nas("rank", *options)
    assert ended.code == 2
    assert message in ended.err
    assert len(ended.err.splitlines()) == 1
    assert not list(Path().iterdir())


@pytest.fixture
def compared(monkeypatch):
    seen = []

    def search(request, progress, *, command, **tools):
        seen.append(request)
        run = make_run(request.run_dir)
        best = load_result(run).chosen
        rows = [SamplerOutcome(name, 10, 0, 1.5, best.key, 0.9, (1.25,), (0.98,)) for name in request.compare_samplers]
        run.update(comparison=[json.loads(json.dumps(row.to_dict())) for row in rows])
        return load_result(run)

    monkeypatch.setattr(pipeline, "search", search)
    monkeypatch.setattr("analysis.report.find_browser", lambda: None)
    return seen


def test_samplers_are_compared_in_a_table_and_in_json(nas, compared):
    ended = nas("search", "--latency-ms", 1000, "--compare-samplers", "tpe, w-pca,random", "--out", "r")
    assert compared[0].compare_samplers == ("tpe", "w-pca", "random")
    for word in ("tpe", "w-pca", "random", "hypervolume", "0.980", "comparison.html"):
        assert word in ended.out
    data = nas("search", "--latency-ms", 1000, "--compare-samplers", "tpe,random", "--out", "r2", "--json").data
    assert [row["sampler"] for row in data["comparison"]] == ["tpe", "random"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compare-samplers", "tpe,,random"], "--compare-samplers must be 1 to 8 names"),
        (["--compare-samplers", "tpe,random", "--sampler", "gp"], "leave --sampler out"),
        (["--compare-samplers", "tpe,rondom"], "Did you mean 'random'"),
        (["--compare-samplers", "tpe,random", "--engine", "ray"], "leave --engine ray out"),
    ],
)
def test_a_bad_comparison_is_one_sentence(nas, options, message):
    ended = nas("search", "--latency-ms", 10, *options, "--out", "r")
    assert ended.code == 2
    assert message in ended.err
    assert not Path("r").exists()
