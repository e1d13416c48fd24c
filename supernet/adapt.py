"""A supernet adapted to a task once, so that every subnet's figure on it can be read off without training it.

Fine-tuning each candidate is what made the published searches cost GPU-weeks; here the sandwich rule trains all
subnets together on the labels, with one head whose columns are sliced like any other weight. Classes and numbers are
read from the state of a whole text, tags from the state of each word's first token.

Shapes: B batch, T tokens, D hidden, M texts or words, C outputs (labels, or 1 for a number).
"""

import copy
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from search_spaces.architecture import Architecture, TextSpec
from search_spaces.errors import InvalidInputError
from search_spaces.files import atomic_folder
from search_spaces.space import SearchSpace
from search_spaces.spaces import Space
from supernet.checkpoint import AnySupernet, LoadedSupernet, load_state, load_supernet, read_tensors, save_supernet
from supernet.elastic import ElasticLinear
from supernet.examples import Examples, TaskBatch
from supernet.int8 import layer_runner, subnet_runner
from supernet.narrow import check_all_positions, take
from supernet.pooling import POOLINGS, Pooling, check_pooling, pooling_of, text_states
from supernet.precision import choose_precision
from supernet.sampling import subnets_of_step
from supernet.task import Task, encode, read_task
from supernet.task_losses import label_loss
from supernet.task_metrics import metrics_of, score
from supernet.task_spec import TaskOptions, TaskSpec


@dataclass(frozen=True)
class AdaptConfig:
    """How a supernet is adapted to a task.

    Attributes:
        steps: Optimiser steps.
        batch_size: Texts a step.
        seq_len: Texts are cut to so many tokens; sentences whose words are tagged never are.
        learning_rate: Peak; the head learns ten times as fast.
        num_random: Random subnets a step, beside the largest and the smallest.
        max_validation: Most validation texts that a candidate is judged on.
        seed: Of every draw.
    """

    steps: int = 120
    batch_size: int = 32
    seq_len: int = 64
    learning_rate: float = 2e-4
    num_random: int = 1
    max_validation: int = 1000
    seed: int = 0


@dataclass
class AdaptedTask:
    """An adapted supernet, read.

    Attributes:
        supernet: Its weights.
        head: Maps states (M, D) of every width to logits (M, C).
        validation: What candidates are judged on.
        spec: What is asked.
        pooling: Which state of a text the head reads; it says nothing where words are tagged.
    """

    supernet: AnySupernet
    head: ElasticLinear
    validation: Examples
    spec: TaskSpec
    pooling: Pooling = "mean"

    @property
    def quality_name(self) -> str:
        """What the figure is called that subnets are judged by."""
        return quality_name(self.spec)

    def quality(self, architecture: Architecture, *, batch_size: int = 64) -> float:
        """A subnet's figure on the validation texts: the usual one of the task, see ``supernet.task_metrics``.

        Raises:
            InvalidInputError: The architecture is not of the supernet's space, or has not all states that are read.
        """
        run = subnet_runner(self.supernet, architecture)
        _check_states(architecture, self.spec, self.pooling)
        answers: list[Any] = [None] * len(self.validation)
        positions = self.validation.positions
        with torch.inference_mode():
            for batch in self.validation.batches(batch_size):
                logits = _read(self.head, run(batch), batch, self.pooling)
                found = logits[:, 0] if self.spec.kind == "regression" else logits.argmax(-1)
                for index, one in zip(batch.indices.tolist(), found.tolist(), strict=True):
                    answers[index] = one if positions is None else one[: len(positions[index])]
        return score(self.spec, answers, self.validation.labels)[metrics_of(self.spec)[0]]

    def layer_logits(self, architecture: Architecture, *, batch_size: int = 64) -> Tensor:
        """What the head makes of the states behind every layer of a subnet: (N, M, C), in the order of the texts.

        Raises:
            InvalidInputError: The architecture is not of the supernet's space.
        """
        run, order, found = layer_runner(self.supernet, architecture), [], []
        with torch.inference_mode():
            for batch in self.validation.batches(batch_size):
                found.append(torch.stack([_read(self.head, hidden, batch, self.pooling) for hidden in run(batch)]))
                order.append(batch.indices)
        return torch.cat(found, 1)[:, torch.cat(order).argsort()]


def quality_name(spec: TaskSpec) -> str:
    """What the figure is called that subnets are judged by on a task."""
    return f"task {metrics_of(spec)[0].replace('_', ' ')}"


def task_to_adapt(
    source: str, tokenizer: Any, text: TextSpec, config: AdaptConfig, options: TaskOptions | None = None
) -> Task:
    """Reads a task for :func:`adapt`, its test split left out and its texts cut; see :mod:`supernet.task`.

    Args:
        source: A file, folder or hub id.
        tokenizer: The supernet's Hugging Face fast tokenizer.
        text: What the supernet reads.
        config: To how many tokens texts are cut, and how many of them are validated on.
        options: What is named of the task rather than found.

    Raises:
        InvalidInputError: The task cannot be learnt, see :func:`supernet.task.read_task`, or a sentence of words is
            beyond the supernet's limit.
    """
    texts = read_task(source, options or TaskOptions())
    longest = text.max_positions if texts.kind == "tagging" else min(config.seq_len, text.max_positions)
    spec = texts.spec(longest, is_cut=True)
    validation = texts.validation.spread(config.max_validation)
    train, judged = (encode(rows, spec, tokenizer, text, source) for rows in (texts.train, validation))
    return Task(source, spec, train, judged, None)


def check_adaptable(spec: TaskSpec, space: Space) -> None:
    """Refuses a task whose answers cannot be read from all subnets of a space.

    Raises:
        InvalidInputError: Words are tagged, and the space has narrow layers.
    """
    if spec.kind == "tagging" and isinstance(space, SearchSpace) and space.has_narrowing:
        raise InvalidInputError(
            "tags are read from the states of all words, and narrow layers update position 0 alone; leave --narrow "
            "out, or search a space without narrow layers"
        )


def _check_states(architecture: Architecture, spec: TaskSpec, pooling: Pooling) -> None:
    if spec.kind == "tagging":
        check_all_positions(architecture, "tagging words")
    else:
        check_pooling(architecture, pooling)


def _read(head: ElasticLinear, hidden: Tensor, batch: TaskBatch, pooling: Pooling) -> Tensor:
    """What a head makes of hidden states: (B, C), or (B, M, C) of words."""
    if batch.positions is not None:
        states = take(hidden, batch.positions)  # (B, M, D)
    else:
        states = text_states(hidden, batch.attention_mask, pooling)
    logits: Tensor = head(states)
    return logits


def adapt(
    loaded: LoadedSupernet,
    task: Task,
    folder: Path,
    config: AdaptConfig,
    *,
    space: Space | None = None,
    every_layer: bool = False,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Trains all subnets on a task's labels together and writes the adapted folder, whole or not at all.

    The head reads the mean over a text's tokens; where the space has narrow layers, the state of position 0; of words
    that are tagged, each word's first token.

    Args:
        loaded: The supernet; not changed.
        task: From :func:`task_to_adapt` with the supernet's tokenizer.
        folder: Where the adapted supernet goes.
        config: How long and how fast.
        space: The part of the supernet's space that will be searched; all of it if None.
        every_layer: Whether the head learns to answer behind every layer of a subnet, for models with exits; later
            layers count in proportion to their place (PABEE, Zhou et al., 2020, arXiv 2006.04152).
        on_step: Called after each step with its number and mean loss.

    Raises:
        InvalidInputError: Not all subnets can learn the task, the loss is no longer finite, or the folder cannot be
            written.
    """
    space = space or loaded.space
    check_adaptable(task.spec, space)
    pooling = pooling_of(space)
    torch.manual_seed(config.seed)
    supernet = copy.deepcopy(loaded.supernet)
    head = _new_head(loaded, task.spec)
    nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    for name, weight in supernet.named_parameters():
        weight.requires_grad_(not name.endswith("embeddings.word.weight"))
    learned = [parameter for parameter in supernet.parameters() if parameter.requires_grad]
    groups = [
        {"params": learned, "lr": config.learning_rate, "peak": config.learning_rate},
        {"params": list(head.parameters()), "lr": 10 * config.learning_rate, "peak": 10 * config.learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    precision = choose_precision("auto", torch.device("cpu"))
    order = _Order(len(task.train), config)
    supernet.train()
    for step in range(config.steps):
        batch = task.train.batch(order.draw())
        labels = _standardised(batch.labels, task)
        factor = min(1.0, (step + 1) / (0.1 * config.steps)) * (1 - step / config.steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.zero_grad(set_to_none=True)
        subnets = subnets_of_step(space, "sandwich", num_random=config.num_random, seed=config.seed, step=step)
        total = 0.0
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            for architecture in subnets:
                hidden = supernet(architecture, batch.input_ids, batch.attention_mask, batch.token_type_ids).hidden
                read = [(1.0, hidden[-1])] if not every_layer else list(enumerate(hidden, 1))
                losses = [
                    weight * label_loss(task.spec.kind, _read(head, states, batch, pooling), labels)
                    for weight, states in read
                ]
                loss = torch.stack(losses).sum() / sum(weight for weight, _ in read) / len(subnets)
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
        if not math.isfinite(total):
            raise InvalidInputError(
                f"adapting to {task.name!r} diverged at step {step + 1}; check the task's texts and labels"
            )
        nn.utils.clip_grad_norm_([*learned, *head.parameters()], 1.0)
        optimizer.step()
        on_step(step + 1, total)
    _save(folder, supernet.eval(), head, task, loaded, pooling)


def _standardised(labels: Tensor, task: Task) -> Tensor:
    """Numbers in units of their spread, so that a head learns them as fast whatever they count; classes as they are."""
    if task.spec.kind != "regression":
        return labels
    mean, spread = task.label_scale
    return (labels - mean) / spread


class _Order:
    """Texts in random order, all of them again and again; a function of the seed."""

    def __init__(self, num_texts: int, config: AdaptConfig) -> None:
        self._num_texts, self._batch_size = num_texts, config.batch_size
        self._rng, self._waiting = random.Random(f"adapt-{config.seed}"), list[int]()

    def draw(self) -> list[int]:
        if len(self._waiting) < self._batch_size:
            self._waiting = self._rng.sample(range(self._num_texts), self._num_texts) + self._waiting
        indices, self._waiting = self._waiting[: self._batch_size], self._waiting[self._batch_size :]
        return indices


def _new_head(loaded: LoadedSupernet, spec: TaskSpec) -> ElasticLinear:
    return ElasticLinear(max(loaded.space.hidden_size), spec.num_outputs)


def _save(
    folder: Path, supernet: AnySupernet, head: ElasticLinear, task: Task, loaded: LoadedSupernet, pooling: Pooling
) -> None:
    with atomic_folder(folder, replace=True) as temporary:
        save_supernet(temporary, supernet, reference=None, training={**loaded.training, "adapted_to": task.name})
        (temporary / "head.safetensors").write_bytes(
            safetensors.torch.save({name: tensor.detach().contiguous() for name, tensor in head.state_dict().items()})
        )
        validation = {
            "kind": task.spec.kind,
            "classes": list(task.spec.labels),
            "is_pair": task.spec.is_pair,
            "rows": task.validation.input_ids,
            "types": task.validation.token_type_ids,
            "labels": list(task.validation.labels),
            "positions": task.validation.positions,
            "pooling": pooling,
        }
        (temporary / "task.json").write_text(json.dumps(validation))


def load_adapted(folder: Path) -> AdaptedTask:
    """Reads an adapted folder.

    Raises:
        InvalidInputError: It is absent, damaged or of another supernet.
    """
    loaded = load_supernet(folder)
    text = loaded.text
    try:
        data = json.loads((folder / "task.json").read_text(encoding="utf-8"))
        kind = data.get("kind", "classification")  # what folders have that do not say, as of the two below
        spec = TaskSpec(kind, tuple(map(str, data["classes"])), data.get("is_pair"), text.max_positions)
        split = Examples(data["rows"], data["types"], data["labels"], data.get("positions"), text.pad_token_id)
        pooling = data.get("pooling", "mean")
        is_valid = pooling in POOLINGS and _is_valid(split, spec, text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"{folder} does not hold an adapted supernet; remove it and search again") from error
    if not is_valid:
        raise InvalidInputError(f"{folder / 'task.json'} is damaged; remove {folder} and search again")
    head = _new_head(loaded, spec)
    load_state(head, read_tensors(folder / "head.safetensors"), folder)
    head.requires_grad_(False)
    return AdaptedTask(loaded.supernet, head, split, spec, pooling)


def _is_valid(split: Examples, spec: TaskSpec, text: TextSpec) -> bool:
    """Whether the kept validation texts are what the spec says."""
    rows, positions = split.input_ids, split.positions
    labels: Sequence[Any] = split.labels
    if not len(rows) == len(labels) == len(split.token_type_ids) > 0:
        return False
    if not all(row and all(0 <= token < text.vocab_size for token in row) for row in rows):
        return False
    if spec.kind == "regression":
        return all(isinstance(label, float) and math.isfinite(label) for label in labels)
    if spec.kind == "classification":
        return all(0 <= label < len(spec.labels) for label in labels)
    return (
        positions is not None
        and len(positions) == len(rows)
        and all(
            len(places) == len(tags) > 0
            and all(0 < place < len(row) for place in places)
            and all(0 <= tag < len(spec.labels) for tag in tags)
            for row, places, tags in zip(rows, positions, labels, strict=True)
        )
    )
