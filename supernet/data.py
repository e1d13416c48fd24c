"""Text in, batches of tokens out.

Corpora are whatever ``datasets`` opens: text, csv, json or parquet files (compressed or not), folders of them, or hub
ids. A paragraph becomes one or more chunks of at most ``seq_len`` tokens with [CLS] and [SEP]; batches hold chunks of
similar length and are a function of the seed and the step alone, so that a resumed run sees the same data.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search_spaces.errors import InvalidInputError
from search_spaces.files import expanded

HELD_OUT_EVERY = 100
_LOADERS = {".txt": "text", ".text": "text", ".md": "text", ".csv": "csv", ".tsv": "csv", ".json": "json",
            ".jsonl": "json", ".parquet": "parquet"}  # fmt: skip
_COMPRESSIONS = {".xz", ".gz", ".bz2", ".zst", ".zip"}
_WINDOW = 64


@dataclass(frozen=True)
class Batch:
    """Token ids, their mask and, for pairs of texts, their segments; each (B, T)."""

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        types = None if self.token_type_ids is None else self.token_type_ids.to(device)
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), types)


@dataclass(frozen=True)
class TokenChunks:
    """Chunks of tokens, flat.

    Attributes:
        tokens: All token ids one after the other, [CLS] and [SEP] included.
        starts: Where each chunk begins, and after the last one the end; one more than there are chunks.
        pad_token_id: What fills a batch up.
    """

    tokens: np.ndarray[Any, np.dtype[np.int32]]
    starts: np.ndarray[Any, np.dtype[np.int64]]
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Tokens of each chunk."""
        return np.diff(self.starts)

    def batch(self, indices: Iterable[int]) -> Batch:
        """The chunks at the indices, padded to the longest."""
        rows = [self.tokens[self.starts[index] : self.starts[index + 1]] for index in indices]
        width = max(map(len, rows))
        ids = np.full((len(rows), width), self.pad_token_id, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
            mask[place, : len(row)] = 1
        return Batch(torch.from_numpy(ids), torch.from_numpy(mask))

    def spread(self, count: int) -> "TokenChunks":
        """At most ``count`` of the chunks, evenly spread."""
        if len(self) <= count:
            return self
        picks = [round(place * (len(self) - 1) / max(1, count - 1)) for place in range(count)]
        return _flat([self.tokens[self.starts[pick] : self.starts[pick + 1]] for pick in picks], self.pad_token_id)

    def batches(self, batch_size: int) -> list[Batch]:
        """All chunks once, sorted by length: for evaluation."""
        order = np.argsort(self.lengths, kind="stable")
        return [self.batch(order[start : start + batch_size]) for start in range(0, len(self), batch_size)]


class BatchOrder:
    """An endless order of training batches, any place of which can be asked for.

    Args:
        chunks: What to draw from.
        batch_size: Chunks a batch.
        seed: Of the run.
    """

    def __init__(self, chunks: TokenChunks, batch_size: int, seed: int) -> None:
        self.chunks = chunks
        self.batch_size = min(batch_size, len(chunks))
        self.seed = seed
        self.per_epoch = max(1, len(chunks) // self.batch_size)
        self._epoch = -1
        self._batches = np.empty((0, 0), dtype=np.int64)

    def __getitem__(self, place: int) -> Batch:
        epoch, within = divmod(place, self.per_epoch)
        if epoch != self._epoch:
            self._batches = self._shuffled(epoch)
            self._epoch = epoch
        return self.chunks.batch(self._batches[within])

    def _shuffled(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.chunks))[: self.per_epoch * self.batch_size]
        window = self.batch_size * _WINDOW
        lengths = self.chunks.lengths
        for start in range(0, len(order), window):
            part = order[start : start + window]
            order[start : start + window] = part[np.argsort(lengths[part], kind="stable")]
        batches: np.ndarray[Any, np.dtype[np.int64]] = order.reshape(self.per_epoch, self.batch_size)
        return batches[rng.permutation(self.per_epoch)]


def open_table(source: str, *, what: str, only: Sequence[Path] = ()) -> Iterator[tuple[str, Any]]:
    """Opens a file, folder or hub id with ``datasets``; yields pairs of split name and split.

    Args:
        source: A file, a folder of files of one kind, or a hub id. One of several configurations of a hub id, or of a
            folder that is laid out as on the hub, stands behind a colon: ``nyu-mll/glue:sst2``.
        what: What it is for, for the error text.
        only: Of a folder these files alone, as one table; all of them where none is given.

    Raises:
        InvalidInputError: It is absent, empty, of an unknown kind or not readable as what its name says.
    """
    import datasets  # lazy: takes seconds and is needed only where text enters

    path = expanded(source)
    files = list(only)
    if path.exists() and not files:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    if path.exists() and all(file.stat().st_size == 0 for file in files):
        raise InvalidInputError(f"{what} {source} is empty; give a file with text in it")
    datasets.disable_progress_bars()
    try:
        if files:
            loader = _loader_of(files, source, what)
            options = _csv_options(files[0]) if loader == "csv" else {}
            loaded = datasets.load_dataset(loader, data_files=[str(file) for file in files], **options)
        else:
            loaded = datasets.load_dataset(**_configuration(source))
    except Exception as error:  # datasets raises many unrelated kinds for an unreadable source
        if isinstance(error, InvalidInputError):
            raise
        lines = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        way_out = "give a text, csv, json or parquet file, or a hub id"
        if lines[0].startswith(("Config name is missing", "BuilderConfig")):
            way_out = "name one behind a colon, as in nyu-mll/glue:sst2"
        reason = " ".join(lines[:2] if lines[0].startswith("Config name is missing") else lines[:1])[:300]
        raise InvalidInputError(f"{what} {source!r} cannot be read: {reason}; {way_out}") from error
    yield from loaded.items()


def _csv_options(file: Path) -> dict[str, Any]:
    """An empty cell is missing and nothing else: a text or a class may well be called None or N/A."""
    delimiter = "\t" if ".tsv" in file.suffixes else ","
    return {"delimiter": delimiter, "keep_default_na": False, "na_values": [""]}


def _configuration(source: str) -> dict[str, str]:
    """A hub id or folder and, where one stands behind a colon, its configuration, as ``load_dataset`` takes them."""
    name, colon, configuration = source.rpartition(":")
    if not colon:
        return {"path": source}
    folder = expanded(name)
    if not folder.is_dir():
        return {"path": name, "name": configuration}
    # Of a folder's configuration the cache knows the name alone: it would give, or insist on, what the files held once.
    anew = {"download_mode": "force_redownload", "verification_mode": "no_checks"}
    return {"path": str(folder), "name": configuration, **anew}


def _loader_of(files: list[Path], source: str, what: str) -> str:
    kinds = set()
    for file in files:
        suffixes = [suffix.lower() for suffix in file.suffixes if suffix.lower() not in _COMPRESSIONS]
        kinds.add(_LOADERS.get(suffixes[-1] if suffixes else ""))
    if None in kinds or len(kinds) != 1:
        raise InvalidInputError(
            f"{what} {source} must hold files of one kind out of {', '.join(sorted(_LOADERS))} (compressed or not)"
        )
    return str(kinds.pop())


def read_texts(source: str) -> Iterator[str]:
    """The non-empty texts of a corpus: column ``text``, or the only column of strings.

    Raises:
        InvalidInputError: There is no text column, or the text is binary.
    """
    empty = True
    for _, table in open_table(source, what="corpus"):
        column = _text_column(table, source)
        for rows in table.select_columns([column]).iter(1000):
            for text in rows[column]:
                if not isinstance(text, str):
                    continue
                if "\x00" in text or text.count("�") > 0.05 * len(text) + 2:
                    raise InvalidInputError(f"corpus {source} is binary or not UTF-8; convert it to UTF-8 text")
                if text.strip():
                    empty = False
                    yield text
    if empty:
        raise InvalidInputError(f"corpus {source} holds no text; give a file with at least one non-empty line")


def _text_column(table: Any, source: str) -> str:
    if "text" in table.column_names:
        return "text"
    strings = [
        name for name, feature in table.features.items() if getattr(feature, "dtype", "") in ("string", "large_string")
    ]
    if len(strings) == 1:
        return str(strings[0])
    raise InvalidInputError(
        f"corpus {source} must have a column named 'text' or exactly one column of strings, got {table.column_names}"
    )


def tokenise(
    sources: Iterable[str], tokenizer: Any, *, seq_len: int, max_tokens: int | None = None, with_held_out: bool = True
) -> tuple[TokenChunks, TokenChunks]:
    """Tokenises corpora into training and held-out chunks.

    Args:
        sources: Files, folders or hub ids.
        tokenizer: A Hugging Face fast tokenizer.
        seq_len: The most tokens a chunk holds, [CLS] and [SEP] included.
        max_tokens: Stop after so many tokens of each source; all of it if None.
        with_held_out: Whether every hundredth paragraph is held out (at least two chunks).

    Returns:
        Training chunks and held-out chunks; no paragraph is in both.

    Raises:
        InvalidInputError: A corpus is unreadable, empty, binary or too small to hold anything out.
    """
    cls, sep, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    kept: tuple[list[list[Any]], list[list[Any]]] = ([], [])  # chunks of each paragraph: training, held out
    number = 0
    for source in sources:
        seen = 0
        texts = read_texts(source)
        while group := list(itertools.islice(texts, 1000)):
            for encoding in backend.encode_batch(group, add_special_tokens=False):
                held_out = with_held_out and number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
                number += 1
                ids = encoding.ids
                seen += len(ids)
                pieces = [ids[start : start + seq_len - 2] for start in range(0, len(ids), seq_len - 2)]
                pieces = [piece for place, piece in enumerate(pieces) if len(piece) >= 4 or place == 0]
                kept[held_out].append([np.asarray([cls, *piece, sep], dtype=np.int32) for piece in pieces])
            if max_tokens is not None and seen >= max_tokens:
                break
    while with_held_out and sum(map(len, kept[True])) < 2 and len(kept[False]) > 1:
        kept[True].append(kept[False].pop())
    training, held_out_rows = (list(itertools.chain(*paragraphs)) for paragraphs in kept)
    if not training or (with_held_out and len(held_out_rows) < 2):
        raise InvalidInputError("the corpus is too small: it must hold at least three paragraphs; give more text")
    return _flat(training, pad), _flat(held_out_rows or training[:1], pad)


def _flat(rows: list[Any], pad: int) -> TokenChunks:
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return TokenChunks(np.concatenate(rows), starts, pad)


@dataclass(frozen=True)
class Masking:
    """How tokens are masked for the masked-token loss.

    Attributes:
        mask_token_id: Id of [MASK].
        special_ids: Ids that are never masked.
        rate: Share of the other tokens that is chosen.
        labels_first: Whether position 0 is labelled with its own token too. It is never masked, so that without a label
            nothing would teach narrow layers what to make of [CLS].
    """

    mask_token_id: int
    special_ids: tuple[int, ...]
    rate: float = 0.15
    labels_first: bool = False


def mask_tokens(batch: Batch, masking: Masking, *, vocab_size: int, seed: int) -> tuple[Batch, Tensor, Tensor]:
    """Masks tokens as BERT does: of the chosen ones 80 % become [MASK], 10 % a random token, 10 % stay.

    Args:
        batch: Token ids and mask, each (B, T).
        masking: What is masked, and how much.
        vocab_size: For random tokens.
        seed: The same seed masks the same tokens.

    Returns:
        The masked batch, the positions that have a label (B, T) as booleans, and their tokens (M,), row by row.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = batch.input_ids
    special_ids = torch.tensor(masking.special_ids, device=ids.device)
    eligible = batch.attention_mask.bool() & ~torch.isin(ids, special_ids)
    # Drawn on the CPU, so that a seed masks the same tokens on every device.
    chosen = eligible & (torch.rand(ids.shape, generator=generator) < masking.rate).to(ids.device)
    dice = torch.rand(ids.shape, generator=generator).to(ids.device)
    random_ids = torch.randint(vocab_size, ids.shape, generator=generator).to(ids.device)
    masked = torch.where(chosen & (dice < 0.8), masking.mask_token_id, ids)
    masked = torch.where(chosen & (dice >= 0.9), random_ids, masked)
    if masking.labels_first:
        chosen[:, 0] = True
    return Batch(masked, batch.attention_mask), chosen, ids[chosen]


def draw_positions(attention_mask: Tensor, rate: float, *, seed: int) -> Tensor:
    """Chooses position 0 and a random share of the other real ones: (B, T) to booleans (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.rand(attention_mask.shape, generator=generator) < rate).to(attention_mask.device)
    drawn[:, 0] = True
    return drawn & attention_mask.bool()
