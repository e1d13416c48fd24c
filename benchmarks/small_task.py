"""The tasks of the benchmarks, smaller ones of the same rows for machines with less time, and how well models do."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
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

    Sentences to judge with a tag that no training row has are left out, as no model could learn it.

    Args:
        name: As in ``NAS_DATA/tasks``.
        work: Where the smaller file is kept.
        train_rows: Most rows of the training split, every class and tag among them.
        judged_rows: Most rows of the validation and of the test split.
    """
    source = DATA / "tasks" / f"{name}.parquet"
    table = pd.read_parquet(source)
    is_tagged = isinstance(table["label"].iloc[0], np.ndarray)
    if train_rows is None and judged_rows is None and not is_tagged:
        return source
    limits = dict(zip(("train", "validation", "test"), (train_rows, *(judged_rows or (None, None))), strict=True))
    path = work / ("-".join([name, *(str(rows or "all") for rows in limits.values())]) + ".parquet")
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        table = pd.concat([_some(table[table["split"] == split], rows) for split, rows in limits.items()])
        if is_tagged:
            learnt = {tag for tags in table["label"][table["split"] == "train"] for tag in tags}
            table = table[[learnt.issuperset(tags) for tags in table["label"]]]
        table.to_parquet(path)
    return path


def _some(table: pd.DataFrame, num_rows: int | None) -> pd.DataFrame:
    """So many rows at random, one of each class or tag among them where the labels are such."""
    if num_rows is None:
        return table
    mixed = table.sample(frac=1, random_state=0)
    first = pd.Series(list(_are_new(mixed["label"])), index=mixed.index)
    if first.sum() > MOST_CLASSES:
        return mixed.head(num_rows)
    rest = max(0, num_rows - int(first.sum()))
    return mixed[first | ((~first).cumsum() <= rest)]


def _are_new(labels: Iterable[Any]) -> Iterator[bool]:
    """For each label whether it, or a tag of it, has not been seen before."""
    seen: set[Any] = set()
    for label in labels:
        own = set(label) if isinstance(label, np.ndarray) else {label}
        yield not own <= seen
        seen |= own


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
