"""The main job on a real, tiny supernet and a fake device: chosen, exported, measured; interrupted and resumed."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from fake_target import CONDITIONS, FakeTarget

from analysis.trial import Trial
from nas.errors import DeviceNotAvailableError
from nas.progress import SilentProgress
from nas.rundir import RunDir
from nas.search import pipeline
from nas.search.pipeline import search
from nas.search.result import SearchRequest, load_result
from search_spaces.architecture import TextSpec
from search_spaces.errors import InvalidInputError
from search_spaces.space import SearchSpace
from supernet.checkpoint import Reference, save_supernet
from supernet.model import Supernet, SupernetConfig

SPACE = SearchSpace("tiny", (1, 2, 3), (32, 48, 64), (32, 64, 96, 128), head_size=(16,))
BUDGET_S = 1.5e-4


@pytest.fixture(scope="module")
def supernet_dir(tmp_path_factory, tokenizer_dir):
    folder = tmp_path_factory.mktemp("supernet")
    torch.manual_seed(0)
    supernet = Supernet(SupernetConfig(SPACE, TextSpec(vocab_size=600, max_positions=64), 64)).eval()
    ids = torch.randint(5, 600, (24, 12))
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        pooled = supernet(SPACE.largest(), ids, mask).hidden[-1].mean(1)
    save_supernet(folder, supernet, reference=Reference(ids, mask, pooled), training={"teacher": "itself"})
    shutil.copytree(tokenizer_dir, folder / "tokenizer")
    return folder


@pytest.fixture(autouse=True)
def device(monkeypatch, tmp_path):
    """A fake device in place of the CPU, and a cache of its own."""
    targets = []

    def resolve(name, *, threads, batch_size, seq_len, precision="fp32"):
        if name != "cpu":
            raise DeviceNotAvailableError(f"device {name!r} is not available here")
        made = replace(CONDITIONS, threads=threads, batch_size=batch_size, seq_len=seq_len, precision=precision)
        targets.append(FakeTarget(made))
        return targets[-1]

    monkeypatch.setattr(pipeline, "resolve", resolve)
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    return targets


def request(supernet_dir, run_dir, **changes):
    asked = SearchRequest(budget_s=BUDGET_S, supernet=supernet_dir, num_evaluations=12, seq_len=16, run_dir=run_dir)
    return replace(asked, **changes)


def models(result):
    return [(m.key, m.trial.quality, m.trial.latency.p50_s, m.model_dir is not None) for m in result.front]


def test_the_chosen_model_is_exported_and_meets_the_budget(supernet_dir, tmp_path):
    result = search(request(supernet_dir, tmp_path / "run"), SilentProgress())
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
    printed = json.loads(json.dumps(search(request(supernet_dir, tmp_path / "run"), SilentProgress()).to_dict()))
    assert list(printed) == ["run", "device", "budget_ms", "exit_code", "chosen", "front"]
    assert (printed["device"], printed["budget_ms"]) == ("cpu", pytest.approx(BUDGET_S * 1e3))
    for model in [printed["chosen"], *printed["front"]]:
        assert set(model) == {
            "key", "architecture", "quality", "latency", "num_parameters", "num_macs", "model_dir",
        }  # fmt: skip
        assert set(model["latency"]) == {"p50_ms", "p90_ms", "low_ms", "high_ms", "verdict", "source"}
    assert printed["chosen"]["model_dir"] == str(tmp_path / "run" / "model")


def test_read_back_it_is_the_same(supernet_dir, tmp_path):
    result = search(request(supernet_dir, tmp_path / "run"), SilentProgress())
    assert load_result(RunDir.open(tmp_path / "run")) == result
    again = search(SearchRequest(resume=tmp_path / "run"), SilentProgress())
    assert again == result


def test_nothing_fits(supernet_dir, tmp_path):
    result = search(request(supernet_dir, tmp_path / "run", budget_s=1e-6), SilentProgress())
    assert (result.exit_code, result.chosen) == (3, None)
    assert result.closest.key == SPACE.smallest().key()
    assert result.closest.trial.latency.source == "measured"
    assert result.to_dict()["closest"]["model_dir"] is None
    assert not (tmp_path / "run" / "model").exists()


def test_the_whole_front(supernet_dir, tmp_path):
    result = search(request(supernet_dir, tmp_path / "run", budget_s=None), SilentProgress())
    assert result.exit_code == 0
    assert result.to_dict()["budget_ms"] is None
    assert result.chosen.trial.quality == max(trial.quality for trial in result.trials)


def test_a_narrower_space_is_kept_to(supernet_dir, tmp_path):
    narrow = replace(SPACE, num_layers=(1, 2), hidden_size=(32, 64))
    result = search(request(supernet_dir, tmp_path / "run", space=narrow), SilentProgress())
    assert all(record.architecture in narrow for record in result.records)
    wide = replace(SPACE, num_layers=(1, 4))
    with pytest.raises(InvalidInputError, match=r"holds L4-.* which the supernet does not"):
        search(request(supernet_dir, tmp_path / "wide", space=wide), SilentProgress())
    assert not (tmp_path / "wide").exists()


class InterruptingProgress(SilentProgress):
    """Ctrl-C at the n-th thing that is said."""

    def __init__(self, after: int) -> None:
        self.left = after

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def start(self, phase, total=None):
        self._count()

    def update(self, done, **facts):
        self._count()

    def note(self, message):
        self._count()


def test_interrupted_anywhere_it_goes_on_to_the_same_end(supernet_dir, tmp_path):
    whole = search(request(supernet_dir, tmp_path / "whole"), SilentProgress())
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
    first = search(request(supernet_dir, tmp_path / "run", num_evaluations=6), SilentProgress())
    more = search(SearchRequest(resume=tmp_path / "run", num_evaluations=12), SilentProgress())
    whole = search(request(supernet_dir, tmp_path / "whole"), SilentProgress())
    assert [r.key for r in more.records][: len(first.records)] == [r.key for r in first.records]
    assert [r.key for r in more.records] == [r.key for r in whole.records]
    assert more.chosen.key == whole.chosen.key


def test_without_a_number_a_fixed_number_is_evaluated(supernet_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "DEFAULT_EVALUATIONS", 8)
    result = search(request(supernet_dir, tmp_path / "run", num_evaluations=None), SilentProgress())
    assert sum(isinstance(record, Trial) for record in result.records) == 8


def test_a_machine_that_changed_cannot_resume(supernet_dir, tmp_path, monkeypatch):
    search(request(supernet_dir, tmp_path / "run", num_evaluations=4), SilentProgress())
    run = RunDir.open(tmp_path / "run")
    run.update(conditions={**asdict(CONDITIONS), "fingerprint": "another"})
    with pytest.raises(InvalidInputError, match=r"the conditions of .* changed since it began"):
        search(SearchRequest(resume=tmp_path / "run", num_evaluations=6), SilentProgress())


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"device": "a100"}, DeviceNotAvailableError, "'a100' is not available"),
        ({"engine": "rai"}, InvalidInputError, "Did you mean 'ray'"),
        ({"sampler": "tbe"}, InvalidInputError, "Did you mean 'tpe'"),
        ({"budget_s": 0.0}, InvalidInputError, "latency_ms must be"),
        ({"budget_s": 1e9}, InvalidInputError, "latency_ms must be"),
        ({"num_evaluations": 0}, InvalidInputError, "evaluations must be"),
        ({"seq_len": 65}, InvalidInputError, "seq_len must be at most 64"),
        ({"ray_address": "auto"}, InvalidInputError, "add --engine ray"),
    ],
)
def test_what_is_refused_leaves_no_folder(supernet_dir, tmp_path, changes, error, text):
    with pytest.raises(error, match=text):
        search(request(supernet_dir, tmp_path / "run", **changes), SilentProgress())
    assert not (tmp_path / "run").exists()


def test_an_occupied_folder_is_left_alone(supernet_dir, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InvalidInputError, match="already there and not empty"):
        search(request(supernet_dir, tmp_path), SilentProgress())
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("damage", ["{", "[]", '{"schema_version": 1}'])
def test_a_broken_predictor_or_request_is_said(supernet_dir, tmp_path, damage):
    run_dir = tmp_path / "run"
    search(request(supernet_dir, run_dir, num_evaluations=3), SilentProgress())
    (run_dir / "predictor.json").write_text(damage)
    with pytest.raises(InvalidInputError, match=r"predictor.json is broken"):
        search(SearchRequest(resume=run_dir, num_evaluations=5), SilentProgress())
    RunDir.open(run_dir).update(request={})
    with pytest.raises(InvalidInputError, match="does not say what was searched for"):
        search(SearchRequest(resume=run_dir), SilentProgress())


def test_quality_by_a_task(supernet_dir, tmp_path, paragraphs):
    lines = ["text,label", *(f'"{text[:60].replace(chr(34), " ")}",{n % 2}' for n, text in enumerate(paragraphs[:60]))]
    (tmp_path / "task.csv").write_text("\n".join(lines))
    result = search(
        request(supernet_dir, tmp_path / "run", task=str(tmp_path / "task.csv"), num_evaluations=4), SilentProgress()
    )
    assert result.quality_name == "task accuracy"
    assert all(0 <= trial.quality <= 1 for trial in result.trials)
    assert (tmp_path / "run" / "adapted" / "task.json").is_file()
