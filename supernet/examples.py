"""Texts of a task as tokens with their labels, and the batches they make.

Shapes: B batch, T tokens, M words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search_spaces.architecture import TextSpec
from search_spaces.errors import InvalidInputError

#: The label of a place in a batch where there is no word, in PyTorch's convention.
IGNORED = -100
_WINDOW = 50  # batches among which texts are sorted by length


@dataclass(frozen=True)
class TaskBatch:
    """Some texts of a split.

    Attributes:
        input_ids: Token ids, (B, T).
        attention_mask: 1 where a token is real, (B, T).
        token_type_ids: Segments, (B, T).
        labels: Class (B,), number (B,), or class of each word (B, M) with :data:`IGNORED` where there is none.
        positions: Tagging: the first token of each word, (B, M), 0 where there is none; else None.
        indices: Which examples these are, (B,).
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor
    labels: Tensor
    positions: Tensor | None
    indices: Tensor

    def to(self, device: torch.device) -> "TaskBatch":
        """The same batch on another device."""
        return TaskBatch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.token_type_ids.to(device),
            self.labels.to(device),
            None if self.positions is None else self.positions.to(device),
            self.indices,
        )

    @property
    def words(self) -> Tensor | None:
        """Tagging: where there is a word, boolean (B, M); else None. A word never stands at position 0, [CLS] does."""
        return None if self.positions is None else self.positions > 0

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a task model is called with."""
        inputs = {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "token_type_ids": self.token_type_ids,
        }
        return inputs if self.positions is None else inputs | {"positions": self.positions}


@dataclass(frozen=True)
class Examples:
    """One split of a task, tokenised.

    Attributes:
        input_ids: Token ids of each text.
        token_type_ids: Segments of each text.
        labels: A class, a number, or a class for each word; of each text.
        positions: Tagging: the first token of each word; else None.
        pad_token_id: What fills a batch up.
    """

    input_ids: list[list[int]]
    token_type_ids: list[list[int]]
    labels: Sequence[int] | Sequence[float] | Sequence[list[int]]
    positions: list[list[int]] | None
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """Tokens of each text."""
        return np.fromiter(map(len, self.input_ids), np.int64, len(self))

    def batch(self, indices: Sequence[int]) -> TaskBatch:
        """The texts at the indices, padded to the longest."""
        ids = _padded([self.input_ids[index] for index in indices], self.pad_token_id)
        types = _padded([self.token_type_ids[index] for index in indices], 0)
        mask = _padded([[1] * len(self.input_ids[index]) for index in indices], 0)
        labels = [self.labels[index] for index in indices]
        positions = None
        if self.positions is None:
            tensor = torch.tensor(labels, dtype=torch.float32 if isinstance(labels[0], float) else torch.long)
        else:
            tensor = _padded(labels, IGNORED)  # type: ignore[arg-type]  # lists where there are positions
            positions = _padded([self.positions[index] for index in indices], 0)
        return TaskBatch(ids, mask, types, tensor, positions, torch.tensor(list(indices)))

    def batches(self, batch_size: int) -> list[TaskBatch]:
        """All texts once, sorted by length: for evaluation."""
        order = np.argsort(self.lengths, kind="stable").tolist()
        return [self.batch(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]


class BatchOrder:
    """Which examples each step learns from, a function of the seed and the step alone.

    Every epoch sees every example once; batches hold texts of similar length and come in random order.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int) -> None:
        self._examples, self._batch_size, self._seed = examples, batch_size, seed
        self._epoch, self._batches = -1, list[list[int]]()
        self._lengths = examples.lengths

    def __getitem__(self, step: int) -> TaskBatch:
        epoch, place = divmod(step, -(-len(self._examples) // self._batch_size))
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._examples.batch(self._batches[place])

    def _shuffled(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng([self._seed, epoch])
        order = rng.permutation(len(self._examples))
        window = self._batch_size * _WINDOW
        for start in range(0, len(order), window):
            part = order[start : start + window]
            order[start : start + window] = part[np.argsort(self._lengths[part], kind="stable")]
        starts = range(0, len(order), self._batch_size)
        batches = [order[start : start + self._batch_size].tolist() for start in starts]
        return [batches[place] for place in rng.permutation(len(batches))]


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    padded = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return torch.from_numpy(padded)


def encode_texts(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    labels: Sequence[int] | Sequence[float],
    tokenizer: Any,
    text: TextSpec,
    *,
    max_tokens: int,
    is_cut: bool,
) -> Examples:
    """Tokenises texts, or pairs of texts.

    Args:
        texts: First or only texts.
        pairs: Second texts; None where there is one a row.
        labels: A class or a number for each.
        tokenizer: A Hugging Face fast tokenizer.
        text: What the encoder reads.
        max_tokens: The longest text, in tokens.
        is_cut: Whether longer texts are cut; else they are an error.

    Raises:
        InvalidInputError: A text is too long.
    """
    limits: dict[str, Any] = {"truncation": True, "max_length": max_tokens} if is_cut else {"truncation": False}
    encoded = tokenizer(list(texts), None if pairs is None else list(pairs), padding=False, verbose=False, **limits)
    rows = encoded["input_ids"]
    check_lengths(rows, max_tokens, can_cut=True)
    has_types = text.type_vocab_size > 1 and "token_type_ids" in encoded
    types = encoded["token_type_ids"] if has_types else [[0] * len(row) for row in rows]
    return Examples(rows, types, labels, None, text.pad_token_id)


def encode_words(
    sentences: Sequence[Sequence[str]],
    labels: Sequence[list[int]],
    tokenizer: Any,
    text: TextSpec,
    *,
    max_tokens: int,
) -> Examples:
    """Tokenises sentences that are split into words; the first token of a word stands for it.

    A word that the tokenizer drops (an invisible sign) is read as its unknown token, so that each word has a place.

    Raises:
        InvalidInputError: A sentence is too long; none is cut, since a word that is cut off has no tag.
    """
    encoded = tokenizer([list(words) for words in sentences], is_split_into_words=True, padding=False, verbose=False)
    rows, positions = [], []
    for index, words in enumerate(sentences):
        ids, starts = encoded["input_ids"][index], _word_starts(encoded.word_ids(index))
        if len(starts) < len(words):
            whole = [word if place in starts else tokenizer.unk_token for place, word in enumerate(words)]
            again = tokenizer(whole, is_split_into_words=True, verbose=False)
            ids, starts = again["input_ids"], _word_starts(again.word_ids())
        rows.append(ids)
        positions.append([starts[place] for place in range(len(words))])
    check_lengths(rows, max_tokens, can_cut=False)
    return Examples(rows, [[0] * len(row) for row in rows], labels, positions, text.pad_token_id)


def _word_starts(word_ids: Sequence[int | None]) -> dict[int, int]:
    """The first token of each word that has one."""
    starts: dict[int, int] = {}
    for position, word in enumerate(word_ids):
        if word is not None:
            starts.setdefault(word, position)
    return starts


def check_lengths(rows: Sequence[Sequence[int]], max_tokens: int, *, can_cut: bool) -> None:
    """Refuses texts beyond the limit.

    Raises:
        InvalidInputError: A text has more than ``max_tokens`` tokens.
    """
    too_long = [len(row) for row in rows if len(row) > max_tokens]
    if too_long:
        way_out = f"give --seq-len {max_tokens} to cut texts there" if can_cut else "split long sentences"
        raise InvalidInputError(
            f"a text may have {max_tokens} tokens, {len(too_long)} of {len(rows)} have more (the longest "
            f"{max(too_long)}); {way_out}"
        )
