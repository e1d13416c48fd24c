"""The tasks of the benchmarks, smaller ones of the same rows for machines with less time, and how well models do."""

import json
import os
from pathlib import Path

import pandas as pd

from nas.finish.evaluation import OnnxRun, evaluate
from nas.finish.model import load_task_model
from supernet.task import load_split
from supernet.task_spec import TaskOptions

DATA = Path(os.environ.get("NAS_DATA", "../shared/data"))
MOST_CLASSES = 64


def task_file(
    name: str, work: Path, *, train_rows: int | None = None, judged_rows: tuple[int, int] | None = None
) -> Path:
    """A task's file, or one in ``work`` with fewer rows, drawn once and the same for everybody who asks.

    Args:
        name: As in ``NAS_DATA/tasks``.
        work: Where the smaller file is kept.
        train_rows: Most rows of the training split, every class among them.
        judged_rows: Most rows of the validation and of the test split.
    """
    source = DATA / "tasks" / f"{name}.parquet"
    if train_rows is None and judged_rows is None:
        return source
    limits = dict(zip(("train", "validation", "test"), (train_rows, *(judged_rows or (None, None))), strict=True))
    path = work / ("-".join([name, *(str(rows or "all") for rows in limits.values())]) + ".parquet")
    if not path.exists():
        table = pd.read_parquet(source)
        work.mkdir(parents=True, exist_ok=True)
        pd.concat([_some(table[table["split"] == split], rows) for split, rows in limits.items()]).to_parquet(path)
    return path


def _some(table: pd.DataFrame, num_rows: int | None) -> pd.DataFrame:
    """So many rows at random, one of each class among them where the labels are classes."""
    if num_rows is None:
        return table
    mixed = table.sample(frac=1, random_state=0)
    first = ~mixed["label"].astype(str).duplicated()
    if first.sum() > MOST_CLASSES:
        return mixed.head(num_rows)
    rest = max(0, num_rows - int(first.sum()))
    return mixed[first | ((~first).cumsum() <= rest)]


def figures(folder: Path, task: Path) -> dict[str, float]:
    """A fine-tuned model's usual figure on the test split: ``float32`` as fine-tuning found it, ``int8`` of its file.

    The second is asked once and kept beside the folder.
    """
    summary = json.loads((folder / "finetune.json").read_text())
    metric = summary["config"]["metric"]
    return {"float32": summary["test"][metric], "int8": int8_scores(folder, task)[metric]}


def int8_scores(folder: Path, task: Path) -> dict[str, float]:
    """Every figure of a model's int8 file on the test split; asked once and kept beside the folder."""
    kept = folder.with_name(f"{folder.name}.int8.json")
    if not kept.exists():
        model = load_task_model(folder)
        _, test = load_split(str(task), "test", model.tokenizer, TaskOptions(), text=model.text, expected=model.spec)
        kept.write_text(json.dumps(evaluate(OnnxRun(folder / "model.int8.onnx"), model.spec, test).scores))
    return json.loads(kept.read_text())
