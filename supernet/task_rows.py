"""The rows of a task as they stand in the data: its splits, its columns found or named, its labels by their names."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from search_spaces.errors import InvalidInputError, shown
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

    def spread(self, most: int) -> "Rows":
        """At most so many of the rows, evenly spread."""
        number = len(self.labels)
        return self if number <= most else self.taken(place * number // most for place in range(most))


def read_rows(source: str, options: TaskOptions) -> Iterator[Rows]:
    """Yields the splits of a source; one table without splits is called ``everything``."""
    tables = dict(_tables(source))
    columns = next(iter(tables.values())).column_names
    label = _column(options.label, _LABELS, columns, "label", source)
    names = _class_names(next(iter(tables.values())).features[label])
    for name, table in tables.items():
        rows = table.to_list()
        parts = {name: rows}
        if len(tables) == 1:
            parts = _by_split_column(rows, source) if "split" in columns else {"everything": rows}
        text, pair = _text_columns(rows, columns, options, source)
        for split, part in parts.items():
            yield Rows(
                split,
                [row[text] for row in part],
                None if pair is None else [row[pair] for row in part],
                [_label(row[label], names) for row in part],
            )


def _tables(source: str) -> Iterator[tuple[str, Any]]:
    """Yields split names and tables; of a folder, the files whose paths name a split."""
    path = Path(source).expanduser()
    found: dict[str, str] = {}
    if path.is_dir():
        for entry in sorted(path.iterdir()):
            name = split_name(entry.name.split(".")[0])
            if name is not None:
                found.setdefault(name, str(entry))
    if not found:
        for name, table in open_table(source, what="task"):
            yield split_name(name) or name, table
        return
    for name, part in found.items():
        for _, table in open_table(part, what=f"{name} split"):
            yield name, table


def split_name(name: str) -> str | None:
    """The split that a name means: ``dev`` and ``validation_matched`` are both validation."""
    for split, words in _SPLITS.items():
        if name.lower() in words or name.lower().startswith((f"{split}_", f"{split}-")):
            return split
    return None


def _by_split_column(rows: list[dict[str, Any]], source: str) -> dict[str, list[dict[str, Any]]]:
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = split_name(str(row["split"]))
        if name is None:
            raise InvalidInputError(
                f"the column split of task {source!r} must say train, validation or test, got {shown(row['split'])}"
            )
        parts.setdefault(name, []).append(row)
    return parts


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


def _label(value: Any, names: Sequence[str] | None) -> Any:
    """A label as it is meant: None where it is missing, its name where the data has one, whole numbers without .0."""
    if isinstance(value, list):
        return [_label(one, names) for one in value]
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return str(value) if isinstance(value, bool) else value
