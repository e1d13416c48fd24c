"""The last phase finds what an oracle that knows every true latency finds, and promises nothing it did not measure."""

import itertools
import random
from dataclasses import replace

import pytest
from fake_target import FakeTarget, scattered, steady
from search_fakes import SPACE, TEXT, predict, predict_both, problem, quality, two_goals

from analysis.goal import Limits
from analysis.trial import Trial
from nas.progress import SilentProgress
from nas.search.expectations import CAUTION
from nas.search.finalists import Finals
from search_spaces.cost import num_parameters

SHAPES = random.Random(0).sample(list(SPACE.enumerate()), SPACE.size)


def trials_of(latencies):
    return [
        Trial(number, shape, quality(shape), latencies(shape), num_parameters(shape, TEXT), 1)
        for number, shape in enumerate(SHAPES)
    ]


TRIALS = trials_of(lambda shape: (predict(shape),))
BY_KEY = {trial.key: trial for trial in TRIALS}
PAIRS = trials_of(predict_both)
PAIRS_BY_KEY = {trial.key: trial for trial in PAIRS}
BUDGET_S = 2e-3


class Wrong(FakeTarget):
    """True latencies are the predictions times a factor; an export may take longer than its shape."""

    def __init__(self, factor=1.0, export_factor=1.0, latency=steady, *, place=0, memory=None, tail=1.0):
        super().__init__()
        self.factor, self.export_factor, self.make = factor, export_factor, latency
        self.place, self.memory, self.tail = place, memory, tail
        self.exported: list[str] = []

    def true_s(self, key, *, is_export=False):
        return PAIRS_BY_KEY[key].latencies[self.place].p50_s * self.factor * (self.export_factor if is_export else 1.0)

    def latency(self, name, model):
        is_export = name in self.exported
        took_s = self.true_s(name, is_export=is_export)
        if self.make is not steady:
            return self.make(took_s)
        memory = self.memory and is_export and self.memory(BY_KEY[name])
        return steady(took_s, tail=self.tail, memory=memory or None)


def size_of(trial):
    """What the file takes: all parameters and a little more."""
    return 4 * trial.num_parameters + 3000


def decide(targets, folder, goals=None, *, budget_s=BUDGET_S, trials=TRIALS, limits=None):
    targets = targets if isinstance(targets, list) else [targets]
    goals = goals or (replace(two_goals(budget_s)[0]),)
    exported = []

    def export(trial, folder):
        folder.mkdir()
        (folder / "model.onnx").write_bytes(bytes(size_of(trial)))
        exported.append(trial.key)
        for target in targets:
            if target is not None:
                target.exported.append(trial.key)

    by_precision = [{"fp32": target} for target in targets]
    finals = Finals(goals, limits or Limits(), by_precision, TEXT, export, SilentProgress())
    return finals.decide(trials, folder), exported


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.0, 1.1, 1.5, 3.0])
def test_the_best_that_truly_fits_is_chosen(tmp_path, factor):
    target = Wrong(factor)
    conclusion, exported = decide(target, tmp_path / "model")
    fitting = [trial for trial in TRIALS if trial.latency.p50_s * factor <= BUDGET_S]
    best = max(fitting, key=lambda trial: trial.quality)
    assert (conclusion.exit_code, conclusion.chosen) == (0, best.key)
    assert conclusion.measured[best.key][0].meets(BUDGET_S)
    assert exported == [best.key]
    assert (tmp_path / "model").is_dir()
    assert conclusion.sizes == {best.key: size_of(best)}
    assert len(target.asked) <= 18  # a few, not all


@pytest.mark.parametrize("export_factor", [1.3, 1.8])
def test_an_export_that_is_slower_than_its_shape_gives_way_to_one_with_headroom(tmp_path, export_factor):
    target = Wrong(1.0, export_factor=export_factor)
    conclusion, exported = decide(target, tmp_path / "model")
    assert len(exported) == 2
    assert not conclusion.measured[exported[0]][0].meets(BUDGET_S)
    assert (conclusion.exit_code, conclusion.chosen) == (0, exported[1])
    took_s = {trial.key: trial.latency.p50_s * export_factor for trial in TRIALS}
    assert conclusion.measured[conclusion.chosen][0].p50_s == pytest.approx(took_s[conclusion.chosen])
    better = [trial.key for trial in TRIALS if trial.quality > BY_KEY[conclusion.chosen].quality]
    assert all(CAUTION * took_s[key] > BUDGET_S for key in better)


def test_nothing_fits(tmp_path):
    (tmp_path / "model").mkdir()  # left by an interrupted attempt
    conclusion, _ = decide(Wrong(50.0), tmp_path / "model")
    fastest = min(TRIALS, key=lambda trial: trial.latency.p50_s)
    assert (conclusion.exit_code, conclusion.chosen, conclusion.closest) == (3, None, fastest.key)
    assert conclusion.measured[fastest.key][0].exceeds(BUDGET_S)
    assert not (tmp_path / "model").exists()


def test_what_cannot_be_decided_is_said(tmp_path):
    conclusion, _ = decide(Wrong(latency=scattered), tmp_path / "model")
    assert (conclusion.exit_code, conclusion.chosen) == (5, None)
    assert conclusion.closest is not None


def test_without_a_budget_the_best_is_exported_and_measured(tmp_path):
    target = Wrong(1.2)
    conclusion, _ = decide(target, tmp_path / "model", budget_s=None)
    best = max(TRIALS, key=lambda trial: trial.quality)
    assert (conclusion.exit_code, conclusion.chosen) == (0, best.key)
    assert conclusion.measured[best.key][0].source == "measured"
    assert target.asked == [best.key]


def test_a_single_trial_beyond_the_budget_is_measured_before_it_is_refused(tmp_path):
    (alone,) = [trial for trial in TRIALS if trial.architecture == SPACE.smallest()]
    assert problem().candidate(alone.architecture).latencies[0].p50_s > 1e-4
    assert decide(Wrong(1.0), tmp_path / "a", budget_s=1e-4, trials=[alone])[0].exit_code == 3
    assert decide(Wrong(0.5), tmp_path / "b", budget_s=1e-4, trials=[alone])[0].chosen == alone.key


FACTORS = [(1.0, 1.0), (0.7, 1.3), (1.4, 0.9), (2.5, 2.5)]
BUDGETS = [(2e-3, 1e-3), (5e-4, 1.6e-3), (4e-3, 7e-4), (1e-3, 5e-4), (2e-4, 9e-4), (4e-4, 3e-4)]


@pytest.mark.parametrize(("factors", "budgets"), list(itertools.product(FACTORS, BUDGETS)))
def test_a_model_meets_every_budget_where_the_oracle_finds_one(tmp_path, factors, budgets):
    """The oracle knows what every trial truly takes on both devices."""
    targets = [Wrong(factor, place=place) for place, factor in enumerate(factors)]
    goals = two_goals(*budgets)
    conclusion, _ = decide(targets, tmp_path / "model", goals, trials=PAIRS)
    fitting = [
        trial
        for trial in PAIRS
        if all(target.true_s(trial.key) <= budget_s for target, budget_s in zip(targets, budgets, strict=True))
    ]
    if fitting:
        best = max(fitting, key=lambda trial: trial.quality)
        assert (conclusion.exit_code, conclusion.chosen) == (0, best.key)
        measured = conclusion.measured[best.key]
        assert all(goal.judge(latency) == "meets" for goal, latency in zip(goals, measured, strict=True))
    else:
        assert (conclusion.exit_code, conclusion.chosen) == (3, None)
        shares = {
            trial.key: max(t.true_s(trial.key) / b for t, b in zip(targets, budgets, strict=True)) for trial in PAIRS
        }
        assert shares[conclusion.closest] == min(shares.values())


def test_budgets_that_are_met_only_one_at_a_time_are_refused(tmp_path):
    """One trial is fast enough here, the other there."""
    wide, deep = (trial for trial in PAIRS if trial.key in ("L1-D96-F256-H6x16", "L4-D32-F32-H2x16"))
    budgets = (1.01 * deep.latencies[0].p50_s, 1.01 * wide.latencies[1].p50_s)
    targets = [Wrong(place=0), Wrong(place=1)]
    conclusion, _ = decide(targets, tmp_path / "model", two_goals(*budgets), trials=[wide, deep])
    meets = [[t.true_s(trial.key) <= b for t, b in zip(targets, budgets, strict=True)] for trial in (wide, deep)]
    assert meets == [[False, True], [True, False]]
    assert (conclusion.exit_code, conclusion.chosen) == (3, None)


def test_a_goal_without_a_budget_is_measured_and_binds_nothing(tmp_path):
    targets = [Wrong(place=0), Wrong(5.0, place=1)]
    conclusion, exported = decide(targets, tmp_path / "model", two_goals(BUDGET_S), trials=PAIRS)
    assert conclusion.exit_code == 0
    assert targets[1].asked == exported
    assert conclusion.measured[conclusion.chosen][1].p50_s == pytest.approx(targets[1].true_s(conclusion.chosen))


@pytest.mark.parametrize("tail", [1.2, 2.0])
def test_a_percentile_binds_where_the_median_would_not(tmp_path, tail):
    goal = replace(two_goals(BUDGET_S)[0], percentile=90)
    conclusion, _ = decide(Wrong(tail=tail), tmp_path / "model", (goal,))
    fitting = [trial for trial in TRIALS if trial.latency.p50_s * tail <= BUDGET_S]
    assert conclusion.chosen == max(fitting, key=lambda trial: trial.quality).key
    assert conclusion.measured[conclusion.chosen][0].meets(BUDGET_S, 90)
    by_median, _ = decide(Wrong(tail=tail), tmp_path / "other")
    assert BY_KEY[by_median.chosen].quality > BY_KEY[conclusion.chosen].quality


@pytest.mark.parametrize("share", [0.4, 0.7])
def test_the_file_s_size_binds_exactly(tmp_path, share):
    limits = Limits(max_size_bytes=int(share * max(map(size_of, TRIALS))))
    conclusion, _ = decide(Wrong(), tmp_path / "model", budget_s=None, limits=limits)
    fitting = [trial for trial in TRIALS if size_of(trial) <= limits.max_size_bytes]
    assert conclusion.chosen == max(fitting, key=lambda trial: trial.quality).key
    assert conclusion.sizes[conclusion.chosen] <= limits.max_size_bytes


def test_a_size_that_none_has_is_refused_without_an_export(tmp_path):
    conclusion, exported = decide(Wrong(), tmp_path / "model", limits=Limits(max_size_bytes=1000))
    assert (conclusion.exit_code, exported) == (3, [])
    smallest = min(TRIALS, key=lambda trial: trial.num_parameters)
    assert conclusion.sizes[conclusion.closest] >= 4 * smallest.num_parameters


@pytest.mark.parametrize(("base", "slope"), [(30e6, 1.35), (5e6, 1.0), (45e6, 3.0)])
def test_memory_binds_though_the_first_estimate_is_wrong(tmp_path, base, slope):
    def memory(trial):
        return int(base + slope * size_of(trial))

    limits = Limits(max_memory_bytes=int(base + 0.6 * slope * max(map(size_of, TRIALS))))
    conclusion, exported = decide(Wrong(memory=memory), tmp_path / "model", budget_s=None, limits=limits)
    assert conclusion.exit_code == 0
    assert conclusion.measured[conclusion.chosen][0].peak_memory_bytes <= limits.max_memory_bytes
    assert len(exported) <= 5


def test_memory_that_is_too_much_for_all_is_shown_by_one_export(tmp_path):
    limits = Limits(max_memory_bytes=40_000_000)
    target = Wrong(memory=lambda trial: 90_000_000)
    conclusion, exported = decide(target, tmp_path / "model", budget_s=None, limits=limits)
    assert (conclusion.exit_code, conclusion.closest) == (3, exported[0])
    assert len(exported) == 1


def test_memory_that_is_not_told_is_not_decided(tmp_path):
    conclusion, _ = decide(Wrong(), tmp_path / "model", limits=Limits(max_memory_bytes=10**9))
    assert conclusion.exit_code == 5


def carried(budget_s):
    return tuple(replace(goal, profiled_at="2026-03-04T05:06:07+00:00") for goal in two_goals(budget_s)[:1])


def test_a_profile_chooses_by_its_upper_bound_and_measures_nothing(tmp_path):
    conclusion, exported = decide([None], tmp_path / "model", carried(BUDGET_S))
    fitting = [trial for trial in TRIALS if trial.latency.high_s <= BUDGET_S]
    best = max(fitting, key=lambda trial: trial.quality)
    assert (conclusion.exit_code, conclusion.chosen, exported) == (0, best.key, [best.key])
    assert conclusion.measured == {best.key: (None,)}


def test_a_profile_says_3_where_all_are_too_slow_and_5_where_its_intervals_hold_the_budget(tmp_path):
    fastest = min(trial.latency.p50_s for trial in TRIALS)
    assert decide([None], tmp_path / "a", carried(0.9 * fastest))[0].exit_code == 3
    conclusion, exported = decide([None], tmp_path / "b", carried(fastest))
    assert (conclusion.exit_code, exported) == (5, [])


def test_a_measured_device_and_a_profile_bind_together(tmp_path):
    goals = two_goals(BUDGET_S, 1e-3)
    goals = (goals[0], replace(goals[1], profiled_at="2026-03-04"))
    conclusion, _ = decide([Wrong(1.2), None], tmp_path / "model", goals, trials=PAIRS)
    fitting = [t for t in PAIRS if t.latencies[0].p50_s * 1.2 <= BUDGET_S and t.latencies[1].high_s <= 1e-3]
    assert conclusion.chosen == max(fitting, key=lambda trial: trial.quality).key
    assert conclusion.measured[conclusion.chosen][1] is None
