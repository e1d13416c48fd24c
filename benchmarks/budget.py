"""Whole searches over several budgets: does each chosen model keep its budget when another tool times it?

    python benchmarks/budget.py [--searches 20] [--evaluations 40] [--folder DIR] [--search-args ...]

Every search is ``nas search --latency-ms B --json`` in a process of its own; the predictor's profile is measured by
the first and reused by the others. The chosen model.onnx is then timed by a plain ONNX Runtime loop by the wall clock
in another, unpinned process. Printed: wall time of every search, how many medians keep the budget, how much of it
they use.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from honesty import independent_median_s

BUDGETS_MS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--independent-seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="nas-budget-"))
    rows = []
    for number in range(arguments.searches):
        budget_ms = BUDGETS_MS[number % len(BUDGETS_MS)]
        command = [sys.executable, "-m", "nas.cli.main", "search", "--latency-ms", str(budget_ms), "--device", "cpu"]
        command += ["--evaluations", str(arguments.evaluations), "--seed", str(number), "--json", "--quiet"]
        started = time.monotonic()
        done = subprocess.run(
            [*command, "--out", str(folder / f"run-{number}")], capture_output=True, text=True, check=False
        )
        wall_s = time.monotonic() - started
        if done.returncode != 0:
            print(f"search {number}, {budget_ms} ms: exit {done.returncode}: {done.stderr.strip()[-300:]}", flush=True)
            rows.append({"budget_ms": budget_ms, "exit": done.returncode, "wall_s": wall_s})
            continue
        chosen = json.loads(done.stdout)["chosen"]
        own = chosen["latency"]
        seconds = independent_median_s(Path(chosen["model_dir"]) / "model.onnx", arguments.independent_seconds)
        rows.append({"budget_ms": budget_ms, "exit": 0, "wall_s": wall_s, "share": seconds * 1e3 / budget_ms})
        print(
            f"search {number}, {budget_ms} ms: {chosen['key']} quality {chosen['quality']:.3f}, own p50 "
            f"{own['p50_ms']:.2f} [{own['low_ms']:.2f}, {own['high_ms']:.2f}] {own['verdict']}, "
            f"independent {seconds * 1e3:.2f} ms ({seconds * 1e5 / budget_ms:.0f} %), {wall_s:.0f} s",
            flush=True,
        )
    shares = np.array([row["share"] for row in rows if row["exit"] == 0])
    walls = np.array([row["wall_s"] for row in rows])
    print(f"{(shares <= 1).sum()} of {len(shares)} chosen models keep the budget; {len(rows) - len(shares)} undecided")
    quartiles = np.percentile(shares, [0, 25, 50, 75, 100]) * 100
    print("share of the budget used: " + ", ".join(f"{value:.0f} %" for value in quartiles) + " (min, quartiles, max)")
    print(
        f"wall time: first {walls[0]:.0f} s, others median {np.median(walls[1:]):.0f} s, most {walls[1:].max():.0f} s"
    )


if __name__ == "__main__":
    main()
