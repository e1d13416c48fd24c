"""The last phase finds what an oracle that knows every true latency finds, and promises nothing it did not measure."""

import random

import pytest
from fake_target import FakeTarget, scattered, steady
from search_fakes import SPACE, TEXT, predict, problem, quality

from analysis.trial import Trial
from nas.progress import SilentProgress
from nas.search.finalists import Finals

TRIALS = [
    Trial(number, shape, quality(shape), predict(shape), 1, 1)
    for number, shape in enumerate(random.Random(0).sample(list(SPACE.enumerate()), SPACE.size))
]
BY_KEY = {trial.key: trial for trial in TRIALS}
BUDGET_S = 2e-3


class Wrong(FakeTarget):
    """True latencies are the predictions times a factor; an export may take longer than its shape."""

    def __init__(self, factor=1.0, export_factor=1.0, latency=steady):
        super().__init__()
        self.factor, self.export_factor, self.make = factor, export_factor, latency
        self.exported: list[str] = []

    def latency(self, name, path):
        extra = self.export_factor if name in self.exported else 1.0
        return self.make(BY_KEY[name].latency.p50_s * self.factor * extra)

    def export(self, trial, folder):
        folder.mkdir()
        self.exported.append(trial.key)
        return folder / "model.onnx"


def decide(target, folder, budget_s=BUDGET_S, trials=TRIALS):
    return Finals(target, TEXT, budget_s, target.export, SilentProgress()).decide(trials, folder)


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.0, 1.1, 1.5, 3.0])
def test_the_best_that_truly_fits_is_chosen(tmp_path, factor):
    target = Wrong(factor)
    conclusion = decide(target, tmp_path / "model")
    fitting = [trial for trial in TRIALS if trial.latency.p50_s * factor <= BUDGET_S]
    best = max(fitting, key=lambda trial: trial.quality)
    assert (conclusion.exit_code, conclusion.chosen) == (0, best.key)
    assert conclusion.measured[best.key].meets(BUDGET_S)
    assert target.exported == [best.key]
    assert (tmp_path / "model").is_dir()
    assert len(target.asked) <= 18  # a few, not all


@pytest.mark.parametrize("export_factor", [1.3, 1.8])
def test_an_export_that_is_slower_than_its_shape_gives_way_to_one_with_headroom(tmp_path, export_factor):
    target = Wrong(1.0, export_factor=export_factor)
    conclusion = decide(target, tmp_path / "model")
    assert len(target.exported) == 2
    assert not conclusion.measured[target.exported[0]].meets(BUDGET_S)
    assert (conclusion.exit_code, conclusion.chosen) == (0, target.exported[1])
    took_s = {trial.key: trial.latency.p50_s * export_factor for trial in TRIALS}
    assert conclusion.measured[conclusion.chosen].p50_s == pytest.approx(took_s[conclusion.chosen])
    better = [trial.key for trial in TRIALS if trial.quality > BY_KEY[conclusion.chosen].quality]
    assert all(took_s[key] > 0.99 * BUDGET_S for key in better)


def test_nothing_fits(tmp_path):
    (tmp_path / "model").mkdir()  # left by an interrupted attempt
    conclusion = decide(Wrong(50.0), tmp_path / "model")
    fastest = min(TRIALS, key=lambda trial: trial.latency.p50_s)
    assert (conclusion.exit_code, conclusion.chosen, conclusion.closest) == (3, None, fastest.key)
    assert conclusion.measured[fastest.key].exceeds(BUDGET_S)
    assert not (tmp_path / "model").exists()


def test_what_cannot_be_decided_is_said(tmp_path):
    conclusion = decide(Wrong(latency=scattered), tmp_path / "model")
    assert (conclusion.exit_code, conclusion.chosen) == (5, None)
    assert conclusion.closest is not None


def test_without_a_budget_the_best_is_exported_and_measured(tmp_path):
    target = Wrong(1.2)
    conclusion = decide(target, tmp_path / "model", budget_s=None)
    best = max(TRIALS, key=lambda trial: trial.quality)
    assert (conclusion.exit_code, conclusion.chosen) == (0, best.key)
    assert conclusion.measured[best.key].source == "measured"


def test_a_single_trial_beyond_the_budget_is_measured_before_it_is_refused(tmp_path):
    (alone,) = [trial for trial in TRIALS if trial.architecture == SPACE.smallest()]
    assert problem().candidate(alone.architecture).latency.p50_s > 1e-4
    assert decide(Wrong(1.0), tmp_path / "a", budget_s=1e-4, trials=[alone]).exit_code == 3
    assert decide(Wrong(0.5), tmp_path / "b", budget_s=1e-4, trials=[alone]).chosen == alone.key
