"""How well latencies of a space are predicted from a few dozen measured shapes, on the CPU this runs on.

    python benchmarks/predictor.py --space stock --num-samples 40 --num-held-out 60

Profiles the space as a search does, into a folder of its own, then times shapes drawn at random that the profile does
not hold, and compares. Prints the error with a bootstrap interval, the rank correlation, how often the predictor's
90 % interval holds the measured ratio, and the time both took; ``--out`` keeps every pair as JSON.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

from nas.devices.predictor import LatencyPredictor, spearman
from nas.devices.profile import load_or_measure
from nas.devices.resolve import resolve
from nas.devices.target import Target, timing_text
from nas.export.int8 import quantize
from nas.export.onnx_graph import build_graph
from nas.progress import choose_progress
from search_spaces.architecture import Architecture, TextSpec
from search_spaces.presets import load_space


def time_shapes(target: Target, shapes: list[Architecture], seconds_each: float) -> list[float]:
    """Ratios to the anchor, eight shapes a process."""
    ratios = []
    for start in range(0, len(shapes), 8):
        with tempfile.TemporaryDirectory() as folder:
            models = []
            for shape in shapes[start : start + 8]:
                models.append((shape.key(), Path(folder) / f"{shape.key()}.onnx"))
                model = build_graph(shape, timing_text(TextSpec(), target.conditions.seq_len), None)
                if target.conditions.precision == "int8":
                    quantize(model, models[-1][1])
                else:
                    onnx.save(model, str(models[-1][1]))
            latencies = target.measure(models, seconds_each=seconds_each, attempts=2)
            ratios += [latencies[name].ratio or 0.0 for name, _ in models]
    return ratios


def report(predictor: LatencyPredictor, shapes: list[Architecture], measured: np.ndarray) -> dict[str, object]:
    predicted = np.array([predictor.predict(shape).ratio for shape in shapes])
    errors = np.abs(predicted / measured - 1)
    draws = np.random.default_rng(0).integers(len(errors), size=(2000, len(errors)))
    low, high = np.quantile(np.median(errors[draws], axis=1), (0.05, 0.95))
    inside = np.maximum(measured / predicted, predicted / measured) <= 1 + predictor.reach
    return {
        "samples": predictor.error.num_samples,
        "held_out": len(shapes),
        "median_error": float(np.median(errors)),
        "median_error_90": [float(low), float(high)],
        "p95_error": float(np.quantile(errors, 0.95)),
        "spearman": spearman(predicted, measured),
        "coverage_of_90": float(inside.mean()),
        "interval_reach": predictor.reach,
        "left_out_median_error": predictor.error.median,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="stock")
    parser.add_argument("--num-samples", type=int, default=40)
    parser.add_argument("--num-held-out", type=int, default=60)
    parser.add_argument("--seconds-each", type=float, default=0.8)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    space, target = load_space(options.space), resolve("cpu", precision=options.precision)
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"cache_dir": Path(folder), "num_samples": options.num_samples, "seconds_each": options.seconds_each}
        predictor = load_or_measure(
            target, space, TextSpec(), seed=options.seed, progress=choose_progress(), **settings
        )
        profiled_s = time.monotonic()
        load_or_measure(target, space, TextSpec(), seed=options.seed, **settings)
        checked_s = time.monotonic()
    known = {sample.architecture for sample in predictor.samples}
    rng, shapes = random.Random(options.seed + 1000), []
    while len(shapes) < options.num_held_out:
        shape = space.sample(rng)
        if shape not in known:
            known.add(shape)
            shapes.append(shape)
    measured = np.array(time_shapes(target, shapes, options.seconds_each))
    facts = {
        "device": target.description,
        "space": space.name,
        "precision": options.precision,
        "profiling_s": round(profiled_s - started_s, 1),
        "second_use_s": round(checked_s - profiled_s, 1),
        "level_interval": [round(end, 3) for end in target.level_interval],
        **report(predictor, shapes, measured),
    }
    for name, value in facts.items():
        print(f"{name:24} {value:.4f}" if isinstance(value, float) else f"{name:24} {value}")
    if options.out:
        pairs = [
            [shape.key(), predictor.predict(shape).ratio, ratio] for shape, ratio in zip(shapes, measured, strict=True)
        ]
        options.out.write_text(json.dumps({**facts, "predicted_and_measured_ratio": pairs}, indent=1))


if __name__ == "__main__":
    main()
