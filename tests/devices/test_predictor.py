"""The predictor on a device whose law is known."""

import json
import math
import random
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from analysis.latency import Conditions
from nas.devices.features import FEATURES, UNIFORM_FEATURES, features
from nas.devices.predictor import LatencyPredictor, Prior, Sample, _ridge, spearman
from nas.devices.shapes import choose_shapes
from search_spaces.errors import InvalidInputError
from search_spaces.presets import load_space

CONDITIONS = Conditions("cpu", "f00d", "onnxruntime 1.31.1")


def law(architecture):
    """A device: products at two speeds, an overhead a layer, and caches that wide models fall out of."""
    work = features(architecture, 128, 1)
    products = work["attention"] + work["feed_forward"] + 2 * work["scores"]
    return 0.02 + 0.02 * work["layers"] + products / 1e8 + 4 * work["softmax"] / 1e8 + work["hidden"] / 1e7


def samples(space, num, *, noise=0.01, seed=0):
    rng, noises = random.Random(seed), np.random.default_rng(seed)
    shapes = []
    while len(shapes) < num:
        shape = space.sample(rng)
        if shape not in shapes:
            shapes.append(shape)
    return [Sample(shape, law(shape) * math.exp(noise * noises.standard_normal())) for shape in shapes]


@pytest.mark.parametrize("name", ["stock", "stock-factorised", "autotinybert-mlm", "autotinybert-kd"])
def test_forty_samples_predict_a_whole_space(name):
    space = load_space(name)
    predictor = LatencyPredictor(samples(space, 40), CONDITIONS, 0.003)
    held_out = samples(space, 200, noise=0.0, seed=1)
    errors = [predictor.predict(sample.architecture).ratio / sample.ratio - 1 for sample in held_out]
    assert np.median(np.abs(errors)) < 0.01
    assert predictor.error.median < 0.02
    assert predictor.error.spearman > 0.99


@pytest.mark.parametrize("num", [20, 40])
def test_the_interval_covers_about_nine_in_ten(num):
    space, covered = load_space("stock"), []
    for seed in range(12):
        drawn = samples(space, num + 80, noise=0.04, seed=seed)
        predictor = LatencyPredictor(drawn[:num], CONDITIONS, 0.003)
        for sample in drawn[num:]:
            latency = predictor.predict(sample.architecture)
            covered.append(latency.low_s <= sample.ratio * 0.003 <= latency.high_s)
    assert 0.85 <= np.mean(covered) <= 0.95


def test_chosen_samples_leave_the_interval_to_the_drawn_ones():
    """Chosen samples that are all but without noise would promise too much, and wild ones too little."""
    space = load_space("stock")
    drawn = samples(space, 60, noise=0.04)
    promised = LatencyPredictor(drawn[:40], CONDITIONS, 0.003).reach
    for noise in (0.0, 0.2):
        chosen = [Sample(s.architecture, s.ratio, False) for s in samples(space, 8, noise=noise, seed=7)]
        chosen = [s for s in chosen if s.architecture not in {d.architecture for d in drawn}]
        predictor = LatencyPredictor([*drawn[:40], *chosen], CONDITIONS, 0.003)
        assert 0.6 * promised < predictor.reach < 1.6 * promised


def test_left_out_predictions_are_those_of_a_fit_without_the_row():
    rng = np.random.default_rng(0)
    rows, targets = rng.uniform(0.5, 2, (12, 3)), rng.uniform(1, 2, 12)
    fit = _ridge(rows, targets, 0.0)
    design = rows / targets[:, None]
    assert fit.weights == pytest.approx(np.linalg.lstsq(design, np.ones(12), rcond=None)[0])
    for index in range(12):
        kept = np.arange(12) != index
        others = np.linalg.lstsq(design[kept], np.ones(11), rcond=None)[0]
        assert fit.left_out[index] == pytest.approx(rows[index] @ others)
        assert fit.errors[index] == pytest.approx(targets[index] / (rows[index] @ others) - 1)
    assert _ridge(rows, targets, 1e-3).left_out != pytest.approx(fit.left_out, abs=1e-12)


def test_what_is_known_pulls_the_weights_and_only_its_scale_is_free():
    rng = np.random.default_rng(0)
    rows, known = rng.uniform(0.5, 2, (6, 3)), np.array([[1.0, 0], [2, 0], [0, 5]])
    targets = rows @ (known @ [3.0, 0.5])
    fit = _ridge(rows, targets, 1e6, known)
    assert fit.weights == pytest.approx([3.0, 6.0, 2.5], rel=0.02)
    assert np.abs(fit.errors).max() < 0.02
    assert _ridge(rows, targets, 1e6).weights == pytest.approx(np.zeros(3), abs=1e-3)


def other_device(architecture):
    """Half the overhead, products at two thirds of the price: the same laws at other rates."""
    work = features(architecture, 64, 1)
    products = work["attention"] + work["feed_forward"] + 2 * work["scores"]
    return 0.01 + 0.01 * work["layers"] + 0.66 * products / 1e8 + 4 * work["softmax"] / 1e8 + work["hidden"] / 1e7


def test_a_known_device_saves_half_the_samples():
    space = load_space("stock")
    prior = LatencyPredictor(samples(space, 40), CONDITIONS, 0.003).as_prior()
    conditions = Conditions("board", "beef", "onnxruntime 1.31.1", seq_len=64)
    held_out = samples(space, 100, noise=0.0, seed=99)

    def median_error(num, seed, *priors):
        noises = np.random.default_rng(seed)
        shapes = choose_shapes(space, num, seed=seed)
        measured = [Sample(s, other_device(s) * math.exp(0.03 * noises.standard_normal())) for s in shapes]
        predictor = LatencyPredictor(measured, conditions, 0.003, priors=priors)
        errors = [predictor.predict(s.architecture).ratio / other_device(s.architecture) - 1 for s in held_out]
        return np.median(np.abs(errors))

    few, few_alone, many = (
        np.mean([median_error(num, seed, *priors) for seed in range(20)])
        for num, priors in ((12, [prior]), (12, []), (24, []))
    )
    assert few < 0.75 * few_alone
    assert few < many


def test_a_prior_that_knows_nothing_is_not_used_and_one_that_helps_promises_no_more():
    space = load_space("stock")
    measured = samples(space, 12, noise=0.02)
    alone = LatencyPredictor(measured, CONDITIONS, 0.003)
    useful = LatencyPredictor(samples(space, 60, noise=0.0, seed=1), CONDITIONS, 0.003).as_prior()
    wrong = Prior(CONDITIONS, {name: (-1.0) ** place for place, name in enumerate(useful.coefficients)})
    assert LatencyPredictor(measured, CONDITIONS, 0.003, priors=[wrong]).coefficients == alone.coefficients
    predictor = LatencyPredictor(measured, CONDITIONS, 0.003, priors=[wrong, useful])
    assert predictor.prior == useful
    assert predictor.reach >= alone.reach
    assert LatencyPredictor(samples(space, 20), CONDITIONS, 0.003, priors=[useful]).prior is None


def test_the_least_certain_shapes_are_those_that_lower_the_variance_most():
    """Greedy choice against brute force: the determinant of the Gram matrix grows by 1 + the variance."""
    space = load_space("stock")
    predictor = LatencyPredictor(samples(space, 15), CONDITIONS, 0.003)
    candidates = [sample.architecture for sample in samples(space, 30, seed=5)]
    designs = [predictor._fit.design(predictor._row(shape), predictor.predict(shape).ratio) for shape in candidates]
    gram, best = np.linalg.inv(predictor._fit.inverse), []
    for _ in range(4):
        growth = [
            np.linalg.slogdet(gram + np.outer(z, z))[1] if i not in best else -np.inf for i, z in enumerate(designs)
        ]
        best.append(int(np.argmax(growth)))
        gram = gram + np.outer(designs[best[-1]], designs[best[-1]])
    assert predictor.least_certain(candidates, 4) == [candidates[index] for index in best]
    assert len(set(predictor.least_certain(candidates, 99))) == 30


def test_json_restores_an_equal_predictor():
    space = load_space("stock")
    useful = LatencyPredictor(samples(space, 60, noise=0.0, seed=1), CONDITIONS, 0.003).as_prior()
    for priors in ((), (useful,)):
        predictor = LatencyPredictor(samples(space, 12, noise=0.02), CONDITIONS, 0.003, (0.97, 1.2), priors)
        assert (predictor.prior is not None) == bool(priors)
        again = LatencyPredictor.from_dict(json.loads(json.dumps(predictor.to_dict())))
        assert again.predict(space.largest()) == predictor.predict(space.largest())
        assert again.to_dict() == predictor.to_dict()


def test_a_prior_from_before_narrow_layers_and_chains_is_read_and_knows_nothing_of_them():
    prior = LatencyPredictor(samples(load_space("stock"), 12), CONDITIONS, 0.003).as_prior()
    data = prior.to_dict()
    data["coefficients"] = {name: data["coefficients"][name] for name in UNIFORM_FEATURES}
    assert Prior.from_dict(data) == prior
    assert {name for name, value in prior.coefficients.items() if value} <= UNIFORM_FEATURES


def test_coefficients_are_the_whole_predictor():
    space = load_space("stock-factorised")
    predictor = LatencyPredictor(samples(space, 30), CONDITIONS, 0.003)
    work = features(space.largest(), 128, 1)
    ratio = sum(predictor.coefficients[name] * amount for name, amount in work.items())
    assert predictor.predict(space.largest()).ratio == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 9}, "schema 2"),
        ({"anchor_reference_s": math.nan}, "positive, finite"),
        ({"anchor_reference_s": None}, "positive, finite"),
        ({"level_interval": [0.9]}, "level_interval"),
        ({"level_interval": [0.9, math.inf]}, "level_interval"),
        ({"level_interval": ["a", "b"]}, "level_interval"),
        ({"samples": []}, "samples"),
        ({"samples": [{"architecture": None, "ratio": 1.0}]}, "architecture"),
        ({"samples": [1]}, "sample"),
        ({"surprise": 1}, "exactly"),
        ({"prior": 1}, "prior"),
        ({"prior": {"conditions": {}, "coefficients": {}}}, "conditions"),
        ({"prior": {"conditions": asdict(CONDITIONS), "coefficients": {"layers": 1}}}, "coefficients"),
        ({"prior": {"conditions": asdict(CONDITIONS), "coefficients": dict.fromkeys(FEATURES, math.nan)}}, "finite"),
        ({"prior": {"conditions": asdict(CONDITIONS), "coefficients": dict.fromkeys(FEATURES, "1")}}, "finite"),
    ],
)
def test_a_predictor_edited_by_hand_is_refused(change, message):
    data = LatencyPredictor(samples(load_space("stock"), 5), CONDITIONS, 0.003).to_dict()
    with pytest.raises(InvalidInputError, match=message):
        LatencyPredictor.from_dict({**data, **change})


@pytest.mark.parametrize("damage", [{"ratio": 1.0}, {"architecture": {}, "ratio": 1.0, "is_drawn": 1, "more": 2}, []])
def test_a_sample_is_read_strictly(damage):
    with pytest.raises(InvalidInputError, match="sample"):
        Sample.from_dict(damage)


@pytest.mark.parametrize("ratio", [0, -1, 1e-5, 10**400, math.nan, math.inf, True, "1", None])
def test_a_samples_ratio_is_checked(ratio):
    with pytest.raises(InvalidInputError, match="ratio"):
        Sample(load_space("stock").smallest(), ratio)


def test_samples_are_distinct():
    sample = Sample(load_space("stock").smallest(), 1.0)
    with pytest.raises(InvalidInputError, match="once"):
        LatencyPredictor([sample, sample], CONDITIONS, 0.003)


@pytest.mark.parametrize("num", [1, 2, 3, 6])
def test_few_samples_give_a_wide_interval_and_no_nonsense(num):
    space = load_space("stock")
    predictor = LatencyPredictor(samples(space, num), CONDITIONS, 0.003)
    for shape in (space.smallest(), space.largest()):
        latency = predictor.predict(shape)
        assert 0 < latency.low_s < latency.p50_s < latency.high_s < math.inf
    if num <= 2:
        assert predictor.reach >= 0.5


def test_spearman_agrees_with_scipy():
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.integers(0, 6, 15).astype(float), rng.integers(0, 6, 15).astype(float)
        assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
