"""What a teacher says of the training texts, asked once and learnt from in every epoch.

The teacher's weights do not change and the texts do not either, so its logits and hidden states are kept: a step then
costs the student's work alone. States that would not fit are asked for again in each step. Hidden states are matched
through linear maps that begin at the least-squares fit.

Shapes: B batch, T tokens, M positions that the student keeps, D student width, E teacher width, C outputs.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.errors import InvalidInputError
from nas.finish.model import TaskModel
from search_spaces.architecture import Architecture
from supernet.encoder import Encoder
from supernet.examples import Examples, TaskBatch
from supernet.losses import unexplained
from supernet.model import select_layers
from supernet.narrow import take
from supernet.task_spec import TaskSpec

MAX_STATES_BYTES = 2_000_000_000
_BATCH = 64
_FIT_TEXTS = 256
_RIDGE = 0.1

#: Pairs of a student's sub-layer and the teacher's layer whose output it learns, the last pair last.
Matches = tuple[tuple[int, int], ...]


class Asker:
    """A teacher that is asked for its states batch by batch.

    Args:
        teacher: On the device of the batches.
        layers: Behind which layers, counted from 0.
    """

    def __init__(self, teacher: TaskModel, layers: Sequence[int]) -> None:
        self._teacher, self._layers = teacher, layers
        self._batch: TaskBatch | None = None
        self._states: dict[int, Tensor] = {}

    def states(self, layer: int, batch: TaskBatch) -> Tensor:
        """The states of a batch behind a layer, (B, T, E), zeros where there is padding; run once for all layers."""
        if self._batch is not batch:
            ends = layer_ends(self._teacher.architecture)
            self._teacher.eval()
            with (
                torch.no_grad(),
                torch.autocast(batch.input_ids.device.type, enabled=False),
                recorded(self._teacher.encoder, [ends[one] for one in self._layers]) as seen,
            ):
                self._teacher(**batch.inputs)
            real = batch.attention_mask[..., None]
            self._batch, self._states = batch, {one: seen[ends[one]].float() * real for one in self._layers}
        return self._states[layer]


@dataclass(frozen=True)
class Lessons:
    """A teacher's answers to some examples, in their order.

    Attributes:
        logits: Of each text, (C,) or (M, C).
        states: By the teacher's layer: float16 states of all tokens of all texts, one after the other, (tokens, E).
        starts: Where each text's tokens begin.
        asker: Gives the states where they are too many to be kept.
    """

    logits: list[NDArray[np.float32]]
    states: dict[int, NDArray[np.float16]] = field(default_factory=dict)
    starts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    asker: Asker | None = None

    def batch_logits(self, batch: TaskBatch) -> Tensor:
        """The teacher's logits of a batch: (B, C) or, where there is no word zeros, (B, M, C)."""
        rows = [self.logits[index] for index in batch.indices.tolist()]
        if rows[0].ndim == 1:
            return torch.from_numpy(np.stack(rows)).to(batch.labels.device)
        padded = np.zeros((*batch.labels.shape, rows[0].shape[-1]), np.float32)
        for place, row in enumerate(rows):
            padded[place, : len(row)] = row
        return torch.from_numpy(padded).to(batch.labels.device)

    def batch_states(self, layer: int, batch: TaskBatch) -> Tensor:
        """The teacher's states of a batch behind a layer: (B, T, E), zeros where there is padding."""
        if self.asker is not None:
            return self.asker.states(layer, batch)
        kept = self.states[layer]
        padded = np.zeros((*batch.input_ids.shape, kept.shape[1]), np.float32)
        for place, index in enumerate(batch.indices.tolist()):
            row = kept[self.starts[index] : self.starts[index + 1]]
            padded[place, : len(row)] = row
        return torch.from_numpy(padded).to(batch.input_ids.device)


def ask(
    teacher: TaskModel,
    examples: Examples,
    spec: TaskSpec,
    *,
    layers: Sequence[int] = (),
    on_batch: Callable[[int], None] = lambda done: None,
) -> Lessons:
    """Asks a teacher about examples.

    Args:
        teacher: Answers the same task; on the device it shall run on.
        examples: What it is asked about, in its own tokens.
        spec: The task; the teacher's logits are brought into the order of its labels.
        layers: Behind which layers states are wanted, counted from 0; kept where they take at most 2 GB together.
        on_batch: Called with the number of texts that are done.

    Raises:
        InvalidInputError: The teacher answers another task.
    """
    order = label_order(teacher.spec, spec)
    lengths = examples.lengths
    num_tokens, width = int(lengths.sum()), teacher.architecture.hidden_size
    asker = None
    if 2 * num_tokens * width * len(layers) > MAX_STATES_BYTES:
        asker, layers = Asker(teacher, layers), ()
    states = {layer: np.zeros((num_tokens, width), np.float16) for layer in layers}
    starts = np.concatenate([[0], np.cumsum(lengths)])
    logits: list[Any] = [None] * len(examples)
    device = next(teacher.parameters()).device
    done = 0
    teacher.eval()
    ends = layer_ends(teacher.architecture)
    with torch.inference_mode():
        for batch in examples.batches(_BATCH):
            moved = batch.to(device)
            with recorded(teacher.encoder, [ends[layer] for layer in layers]) as seen:
                found = teacher(**moved.inputs)[..., order].float().cpu().numpy()
            kept = {layer: seen[ends[layer]].to(torch.float16).cpu().numpy() for layer in layers}
            for place, index in enumerate(batch.indices.tolist()):
                logits[index] = found[place]
                if examples.positions is not None:
                    logits[index] = found[place][: len(examples.positions[index])]
                for layer, rows in kept.items():
                    states[layer][starts[index] : starts[index + 1]] = rows[place, : lengths[index]]
            done += len(batch.indices)
            on_batch(done)
    return Lessons(logits, states, starts, asker)


def label_order(teacher: TaskSpec, task: TaskSpec) -> list[int]:
    """Where a task's labels stand among a teacher's.

    Raises:
        InvalidInputError: The teacher answers another task.
    """
    if teacher.kind != task.kind or sorted(teacher.labels) != sorted(task.labels):
        is_unnamed = all(label == f"LABEL_{index}" for index, label in enumerate(teacher.labels))
        if teacher.kind == task.kind and is_unnamed and len(teacher.labels) == len(task.labels):
            return list(range(len(task.labels)))
        raise InvalidInputError(
            f"the teacher must answer this task ({task.kind}, labels {', '.join(task.labels)[:120]}), it answers "
            f"{teacher.kind} with {', '.join(teacher.labels)[:120] or 'numbers'}; fine-tune the teacher on the task"
        )
    return [teacher.labels.index(label) for label in task.labels] or [0]


def layer_ends(architecture: Architecture) -> list[int]:
    """The last sub-layer of each layer of a BERT-like encoder; of another shape every sub-layer."""
    layers = architecture.uniform
    if layers is None:
        return list(range(len(architecture.sublayers)))
    return [layers.places(number)[1] for number in range(layers.num_layers)]


def match_layers(student: Architecture, teacher: Architecture) -> Matches:
    """Which of the teacher's layers each layer of a BERT-like student learns; of another shape the last alone.

    The choice is the one by which a supernet's layers stand for its teacher's. Of layers whose attentions stand first
    (ContextFirst) only the last has a state like a teacher's.
    """
    ends, total, layers = layer_ends(student), len(layer_ends(teacher)), student.uniform
    if layers is None or len(ends) > total:
        return ((ends[-1], total - 1),)
    matches = tuple(zip(ends, select_layers(len(ends), total, "alternate"), strict=True))
    return (*matches[: layers.num_full_layers], matches[-1]) if layers.is_context_first else matches


@contextlib.contextmanager
def recorded(encoder: Encoder, sublayers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """While it lasts, keeps what the sub-layers at these places give: (B, T, D), or (B, M, D) of narrow ones."""
    seen: dict[int, Tensor] = {}
    modules = [sublayer for index in range(len(encoder.blocks)) for sublayer in encoder.block(index).sublayers]

    def keep(place: int) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: seen.__setitem__(place, output)

    handles = [modules[place].register_forward_hook(keep(place)) for place in sublayers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class HiddenMaps(nn.Module):
    """One linear map for each match, from a student's states to the teacher's.

    Args:
        student: The student's shape.
        width: E.
        matches: Which sub-layer learns which of the teacher's layers.
    """

    def __init__(self, student: Architecture, width: int, matches: Matches) -> None:
        super().__init__()
        sizes = [block.hidden_size for block in student.blocks for _ in block.sublayers]
        self.matches, self.narrow_from = matches, student.narrow_from
        self.maps = nn.ModuleDict({str(place): nn.Linear(sizes[place], width) for place, _ in matches})

    def loss(self, model: TaskModel, batch: TaskBatch, lessons: Lessons) -> tuple[Tensor, Tensor]:
        """Runs the student on a batch.

        Returns:
            Its logits, and the mean share of the teacher's states that its states leave unexplained.
        """
        with recorded(model.encoder, [place for place, _ in self.matches]) as seen:
            logits = model(**batch.inputs)
        shares = []
        for place, layer in self.matches:
            target, mask = self._wanted(place, layer, batch, lessons)
            shares.append(unexplained(self.maps[str(place)](seen[place]), target, mask))
        return logits, torch.stack(shares).mean()

    @torch.no_grad()
    def fit(self, model: TaskModel, examples: Examples, lessons: Lessons) -> None:
        """Gives each map its least-squares start on some of the examples."""
        model.eval()
        device = next(model.parameters()).device
        picks = np.linspace(0, len(examples) - 1, min(_FIT_TEXTS, len(examples))).round().astype(int).tolist()
        batches = [examples.batch(picks[start : start + _BATCH]).to(device) for start in range(0, len(picks), _BATCH)]
        pairs: dict[int, list[tuple[Tensor, Tensor]]] = {place: [] for place, _ in self.matches}
        for batch in batches:
            with recorded(model.encoder, list(pairs)) as seen:
                model(**batch.inputs)
            for place, layer in self.matches:
                target, mask = self._wanted(place, layer, batch, lessons)
                pairs[place].append((seen[place][mask.bool()].float(), target[mask.bool()]))
        for place, found in pairs.items():
            linear = self.maps[str(place)]
            assert isinstance(linear, nn.Linear)
            _least_squares(linear, *(torch.cat(side) for side in zip(*found, strict=True)))

    def _wanted(self, place: int, layer: int, batch: TaskBatch, lessons: Lessons) -> tuple[Tensor, Tensor]:
        """The teacher's states at the positions that a sub-layer keeps, and which of them are real."""
        target = lessons.batch_states(layer, batch)
        if self.narrow_from is None or place < self.narrow_from:
            return target, batch.attention_mask
        words = batch.attention_mask[:, :1] if batch.words is None else batch.words.long()
        return take(target, batch.positions), words


def _least_squares(linear: nn.Linear, states: Tensor, target: Tensor) -> None:
    """Ridge regression of target (n, E) on states (n, D), into a linear map."""
    mean, target_mean = states.mean(0), target.mean(0)
    centred = states - mean
    gram = centred.T @ centred
    gram += _RIDGE * gram.diagonal().mean().clamp(min=1e-6) * torch.eye(len(gram), device=gram.device)
    weight = torch.linalg.solve(gram, centred.T @ (target - target_mean)).T  # (E, D)
    linear.weight.copy_(weight)
    linear.bias.copy_(target_mean - weight @ mean)
