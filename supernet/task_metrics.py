"""How good answers are: figures that fit the task. All but errors of numbers are better when larger.

| task | figures |
|---|---|
| classification | accuracy, f1 (of the second of two labels, else the mean over labels), mcc |
| regression | pearson, spearman, and the errors rmse and mae |
| tagging, labels like B-PER | entity_f1, entity_precision, entity_recall, token_accuracy |
| tagging, plain labels | token_accuracy, f1 (the mean over labels) |
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from search_spaces.errors import unknown_name
from supernet.task_spec import TaskSpec

Labels = NDArray[np.int64]
ERRORS = ("rmse", "mae")
_PREFIXES = frozenset("BIES")


def metrics_of(spec: TaskSpec) -> tuple[str, ...]:
    """The figures of a task, the usual one first; errors, which are better when smaller, left out."""
    if spec.kind == "classification":
        return ("accuracy", "f1", "mcc")
    if spec.kind == "regression":
        return ("pearson", "spearman")
    return ("entity_f1", "token_accuracy") if are_entity_tags(spec.labels) else ("token_accuracy", "f1")


def choose_metric(spec: TaskSpec, named: str | None) -> str:
    """The figure that chooses the best weights.

    Raises:
        InvalidInputError: The one that was named is not one of the task's.
    """
    known = metrics_of(spec)
    if named is not None and named not in known:
        raise unknown_name(f"metric of a {spec.kind} task", named, known)
    return named or known[0]


def score(spec: TaskSpec, answers: Sequence[Any], labels: Sequence[Any]) -> dict[str, float]:
    """The figures of a task.

    Args:
        spec: What was asked.
        answers: A class, a number, or the classes of the words; for each text.
        labels: What is right, alike.
    """
    if spec.kind == "regression":
        return _of_numbers(np.asarray(answers, np.float64), np.asarray(labels, np.float64))
    if spec.kind == "classification":
        return _of_classes(np.asarray(answers), np.asarray(labels), len(spec.labels))
    flat, right = (np.concatenate([np.asarray(one) for one in side]) for side in (answers, labels))
    accuracy = {"token_accuracy": float((flat == right).mean())}
    if not are_entity_tags(spec.labels):
        return accuracy | {"f1": _f1(confusion(flat, right, len(spec.labels)))}
    named = ([[spec.labels[tag] for tag in tags] for tags in side] for side in (answers, labels))
    return entity_scores(*named) | accuracy


def confusion(answers: Labels, labels: Labels, num_labels: int) -> NDArray[np.int64]:
    """How often each label (rows) was answered by each (columns): (C, C)."""
    counts = np.bincount(labels * num_labels + answers, minlength=num_labels**2)
    return counts.reshape(num_labels, num_labels)


def _of_classes(answers: Labels, labels: Labels, num_labels: int) -> dict[str, float]:
    counts = confusion(answers, labels, num_labels)
    return {"accuracy": float(np.trace(counts) / counts.sum()), "f1": _f1(counts), "mcc": _mcc(counts)}


def _f1(counts: NDArray[np.int64]) -> float:
    """F1 of the second of two labels, else the mean over the labels that occur; 0 where nothing was found."""
    right, total = np.diag(counts).astype(float), (counts.sum(0) + counts.sum(1)).astype(float)
    each = np.divide(2 * right, total, out=np.zeros_like(right), where=total > 0)
    return float(each[1]) if len(counts) == 2 else float(each[total > 0].mean())


def _mcc(counts: NDArray[np.int64]) -> float:
    """Matthews' correlation for any number of labels (Gorodkin, 2004); 0 where one side is constant."""
    answered, true = counts.sum(0).astype(float), counts.sum(1).astype(float)
    total, right = counts.sum(), np.trace(counts)
    spread = (total**2 - answered @ answered) * (total**2 - true @ true)
    return float((right * total - answered @ true) / np.sqrt(spread)) if spread > 0 else 0.0


def _of_numbers(answers: NDArray[np.float64], labels: NDArray[np.float64]) -> dict[str, float]:
    """Correlations, 0 where one side is constant, and errors."""
    is_constant = np.ptp(answers) == 0 or np.ptp(labels) == 0
    return {
        "pearson": 0.0 if is_constant else float(np.corrcoef(answers, labels)[0, 1]),
        "spearman": 0.0 if is_constant else float(stats.spearmanr(answers, labels).statistic),
        "rmse": float(np.sqrt(np.mean((answers - labels) ** 2))),
        "mae": float(np.abs(answers - labels).mean()),
    }


def are_entity_tags(labels: Sequence[str]) -> bool:
    """Whether labels mark spans: ``O`` and ``B-PER``, ``I-PER``, perhaps ``E-`` and ``S-``."""
    marked = [label for label in labels if label != "O"]
    return bool(marked) and all(label[:1] in _PREFIXES and label[1:2] == "-" and label[2:] for label in marked)


def entity_scores(answers: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole entities: span and kind must be right.

    The rules are those of the CoNLL-2000 evaluation, which seqeval (Nakayama, 2018) follows by default: an ``I-`` that
    continues nothing begins an entity.
    """
    found, true = (
        {(row, *span) for row, tags in enumerate(side) for span in entities(tags)} for side in (answers, labels)
    )
    right = len(found & true)
    precision, recall = right / len(found) if found else 0.0, right / len(true) if true else 0.0
    f1 = 2 * right / (len(found) + len(true)) if found or true else 0.0
    return {"entity_f1": f1, "entity_precision": precision, "entity_recall": recall}


def entities(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Yields kind, first and last word of each entity of a sentence."""
    start, before, kind_before = 0, "O", ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        if before != "O" and (prefix in ("B", "S", "O") or before in ("E", "S") or kind != kind_before):
            yield kind_before, start, place - 1
            before = "O"
        if prefix != "O" and before == "O":
            start = place
        before, kind_before = prefix, kind
