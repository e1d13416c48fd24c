"""A search that chooses the precision: int8 models are judged, timed, limited and exported as what they are."""

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from fake_target import CONDITIONS, FakeTarget, weights_of
from pipeline_fakes import BUDGET_S, PROFILE, SPACE, InterruptingProgress, goal, models, request, search, supernet_dir

from nas.cli.tables import print_result
from nas.devices.carried import CarriedProfile
from nas.devices.target import Settings
from nas.errors import InvalidInputError
from nas.pick import export_pick
from nas.progress import SilentProgress
from nas.reporting import write_run_report
from nas.rundir import RunDir
from nas.search import pipeline, prepared
from nas.search.request import GoalRequest, SearchRequest
from nas.search.result import load_result
from search_spaces.cost import num_parameters
from search_spaces.precisions import PrecisionSpace
from supernet.checkpoint import load_supernet
from supernet.evaluate import TeacherAgreement, similarity_agreement

__all__ = ["supernet_dir"]  # a fixture

BOTH = ("fp32", "int8")
#: How many times as fast int8 is, by device.
GAINS = {"cpu": 2.0, "old": 0.5}


class PreciseTarget(FakeTarget):
    """Takes another time in int8."""

    def time_s(self, weights):
        gain = GAINS[self.conditions.device] if self.conditions.precision == "int8" else 1.0
        return super().time_s(weights) / gain


@contextmanager
def devices(cache):
    """Fake devices in place of real ones, and a cache of their own."""

    def resolve(name, settings):
        if name == "carried.json":
            carried = CarriedProfile(name, cache / name, PROFILE)
            carried.check(settings)
            return carried
        sizes = {"batch_size": settings.batch_size, "seq_len": settings.seq_len}
        return PreciseTarget(replace(CONDITIONS, device=name, precision=settings.precision, **sizes))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "resolve", resolve)
        patch.setattr(prepared, "resolve", resolve)
        patch.setattr("analysis.report.find_browser", lambda: None)
        patch.setenv("NAS_CACHE", str(cache))
        yield


@pytest.fixture(autouse=True)
def device(tmp_path):
    with devices(tmp_path / "cache"):
        yield


@pytest.fixture(scope="module")
def found(tmp_path_factory, supernet_dir):
    """A finished search between both precisions."""
    folder = tmp_path_factory.mktemp("found")
    with devices(folder / "cache"):
        return search(asked(supernet_dir, folder / "run"))


def asked(supernet_dir, run_dir, **changes):
    return request(supernet_dir, run_dir, **({"precisions": BOTH, "num_evaluations": 12} | changes))


def test_both_are_searched_and_the_faster_one_is_chosen_as_what_it_is(supernet_dir, tmp_path, found):
    assert found.exit_code == 0
    assert {trial.architecture.precision for trial in found.trials} == set(BOTH)
    assert all(record.architecture in PrecisionSpace(SPACE, BOTH) for record in found.records)
    chosen = found.chosen
    plain = search(asked(supernet_dir, tmp_path / "plain", precisions=()))
    assert chosen.trial.quality > plain.chosen.trial.quality
    latency, shape = chosen.trial.latency, chosen.trial.architecture.shape
    assert (chosen.trial.architecture.precision, latency.conditions.precision) == ("int8", "int8")
    assert latency.p50_s == pytest.approx((weights_of(shape) * 2e-9 + 2e-5) / 2)
    assert chosen.size_bytes == (chosen.model_dir / "model.int8.onnx").stat().st_size
    for trial in found.trials:
        assert trial.latency.conditions.precision == trial.architecture.precision
    assert load_result(RunDir.open(found.run)) == found


def test_everyone_is_told_which(found, capsys):
    told = json.loads(json.dumps(found.to_dict()))
    assert (told["chosen"]["precision"], told["chosen"]["file"]) == ("int8", "model.int8.onnx")
    assert told["goals"][0]["precision"] == "fp32,int8"
    assert {model["precision"] for model in told["front"]} <= set(BOTH)
    write_run_report(found, pictures=False)
    front = pd.read_csv(found.run / "front.csv")
    row = front[front["key"] == found.chosen.key].iloc[0]
    assert (row["precision"], row["shape"].endswith(", int8")) == ("int8", True)
    page = (found.run / "report.html").read_text()
    assert f"{found.chosen.key}</strong> meets the budget" in page
    assert "latency predictor in int8" in page
    card = (found.chosen.model_dir / "README.md").read_text()
    assert "computed in int8, which the search chose" in card
    assert card.count("arithmetic, int8") == 1
    print_result(found)
    assert "it runs from model.int8.onnx" in capsys.readouterr().out


@pytest.mark.slow
def test_where_int8_is_slower_fp32_is_chosen(supernet_dir, tmp_path):
    result = search(asked(supernet_dir, tmp_path / "run", goals=(goal("old"),), num_evaluations=24))
    assert (result.exit_code, result.chosen.precision) == (0, "fp32")
    assert result.to_dict()["chosen"]["file"] == "model.onnx"


def test_the_quality_is_that_of_the_exported_file(supernet_dir, found):
    loaded, chosen = load_supernet(supernet_dir), found.chosen
    session = onnxruntime.InferenceSession(str(chosen.model_dir / "model.int8.onnx"))
    pooled = []
    for ids, mask in zip(loaded.reference.input_ids, loaded.reference.attention_mask, strict=True):
        real = ids[mask.bool()][None].numpy().astype(np.int64)
        inputs = {"input_ids": real, "attention_mask": np.ones_like(real), "token_type_ids": np.zeros_like(real)}
        pooled.append(torch.from_numpy(session.run(None, inputs)[0][0].mean(0)))
    theirs = similarity_agreement(torch.stack(pooled), loaded.reference.teacher_pooled)
    judge = TeacherAgreement(loaded)
    assert chosen.trial.quality == judge(chosen.trial.architecture)
    assert chosen.trial.quality == pytest.approx(theirs, abs=2e-3)
    assert chosen.trial.quality != judge(chosen.trial.architecture.shape)


def test_a_limit_on_size_is_one_on_the_file_that_runs(supernet_dir, tmp_path):
    least = 4 * num_parameters(SPACE.smallest(), load_supernet(supernet_dir).text)
    result = search(asked(supernet_dir, tmp_path / "run", budget_s=None, max_size_mb=0.9 * least / 1e6))
    assert (result.exit_code, result.chosen.precision) == (0, "int8")
    assert result.chosen.size_bytes <= 0.9 * least
    assert all(trial.architecture.precision == "int8" for trial in result.trials)


@pytest.mark.slow
def test_interrupted_it_goes_on_to_the_same_end(supernet_dir, tmp_path):
    whole = search(asked(supernet_dir, tmp_path / "whole"))
    run_dir = tmp_path / "stopped"
    for after in (5, 12):
        wanted = SearchRequest(resume=run_dir) if run_dir.exists() else asked(supernet_dir, run_dir)
        with pytest.raises(KeyboardInterrupt):
            search(wanted, InterruptingProgress(after))
    assert models(search(SearchRequest(resume=run_dir))) == models(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    ["evolution", "random", "nsga2", "gp"],
)
def test_every_sampler_chooses_it(supernet_dir, tmp_path, sampler):
    result = search(asked(supernet_dir, tmp_path / "run", sampler=sampler, budget_s=None))
    assert result.exit_code == 0
    assert {trial.architecture.precision for trial in result.trials} == set(BOTH)


@pytest.mark.slow
def test_a_proxy_of_shapes_alone_prefers_the_faster_precision(supernet_dir, tmp_path):
    result = search(asked(supernet_dir, tmp_path / "run", sampler="w-pca", budget_s=None))
    assert result.exit_code == 0
    assert {trial.architecture.precision for trial in result.trials} == {"int8"}


def test_the_chosen_model_is_copied_with_what_was_timed(found, tmp_path):
    out = export_pick(found.run, tmp_path / "out", pick="best", progress=SilentProgress())
    assert (out.key, set(out.latencies)) == (found.chosen.key, {"model.int8.onnx"})


def test_the_request_survives_its_file(supernet_dir, tmp_path):
    one = asked(supernet_dir, tmp_path / "run")
    assert "--precision fp32,int8" in one.command
    again = SearchRequest.from_dict(json.loads(json.dumps(one.to_dict())))
    assert again == replace(one, run_dir=None, supernet=again.supernet)


TORCH = GoalRequest("cpu", Settings("torch", seq_len=16), BUDGET_S)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precisions": ("fp32", "fp32")}, "a precision is named twice in fp32, fp32; leave one out"),
        ({"precisions": ("fp32", "int4")}, "unknown precision to search 'int4'"),
        ({"precisions": ("fp32",)}, "a search chooses between two precisions or more, got 1"),
        ({"goals": (TORCH,)}, r"torch, which runs models on cpu, has no int8.*give --runtime onnxruntime"),
        ({"sampler": "assembly"}, r"known in one precision, so that it cannot choose the precision.*--sampler tpe"),
        ({"compare_samplers": ("tpe", "evolution-fast")}, "evolution-fast draws sizes by a rule, so that it cannot"),
        ({"goals": (goal("carried.json"),)}, r"says nothing about precision int8: it holds .*profile the device again"),
    ],
)
def test_what_cannot_choose_a_precision_is_refused_before_anything_is_written(supernet_dir, tmp_path, changes, message):
    with pytest.raises(InvalidInputError, match=message):
        search(asked(supernet_dir, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
