"""Gradual pruning while a dense model teaches (Prune Once for All, Zafrir et al., 2021, arXiv 2111.05754).

An encoder is pruned once, on text without labels, and then transferred to tasks with its pattern locked
(``nas finetune`` keeps the lock); or a task model is pruned on its task. Masks are chosen anew every hundredth of the
run until four fifths of it, along a cubic ramp that ends half-way; the learning rate is rewound at each choice of the
ramp. Weights that a choice removes keep their value aside, so that a later choice may bring them back; with the
second-order criterion (:mod:`nas.finish.obert`) they are gone, and the others make up for them. A run that was killed
and resumed ends with the same weights as one that was not; with the second-order criterion nearly so, as the choice
after the kill has fewer gradients to judge by.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from nas.errors import InvalidInputError, unknown_name
from nas.export.export import WriteInt8
from nas.export.int8 import quantize
from nas.finish.companion import Beside
from nas.finish.obert import BlockFisher
from nas.finish.sparsity import (
    Lock,
    Pattern,
    Ramp,
    Scope,
    SparsityFacts,
    check_sparsity,
    choose_masks,
    prunable,
    write_lock,
)
from nas.finish.training import Hooks
from supernet.encoder import Encoder

Criterion = Literal["magnitude", "obert"]
#: Second-order choices need gradients to judge by, so that there are fewer of them.
OBERT_UPDATE_EVERY = 0.05
MIN_STEPS = 20
MOST_ZEROS = 0.05  # of a dense model


@dataclass(frozen=True)
class PruneConfig:
    """What is pruned.

    Attributes:
        sparsity: Share of the weights that goes; None takes 0.9, or what N:M comes to.
        pattern: ``unstructured``, N:M or RxC.
        scope: Whether every matrix gets this sparsity, or all together.
        criterion: What is removed: the smallest weights, or those that cost least to second order.
    """

    sparsity: float | None = None
    pattern: str = "unstructured"
    scope: Scope = "uniform"
    criterion: Criterion = "magnitude"

    def __post_init__(self) -> None:
        if self.criterion not in get_args(Criterion):
            raise unknown_name("criterion", str(self.criterion), get_args(Criterion))
        object.__setattr__(self, "sparsity", check_sparsity(self.sparsity, Pattern.parse(self.pattern), self.scope))

    @property
    def facts(self) -> SparsityFacts:
        """What the folder says of it."""
        assert self.sparsity is not None
        return SparsityFacts(self.pattern, self.scope, self.criterion, self.sparsity)


class Pruner(nn.Module):
    """Prunes an encoder as its training goes; its buffers are what a run needs to go on.

    Args:
        encoder: Pruned in place.
        config: What is pruned.
        num_steps: Optimiser steps of the training.

    Raises:
        InvalidInputError: There are too few steps, a matrix does not divide into the pattern, the encoder is sparse
            already, or the second-order criterion does not fit into memory.
    """

    def __init__(self, encoder: Encoder, config: PruneConfig, num_steps: int) -> None:
        super().__init__()
        assert config.sparsity is not None
        self.config, self.num_steps, self.pattern = config, num_steps, Pattern.parse(config.pattern)
        if num_steps < MIN_STEPS:
            raise InvalidInputError(f"pruning by and by needs at least {MIN_STEPS} steps, got {num_steps}")
        weights = prunable(encoder)
        self.pattern.check(weights)
        already = Lock(weights).sparsity
        if already > MOST_ZEROS:
            raise InvalidInputError(
                f"the model is sparse already, {already:.0%} of its weights are zero; prune the dense one it came from"
            )
        is_second_order = config.criterion == "obert"
        self.ramp = Ramp(config.sparsity, update_every=OBERT_UPDATE_EVERY if is_second_order else 0.01)
        self.fisher = BlockFisher(weights) if is_second_order else None
        for index, weight in enumerate(weights.values()):
            self.register_buffer(f"mask_{index}", torch.ones_like(weight, dtype=torch.bool))
            self.register_buffer(f"asleep_{index}", torch.zeros_like(weight))
        names = {name: index for index, name in enumerate(weights)}
        self.asleep: Callable[[str], Tensor] = lambda name: self.get_buffer(f"asleep_{names[name]}")
        self.lock = Lock(weights, {name: self.get_buffer(f"mask_{index}") for name, index in names.items()}).hold()

    @property
    def first_full_step(self) -> int:
        """Steps after which the final sparsity is reached."""
        return next(step for step in range(1, self.num_steps + 1) if self._is_full(step))

    @property
    def hooks(self) -> Hooks:
        """What the training loop calls."""
        return Hooks(after_step=self.after_step, learning_rate=self.learning_rate, best_from=self.first_full_step)

    def _is_full(self, step: int) -> bool:
        moment = self.ramp.moment(self.ramp.update(step / self.num_steps))
        return self.ramp.sparsity(moment) == self.ramp.final

    def learning_rate(self, step: int) -> float:
        """Share of the peak at a step; a short rise stands before the ramp's own."""
        rise = max(1, self.num_steps // 50)
        return min((step + 1) / rise, self.ramp.learning_rate(step / self.num_steps))

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Keeps what is pruned at zero and chooses anew where that is due."""
        if self.fisher is not None:
            self.fisher.observe(self.lock.weights)
        self.lock.after_step(step)
        due = self.ramp.update((step + 1) / self.num_steps)
        if due > self.ramp.update(step / self.num_steps):
            self.choose(self.ramp.sparsity(self.ramp.moment(due)))

    @torch.no_grad()
    def choose(self, sparsity: float) -> None:
        """Chooses anew which weights are removed."""
        self._choose_by_magnitude(sparsity) if self.fisher is None else self._choose_by_cost(sparsity, self.fisher)

    def _choose_by_magnitude(self, sparsity: float) -> None:
        """Keeps the largest weights, those aside among them."""
        whole = {name: weight + self.asleep(name) for name, weight in self.lock.weights.items()}
        scores = {name: weight.abs() for name, weight in whole.items()}
        for name, mask in choose_masks(scores, sparsity, self.pattern, self.config.scope).items():
            self.lock.masks[name].copy_(mask)
            self.lock.weights[name].copy_(whole[name] * mask)
            self.asleep(name).copy_(whole[name] * ~mask)

    def _choose_by_cost(self, sparsity: float, fisher: BlockFisher) -> None:
        """Removes what costs least to second order, beside what is gone already."""
        masks, weights = self.lock.masks, self.lock.weights
        scores = {
            name: torch.where(masks[name], fisher.saliency(name, weight), -1.0) for name, weight in weights.items()
        }
        for name, mask in choose_masks(scores, sparsity, self.pattern, self.config.scope).items():
            masks[name].copy_(mask)
            fisher.compensate(name, weights[name], mask)
        fisher.restart()


@dataclass(frozen=True)
class Pruning:
    """Prunes an encoder while it learns; see :class:`nas.finish.companion.Companion`.

    Attributes:
        config: What is pruned.
    """

    config: PruneConfig

    @property
    def facts(self) -> Mapping[str, Any]:
        """What must be the same when a run is resumed."""
        return {"prune": asdict(self.config)}

    def begin(self, encoder: Encoder, num_steps: int) -> Beside:
        """Puts a :class:`Pruner` beside the encoder."""
        pruner = Pruner(encoder, self.config, num_steps)
        ramp = pruner.ramp
        return Beside(
            pruner.hooks,
            module=pruner,
            num_choices=ramp.update(1.0),
            choose=lambda: pruner.choose(ramp.sparsity(ramp.ramp_until / 2)),
        )

    def end(self, encoder: Encoder) -> WriteInt8:
        """Leaves the encoder as it is."""
        return quantize

    def write(self, folder: Path, encoder: Encoder) -> None:
        """Writes the lock."""
        write_lock(folder, encoder, self.config.facts)
