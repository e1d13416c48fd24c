"""Latency records: statistics on samples whose truth is known, and JSON that is checked."""

import dataclasses
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.latency import Conditions, Latency, Pressure, measured, predicted
from search_spaces.errors import InvalidInputError

CONDITIONS = Conditions("cpu", "f00d", "onnxruntime 1.31.1")


def rounds(ratio, *, level=0.01, drift=0.0, noise=0.005, num_rounds=12, burst=4, seed=0):
    """Bursts of an anchor and of a candidate ``ratio`` times as slow, on a machine that drifts by ``drift``."""
    rng = np.random.default_rng(seed)
    levels = level * np.exp(drift * np.sin(np.linspace(0, 5, num_rounds)))[:, None]
    shape = (num_rounds, burst)
    anchor = levels * np.exp(noise * rng.standard_normal(shape))
    candidate = ratio * levels * np.exp(noise * rng.standard_normal(shape))
    return candidate.ravel().tolist(), anchor.ravel().tolist()


def test_a_constant_machine_gives_the_exact_time():
    latency = measured(CONDITIONS, [0.02] * 40, [0.01] * 40, 0.01)
    assert (latency.p50_s, latency.p90_s, latency.low_s, latency.high_s) == pytest.approx((0.02,) * 4)
    assert (latency.verdict, latency.ratio, latency.num_rounds) == ("ok", pytest.approx(2.0), 40)
    assert latency.throughput == pytest.approx(50)
    assert dataclasses.replace(latency, conditions=dataclasses.replace(CONDITIONS, batch_size=8)).throughput == (
        pytest.approx(400)
    )


def test_tails_are_those_of_the_samples_and_bound_what_they_promise():
    """One run in thirty takes five times as long: p90 does not see it, p99 does."""
    rng = np.random.default_rng(0)
    ratios = np.where(rng.random(1200) < 1 / 30, 10.0, 2.0) * np.exp(0.01 * rng.standard_normal(1200))
    latency = measured(CONDITIONS, (0.01 * ratios).tolist(), [0.01] * 1200, 0.01, num_rounds=300)
    assert latency.percentile_s(50) == pytest.approx(0.02, rel=0.01)
    assert latency.percentile_s(90) == pytest.approx(0.02, rel=0.03)
    assert latency.percentile_s(99) == pytest.approx(0.1, rel=0.03)
    assert latency.meets(0.021)
    assert latency.meets(0.021, 90)
    assert not latency.meets(0.021, 99)
    assert latency.exceeds(0.021, 99)
    assert latency.meets(0.11, 99)
    assert Latency.from_dict(json.loads(json.dumps(latency.to_dict()))) == latency


def test_a_tail_is_not_told_from_too_few_samples():
    latency = measured(CONDITIONS, [0.02] * 100, [0.01] * 100, 0.01)
    assert latency.p90 is not None
    assert latency.p99 is None
    assert not latency.meets(1.0, 99)
    assert not latency.exceeds(0.021, 99)
    assert latency.exceeds(0.019, 99)  # its median is beyond already
    assert not predicted(CONDITIONS, 0.01, 0.01, 0.01).meets(1.0, 90)
    with pytest.raises(InvalidInputError, match="one of 50, 90, 99"):
        latency.meets(1.0, 95)


def test_the_share_of_runs_beyond_a_tails_bound_is_small():
    beyond = []
    for seed in range(60):
        samples, anchor = rounds(2.0, noise=0.2, num_rounds=40, burst=8, seed=seed)
        latency = measured(CONDITIONS, samples, anchor, 0.01, num_rounds=40)
        truth, _ = rounds(2.0, noise=0.2, num_rounds=4000, burst=8, seed=1000)
        beyond.append(float(np.mean(np.array(truth) > latency.p90.high_s)) <= 0.1)
    assert sum(beyond) >= 51  # 95 % of 60, less what chance takes


def test_a_device_that_slows_down_drifts():
    times = np.linspace(0.02, 0.03, 400)
    latency = measured(CONDITIONS, times.tolist(), [0.01] * 400, 0.01)
    assert latency.drift == pytest.approx(0.45, abs=0.03)
    assert measured(CONDITIONS, [0.02] * 400, [0.01] * 400, 0.01).drift == 0
    assert measured(CONDITIONS, [0.02] * 8, [0.01] * 8, 0.01).drift is None


def test_drift_common_to_both_cancels():
    samples, anchor = rounds(1.7, drift=0.4)
    latency = measured(CONDITIONS, samples, anchor, 0.01, num_rounds=12)
    assert latency.p50_s == pytest.approx(0.017, rel=0.01)
    assert latency.verdict == "ok"
    assert np.median(samples) != pytest.approx(0.017, rel=0.03)  # the naive median is led astray


def test_one_slow_round_does_not_move_the_median():
    samples, anchor = rounds(2.0)
    samples[:4] = [time * 10 for time in samples[:4]]
    assert measured(CONDITIONS, samples, anchor, 0.01, num_rounds=12).p50_s == pytest.approx(0.02, rel=0.01)


def test_the_interval_covers_the_truth_about_nine_times_in_ten():
    covered = 0
    for seed in range(200):
        samples, anchor = rounds(2.0, noise=0.05, num_rounds=15, seed=seed)
        latency = measured(CONDITIONS, samples, anchor, 0.01, num_rounds=15, seed=seed)
        covered += latency.low_s <= 0.02 <= latency.high_s
    assert 165 <= covered <= 198


def test_spread_of_the_level_widens_the_interval():
    samples, anchor = rounds(2.0, noise=1e-6)
    latency = measured(CONDITIONS, samples, anchor, 0.01, num_rounds=12, level_interval=(0.9, 1.5))
    assert (latency.low_s / latency.p50_s, latency.high_s / latency.p50_s) == pytest.approx((0.9, 1.5), rel=1e-3)
    assert latency.verdict == "noisy"  # however far the level moves: the bounds hold, so a budget may be decided


def test_time_held_up_raises_the_upper_bound_only():
    calm = measured(CONDITIONS, [0.02] * 8, [0.01] * 8, 0.01)
    held = measured(CONDITIONS, [0.02] * 8, [0.01] * 8, 0.01, Pressure(steal_share=0.1, waiting_share=0.1))
    assert (held.low_s, held.p50_s) == (calm.low_s, calm.p50_s)
    assert held.high_s == pytest.approx(0.02 / 0.8)


@pytest.mark.parametrize(
    "interval", [(1.1, 1.2), (0.0, 1.0), (0.9, math.inf), (0.9, 10**400), (0.9, 1e300), (1e-300, 1.0), (math.nan, 1.0)]
)
def test_a_level_interval_is_checked(interval):
    with pytest.raises(InvalidInputError, match="level_interval"):
        measured(CONDITIONS, [0.02] * 8, [0.01] * 8, 0.01, level_interval=interval)


@pytest.mark.parametrize(
    ("noise", "num_rounds", "pressure", "verdict"),
    [
        (0.005, 12, None, "ok"),
        (0.005, 12, Pressure(busy_share=1.0), "ok"),
        (0.005, 12, Pressure(waiting_share=0.3), "noisy"),
        (0.005, 12, Pressure(steal_share=0.3), "noisy"),
        (0.005, 12, Pressure(throttled=("too hot",)), "noisy"),
        (0.15, 12, None, "noisy"),
        (1.5, 12, None, "inconclusive"),
        (0.005, 2, None, "inconclusive"),
    ],
)
def test_verdict_follows_spread_and_pressure(noise, num_rounds, pressure, verdict):
    samples, anchor = rounds(2.0, noise=noise, num_rounds=num_rounds)
    assert measured(CONDITIONS, samples, anchor, 0.01, pressure, num_rounds=num_rounds).verdict == verdict


def test_budget_is_judged_by_the_bounds_and_not_by_the_median():
    latency = predicted(CONDITIONS, 0.010, 0.009, 0.011)
    assert (latency.meets(0.011), latency.meets(0.0105), latency.exceeds(0.0105), latency.exceeds(0.0089)) == (
        True,
        False,
        False,
        True,
    )
    for budget in (0, -1, math.nan, math.inf, "1"):
        with pytest.raises(InvalidInputError, match="positive, finite number of seconds"):
            latency.meets(budget)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-4, 1), min_size=1, max_size=30), st.floats(1e-4, 1), st.floats(1, 2))
def test_any_samples_give_an_ordered_latency_that_survives_json(times, reference, spread):
    latency = measured(CONDITIONS, times, times[::-1], reference, Pressure(), level_interval=(1 / spread, spread))
    assert latency.low_s <= latency.p50_s <= latency.high_s
    assert Latency.from_dict(json.loads(json.dumps(latency.to_dict()))) == latency


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p50_s": math.nan}, "positive, finite"),
        ({"p50_s": -0.01}, "positive, finite"),
        ({"p50_s": 10**400}, "positive, finite"),
        ({"p50_s": True}, "positive, finite"),
        ({"p50_s": "0.01"}, "positive, finite"),
        ({"high_s": 0.001}, "ordered"),
        ({"source": "guessed"}, "source and verdict must be known"),
        ({"samples_s": []}, "holds its samples"),
        ({"samples_s": [0.01, math.inf]}, "positive, finite"),
        ({"samples_s": "0.01"}, "must be a list"),
        ({"num_rounds": 99}, "num_rounds"),
        ({"schema_version": 1}, "schema 2"),
        ({"surprise": 1}, "must hold exactly"),
        ({"conditions": {}}, "conditions must hold exactly"),
        ({"pressure": {**asdict(Pressure()), "busy_share": 2.0}}, "busy_share"),
        ({"pressure": {**asdict(Pressure()), "throttled": "hot"}}, "throttled"),
        ({"p90": {"value_s": 0.03, "low_s": 0.04, "high_s": 0.05}}, "a tail must be ordered"),
        ({"p90": {"value_s": 0.01, "low_s": 0.01, "high_s": 0.05}}, "percentiles must be ordered"),
        ({"p99": [1, 2, 3]}, "p99 must hold exactly"),
        ({"peak_memory_bytes": -1}, "peak_memory_bytes"),
        ({"energy_j": math.inf}, "energy_j"),
        ({"energy_j": 10**400}, "energy_j"),
    ],
)
def test_a_record_edited_by_hand_is_refused(change, message):
    record = measured(CONDITIONS, [0.02] * 8, [0.01] * 8, 0.01).to_dict()
    with pytest.raises(InvalidInputError, match=message):
        Latency.from_dict({**record, **change})


@pytest.mark.parametrize("data", [None, [], "x", {}, {"schema_version": 1}])
def test_what_is_no_record_is_refused(data):
    with pytest.raises(InvalidInputError):
        Latency.from_dict(data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [0.01], 0.01), "needs samples"),
        (([0.02, 0.0], [0.01, 0.01], 0.01), "positive, finite"),
        (([0.02], [0.01], 0.0), "positive, finite"),
    ],
)
def test_bad_samples_are_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        measured(CONDITIONS, *arguments)
    with pytest.raises(InvalidInputError, match="equal rounds"):
        measured(CONDITIONS, [0.02] * 7, [0.01] * 6, 0.01, num_rounds=3)


@pytest.mark.parametrize(
    "change", [{"threads": 0}, {"seq_len": 2.5}, {"batch_size": True}, {"device": ""}, {"runtime": 3}]
)
def test_conditions_are_bounded(change):
    with pytest.raises(InvalidInputError, match=next(iter(change))):
        dataclasses.replace(CONDITIONS, **change)
