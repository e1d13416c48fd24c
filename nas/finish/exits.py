"""A model that stops when it knows enough: layer by layer, with one small host loop, in ONNX Runtime or in torch.

Running a folder of ``nas exits`` (:mod:`nas.finish.exit_folder`) takes numpy, onnxruntime and tokenizers, and nothing
of torch::

    model = AdaptiveModel.load("my-model/dact-tau0.05")
    for answer in model.predict(["a film to fall asleep to"]):
        print(answer.label, answer.probability, answer.layers)

Shapes: B batch, T tokens, D hidden, C classes, N exits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nas.errors import InvalidInputError
from nas.finish.exit_folder import (
    GATES_NAME,
    LOGITS_NAME,
    NEXT_NAME,
    STATES_NAME,
    Description,
    exit_file,
    read_description,
)
from nas.finish.halting import Floats, Policy
from search_spaces.architecture import TextSpec

_BATCH_NAMES = ("input_ids", "attention_mask", "token_type_ids")

Batch = Mapping[str, NDArray[np.int64]]


class Layers(Protocol):
    """A backbone cut into layers, each with its exit."""

    num_exits: int
    num_classes: int

    def advance(self, place: int, hidden: Any, batch: Batch) -> tuple[Any, Floats, Floats | None]:
        """Runs one layer.

        Args:
            place: Index of the layer, from 0.
            hidden: What the layer before left; None for the first.
            batch: ``input_ids``, ``attention_mask`` and ``token_type_ids``, each (B, T).

        Returns:
            Its states, in a form of its own; the logits of its head (B, C); its gate before the sigmoid (B,), or None.
        """

    def keep(self, hidden: Any, rows: NDArray[np.bool_]) -> Any:
        """The states of the rows that are True, of (B,)."""


def run(layers: Layers, batch: Batch, policy: Policy, *, halts: bool = True) -> tuple[Floats, NDArray[np.int64]]:
    """Answers a batch; what is finished leaves it, so that later layers compute on fewer rows.

    Args:
        layers: The backbone.
        batch: ``input_ids``, ``attention_mask`` and ``token_type_ids``, each (B, T).
        policy: When an input is finished.
        halts: Whether an input may stop before the last exit.

    Returns:
        Probabilities (B, C), and the number of layers that each input went through, (B,).
    """
    num_rows = len(batch["input_ids"])
    rows, hidden, state = np.arange(num_rows), None, policy.begin(num_rows, layers.num_classes)
    probabilities, passed = np.zeros((num_rows, layers.num_classes)), np.full(num_rows, layers.num_exits)
    for place in range(layers.num_exits):
        left = layers.num_exits - 1 - place
        hidden, logits, gates = layers.advance(place, hidden, batch)
        look = policy.look(state, logits, gates, place=place, left=left)
        ends = look.stops if halts and left else np.full(len(rows), not left)
        probabilities[rows[ends]], passed[rows[ends]] = look.probabilities[ends], place + 1
        if ends.all():
            break
        state = look.state
        if ends.any():
            going = ~ends
            rows, hidden = rows[going], layers.keep(hidden, going)
            state = tuple(part[going] for part in state)
            batch = {name: array[going] for name, array in batch.items()}
    return probabilities, passed


class OnnxLayers:
    """The layers of a folder, each a session of ONNX Runtime.

    Args:
        folder: That ``nas exits`` made.
        description: What it holds.
        threads: Threads within one operator.
        precision: Which of its graphs to run, ``fp32`` or ``int8``.

    Raises:
        InvalidInputError: A layer's file is missing, damaged or of another model.
    """

    def __init__(self, folder: Path, description: Description, *, threads: int = 1, precision: str = "fp32") -> None:
        import onnxruntime

        self.num_exits, self.num_classes = description.num_exits, description.spec.num_outputs
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._sessions = []
        for place in range(self.num_exits):
            path = exit_file(folder, place, precision)
            try:
                session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime has a dozen kinds, none of them a common one
                raise InvalidInputError(f"{path} is missing or damaged; restore it or run nas exits again") from error
            outputs = {node.name: node.shape for node in session.get_outputs()}
            if outputs.get(LOGITS_NAME, [0])[-1] != self.num_classes:
                raise InvalidInputError(f"{path} is of another model; restore it or run nas exits again")
            self._sessions.append((session, [node.name for node in session.get_inputs()], list(outputs)))

    def advance(self, place: int, hidden: Any, batch: Batch) -> tuple[Any, Floats, Floats | None]:
        """Runs what lies between two exits; see :class:`Layers`. The states are (B, T, D)."""
        session, inputs, outputs = self._sessions[place]
        given = {name: hidden.reshape(-1, hidden.shape[-1]) if name == STATES_NAME else batch[name] for name in inputs}
        found = dict(zip(outputs, session.run(outputs, given), strict=True))
        if NEXT_NAME in found:  # an exit that only looks ahead leaves the states as they are
            hidden = found[NEXT_NAME].reshape(*batch["attention_mask"].shape, -1)
        gates = found.get(GATES_NAME)
        logits: Floats = found[LOGITS_NAME].astype(np.float64)
        return hidden, logits, None if gates is None else gates[:, 0].astype(np.float64)

    def keep(self, hidden: Any, rows: NDArray[np.bool_]) -> Any:
        """The states of some rows."""
        return hidden[rows]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says of one text.

    Attributes:
        label: The leading class.
        probability: Its share.
        layers: How many layers it took.
    """

    label: str
    probability: float
    layers: int


class AdaptiveModel:
    """A folder of ``nas exits``, ready to answer.

    Args:
        description: What it is.
        layers: Its backbone.
        tokenizer: A ``tokenizers.Tokenizer``.
    """

    def __init__(self, description: Description, layers: Layers, tokenizer: Any) -> None:
        self.description, self.layers, self.tokenizer = description, layers, tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if description.spec.is_cut:
            tokenizer.enable_truncation(description.spec.max_tokens)

    @classmethod
    def load(cls, folder: str | Path, *, threads: int = 1, precision: str = "fp32") -> "AdaptiveModel":
        """Reads a folder.

        Args:
            folder: That ``nas exits`` made.
            threads: Threads within one operator.
            precision: ``fp32``, or ``int8``: then a text's states are rounded by the range of the batch that it is in.

        Raises:
            InvalidInputError: It is none, or a part of it is missing or damaged.
        """
        from tokenizers import Tokenizer

        folder = Path(folder)
        description = read_description(folder)
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises Exception itself
            raise InvalidInputError(f"{folder / 'tokenizer.json'} is missing or damaged; restore it") from error
        layers = OnnxLayers(folder, description, threads=threads, precision=precision)
        return cls(description, layers, tokenizer)

    @property
    def policy(self) -> Policy:
        """When it stops."""
        return self.description.policy

    def with_policy(self, policy: Policy) -> "AdaptiveModel":
        """The same model under another policy, such as a higher threshold."""
        return AdaptiveModel(replace(self.description, policy=policy), self.layers, self.tokenizer)

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        halts: bool = True,
    ) -> list[Answer]:
        """Answers texts, or pairs of texts.

        Args:
            texts: First or only texts.
            pairs: Second texts, as many; None where the model reads one.
            batch_size: Texts at a time; texts of similar length go together.
            halts: Whether an input may stop before the last layer.

        Raises:
            InvalidInputError: A text is too long, or there are pairs for a model of single texts, or none for pairs.
        """
        answers: list[Answer | None] = [None] * len(texts)
        labels = self.description.spec.labels
        for places, batch in self._batches(texts, pairs, batch_size):
            probabilities, passed = run(self.layers, batch, self.policy, halts=halts)
            for place, row, layers in zip(places, probabilities, passed, strict=True):
                answers[place] = Answer(labels[int(row.argmax())], float(row.max()), int(layers))
        return [answer for answer in answers if answer is not None]

    def _batches(
        self, texts: Sequence[str], pairs: Sequence[str] | None, batch_size: int
    ) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        spec = self.description.spec
        if spec.is_pair is not None and spec.is_pair != (pairs is not None):
            reads, got = ("pairs of texts", "single texts") if spec.is_pair else ("single texts", "pairs")
            raise InvalidInputError(f"this model reads {reads}, got {got}")
        if pairs is not None and len(pairs) != len(texts):
            raise InvalidInputError(f"there must be as many second texts as first ones, got {len(pairs)}, {len(texts)}")
        given = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        encoded = self.tokenizer.encode_batch(given)
        lengths = np.array([len(one.ids) for one in encoded], dtype=np.int64)
        limit = min(spec.max_tokens, self.description.text.max_positions)
        if len(lengths) and lengths.max() > limit:
            raise InvalidInputError(f"a text may have {limit} tokens, one has {lengths.max()}; shorten it")
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            chosen = [encoded[place] for place in places]
            yield places, padded([one.ids for one in chosen], [one.type_ids for one in chosen], self.description.text)


def padded(ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]], text: TextSpec) -> Batch:
    """Token ids and segments of several texts as one batch, filled up to the longest."""
    width = max(map(len, ids))
    batch = {name: np.zeros((len(ids), width), dtype=np.int64) for name in _BATCH_NAMES}
    batch["input_ids"] += text.pad_token_id
    for row, (tokens, segments) in enumerate(zip(ids, types, strict=True)):
        batch["input_ids"][row, : len(tokens)] = tokens
        batch["attention_mask"][row, : len(tokens)] = 1
        batch["token_type_ids"][row, : len(tokens)] = segments if text.type_vocab_size > 1 else 0
    return batch
