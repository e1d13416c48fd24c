"""The main job on a real, tiny chain supernet and a fake device: assembled, evaluated, exported, measured."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from chain_fakes import SPACE, TEXT, kept_blocks
from fake_target import FakeTarget, weights_of
from pipeline_fakes import InterruptingProgress, device, goal, models, request, search

from analysis.trial import Trial
from nas.devices.operation_table import OperationTable
from nas.errors import InvalidInputError
from nas.rundir import RunDir
from nas.search.predictors import predictor_file, read_predictor
from nas.search.request import SearchRequest
from search_spaces.presets import load_space
from supernet.chain_supernet import ChainSupernet, ChainSupernetConfig
from supernet.checkpoint import Reference, save_supernet

__all__ = ["device"]  # a fixture
BLOCKS = kept_blocks()
NUM = 8
BUDGET_S = 7e-5


@pytest.fixture(scope="module")
def chain_dir(tmp_path_factory, tokenizer_dir):
    folder = tmp_path_factory.mktemp("chains")
    torch.manual_seed(0)
    supernet = ChainSupernet(ChainSupernetConfig(SPACE, TEXT, 64, 64)).eval()
    ids = torch.randint(5, 600, (24, 12))
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        pooled = supernet(SPACE.largest(), ids, mask).hidden[-1].mean(1)
    save_supernet(folder, supernet, reference=Reference(ids, mask, pooled), training={"teacher": "itself"})
    BLOCKS.save(folder, SPACE)
    shutil.copytree(tokenizer_dir, folder / "tokenizer")
    return folder


def asked(chain_dir, run_dir, **changes):
    usual = {"num_evaluations": NUM} | ({} if "goals" in changes else {"budget_s": BUDGET_S})
    return request(chain_dir, run_dir, **{**usual, **changes})


def test_the_best_assembled_chain_is_exported_and_meets_the_budget(chain_dir, tmp_path):
    result = search(asked(chain_dir, tmp_path / "run"))
    assert result.exit_code == 0
    assert result.chosen.trial.latency.source == "measured"
    assert result.chosen.trial.latency.meets(BUDGET_S)
    kept = {block.block for candidates in BLOCKS.blocks for block in candidates}
    assert len(result.trials) == NUM
    for trial in result.trials:
        assert trial.architecture in SPACE
        assert set(trial.architecture.blocks) <= kept
    for name in ("config.json", "model.safetensors", "model.onnx", "README.md", "tokenizer.json"):
        assert (result.chosen.model_dir / name).is_file(), name
    predictor = read_predictor(predictor_file(tmp_path / "run", 0))
    assert isinstance(predictor, OperationTable)
    assert json.loads(json.dumps(result.to_dict()))["exit_code"] == 0


@pytest.mark.slow
def test_interrupted_it_goes_on_to_the_same_end(chain_dir, tmp_path):
    whole = search(asked(chain_dir, tmp_path / "whole"))
    wanted, run_dir, stops = asked(chain_dir, tmp_path / "stopped"), tmp_path / "stopped", 0
    for after in range(0, 200, 6):
        try:
            result = search(wanted, InterruptingProgress(after))
            break
        except KeyboardInterrupt:
            stops += 1
            wanted = SearchRequest(resume=run_dir) if (run_dir / "run.json").exists() else wanted
    assert stops >= 2
    assert models(result) == models(whole)
    assert [record.key for record in result.records] == [record.key for record in whole.records]
    more = search(SearchRequest(resume=run_dir, num_evaluations=NUM + 2))
    assert len({record.key for record in more.records}) == NUM + 2


def test_nothing_fits(chain_dir, tmp_path):
    for number, budget_s in enumerate((1e-6, 2.05e-5)):  # below every chain, and below every chain that was kept
        result = search(asked(chain_dir, tmp_path / str(number), budget_s=budget_s))
        assert (result.exit_code, result.chosen) == (3, None)
        assert result.closest.trial.latency.source == "measured"
        assert not (tmp_path / str(number) / "model").exists()
    least = min(weights_of(trial.architecture) for trial in result.trials)
    assert result.closest.trial.latency.p50_s == pytest.approx(FakeTarget().time_s(least), rel=0.01)


@pytest.mark.parametrize(
    "sampler",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("random", "evolution", "nsga2", "most-parameters")),
        "tpe",
    ],
)
def test_other_samplers_search_the_whole_space(chain_dir, tmp_path, sampler):
    result = search(asked(chain_dir, tmp_path / "run", sampler=sampler))
    assert result.exit_code == 0
    assert len({trial.key for trial in result.trials}) == NUM
    assert all(trial.architecture in SPACE for trial in result.trials)
    assert not isinstance(read_predictor(predictor_file(tmp_path / "run", 0)), OperationTable)


@pytest.mark.slow
def test_assembly_is_compared_with_others(chain_dir, tmp_path):
    result = search(asked(chain_dir, tmp_path / "run", compare_samplers=("assembly", "random"), num_evaluations=4))
    assert result.exit_code == 0
    comparison = RunDir.open(tmp_path / "run").read()["comparison"]
    assert [one["sampler"] for one in comparison] == ["assembly", "random"]


@pytest.mark.slow
def test_the_whole_front_and_several_goals(chain_dir, tmp_path):
    goals = (goal("cpu", None), goal("board", None))
    result = search(asked(chain_dir, tmp_path / "run", goals=goals))
    assert result.exit_code == 0
    assert {isinstance(record, Trial) for record in result.records} == {True}
    times = [trial.latency.p50_s for trial in result.trials]
    assert max(times) > 1.2 * min(times)


@pytest.mark.slow
def test_a_part_of_the_space_is_kept_to(chain_dir, tmp_path):
    part = replace(SPACE, hidden_size=(32,))
    result = search(asked(chain_dir, tmp_path / "run", space=part))
    assert all(record.architecture in part for record in result.records)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": replace(SPACE, hidden_size=(32, 64))}, "which the supernet does not"),
        ({"space": load_space("stock")}, "which the supernet does not"),
        ({"device": "carried.json", "sampler": "assembly"}, "known from a profile, and assembly needs"),
        ({"sampler": "evolution-fast"}, "layers that are all alike"),
        ({"narrow": True}, "cannot be narrow"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_written(chain_dir, tmp_path, changes, message):
    with pytest.raises(InvalidInputError, match=message):
        search(asked(chain_dir, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_supernet_without_kept_blocks_is_searched_otherwise(chain_dir, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(chain_dir, bare)
    (bare / "blocks.json").unlink()
    with pytest.raises(InvalidInputError, match="this supernet kept none; search with --sampler tpe"):
        search(asked(bare, tmp_path / "run", sampler="assembly"))
    assert search(asked(bare, tmp_path / "run", num_evaluations=3)).exit_code == 0


def test_a_damaged_table_of_blocks_is_one_sentence(chain_dir, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(chain_dir, damaged)
    (damaged / "blocks.json").write_text("{")
    with pytest.raises(InvalidInputError, match=r"blocks\.json is damaged"):
        search(asked(damaged, tmp_path / "run"))


def test_a_table_of_another_device_in_the_run_folder_is_refused(chain_dir, tmp_path):
    search(asked(chain_dir, tmp_path / "run", num_evaluations=3))
    path = predictor_file(tmp_path / "run", 0)
    data = json.loads(path.read_text())
    data["profile"]["predictor"]["conditions"]["device"] = "elsewhere"
    path.write_text(json.dumps(data))
    with pytest.raises(InvalidInputError, match="measured with device elsewhere, and device cpu is asked for"):
        search(SearchRequest(resume=tmp_path / "run", num_evaluations=4))
