"""Reading a task: whatever ``datasets`` opens, its columns found or named, its labels checked before anything starts.

A source is a file (csv, tsv, json, jsonl, parquet, compressed or not), a folder with a file or folder for each split,
or a hub id; one table with a column ``split`` holds all splits. What is asked follows from the labels: lists are tags
of words, numbers with fractions are a regression, everything else names classes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from search_spaces.architecture import TextSpec
from search_spaces.errors import InvalidInputError, shown
from supernet.examples import Examples, encode_texts, encode_words
from supernet.task_rows import Rows, read_rows, split_name
from supernet.task_spec import Kind, TaskOptions, TaskSpec

MIN_TRAIN, MIN_VALIDATION = 8, 4
HELD_OUT_EVERY = 5


@dataclass(frozen=True)
class Task:
    """A task, tokenised for one model.

    Attributes:
        name: The file or hub id.
        spec: What is asked.
        train: What is learnt from.
        validation: What is chosen by; never learnt from.
        test: What final figures are taken on; None where the data has none.
    """

    name: str
    spec: TaskSpec
    train: Examples
    validation: Examples
    test: Examples | None

    @property
    def label_scale(self) -> tuple[float, float]:
        """Mean and standard deviation of the training numbers of a regression; 0 and 1 of other tasks."""
        if self.spec.kind != "regression":
            return 0.0, 1.0
        numbers = np.asarray(self.train.labels, np.float64)
        return float(numbers.mean()), float(numbers.std()) or 1.0

    def digest(self) -> str:
        """A stable name of what is learnt and chosen by: texts, as the model reads them, and labels."""
        data = [[part.input_ids, list(part.labels)] for part in (self.train, self.validation)]
        return hashlib.sha256(json.dumps(data).encode()).hexdigest()

    def split(self, name: str) -> Examples:
        """A split by its name.

        Raises:
            InvalidInputError: The task has no such split.
        """
        found = {"train": self.train, "validation": self.validation, "test": self.test}.get(name)
        if found is None:
            raise InvalidInputError(f"task {self.name!r} has no split {name!r}; give train, validation or test")
        return found


@dataclass(frozen=True)
class TaskTexts:
    """A task as it stands in the data, before a tokenizer.

    Attributes:
        kind: What is asked.
        labels: Names of the training labels in the order of their classes; empty for a number.
        is_pair: Whether a text is two texts.
        train: What is learnt from.
        validation: What is chosen by; never learnt from.
        test: What final figures are taken on; None where the data has none with labels.
    """

    kind: Kind
    labels: tuple[str, ...]
    is_pair: bool
    train: Rows
    validation: Rows
    test: Rows | None

    def spec(self, max_tokens: int, *, is_cut: bool) -> TaskSpec:
        """What a model is asked whose longest text has so many tokens.

        Raises:
            InvalidInputError: There are too few labels, or too many.
        """
        return TaskSpec(self.kind, self.labels, self.is_pair, max_tokens, is_cut=is_cut)


def load_task(
    source: str,
    tokenizer: Any,
    options: TaskOptions,
    *,
    text: TextSpec,
    expected: TaskSpec | None = None,
) -> Task:
    """Reads a task to train on.

    Splits are taken from the data; where there is no validation split, every fifth training row is held out for it.

    Args:
        source: A file, folder or hub id.
        tokenizer: The model's Hugging Face fast tokenizer.
        options: What is named rather than found.
        text: What the model reads.
        expected: What the model answers, where it has a head already; the task must ask just that.

    Raises:
        InvalidInputError: Columns or labels are missing, a label outside the training split is new, the labels are not
            what the task says, a pair is given to a model of single texts, or a text is beyond the model's limit.
    """
    texts = read_task(source, options if expected is None else replace(options, kind=expected.kind))
    max_tokens, is_cut = _max_tokens(options, text), options.seq_len is not None
    if expected is None:
        spec = texts.spec(max_tokens, is_cut=is_cut)
    else:
        spec = replace(expected, is_pair=texts.is_pair if expected.is_pair is None else expected.is_pair)
    train, validation, test = (
        None if rows is None else encode(rows, spec, tokenizer, text, source)
        for rows in (texts.train, texts.validation, texts.test)
    )
    assert train is not None
    assert validation is not None
    return Task(source, spec, train, validation, test)


def read_task(source: str, options: TaskOptions) -> TaskTexts:
    """Reads a task to train on as it stands in the data, before a tokenizer.

    Args:
        source: A file, folder or hub id.
        options: What is named rather than found.

    Raises:
        InvalidInputError: Columns or labels are missing, the labels are not what the task says, or there are too few.
    """
    splits = {rows.split: rows for rows in read_rows(source, options)}
    train, validation = _training_rows(splits, source)
    for rows in (train, validation):
        _check_labelled(rows, source)
    kind = _kind(train.labels, options.kind, source)
    labels = () if kind == "regression" else _label_names(train, kind)
    test = splits.get("test")
    has_labels = test is not None and any(label is not None for label in test.labels)
    return TaskTexts(kind, labels, train.pairs is not None, train, validation, test if has_labels else None)


def load_split(
    source: str, split: str, tokenizer: Any, options: TaskOptions, *, text: TextSpec, expected: TaskSpec
) -> tuple[str, Examples]:
    """Reads one split of a task, to evaluate a model on it.

    What training would hold out for validation is found again. A table without splits is taken whole as ``test``, and
    then called ``everything``.

    Args:
        source: A file, folder or hub id.
        split: train, validation or test.
        tokenizer: The model's Hugging Face fast tokenizer.
        options: What is named rather than found.
        text: What the model reads.
        expected: What the model answers.

    Returns:
        What the split is called, and its examples.

    Raises:
        InvalidInputError: There is no such split, or it does not ask what the model answers.
    """
    splits = {rows.split: rows for rows in read_rows(source, options)}
    name = split_name(split)
    rows = splits.get("everything") if name == "test" else None
    if name in ("train", "validation"):
        rows = dict(zip(("train", "validation"), _training_rows(splits, source), strict=True))[name]
    rows = rows or splits.get(name or split)
    if rows is None:
        raise InvalidInputError(f"task {source!r} has no split {split!r}; it has {', '.join(sorted(splits))}")
    spec = expected if options.seq_len is None else replace(expected, max_tokens=_max_tokens(options, text))
    spec = replace(spec, is_cut=spec.is_cut or options.seq_len is not None)
    return rows.split, encode(rows, spec, tokenizer, text, source)


def _max_tokens(options: TaskOptions, text: TextSpec) -> int:
    if options.seq_len is not None and not 2 <= options.seq_len <= text.max_positions:
        raise InvalidInputError(
            f"seq_len must be from 2 to {text.max_positions}, the longest text of this model, got {options.seq_len}"
        )
    return options.seq_len or text.max_positions


def _training_rows(splits: Mapping[str, Rows], source: str) -> tuple[Rows, Rows]:
    """Training and validation rows; every fifth row is held out where there is no validation split."""
    whole = splits.get("train") or splits.get("everything")
    if whole is None:
        raise InvalidInputError(f"task {source!r} has no training rows; give a split named train")
    validation = splits.get("validation")
    if validation is None:
        kept = [index for index in range(len(whole.labels)) if index % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
        held_out = range(HELD_OUT_EVERY - 1, len(whole.labels), HELD_OUT_EVERY)
        whole, validation = whole.taken(kept), replace(whole.taken(held_out), split="validation")
    if len(whole.labels) < MIN_TRAIN or len(validation.labels) < MIN_VALIDATION:
        raise InvalidInputError(
            f"task {source!r} is too small: at least {MIN_TRAIN} training and {MIN_VALIDATION} validation rows are "
            f"needed, got {len(whole.labels)} and {len(validation.labels)}"
        )
    return replace(whole, split="train"), validation


def _kind(labels: Sequence[Any], named: Kind | None, source: str) -> Kind:
    """What the labels ask; a kind that was named must agree with them."""
    are_lists = any(isinstance(label, list) for label in labels)
    are_numbers = all(isinstance(label, int | float) for label in labels if label is not None)
    has_fractions = any(isinstance(label, float) and not label.is_integer() for label in labels if not are_lists)
    fits = {
        "tagging": are_lists,
        "regression": not are_lists and are_numbers,
        "classification": not are_lists and not has_fractions,
    }
    if named is not None:
        if not fits[named]:
            wanted = {"tagging": "lists of tags", "regression": "numbers", "classification": "classes, not fractions"}
            raise InvalidInputError(
                f"a {named} needs {wanted[named]} as labels, task {source!r} has {shown(labels[0])}"
            )
        return named
    return "tagging" if are_lists else "regression" if has_fractions and are_numbers else "classification"


def _label_names(rows: Rows, kind: Kind) -> tuple[str, ...]:
    """The names of the training labels: whole numbers in their order, then words in theirs."""
    found = {one for label in rows.labels for one in (label or () if kind == "tagging" else [label])} - {None}
    return tuple(_name(label) for label in sorted(found, key=lambda one: (isinstance(one, str), one)))


def _name(label: Any) -> str:
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def encode(rows: Rows, spec: TaskSpec, tokenizer: Any, text: TextSpec, source: str) -> Examples:
    """Checks and tokenises a split.

    Args:
        rows: The split.
        spec: What is asked; longer texts are cut, or refused, as it says, and sentences of words always refused.
        tokenizer: The model's Hugging Face fast tokenizer.
        text: What the model reads.
        source: What the task is called in an error.

    Raises:
        InvalidInputError: The split does not ask what the spec says.
    """
    where = _check_labelled(rows, source)
    _check_texts(rows, spec, where)
    if spec.kind == "regression":
        _kind(rows.labels, "regression", source)
        labels: Any = [float(label) for label in rows.labels]
        if not np.isfinite(labels).all():
            raise InvalidInputError(f"every number to learn must be finite, one in {where} is not; remove that row")
    else:
        labels = _indexed(rows, spec, where)
    if spec.kind == "tagging":
        kept = [index for index, words in enumerate(rows.texts) if words]
        sentences, tags = [rows.texts[index] for index in kept], [labels[index] for index in kept]
        return encode_words(sentences, tags, tokenizer, text, max_tokens=spec.max_tokens)
    return encode_texts(rows.texts, rows.pairs, labels, tokenizer, text, max_tokens=spec.max_tokens, is_cut=spec.is_cut)


def _check_labelled(rows: Rows, source: str) -> str:
    """Refuses rows without a label; returns what the split is called in an error."""
    where = f"split {rows.split!r} of task {source!r}" if rows.split != "everything" else f"task {source!r}"
    missing = [number for number, label in enumerate(rows.labels, 1) if label is None]
    if missing:
        raise InvalidInputError(
            f"every row needs a label; {len(missing)} of {len(rows.labels)} in {where} have none, the first is row "
            f"{missing[0]}; remove them"
        )
    for number, label in enumerate(rows.labels, 1):
        if any(isinstance(one, dict | list) for one in (label if isinstance(label, list) else [label])):
            raise InvalidInputError(
                f"a label must be a class, a number or a list of tags, row {number} of {where} has {shown(label)}"
            )
    return where


def _check_texts(rows: Rows, spec: TaskSpec, where: str) -> None:
    if not rows.labels:
        raise InvalidInputError(f"{where} is empty; give at least one row")
    if spec.is_pair is False and rows.pairs is not None:
        raise InvalidInputError(
            f"this model reads single texts, {where} holds pairs; name the one column to read with --text"
        )
    if spec.is_pair and rows.pairs is None:
        raise InvalidInputError(f"this model reads pairs of texts, {where} holds single texts; give --text-pair COLUMN")
    if spec.kind == "tagging":
        for number, (words, tags) in enumerate(zip(rows.texts, rows.labels, strict=True), 1):
            are_words = isinstance(words, list) and all(isinstance(word, str) for word in words)
            if not are_words or not isinstance(tags, list) or len(words) != len(tags):
                raise InvalidInputError(
                    f"tagging needs a list of words and as many tags in each row, row {number} of {where} has "
                    f"{shown(words)} and {shown(tags)}"
                )
        return
    for texts in (rows.texts, rows.pairs or ()):
        for number, one in enumerate(texts, 1):
            if not isinstance(one, str):
                raise InvalidInputError(f"every row needs a text, row {number} of {where} has {shown(one)}")


def _indexed(rows: Rows, spec: TaskSpec, where: str) -> list[Any]:
    """Labels as the indices of the spec's labels."""
    index = {name: place for place, name in enumerate(spec.labels)}

    def find(label: Any) -> int:
        if isinstance(label, list):
            raise InvalidInputError(f"a classification needs one label a text, {where} has {shown(label)}")
        found = index.get(_name(label))
        if label is None or found is None:
            raise InvalidInputError(
                f"label {shown(label)} in {where} is not among the {len(index)} labels that are learnt "
                f"({shown(', '.join(spec.labels))}); correct it or add training rows of it"
            )
        return found

    if spec.kind == "tagging":
        return [[find(tag) for tag in tags] for tags in rows.labels]
    return [find(label) for label in rows.labels]
