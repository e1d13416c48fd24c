"""The rows of a task as they stand in the data: its splits, its columns found or named, its labels by their names."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from search_spaces.errors import InvalidInputError, shown
from search_spaces.files import expanded
from supernet.data import open_table
from supernet.task_spec import TaskOptions

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
)
_TEXTS = ("text", "sentence", "content", "review")
_WORDS = ("tokens", "words", "text")
_LABELS = ("label", "labels", "tags", "ner_tags", "pos_tags", "score", "target")
#: What stands for a missing number among numbers; among words it is a word.
_NO_NUMBER = {"na", "n/a", "#n/a", "nan", "none", "null", "-"}


@dataclass(frozen=True)
class Rows:
    """One split as it was read: texts or word lists, second texts, and labels as they stand."""

    split: str
    texts: list[Any]
    pairs: list[Any] | None
    labels: list[Any]

    def taken(self, indices: Iterable[int]) -> "Rows":
        """The rows at the indices."""
        kept = list(indices)
        pairs = None if self.pairs is None else [self.pairs[index] for index in kept]
        return Rows(self.split, [self.texts[index] for index in kept], pairs, [self.labels[index] for index in kept])

    def and_then(self, other: "Rows", source: str) -> "Rows":
        """The rows of both.

        Raises:
            InvalidInputError: Only one of them holds pairs.
        """
        if (self.pairs is None) != (other.pairs is None):
            raise InvalidInputError(
                f"the files of split {self.split!r} of task {source!r} must be alike, but only some hold pairs of "
                "texts; name the columns with --text and --text-pair, or give one file"
            )
        pairs = None if self.pairs is None or other.pairs is None else self.pairs + other.pairs
        return Rows(self.split, self.texts + other.texts, pairs, self.labels + other.labels)

    def spread(self, most: int) -> "Rows":
        """At most so many of the rows, evenly spread."""
        number = len(self.labels)
        return self if number <= most else self.taken(place * number // most for place in range(most))


def read_rows(source: str, options: TaskOptions) -> Iterator[Rows]:
    """Yields the splits of a source, each whole; one table without splits is called ``everything``."""
    tables = list(_tables(source))
    found: dict[str, Rows] = {}
    for name, table in tables:
        rows = _rows_of(table, name, options, source if len(tables) == 1 else f"{source} ({name})")
        if len(tables) > 1:
            parts = [rows]
        elif "split" in table.column_names:
            parts = _by_split_column(rows, table["split"], source)
        else:
            parts = [replace(rows, split="everything")]
        for part in parts:
            found[part.split] = found[part.split].and_then(part, source) if part.split in found else part
    yield from found.values()


def _rows_of(table: Any, name: str, options: TaskOptions, source: str) -> Rows:
    """A table as rows; a test split may have no labels."""
    rows, columns = table.to_list(), table.column_names
    labels: list[Any] = [None] * len(rows)
    if name != "test" or set(columns) & ({options.label} if options.label else set(_LABELS)):
        label = _column(options.label, _LABELS, columns, "label", source)
        names = _class_names(table.features[label])
        labels = [_label(row[label], names) for row in rows]
        labels = _numbers_where_meant(labels) if table.builder_name == "csv" else labels
    text, pair = _text_columns(rows, columns, options, source)
    return Rows(name, [row[text] for row in rows], None if pair is None else [row[pair] for row in rows], labels)


def _tables(source: str) -> Iterator[tuple[str, Any]]:
    """Yields split names and tables; of a folder, the files whose paths name a split, each split's together."""
    path = expanded(source)
    found: dict[str, list[Path]] = {}
    if path.is_dir():
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            name = _split_of(file.relative_to(path))
            if name is not None and not file.name.startswith((".", "README")):
                found.setdefault(name, []).append(file)
    if not found:
        for name, table in open_table(source, what="task"):
            yield split_name(name) or name, table
        return
    for name, files in found.items():
        for _, table in open_table(source, what=f"{name} split of", only=files):
            yield name, table


def _split_of(file: Path) -> str | None:
    """The split that a file's name means, else the folder it is in: ``data/train-00000-of-00002.parquet``."""
    for part in (file.name, *reversed(file.parent.parts)):
        name = split_name(part)
        if name is not None:
            return name
    return None


def split_name(name: str) -> str | None:
    """The one split that a word of a name means: ``dev``, ``validation_matched`` and ``movies-val`` are validation."""
    said = set(re.split(r"[-_. 0-9]+", name.lower()))
    found = [split for split, words in _SPLITS.items() if said & set(words)]
    return found[0] if len(found) == 1 else None


def _by_split_column(rows: Rows, said: Iterable[Any], source: str) -> list[Rows]:
    places: dict[str, list[int]] = {}
    for place, one in enumerate(said):
        name = split_name(str(one))
        if name is None:
            raise InvalidInputError(
                f"the column split of task {source!r} must say train, validation or test, got {shown(one)}"
            )
        places.setdefault(name, []).append(place)
    return [replace(rows.taken(chosen), split=name) for name, chosen in places.items()]


def _column(named: str | None, usual: Sequence[str], columns: Sequence[str], what: str, source: str) -> str:
    if named is not None:
        if named not in columns:
            raise InvalidInputError(f"task {source!r} has no column {named!r}; it has {', '.join(columns)}")
        return named
    for name in usual:
        if name in columns:
            return name
    raise InvalidInputError(
        f"task {source!r} must have a column of {what}s, named {' or '.join(map(repr, usual[:2]))}, or say which it is "
        f"with --{what}; it has {', '.join(columns)}"
    )


def _text_columns(
    rows: list[dict[str, Any]], columns: Sequence[str], options: TaskOptions, source: str
) -> tuple[str, str | None]:
    """The columns of texts and second texts."""
    first = rows[0] if rows else {}
    if options.text is None and options.text_pair is None:
        for usual, second in _PAIRS:
            if isinstance(first.get(usual), str) and second in columns:
                return usual, second
        words = [name for name in _WORDS if isinstance(first.get(name), list)]
        if words:
            return words[0], None
    text = _column(options.text, _TEXTS, columns, "text", source)
    pair = None if options.text_pair is None else _column(options.text_pair, (), columns, "text-pair", source)
    return text, pair


def _class_names(feature: Any) -> Sequence[str] | None:
    """The names of a column of class labels, or of lists of them."""
    return getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)


def _numbers_where_meant(labels: list[Any]) -> list[Any]:
    """Of a CSV: numbers that a word for a missing one has made words, as numbers again, the missing ones as None."""
    words = {label for label in labels if isinstance(label, str)}
    numbers = {word for word in words if word.strip().lower() not in _NO_NUMBER}
    if numbers == words or any(not isinstance(label, str | None) for label in labels):
        return labels
    try:
        meant = {word: float(word) for word in numbers}
    except ValueError:
        return labels
    return [meant.get(label) for label in labels] if numbers else labels


def _label(value: Any, names: Sequence[str] | None) -> Any:
    """A label as it is meant: None where it is missing, its name where the data has one, whole numbers without .0."""
    if isinstance(value, list):
        return [_label(one, names) for one in value]
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return str(value) if isinstance(value, bool) else value
