"""A search over narrow layers: weights that hold them, quality by position 0, models exported and read back."""

import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from fake_target import CONDITIONS, FakeTarget, steady
from pipeline_fakes import SPACE, InterruptingProgress, models, request, search, supernet_dir

from nas.devices.target import Shape
from nas.progress import SilentProgress
from nas.rundir import RunDir
from nas.search import pipeline, prepared
from nas.search.exporter import Exporter
from nas.search.request import SearchRequest
from nas.search.result import load_result
from nas.search.samplers import SAMPLERS
from search_spaces.architecture import NARROW_FORMS, Architecture
from search_spaces.chain_space import ChainSpace
from search_spaces.cost import num_macs
from search_spaces.errors import InvalidInputError
from supernet.checkpoint import load_supernet

__all__ = ["supernet_dir"]  # a fixture

BUDGET_S = 6e-4
ALL_NARROW = replace(SPACE, name="all narrow", num_layers=(2, 3), num_narrow_layers=(1, 2))


class CountingTarget(FakeTarget):
    """Takes as long as a shape has multiply-accumulates, so that narrow layers are faster."""

    def latency(self, name, model):
        architecture = model.architecture if isinstance(model, Shape) else exported(model)
        seconds = num_macs(architecture, self.conditions.seq_len) * 2e-10 + 2e-5 * architecture.num_layers
        return steady(seconds, self.conditions, memory=20_000_000)


def exported(path):
    """The architecture that an exported folder, or a file in it, holds."""
    config = json.loads(((path if path.is_dir() else path.parent) / "config.json").read_text())
    if "blocks" in config:
        names = ("embedding_size", "blocks", "narrow_from")
        return Architecture.from_dict({"schema_version": 1, **{name: config[name] for name in names}})
    sizes = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    return Architecture.bert(*(config[name] for name in sizes))


class Notes(SilentProgress):
    def __init__(self):
        self.said = []

    def note(self, message):
        self.said.append(message)


@pytest.fixture(autouse=True)
def device(monkeypatch, tmp_path):
    def resolve(name, settings):
        return CountingTarget(replace(CONDITIONS, seq_len=settings.seq_len, precision=settings.precision))

    monkeypatch.setattr(pipeline, "resolve", resolve)
    monkeypatch.setattr(prepared, "resolve", resolve)
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))


def asked(supernet_dir, run_dir, **changes):
    return request(supernet_dir, run_dir, **({"narrow": True, "budget_s": BUDGET_S} | changes))


def test_narrow_and_full_encoders_are_searched_together(supernet_dir, tmp_path):
    notes = Notes()
    result = search(asked(supernet_dir, tmp_path / "run"), notes)
    assert result.exit_code == 0
    assert all(record.architecture in SPACE.with_narrowing() for record in result.records)
    assert any(record.architecture.narrow_from is not None for record in result.records)
    assert result.quality_name == "teacher agreement of position 0"
    assert "trained without narrow layers" in notes.said[0]
    assert "--task FILE_OR_ID" in notes.said[0]
    assert load_result(RunDir.open(tmp_path / "run")) == result
    plain = search(asked(supernet_dir, tmp_path / "plain", narrow=False))
    assert plain.quality_name == "teacher agreement"
    assert all(record.architecture.narrow_from is None for record in plain.records)


def test_a_chosen_narrow_encoder_is_exported_as_one(supernet_dir, tmp_path):
    result = search(asked(supernet_dir, tmp_path / "run", space=ALL_NARROW))
    chosen = result.chosen
    assert chosen.trial.architecture.narrow_from is not None
    assert exported(chosen.model_dir) == chosen.trial.architecture
    session = onnxruntime.InferenceSession(str(chosen.model_dir / "model.onnx"), providers=["CPUExecutionProvider"])
    ids = np.full((2, 7), 9)
    (state,) = session.run(None, {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0})
    assert state.shape == (2, 1, chosen.trial.architecture.hidden_size)
    loaded = transformers.AutoModel.from_pretrained(chosen.model_dir, trust_remote_code=True)
    assert type(loaded).__name__ == "ChainEncoderModel"


def test_a_space_of_one_number_and_both_forms_is_searched_and_exported(supernet_dir, tmp_path):
    space = replace(ALL_NARROW, num_layers=(3,), num_narrow_layers=(2,), narrow_form=NARROW_FORMS)
    result = search(asked(supernet_dir, tmp_path / "run", space=space, budget_s=None, narrow=False))
    assert {record.architecture.uniform.narrow_form for record in result.records} == set(NARROW_FORMS)
    only = replace(space, narrow_form=("context-first",))
    notes = Notes()
    chosen = search(asked(supernet_dir, tmp_path / "context", space=only, narrow=False), notes).chosen
    assert "trained without narrow layers" in notes.said[0]
    assert chosen.trial.architecture.uniform.is_context_first
    loaded = transformers.AutoModel.from_pretrained(chosen.model_dir, trust_remote_code=True)
    ids = np.arange(24).reshape(2, 12)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    with torch.no_grad():
        ours = loaded(**{name: torch.tensor(values) for name, values in feed.items()}).last_hidden_state
    session = onnxruntime.InferenceSession(str(chosen.model_dir / "model.onnx"))
    np.testing.assert_allclose(session.run(None, feed)[0], ours.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("forms", "trained", "task", "said"),
    [
        (NARROW_FORMS, NARROW_FORMS[:1], None, "trained without context-first layers: quality says what its weights"),
        (NARROW_FORMS, NARROW_FORMS[:1], "t.csv", "context-first layers; adapting it to the task trains them."),
        (NARROW_FORMS[:1], NARROW_FORMS, None, ""),
    ],
)
def test_a_form_that_was_not_trained_is_told(supernet_dir, tmp_path, forms, trained, task, said):
    searched, known = (replace(ALL_NARROW, num_layers=(3,), narrow_form=form) for form in (forms, trained))
    told = prepared._untrained(asked(supernet_dir, tmp_path, task=task), searched, known)
    assert said in told
    assert bool(said) == bool(told)


def test_a_full_encoder_that_is_chosen_is_pooled_as_it_was_judged(supernet_dir, tmp_path):
    """Beside narrow ones it is judged by position 0; among full ones by the mean."""
    full = replace(SPACE, num_layers=(1, 2), hidden_size=(64,), intermediate_size=(96, 128))
    for narrow in (True, False):
        asked_for = asked(supernet_dir, tmp_path / str(narrow), space=full, narrow=narrow, budget_s=None)
        result = search(asked_for)
        trial = next(one for one in result.trials if one.architecture.narrow_from is None)
        exporter = Exporter(RunDir.open(tmp_path / str(narrow)), asked_for, load_supernet(supernet_dir), "nas search")
        exporter.export(trial, tmp_path / f"model {narrow}")
        modes = json.loads((tmp_path / f"model {narrow}" / "1_Pooling" / "config.json").read_text())
        assert (modes["pooling_mode_cls_token"], modes["pooling_mode_mean_tokens"]) == (narrow, not narrow)


@pytest.mark.parametrize(
    "sampler", ["tpe", *(pytest.param(name, marks=pytest.mark.slow) for name in ("random", "evolution", "gp", "nsga2"))]
)
def test_interrupted_it_goes_on_to_the_same_end(supernet_dir, tmp_path, sampler):
    whole = search(asked(supernet_dir, tmp_path / "whole", sampler=sampler))
    run_dir = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        search(asked(supernet_dir, run_dir, sampler=sampler), InterruptingProgress(9))
    facts = RunDir.open(run_dir).read()
    assert facts["request"]["narrow"] is True
    assert "conclusion" not in facts
    assert models(search(SearchRequest(resume=run_dir))) == models(whole)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "evolution-fast"])  # nothing of its shape
def test_every_sampler_chooses_narrow_layers(supernet_dir, tmp_path, sampler):
    result = search(asked(supernet_dir, tmp_path / "run", sampler=sampler, budget_s=None))
    assert result.exit_code == 0
    assert any(record.architecture.narrow_from is not None for record in result.records)


def test_a_budget_that_only_a_narrow_deep_encoder_keeps_leaves_deep_encoders_in(supernet_dir, tmp_path):
    """Depth is not ruled out by what a deep encoder of full layers takes."""
    deep = replace(SPACE, num_layers=(2, 3), hidden_size=(64,), intermediate_size=(96, 128))
    narrowest, narrower = (Architecture.bert(3, 64, 96, 4, num_narrow_layers=count) for count in (2, 1))
    least_s, more_s = (CountingTarget().latency("", Shape(one, None)).p50_s for one in (narrowest, narrower))
    result = search(asked(supernet_dir, tmp_path / "run", space=deep, budget_s=0.8 * least_s + 0.2 * more_s))
    assert narrowest in {record.architecture for record in result.records}


@pytest.mark.slow
def test_a_task_trains_and_judges_them_by_position_0(supernet_dir, tmp_path, paragraphs):
    lines = ["text,label", *(f'"{text[:60].replace(chr(34), " ")}",{n % 2}' for n, text in enumerate(paragraphs[:60]))]
    (tmp_path / "task.csv").write_text("\n".join(lines))
    notes = Notes()
    asked_for = {"space": ALL_NARROW, "task": str(tmp_path / "task.csv"), "num_evaluations": 4}
    result = search(asked(supernet_dir, tmp_path / "run", **asked_for), notes)
    assert (result.exit_code, result.quality_name) == (0, "task accuracy")
    assert result.chosen.trial.architecture.narrow_from is not None
    assert "adapting it to the task trains both" in notes.said[0]
    assert json.loads((tmp_path / "run" / "adapted" / "task.json").read_text())["pooling"] == "first"


def test_the_request_survives_its_file(supernet_dir, tmp_path):
    one = asked(supernet_dir, tmp_path / "run", space=ALL_NARROW)
    assert "--narrow" in one.command
    again = SearchRequest.from_dict(json.loads(json.dumps(one.to_dict())))
    assert again == replace(one, run_dir=None, supernet=again.supernet)
    with pytest.raises(InvalidInputError, match="narrow must be true or false"):
        SearchRequest.from_dict({**one.to_dict(), "narrow": "yes"})


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (replace(SPACE, num_layers=(1,)), "have one layer, and narrow layers need a full one before them"),
        (replace(SPACE, num_layers=(2, 4)).with_narrowing(), "holds L4-.* which the supernet does not"),
        (ChainSpace("chains", 1, 2, (32,), head_size=16), "cannot be narrow, as convolutions need the states of all"),
    ],
)
def test_what_cannot_be_narrow_is_refused_before_anything_is_written(supernet_dir, tmp_path, space, message):
    with pytest.raises(InvalidInputError, match=message):
        search(asked(supernet_dir, tmp_path / "run", space=space))
    assert not (tmp_path / "run").exists()
