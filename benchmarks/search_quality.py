"""How near each sampler comes to the true front: a space of 1,872 shapes, 150 evaluations, beside random search.

    python benchmarks/search_quality.py --seeds 10 --json search_quality.json

The space is small enough to evaluate whole, so the true front is known. Quality is by default a smooth function of the
shape with interactions (depth against width, an ideal feed-forward share, a floor for narrow embeddings) and a little
roughness; ``--table`` takes measured qualities instead: a JSON object from architecture key to quality, or to
``{"quality": ..., "latency_s": ...}``. Latency is a cost model by default: time for the multiply-accumulates and for
every layer. Reported is the share of the true front's hypervolume, mean over seeds with a 95 % interval, and the paired
difference to random search with the same seeds. Reference: the lowest quality and the longest latency of the space.
"""

import argparse
import hashlib
import json
import math
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna

from analysis.goal import Goal
from analysis.latency import Conditions, Latency, predicted
from analysis.pareto import hypervolume, non_dominated, quality_and_latency
from analysis.trial import Trial
from nas.search.objective import SearchProblem
from nas.search.optuna_engine import run_in_process
from nas.search.samplers import SAMPLERS
from nas.search.store import TrialStore, sqlite_url
from search_spaces.architecture import Architecture, TextSpec
from search_spaces.cost import num_macs
from search_spaces.space import SearchSpace
from search_spaces.spaces import space_from_toml

SPACE = SearchSpace(
    "enumerable",
    num_layers=(1, 2, 3, 4, 5, 6),
    hidden_size=tuple(range(128, 385, 32)),
    intermediate_size=tuple(range(128, 1537, 128)),
    head_size=(32,),
    embedding_size=(64, 128, 0),
)
CONDITIONS = Conditions("cpu", "cost model", "arithmetic")
GOAL = Goal("cpu T128", "a cost model", CONDITIONS)


def synthetic_quality(architecture: Architecture) -> float:
    layers = architecture.uniform
    assert layers is not None
    depth, hidden, wide = layers.num_layers, architecture.hidden_size, layers.feed_forward.intermediate_size
    capacity = 1 - math.exp(-0.55 * depth * (hidden / 256) ** 0.7)
    share = math.exp(-0.12 * math.log(wide / (1.8 * hidden)) ** 2)  # AutoTinyBERT's best shapes: F near 1.6 to 1.9 D
    table = 1 - 0.25 * math.exp(-architecture.embedding_size / 60) * (hidden / 384)
    rough = int(hashlib.sha256(architecture.key().encode()).hexdigest()[:8], 16) / 2**32 - 0.5
    return 0.95 * capacity * share * table + 0.01 * rough


def cost_model(architecture: Architecture) -> float:
    slowness = 1.15 if architecture.hidden_size % 64 else 1.0  # half-filled tiles
    return num_macs(architecture, CONDITIONS.seq_len) * slowness / 4e10 + 1e-4 * architecture.num_layers


def read_table(path: Path) -> tuple[dict[str, float], dict[str, float]]:
    entries = json.loads(path.read_text())
    qualities = {key: entry["quality"] if isinstance(entry, dict) else entry for key, entry in entries.items()}
    latencies = {key: entry["latency_s"] for key, entry in entries.items() if isinstance(entry, dict)}
    return qualities, latencies


class Landscape:
    """Quality and latency of every shape of the space."""

    def __init__(self, space: SearchSpace, table: Path | None) -> None:
        self.space = space
        qualities, latencies = ({}, {}) if table is None else read_table(table)
        self.quality = {a: qualities[a.key()] if table else synthetic_quality(a) for a in space.enumerate()}
        self.latency_s = {a: latencies.get(a.key()) or cost_model(a) for a in self.quality}
        self.points = [(self.quality[a], self.latency_s[a]) for a in self.quality]
        self.reference = (min(self.quality.values()), max(self.latency_s.values()))
        self.whole = hypervolume(self.points, self.reference)

    def predict(self, architecture: Architecture) -> tuple[Latency]:
        time_s = self.latency_s[architecture]
        return (predicted(CONDITIONS, time_s, time_s * 0.98, time_s * 1.02),)

    def share(self, sampler: str, seed: int, evaluations: int) -> float:
        problem = SearchProblem(self.space, TextSpec(), self.predict, lambda: self.quality.__getitem__, (GOAL,))
        with (
            tempfile.TemporaryDirectory() as folder,
            TrialStore.create(sqlite_url(Path(folder) / "study.db"), "search") as store,
        ):
            run_in_process(problem, store, sampler=sampler, seed=seed, num_evaluations=evaluations)
            trials = [record for record in store.records() if isinstance(record, Trial)]
        assert len(trials) == evaluations or sampler == "evolution-fast"  # whose rule may be used up
        return hypervolume(quality_and_latency(trials), self.reference) / self.whole


def interval(values: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    draws = np.random.default_rng(0).choice(values, (10_000, len(values)))
    low, high = np.quantile(draws.mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=150)
    names = [name for name in SAMPLERS if name != "w-pca"]  # which runs encoders, and there are none here
    parser.add_argument("--samplers", nargs="+", default=names, choices=names)
    parser.add_argument("--table", type=Path, help="measured qualities by architecture key")
    parser.add_argument("--space", type=Path, help="TOML file of the space that --table holds")
    parser.add_argument("--json", type=Path, help="raw numbers")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = SPACE if arguments.space is None else space_from_toml(arguments.space)
    landscape = Landscape(space, arguments.table)
    print(f"command: {' '.join(sys.argv)}")
    print(
        f"python {platform.python_version()}, optuna {optuna.__version__}, {platform.processor() or platform.machine()}"
    )
    print(
        f"space of {space.size} shapes, {len(non_dominated(landscape.points))} on the true front; "
        f"{arguments.evaluations} evaluations, {arguments.seeds} seeds"
    )
    shares: dict[str, list[float]] = {}
    names = ["random", *(name for name in arguments.samplers if name != "random")]
    for name in names:
        began_s = time.perf_counter()
        shares[name] = [landscape.share(name, seed, arguments.evaluations) for seed in range(arguments.seeds)]
        taken_ms = (time.perf_counter() - began_s) * 1e3 / (arguments.seeds * arguments.evaluations)
        low, high = interval(shares[name])
        line = f"{name:>10}: {statistics.mean(shares[name]):.4f} [{low:.4f}, {high:.4f}], worst {min(shares[name]):.4f}"
        if name != "random":
            gains = [ours - theirs for ours, theirs in zip(shares[name], shares["random"], strict=True)]
            low, high = interval(gains)
            line += f"; over random {statistics.mean(gains):+.4f} [{low:+.4f}, {high:+.4f}]"
        print(f"{line}; {taken_ms:.0f} ms a trial", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"arguments": sys.argv[1:], "shares": shares}, indent=1))


if __name__ == "__main__":
    main()
