"""The predictor on a device whose law is known."""

import json
import math
import random

import numpy as np
import pytest
from scipy import stats

from analysis.latency import Conditions
from nas.devices.predictor import LatencyPredictor, Sample, _ridge, features, spearman
from search_spaces.architecture import Architecture, Block, FeedForward, SepConv
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
    predictor = LatencyPredictor.fit(samples(space, 40), CONDITIONS, 0.003)
    held_out = samples(space, 200, noise=0.0, seed=1)
    errors = [predictor.predict(sample.architecture).ratio / sample.ratio - 1 for sample in held_out]
    assert np.median(np.abs(errors)) < 0.01
    assert predictor.error.median < 0.02
    assert predictor.error.spearman > 0.99


def test_the_interval_covers_about_nine_in_ten():
    space, covered = load_space("stock"), []
    for seed in range(12):
        drawn = samples(space, 120, noise=0.04, seed=seed)
        predictor = LatencyPredictor.fit(drawn[:40], CONDITIONS, 0.003)
        for sample in drawn[40:]:
            latency = predictor.predict(sample.architecture)
            covered.append(latency.low_s <= sample.ratio * 0.003 <= latency.high_s)
    assert 0.85 <= np.mean(covered) <= 0.95


def test_left_out_predictions_are_those_of_a_fit_without_the_row():
    rng = np.random.default_rng(0)
    rows, targets = rng.uniform(0.5, 2, (12, 3)), rng.uniform(1, 2, 12)
    scales = np.sqrt(((rows / targets[:, None]) ** 2).mean(axis=0))
    weights, left_out = _ridge(rows, targets, 0.0)
    design = rows / targets[:, None]
    assert weights == pytest.approx(np.linalg.lstsq(design, np.ones(12), rcond=None)[0])
    for index in range(12):
        kept = np.arange(12) != index
        penalised = _ridge(rows / scales, targets, 1e-3)[1][index]
        others = np.linalg.lstsq(design[kept], np.ones(11), rcond=None)[0]
        assert left_out[index] == pytest.approx(rows[index] @ others)
        assert penalised != pytest.approx(left_out[index], abs=1e-12)


def test_json_restores_an_equal_predictor():
    predictor = LatencyPredictor(samples(load_space("stock"), 20), CONDITIONS, 0.003, (0.97, 1.2))
    again = LatencyPredictor.from_dict(json.loads(json.dumps(predictor.to_dict())))
    shape = load_space("stock").largest()
    assert again.predict(shape) == predictor.predict(shape)
    assert again.to_dict() == predictor.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 9}, "schema 1"),
        ({"anchor_reference_s": math.nan}, "positive, finite"),
        ({"anchor_reference_s": None}, "positive, finite"),
        ({"level_interval": [0.9]}, "level_interval"),
        ({"level_interval": [0.9, math.inf]}, "level_interval"),
        ({"level_interval": ["a", "b"]}, "level_interval"),
        ({"samples": []}, "samples"),
        ({"samples": [{"architecture": None, "ratio": 1.0}]}, "architecture"),
        ({"samples": [1]}, "sample"),
        ({"surprise": 1}, "exactly"),
    ],
)
def test_a_predictor_edited_by_hand_is_refused(change, message):
    data = LatencyPredictor(samples(load_space("stock"), 5), CONDITIONS, 0.003).to_dict()
    with pytest.raises(InvalidInputError, match=message):
        LatencyPredictor.from_dict({**data, **change})


@pytest.mark.parametrize("ratio", [0, -1, math.nan, math.inf, True, "1", None])
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


def test_shapes_that_cannot_be_predicted_are_refused():
    narrow = Architecture.bert(2, 128, 128, 4, num_narrow_layers=1)
    with pytest.raises(InvalidInputError, match="narrow"):
        features(narrow, 128, 1)
    with pytest.raises(InvalidInputError, match="convolution"):
        features(Architecture(128, (Block(128, (SepConv(3), FeedForward(64))),)), 128, 1)


def test_features_of_several_blocks_are_counted_once_each():
    one, other = Block(64, (FeedForward(32),)), Block(128, (FeedForward(16),))
    work = features(Architecture(32, (one, other)), 10, 2)
    assert work["maps"] == 20 * (32 * 64 + 64 * 128)
    assert work["feed_forward"] == 2 * 20 * (64 * 32 + 128 * 16)
    assert (work["embedding"], work["layers"]) == (20 * 32, 0)


def test_spearman_agrees_with_scipy():
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.integers(0, 6, 15).astype(float), rng.integers(0, 6, 15).astype(float)
        assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
