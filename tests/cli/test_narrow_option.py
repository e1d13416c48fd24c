"""``nas search --narrow``: it reaches the search, and a person is told what a narrow answer means."""

from dataclasses import replace
from pathlib import Path

import finished_run
import pytest
from finished_run import make_run

from nas.reporting import loading_remark
from nas.rundir import RunDir
from nas.search import pipeline
from nas.search.result import load_result
from search_spaces.architecture import Architecture


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("analysis.report.find_browser", lambda: None)


@pytest.fixture
def requests(monkeypatch):
    """The requests that reach a search whose every encoder is narrow."""
    space = replace(finished_run.SPACE, num_layers=(2, 3), num_narrow_layers=(1, 2))
    monkeypatch.setattr(finished_run, "SPACE", space)
    found = []

    def search(request, progress, *, command, **tools):
        found.append(request)
        return load_result(make_run(request.run_dir, command=command))

    monkeypatch.setattr(pipeline, "search", search)
    return found


def test_the_option_reaches_the_search(nas, requests):
    nas("search", "--narrow", "--out", "a")
    nas("search", "--out", "b")
    assert [request.narrow for request in requests] == [True, False]


def test_a_person_is_told_what_a_model_of_no_stock_class_means(nas, requests):
    ended = nas("search", "--narrow", "--latency-ms", 1000, "--out", "r")
    key = load_result(RunDir.open(Path("r"))).chosen.key
    said = f"{key} is not of a stock Transformers class, as its last "
    assert said in ended.err
    assert "trust_remote_code=True, by modeling_chain_encoder.py in its folder" in ended.err
    assert said in (Path("r") / "report.html").read_text()
    told = nas("search", "--narrow", "--latency-ms", 1000, "--out", "json", "--json")
    assert said in told.err
    assert told.data["chosen"]["key"] == key


def test_a_stock_model_needs_no_remark():
    assert loading_remark(Architecture.bert(2, 64, 128, 2)) == ""
    assert loading_remark(Architecture.bert(2, 64, 128, 2, embedding_size=32)) == ""
    narrow = loading_remark(Architecture.bert(4, 64, 128, 2, num_narrow_layers=3))
    assert "its last 6 sub-layers are narrow" in narrow
    wide_heads = loading_remark(Architecture.bert(2, 64, 128, 4, head_size=32))
    assert "not of a stock Transformers class: it loads with trust_remote_code=True" in wide_heads
