"""A task model's answers to lines of text, as they come.

One text a line; of a pair the two are separated by a tab; the words to be tagged are separated by spaces.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from nas.errors import InvalidInputError
from nas.finish.evaluation import Logits, Run, logits_of, probabilities
from nas.finish.model import TaskModel
from supernet.examples import IGNORED, Examples, encode_texts, encode_words
from supernet.task_spec import TaskSpec

BATCH_SIZE = 32


@dataclass(frozen=True)
class Prediction:
    """The answer to one line.

    Attributes:
        line: The line, without its end.
        label: The label, the number, or the label of each word.
        probability: Of the label, or of each word's; None of a number.
        words: Tagging: the words; else None.
        probabilities: Of every label, for a whole text; else None.
    """

    line: str
    label: str | float | list[str]
    probability: float | list[float] | None
    words: list[str] | None = None
    probabilities: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form without what is None."""
        shown = {"text": self.line, "label": self.label, "probability": self.probability, "words": self.words}
        return {k: v for k, v in (shown | {"probabilities": self.probabilities}).items() if v is not None}


def predict_lines(
    model: TaskModel, run: Run, lines: Iterable[str], *, batch_size: int = BATCH_SIZE
) -> Iterator[Prediction]:
    """Yields the answer to each line, in order, a batch at a time.

    Args:
        model: Says how a line becomes tokens and what the outputs mean.
        run: The model in PyTorch or ONNX Runtime, see :mod:`nas.finish.evaluation`.
        lines: Texts; empty lines are skipped.
        batch_size: Lines at a time.

    Raises:
        InvalidInputError: A line is no pair where the model reads pairs, or beyond its limit.
    """
    wanted = (line.rstrip("\r\n") for line in lines)
    numbered = ((number, line) for number, line in enumerate(wanted, 1) if line.strip())
    while group := list(itertools.islice(numbered, batch_size)):
        texts = [line for _, line in group]
        found = logits_of(run, _encoded(model, group), batch_size=batch_size)
        for line, logits in zip(texts, found, strict=True):
            yield _prediction(model.spec, line, logits)


def _encoded(model: TaskModel, group: list[tuple[int, str]]) -> Examples:
    spec = model.spec
    try:
        if spec.kind == "tagging":
            sentences = [line.split() for _, line in group]
            tags = [[IGNORED] * len(words) for words in sentences]
            return encode_words(sentences, tags, model.tokenizer, model.text, max_tokens=spec.max_tokens)
        firsts, seconds = _columns(spec, group)
        labels = [0] * len(group)
        return encode_texts(
            firsts, seconds, labels, model.tokenizer, model.text, max_tokens=spec.max_tokens, is_cut=spec.is_cut
        )
    except InvalidInputError as error:
        raise InvalidInputError(f"lines {group[0][0]} to {group[-1][0]}: {error}") from error


def _columns(spec: TaskSpec, group: list[tuple[int, str]]) -> tuple[list[str], list[str] | None]:
    """First and second texts."""
    parts = [line.split("\t") for _, line in group]
    if not spec.is_pair:
        return [line for _, line in group], None
    for (number, line), found in zip(group, parts, strict=True):
        if len(found) != 2:
            raise InvalidInputError(
                "this model reads two texts a line, separated by one tab; "
                f"line {number} has {len(found)}: {line[:60]!r}"
            )
    return [first for first, _ in parts], [second for _, second in parts]


def _prediction(spec: TaskSpec, line: str, logits: Logits) -> Prediction:
    if spec.kind == "regression":
        return Prediction(line, float(logits[0]), None)
    shares = probabilities(spec, logits)
    best = shares.argmax(-1)
    if spec.kind == "tagging":
        likely = shares.max(-1).tolist()
        return Prediction(line, [spec.labels[place] for place in best], likely, words=line.split())
    each = dict(zip(spec.labels, shares.tolist(), strict=True))
    return Prediction(line, spec.labels[best], float(shares[best]), probabilities=each)
