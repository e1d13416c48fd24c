"""Kill -9 at random moments of a search and of a training, resume, and compare with the run that was left alone.

    python benchmarks/kill_resume.py --corpus FILE --teacher DIR [--kills 10] [--evaluations 40] [--steps 30] [--seed 0]

The search is the shipped supernet's, with ``--evaluations`` fixed and the predictor's profile at hand, so that both
runs are steered alike. Compared are the stored trials (architecture and quality, in order) and the loss curves.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna


def nas(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nas.cli.main", *arguments, "--quiet"]


def run_with_kills(first: list[str], again: list[str], has_begun, kills: int, span_s: float, rng) -> list[float]:
    """Starts a command, kills it ``kills`` times at random moments after it left something, then lets it end."""
    moments, command = [], first
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        began = time.monotonic()
        while not has_begun() and process.poll() is None:
            time.sleep(0.05)
        wait_s = rng.uniform(0, span_s)
        try:
            process.wait(timeout=wait_s)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            moments.append(time.monotonic() - began)
        command = again
    done = subprocess.run(again, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the resumed run ended with {done.returncode}: {done.stderr}")
    return moments


def trials(run: Path) -> list[tuple[str, float]]:
    storage = f"sqlite:///{run / 'study.db'}"
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    return [(json.dumps(trial.params, sort_keys=True), trial.values[0]) for trial in study.trials if trial.values]


def curve(folder: Path) -> list[dict]:
    lines = (folder / "training" / "curve.jsonl").read_text().splitlines()
    return [{key: json.loads(line)[key] for key in ("step", "losses", "held_out")} for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("search", "training"), default=None)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rng, folder = random.Random(arguments.seed), Path(tempfile.mkdtemp(prefix="nas-kill-"))

    if arguments.only != "training":
        search = ["search", "--latency-ms", "5", "--evaluations", str(arguments.evaluations), "--out"]
        alone, killed = folder / "alone", folder / "killed"
        began = time.monotonic()
        subprocess.run(nas(*search, str(alone)), check=True, stdout=subprocess.DEVNULL)
        span_s = time.monotonic() - began
        killed.mkdir()
        shutil.copytree(
            alone, killed, dirs_exist_ok=True, ignore=shutil.ignore_patterns("study.db*", "model", "report*")
        )
        facts = json.loads((killed / "run.json").read_text())
        for name in ("conclusion", "study_name"):
            facts.pop(name, None)
        (killed / "run.json").write_text(json.dumps(facts))  # same request and predictor, no trial yet
        again = nas("search", "--resume", str(killed))
        moments = run_with_kills(again, again, (killed / "study.db").exists, arguments.kills, span_s / 3, rng)
        expected, found = trials(alone), trials(killed)
        print(f"search: killed {len(moments)} times after {', '.join(f'{moment:.1f}' for moment in moments)} s")
        print(f"  {len(found)} trials, the uninterrupted run {len(expected)}; equal: {found == expected}")
        print(f"  repeated: {len(found) - len({params for params, _ in found})}")

    if arguments.only != "search":
        train = ["train", "--corpus", arguments.corpus, "--teacher", arguments.teacher, "--steps", str(arguments.steps)]
        train += ["--batch-size", "8", "--seq-len", "32", "--out"]
        alone, killed = folder / "trained-alone", folder / "trained-killed"
        began = time.monotonic()
        subprocess.run(nas(*train, str(alone)), check=True, stdout=subprocess.DEVNULL)
        span_s = time.monotonic() - began
        again = nas(*train, str(killed), "--resume")
        moments = run_with_kills(
            nas(*train, str(killed)),
            again,
            (killed / "training" / "latest").exists,
            arguments.kills,
            span_s / 3,
            rng,
        )
        print(f"training: killed {len(moments)} times after {', '.join(f'{moment:.1f}' for moment in moments)} s")
        print(f"  {len(curve(killed))} steps, the uninterrupted run {len(curve(alone))}; ", end="")
        print(f"same loss curve: {curve(killed) == curve(alone)}")


if __name__ == "__main__":
    main()
