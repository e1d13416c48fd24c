"""How well latencies of a space are predicted from a few dozen measured shapes, beside the predictors of two papers.

    python benchmarks/predictor.py --num-samples 40 --num-held-out 100 --transfer seq_len=64 --json predictor.json
    python benchmarks/predictor.py --table stock.json --offline                   # from what was measured before
    python benchmarks/predictor.py --num-samples 12 --num-held-out 8 --seconds-each 0.1 --mlp-steps 50  # a minute

Profiles the space as a search does, into a folder of its own, then times shapes drawn at random that the profile does
not hold, and compares. On the same samples are trained:

    HAT MLP            sizes over their largest, 400 units, 3 hidden layers, Adam (Wang et al., 2020, arXiv 2005.14187)
    AutoTinyBERT MLP   the same with 2,000 units, 12 million weights, and without the number of heads (Yin et al., 2021)
    least squares      on 1, L, LDQ, LDF, LQ, LF (layers, hidden, feed-forward and query widths), errors relative

Both MLPs are trained at the published rate and at one that suits few steps, on latencies over their mean, and get the
better of the two as judged by the held-out shapes: that flatters them. (2,000 steps take some minutes.) ``--num-more``
measures further shapes, and trains the MLPs on these too (HAT took 2,000). Printed for each: median error with a 90 %
bootstrap interval, 95th percentile, share within 10 %, Spearman, and for ours how often its 90 % interval holds the
measured ratio.

``--transfer`` repeats it with fewer samples under other settings, with and without what the first settings taught, on
random subsets: the samples are the extremes first, then random shapes, as a profile has them.

Spaces with narrow layers, and of chains, are predicted too; the others' predictors know only layers that are all alike
and full, and are left out. For chains an operation table is measured as well (nas.devices.operation_table).

``--table FILE`` keeps every measured ratio, key by key, and takes from there what was measured before; with
``--offline`` nothing is measured. ``--transfer-table`` is the same for the other settings.
"""

import argparse
import dataclasses
import json
import random
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from analysis.latency import Conditions
from nas.devices.operation_table import load_or_measure_table
from nas.devices.predictor import LatencyPredictor, Prior, Sample, spearman
from nas.devices.profiling import load_or_measure
from nas.devices.resolve import resolve
from nas.devices.shapes import draw, extremes
from nas.devices.target import Settings, Shape, Target
from nas.progress import choose_progress
from search_spaces.architecture import Architecture, TextSpec
from search_spaces.chain_space import ChainSpace
from search_spaces.presets import load_space
from search_spaces.spaces import Space

KEY = re.compile(r"L(\d+)-D(\d+)-F(\d+)-H(\d+)x(\d+)(?:-E(\d+))?")
PUBLISHED_RATE, QUICK_RATE = 1e-5, 3e-4
Predict = Callable[[Sequence[Architecture]], np.ndarray]


class Table:
    """Measured ratios by architecture, and a target for those that are missing."""

    def __init__(self, path: Path | None, target: Target | None, seconds_each: float) -> None:
        self.path, self.target, self.seconds_each = path, target, seconds_each
        content = json.loads(path.read_text()) if path is not None and path.exists() else {}
        self.ratios = {architecture_of(name): float(ratio) for name, ratio in content.items()}

    def add(self, samples: Sequence[Sample]) -> None:
        self.ratios |= {sample.architecture: sample.ratio for sample in samples}
        if self.path is not None:
            self.path.write_text(json.dumps({name_of(shape): ratio for shape, ratio in self.ratios.items()}, indent=1))

    def of(self, shapes: Sequence[Architecture]) -> np.ndarray:
        """Ratios of shapes; what is missing is timed, eight a process."""
        missing = [shape for shape in shapes if shape not in self.ratios]
        for start in range(0, len(missing), 8):
            assert self.target is not None
            batch = {shape.key(): Shape(shape, TextSpec()) for shape in missing[start : start + 8]}
            latencies = self.target.measure(batch, seconds_each=self.seconds_each, attempts=2)
            self.add([Sample(batch[name].architecture, latency.ratio or 0.0) for name, latency in latencies.items()])
        return np.array([self.ratios[shape] for shape in shapes])


def name_of(shape: Architecture) -> str:
    return shape.key() if is_plain(shape) else shape.to_json()


def is_plain(shape: Architecture) -> bool:
    """Whether layers are all alike and full."""
    return shape.uniform is not None and shape.narrow_from is None


def architecture_of(key: str) -> Architecture:
    if key.startswith("{"):
        return Architecture.from_json(key)
    found = KEY.fullmatch(key)
    if found is None:
        raise SystemExit(f"{key!r} in the table is not the key of an encoder with equal layers")
    layers, hidden, inner, heads, width, embedding = (None if text is None else int(text) for text in found.groups())
    return Architecture.bert(layers, hidden, inner, heads, head_size=width, embedding_size=embedding or hidden)


def sizes(shape: Architecture, *, with_heads: bool) -> list[float]:
    attention, feed_forward = shape.uniform.attention, shape.uniform.feed_forward
    found = [shape.hidden_size, shape.num_layers, feed_forward.intermediate_size, attention.width]
    return [*found, attention.num_heads, shape.embedding_size] if with_heads else found


def mlp(
    shapes: Sequence[Architecture], ratios: np.ndarray, *, units: int, rate: float, steps: int, seed: int
) -> Predict:
    """A published predictor: 4 linear layers of ``units`` behind each other, then one to the latency."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    with_heads = units == 400
    rows = torch.tensor([sizes(shape, with_heads=with_heads) for shape in shapes], dtype=torch.float32)
    most, mean = rows.max(0).values, float(ratios.mean())
    targets = torch.tensor(ratios / mean, dtype=torch.float32)
    layers: list[nn.Module] = [nn.Linear(rows.shape[1], units), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Linear(units, units), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(units, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    for _ in range(steps):
        chosen = torch.randperm(len(rows))[:128]
        loss = nn.functional.mse_loss(net(rows[chosen] / most).squeeze(1), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def predict(asked: Sequence[Architecture]) -> np.ndarray:
        with torch.no_grad():
            given = torch.tensor([sizes(shape, with_heads=with_heads) for shape in asked], dtype=torch.float32)
            return np.asarray(net(given / most).squeeze(1).numpy(), float) * mean

    return predict


def least_squares(shapes: Sequence[Architecture], ratios: np.ndarray) -> Predict:
    def rows(asked: Sequence[Architecture]) -> np.ndarray:
        found = np.array([sizes(shape, with_heads=False) for shape in asked])
        hidden, layers, inner, width = found.T
        return np.stack(
            [
                np.ones(len(asked)),
                layers,
                layers * hidden * width,
                layers * hidden * inner,
                layers * width,
                layers * inner,
            ],
            axis=1,
        )

    given = rows(shapes)
    scale = given.max(axis=0)
    weights = np.linalg.lstsq(given / scale / ratios[:, None], np.ones(len(ratios)), rcond=None)[0]
    return lambda asked: np.asarray(rows(asked) / scale @ weights)


def ours(predictor: LatencyPredictor) -> Predict:
    return lambda shapes: np.array([predictor.predict(shape).ratio for shape in shapes])


def summary(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float | list[float]]:
    errors = np.abs(predicted / measured - 1)
    draws = np.random.default_rng(0).integers(len(errors), size=(2000, len(errors)))

    def interval(statistic: Callable[[np.ndarray], float]) -> list[float]:
        return [float(end) for end in np.quantile([statistic(rows) for rows in draws], (0.05, 0.95))]

    return {
        "median_error": float(np.median(errors)),
        "median_error_90": interval(lambda rows: float(np.median(errors[rows]))),
        "p95_error": float(np.quantile(errors, 0.95)),
        "p95_error_90": interval(lambda rows: float(np.quantile(errors[rows], 0.95))),
        "within_10": float((errors <= 0.1).mean()),
        "spearman": spearman(predicted, measured),
        "spearman_90": interval(lambda rows: spearman(predicted[rows], measured[rows])),
    }


def of_table(space: ChainSpace, target: Target, held_out: Sequence[Architecture], measured: np.ndarray, ask):
    """An operation table's row, and what it says of its own additivity."""
    table = load_or_measure_table(target, space, TextSpec(), progress=choose_progress(), **ask)
    found = np.array([table.predict(shape).ratio for shape in held_out])
    return {
        "samples": len(table.profile.samples),
        **summary(found, measured),
        "coverage_of_90": float((np.maximum(found / measured, measured / found) <= 1 + table.reach).mean()),
        "own_median_error": table.error.median,
        "median_signed_error": float(np.median(measured / found - 1)),
    }


def coverage(predictor: LatencyPredictor, shapes: Sequence[Architecture], measured: np.ndarray) -> float:
    found = ours(predictor)(shapes)
    return float((np.maximum(found / measured, measured / found) <= 1 + predictor.reach).mean())


def compare(
    predictor: LatencyPredictor, table: Table, held_out: Sequence[Architecture], steps: int, seed: int
) -> dict[str, dict[str, object]]:
    """Every predictor on the held-out shapes, trained on the predictor's samples and, the MLPs, on the whole table."""
    measured, rows = table.of(held_out), {}
    rows["ours"] = {
        "samples": len(predictor.samples),
        **summary(ours(predictor)(held_out), measured),
        "coverage_of_90": coverage(predictor, held_out, measured),
        "left_out_median_error": predictor.error.median,
    }
    samples = [sample.architecture for sample in predictor.samples]
    if not all(map(is_plain, (*samples, *held_out))):
        return rows
    rest = [shape for shape in table.ratios if shape not in set(held_out)]
    rows["least squares"] = {
        "samples": len(samples),
        **summary(least_squares(samples, table.of(samples))(held_out), measured),
    }
    for name, units in (("HAT MLP", 400), ("AutoTinyBERT MLP", 2000)):
        for shapes in [samples] + [rest] * (len(rest) > len(samples)):
            started_s, found = time.monotonic(), []
            for rate in (PUBLISHED_RATE, QUICK_RATE):
                predict = mlp(shapes, table.of(shapes), units=units, rate=rate, steps=steps, seed=seed)
                found.append({"samples": len(shapes), "rate": rate, **summary(predict(held_out), measured)})
            best = min(found, key=lambda row: row["median_error"])
            rows[f"{name}, {len(shapes)} samples"] = {**best, "training_s": time.monotonic() - started_s}
    return rows


def transfer(
    prior: Prior,
    corners: Sequence[Architecture],
    others: Sequence[Architecture],
    table: Table,
    conditions: Conditions,
    few: Sequence[int],
    splits: int,
) -> list[dict[str, object]]:
    """Errors with and without a prior, over random choices among the other shapes behind the corners."""
    table.of([*corners, *others])
    rows = []
    for num in few:
        found = []
        for split in range(splits):
            rest = random.Random(split).sample(others, len(others))
            samples = [Sample(shape, table.ratios[shape], shape not in corners) for shape in (*corners, *rest)]
            held_out = rest[max(0, max(few) - len(corners)) :]
            measured = table.of(held_out)
            for priors in ((), (prior,)):
                predictor = LatencyPredictor(samples[:num], conditions, 1.0, priors=priors)
                errors = np.abs(ours(predictor)(held_out) / measured - 1)
                covered = coverage(predictor, held_out, measured)
                found.append([np.median(errors), np.quantile(errors, 0.95), covered, predictor.prior is not None])
        for name, part in (("without", found[::2]), ("with", found[1::2])):
            medians, lasts, covered, used = np.array(part, float).T
            low, high = np.quantile(medians, (0.05, 0.95))
            rows.append(
                {
                    "samples": num,
                    "prior": name,
                    "median_error": float(medians.mean()),
                    "median_error_90": [float(low), float(high)],
                    "p95_error": float(lasts.mean()),
                    "coverage_of_90": float(covered.mean()),
                    "used": float(used.mean()),
                }
            )
    return rows


def drawn(space: Space, num: int, seed: int, known: Sequence[Architecture]) -> list[Architecture]:
    """Random shapes that are not among those known."""
    rng, seen, found = random.Random(seed), set(known), []
    while len(found) < num:
        shape = draw(space, rng)
        if shape not in seen:
            seen.add(shape)
            found.append(shape)
    return found


def from_table(table: Table, space: Space, num: int, seed: int) -> list[Sample]:
    """Samples of a table: the extremes that it holds, then random ones."""
    corners = [shape for shape in extremes(space) if shape in table.ratios][:num]
    rest = [shape for shape in table.ratios if shape not in corners and shape in space]
    others = random.Random(seed).sample(rest, num - len(corners))
    return [Sample(shape, table.ratios[shape], shape in others) for shape in (*corners, *others)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="stock")
    parser.add_argument("--num-samples", type=int, default=40, help="at most 60")
    parser.add_argument("--num-held-out", type=int, default=100)
    parser.add_argument("--num-more", type=int, default=0, help="further shapes to train the MLPs on")
    parser.add_argument("--seconds-each", type=float, default=0.8)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--mlp-steps", type=int, default=2000, help="published: 5000")
    parser.add_argument("--transfer", help="other settings, such as seq_len=64 or precision=int8")
    parser.add_argument("--few", type=int, nargs="+", default=[8, 10, 12, 15, 20, 25])
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--transfer-table", type=Path)
    parser.add_argument("--offline", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not 1 <= options.num_samples <= 60:
        parser.error("--num-samples must be from 1 to 60")
    space, settings = load_space(options.space), Settings(precision=options.precision)
    target = resolve("cpu", settings)
    facts: dict[str, object] = {
        "device": target.description,
        "options": {name: str(value) for name, value in vars(options).items()},
    }
    table = Table(options.table, None if options.offline else target, options.seconds_each)
    if options.offline:
        samples = from_table(table, space, options.num_samples, options.seed)
        predictor = LatencyPredictor(samples, target.conditions, 1.0)
        known = {sample.architecture for sample in samples}
        held_out = [shape for shape in table.ratios if shape not in known and shape in space]
        held_out = random.Random(options.seed).sample(held_out, min(options.num_held_out, len(held_out)))
    else:
        started_s = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            ask = {"cache_dir": Path(folder), "num_samples": options.num_samples, "seconds_each": options.seconds_each}
            predictor = load_or_measure(target, space, TextSpec(), seed=options.seed, progress=choose_progress(), **ask)
            profiled_s = time.monotonic()
            load_or_measure(target, space, TextSpec(), seed=options.seed, **ask)
            facts |= {"profiling_s": profiled_s - started_s, "second_use_s": time.monotonic() - profiled_s}
        table.add(predictor.samples)
        known = {sample.architecture for sample in predictor.samples}
        held_out = drawn(space, options.num_held_out, options.seed + 1000, list(known))
        table.of(held_out)
        table.of(drawn(space, options.num_more, options.seed + 2000, [*known, *held_out]))
    facts["compared"] = compare(predictor, table, held_out, options.mlp_steps, options.seed)
    if isinstance(space, ChainSpace) and not options.offline:
        with tempfile.TemporaryDirectory() as folder:
            ask = {"cache_dir": Path(folder), "seed": options.seed, "seconds_each": options.seconds_each}
            facts["compared"]["operation table"] = of_table(space, target, held_out, table.of(held_out), ask)
    if options.transfer:
        name, _, value = options.transfer.partition("=")
        changed = dataclasses.replace(settings, **{name: value if name == "precision" else int(value)})
        other = resolve("cpu", changed)
        there = Table(options.transfer_table, None if options.offline else other, options.seconds_each)
        corners = extremes(space)
        others = [*held_out, *drawn(space, max(options.few), options.seed + 3000, [*corners, *held_out])]
        if options.offline:
            corners = [shape for shape in corners if shape in there.ratios]
            others = [shape for shape in there.ratios if shape in space and shape not in corners]
        facts["transfer"] = transfer(
            predictor.as_prior(), corners, others, there, other.conditions, options.few, options.splits
        )
    for name in ("profiling_s", "second_use_s"):
        if name in facts:
            print(f"{name} {facts[name]:.1f}")
    print(f"{'predictor':36} {'median':>7} {'90 %':>14} {'p95':>7} {'in 10 %':>8} {'Spearman':>9} {'coverage':>9}")
    for name, row in facts["compared"].items():
        low, high = row["median_error_90"]
        covered = f"{row['coverage_of_90']:.0%}" if "coverage_of_90" in row else ""
        print(
            f"{name:36} {row['median_error']:7.2%} {f'{low:.2%}..{high:.2%}':>14} {row['p95_error']:7.1%} "
            f"{row['within_10']:8.0%} {row['spearman']:9.4f} {covered:>9}"
        )
    for row in facts.get("transfer", []):
        low, high = row["median_error_90"]
        print(
            f"{row['samples']:3} samples, {row['prior']:7} prior: median error {row['median_error']:.2%} "
            f"[{low:.2%}, {high:.2%}], p95 {row['p95_error']:.1%}, coverage {row['coverage_of_90']:.0%}, "
            f"used {row['used']:.0%}"
        )
    if options.json:
        options.json.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
