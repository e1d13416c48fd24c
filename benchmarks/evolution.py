"""AutoTinyBERT's evolution beside our search with equal evaluations, and fine-tuning beside inherited quality.

    python benchmarks/evolution.py [--supernet DIR] [--seeds 5] [--evaluations 80] [--use 0.4] [--qualities FILE]
                                   [--samplers tpe evolution ...] [--task FILE --epochs 3] [--json FILE]

Quality is that of the supernet's own subnets, really evaluated (``--qualities`` keeps them between runs); latency is a
cost model, time for the multiply-accumulates and for every layer, so that no clock decides. The budget is a share
(``--use``) of what the largest shape takes. Every sampler has the same seeds. Reported, as means over seeds with the
spread: the best quality within the budget, and the share of the hypervolume that all runs together cover below it.

With ``--task`` one candidate, the best that any run found, is fine-tuned on it for so many epochs and judged on its
validation split, as AutoTinyBERT does for every candidate (on MNLI and SQuAD, together 150 V100-hours), and the time of
that is set beside the time of an inherited quality.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import optuna
import torch

from analysis.goal import Goal
from analysis.latency import Conditions, Latency, predicted
from analysis.pareto import hypervolume, quality_and_latency
from analysis.trial import Trial
from nas.search.objective import SearchProblem
from nas.search.optuna_engine import run_in_process
from nas.search.store import TrialStore, sqlite_url
from search_spaces.architecture import Architecture
from search_spaces.cost import num_macs
from supernet.checkpoint import LoadedSupernet, load_supernet
from supernet.evaluate import TeacherAgreement

CONDITIONS = Conditions("cpu", "cost model", "arithmetic")
SAMPLERS = ("random", "most-parameters", "evolution", "evolution-fast", "tpe")


def cost_model(architecture: Architecture) -> Latency:
    time_s = num_macs(architecture, CONDITIONS.seq_len) / 4e10 + 1e-4 * architecture.num_layers
    return predicted(CONDITIONS, time_s, time_s * 0.98, time_s * 1.02)


class Qualities:
    """Inherited qualities, each evaluated once, and the seconds that takes."""

    def __init__(self, loaded: LoadedSupernet, path: Path | None) -> None:
        self._judge, self._path, self.seconds = TeacherAgreement(loaded), path, []
        self.known = json.loads(path.read_text()) if path is not None and path.exists() else {}

    def __call__(self, architecture: Architecture) -> float:
        key = architecture.key()
        if key not in self.known:
            began_s = time.perf_counter()
            self.known[key] = self._judge(architecture)
            self.seconds.append(time.perf_counter() - began_s)
        return self.known[key]

    def save(self) -> None:
        if self._path is not None:
            self._path.write_text(json.dumps(self.known))


def search(problem: SearchProblem, sampler: str, seed: int, evaluations: int) -> list[Trial]:
    with (
        tempfile.TemporaryDirectory() as folder,
        TrialStore.create(sqlite_url(Path(folder) / "study.db"), "search") as store,
    ):
        run_in_process(problem, store, sampler=sampler, seed=seed, num_evaluations=evaluations)
        return [record for record in store.records() if isinstance(record, Trial)]


def fine_tune(loaded: LoadedSupernet, architecture: Architecture, source: str, epochs: float) -> dict[str, float]:
    """Fine-tunes one candidate as a search without inherited quality would have to; returns what it took."""
    from transformers import AutoTokenizer

    from supernet.adapt import AdaptConfig, adapt, task_to_adapt
    from supernet.evaluate import task_quality
    from supernet.inherit import space_of

    tokenizer = AutoTokenizer.from_pretrained(loaded.tokenizer_dir)
    task = task_to_adapt(source, tokenizer, loaded.text, AdaptConfig())
    steps = max(1, round(epochs * len(task.train) / AdaptConfig.batch_size))
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        adapt(loaded, task, Path(folder) / "tuned", AdaptConfig(steps=steps), space=space_of(architecture))
        accuracy = task_quality(Path(folder) / "tuned")(architecture)
    return {
        "steps": steps,
        "rows": len(task.train),
        "accuracy": accuracy,
        "seconds": time.perf_counter() - began_s,
    }


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} +- {deviation:.4f} ({min(values):.4f} to {max(values):.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--supernet", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=80)
    parser.add_argument("--use", type=float, default=0.4)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    parser.add_argument("--qualities", type=Path)
    parser.add_argument("--task")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    loaded = load_supernet(arguments.supernet)
    budget_s = arguments.use * cost_model(loaded.space.largest()).p50_s
    goal = Goal("cpu T128", "a cost model", CONDITIONS, budget_s)
    qualities = Qualities(loaded, arguments.qualities)
    problem = SearchProblem(
        loaded.space, loaded.text, lambda shape: (cost_model(shape),), lambda: qualities, (goal,)
    ).restricted()
    print(f"command: {' '.join(sys.argv)}")
    print(f"python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, one thread")
    print(
        f"{loaded.space.size} shapes, budget {budget_s * 1e3:.2f} ms of the model, {arguments.evaluations} evaluations"
    )
    runs: dict[str, list[list[Trial]]] = {}
    for sampler in arguments.samplers:
        runs[sampler] = [search(problem, sampler, seed, arguments.evaluations) for seed in range(arguments.seeds)]
        qualities.save()
        print(f"{sampler}: searched", file=sys.stderr, flush=True)
    found = report(runs, budget_s)
    best = max((t for trials in runs.values() for one in trials for t in one), key=lambda t: score(t, budget_s))
    if qualities.seconds:
        found["seconds of an inherited quality"] = statistics.median(qualities.seconds)
        print(f"inherited quality: {statistics.median(qualities.seconds):.3f} s a candidate (median)")
    if arguments.task:
        found["fine-tuning"] = fine_tune(loaded, best.architecture, arguments.task, arguments.epochs)
        compare_times(best, found["fine-tuning"], qualities.seconds, arguments.epochs)
    if arguments.json:
        arguments.json.write_text(json.dumps({"arguments": sys.argv[1:], **found}, indent=1))


def score(trial: Trial, budget_s: float) -> float:
    return trial.quality if trial.latency.p50_s <= budget_s else -1.0


def report(runs: dict[str, list[list[Trial]]], budget_s: float) -> dict[str, object]:
    everything = [trial for trials in runs.values() for one in trials for trial in one]
    reference = (min(trial.quality for trial in everything), budget_s)
    whole = hypervolume(quality_and_latency(everything), reference)
    found: dict[str, object] = {}
    shares = {
        name: [hypervolume(quality_and_latency(one), reference) / whole for one in trials]
        for name, trials in runs.items()
    }
    for name, trials in runs.items():
        best = [max(score(trial, budget_s) for trial in one) for one in trials]
        found[name] = {"best": best, "hypervolume": shares[name], "evaluated": [len(one) for one in trials]}
        over = ""
        if "evolution" in shares and name != "evolution":
            gains = [ours - theirs for ours, theirs in zip(shares[name], shares["evolution"], strict=True)]
            over = f"; over evolution {statistics.mean(gains):+.4f} ({min(gains):+.4f} to {max(gains):+.4f})"
        print(f"{name:>15}: best {spread(best)}; hypervolume {spread(shares[name])}{over}")
    return found


def compare_times(best: Trial, tuned: dict[str, float], seconds: list[float], epochs: float) -> None:
    print(
        f"fine-tuning {best.key}: {tuned['seconds']:.0f} s for {epochs:g} epochs of {tuned['rows']} texts "
        f"({tuned['steps']} steps), accuracy {tuned['accuracy']:.3f}"
    )
    if seconds:
        print(f"that is {tuned['seconds'] / statistics.median(seconds):,.0f} times an inherited quality")


if __name__ == "__main__":
    main()
