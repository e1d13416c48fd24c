"""The one training loop of all finishing steps: fine-tuning, pruning, locked transfer, QAT, exits.

A step gives the loop what is trained and what it means, and gets back the history, with the best weights loaded::

    history = train(
        module,                    # nn.Module: all that is learnt or must survive a kill (model, maps, buffers)
        examples,                  # supernet.examples.Examples to learn from
        loss,                      # (TaskBatch) -> {"label": Tensor, ...}: named parts; their sum is minimised
        evaluate,                  # () -> {"accuracy": 0.9, ...} on validation text, the module in evaluation mode;
                                   # None keeps the last weights
        config,                    # LoopConfig: epochs, learning rate, batch size, seed, metric, patience
        folder,                    # where checkpoints go; the caller removes it once its result is written
        fingerprint={...},         # what must be the same when the run is resumed
        resume=True,               # go on from the last checkpoint where there is one
        hooks=Hooks(before_step, after_step, learning_rate, best_from),
        progress=progress,
    )

``before_step(step)`` is called before the gradients of step 0, 1, ... are taken, ``after_step(step)`` after the
optimiser has moved the weights: mask updates, locks, observers. ``learning_rate(step)`` is the share of the peak (by
default a linear warm-up and a linear decay to 0), ``best_from`` the first step after which an evaluation may become the
best one. Anything a hook remembers must be a function of the step or a buffer of ``module``.

Every draw (order of batches, dropout) is a function of the seed and the step, so a run that was killed and resumed ends
with the same weights as one that was not. Checkpoints are a folder each, written whole: ``state.safetensors`` with the
module, the optimiser and ``best.`` weights, and ``state.json`` with the history.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nas.errors import InvalidInputError
from nas.finish.checkpoint import Checkpoint
from nas.finish.checkpoint import History as History
from nas.progress import Progress, SilentProgress
from supernet.checkpoint import load_state
from supernet.examples import BatchOrder, Examples, TaskBatch
from supernet.precision import choose_precision

CHECKPOINT_EVERY_S = 60.0
#: Texts up to so many tokens learn with plain attention on a CPU in bf16: there the backward pass of torch's fused one
#: takes longer than the rest of a step (6 layers of 384: steps of 336 ms for 445 at 27 tokens, 365 for 479 at 128).
PLAIN_ATTENTION_TOKENS = 128

Loss = Callable[[TaskBatch], Mapping[str, Tensor]]
Evaluate = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast.

    Attributes:
        epochs: Times every example is seen; may have a fraction.
        steps: Optimiser steps in place of epochs.
        batch_size: Texts a step.
        learning_rate: Peak.
        fresh_factor: Parts named in ``fresh`` (heads, maps) learn so many times as fast.
        fresh: Prefixes of the parameters that begin at random.
        warmup: Share of the steps in which the learning rate rises.
        weight_decay: AdamW's, on matrices.
        clip: Largest norm of the gradient.
        metric: Which figure of ``evaluate`` chooses the best weights; larger is better.
        evaluations: How often an epoch is evaluated, the end of it included.
        patience: Evaluations without a better figure after which it stops; None never stops early.
        precision: ``auto``, ``fp32``, ``bf16``.
        seed: Of every draw.
    """

    epochs: float = 4
    steps: int | None = None
    batch_size: int = 32
    learning_rate: float = 1e-4
    fresh_factor: float = 5.0
    fresh: tuple[str, ...] = ()
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    metric: str = "accuracy"
    evaluations: int = 1
    patience: int | None = None
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[float | None, float, float]] = {
            "epochs": (self.epochs, 0.001, 10_000),
            "steps": (self.steps, 1, 100_000_000),
            "batch_size": (self.batch_size, 1, 4096),
            "learning_rate": (self.learning_rate, 1e-9, 1.0),
            "fresh_factor": (self.fresh_factor, 0.01, 1000),
            "warmup": (self.warmup, 0.0, 0.9),
            "weight_decay": (self.weight_decay, 0.0, 1.0),
            "clip": (self.clip, 1e-6, 1e6),
            "evaluations": (self.evaluations, 1, 1000),
            "patience": (self.patience, 1, 100_000),
            "seed": (self.seed, 0, 2**31 - 1),
        }
        for name, (value, low, high) in bounds.items():
            if value is not None and not low <= value <= high:
                raise InvalidInputError(f"{name} must be from {low:g} to {high:g}, got {value!r}")

    def num_steps(self, num_examples: int) -> int:
        """Optimiser steps of the whole run."""
        return self.steps or max(1, round(self.epochs * self.steps_per_epoch(num_examples)))

    def steps_per_epoch(self, num_examples: int) -> int:
        """Optimiser steps of an epoch; the last batch may be smaller."""
        return -(-num_examples // self.batch_size)


def warm_up_and_decay(step: int, num_steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: a linear rise, then a linear fall to almost 0 at the last step."""
    rise = max(1, round(warmup * num_steps))
    return min((step + 1) / rise, (num_steps - step) / max(1, num_steps - rise + 1))


@dataclass(frozen=True)
class Hooks:
    """What a finishing step does beside the loop; see the module's text."""

    before_step: Callable[[int], None] = lambda step: None
    after_step: Callable[[int], None] = lambda step: None
    learning_rate: Callable[[int], float] | None = None
    best_from: int = 0


def train(
    module: nn.Module,
    examples: Examples,
    loss: Loss,
    evaluate: Evaluate | None,
    config: LoopConfig,
    folder: Path,
    *,
    fingerprint: Mapping[str, Any],
    resume: bool = False,
    hooks: Hooks | None = None,
    progress: Progress | None = None,
    phase: str = "training",
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> History:
    """Trains a module and leaves its best weights in it; see the module's text for what each argument does.

    Args:
        module: Changed in place; on the device it shall be trained on.
        examples: What it learns from.
        loss: Parts of a batch's loss by name, on the module's device.
        evaluate: Figures on validation text; must hold ``config.metric``. None keeps the last weights.
        config: How long and how fast.
        folder: Where the checkpoint is kept.
        fingerprint: What must be the same when the run is resumed.
        resume: Whether to go on from a checkpoint in ``folder``, where there is one.
        hooks: What is done beside.
        progress: What is told about it.
        phase: What the progress calls it.
        checkpoint_every_s: Seconds of training between two checkpoints; each evaluation writes one too.

    Raises:
        InvalidInputError: The loss is no longer finite, the checkpoint is of another run, or there is one and
            ``resume`` was not asked for.
    """
    loop = Loop(module, examples, config, hooks or Hooks())
    facts = {**fingerprint, "config": asdict(config), "num_examples": len(examples)}
    saved = Checkpoint(folder, facts)
    saved.open(loop, resume=resume)
    said = progress or SilentProgress()
    said.start(phase, loop.num_steps)
    began_s = saved_s = time.monotonic()
    while loop.step < loop.num_steps and not loop.history.stopped_early:
        parts = loop.take_step(loss)
        now_s = time.monotonic()
        loop.history.elapsed_s, began_s = loop.history.elapsed_s + now_s - began_s, now_s
        said.update(loop.step, loss=round(sum(parts.values()), 4), **_rounded(loop.history, config.metric))
        is_evaluation = loop.is_evaluation
        if is_evaluation and evaluate is not None:
            loop.judge(evaluate)
            began_s = time.monotonic()
        if is_evaluation or now_s - saved_s >= checkpoint_every_s:
            saved.write(loop)
            saved_s = time.monotonic()
    loop.load_best()
    best = loop.history.best.get(config.metric)
    said.finish("" if best is None else f"{config.metric} {best:.4f} after step {loop.history.best_step}")
    return loop.history


def _rounded(history: History, metric: str) -> dict[str, float]:
    return {metric: round(history.scores[-1][metric], 4)} if history.scores else {}


class Loop:
    """The state of a run; see :func:`train` for what it is made of."""

    def __init__(self, module: nn.Module, examples: Examples, config: LoopConfig, hooks: Hooks) -> None:
        self.module, self.config, self.hooks = module, config, hooks
        self.device = next(module.parameters()).device
        self.is_bf16 = choose_precision(config.precision, self.device) == "bf16"
        self.order = BatchOrder(examples, config.batch_size, config.seed)
        self.num_steps = config.num_steps(len(examples))
        per_epoch = config.steps_per_epoch(len(examples))
        self.evaluate_every = max(1, per_epoch // config.evaluations)
        self.optimizer = torch.optim.AdamW(list(self._groups()), lr=config.learning_rate, fused=True)
        self.history = History(num_steps=self.num_steps)
        self.best: dict[str, Tensor] = {}
        self.step = 0

    def _groups(self) -> Iterable[dict[str, Any]]:
        """Parameters by how fast they learn and whether they decay."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                is_fresh = name.startswith(self.config.fresh) if self.config.fresh else False
                groups.setdefault((is_fresh, parameter.ndim > 1), []).append(parameter)
        for (is_fresh, decays), parameters in groups.items():
            yield {
                "params": parameters,
                "peak": self.config.learning_rate * (self.config.fresh_factor if is_fresh else 1),
                "weight_decay": self.config.weight_decay if decays else 0.0,
            }

    @property
    def is_evaluation(self) -> bool:
        """Whether figures are taken after the steps that are done."""
        return self.step % self.evaluate_every == 0 or self.step == self.num_steps

    def take_step(self, loss: Loss) -> dict[str, float]:
        """One optimiser step; returns the parts of its loss."""
        self.hooks.before_step(self.step)
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        if self.hooks.learning_rate is not None:
            share = self.hooks.learning_rate(self.step)
        else:
            share = warm_up_and_decay(self.step, self.num_steps, self.config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        batch = self.order[self.step].to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_bf16), self._attention(batch):
            parts = loss(batch)
        total = torch.stack(list(parts.values())).sum()
        values = {name: float(part.detach()) for name, part in parts.items()}
        if not all(map(math.isfinite, values.values())):
            raise InvalidInputError(
                f"the loss is {values} at step {self.step + 1}; lower the learning rate (now "
                f"{self.config.learning_rate:g}) and start again"
            )
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], self.config.clip)
        self.optimizer.step()
        self.hooks.after_step(self.step)
        self.history.losses.append(values)
        self.step += 1
        return values

    def _attention(self, batch: TaskBatch) -> contextlib.AbstractContextManager[None]:
        """How attention is computed for a batch: as torch chooses, or plainly."""
        is_slow = self.is_bf16 and self.device.type == "cpu"
        if is_slow and batch.input_ids.shape[1] <= PLAIN_ATTENTION_TOKENS:
            return sdpa_kernel(SDPBackend.MATH)
        return contextlib.nullcontext()

    def judge(self, evaluate: Evaluate) -> None:
        """Takes figures, keeps the weights if they are the best, and stops where patience has run out."""
        self.module.eval()
        with torch.no_grad():
            scores = dict(evaluate())
        self.history.scores.append({"step": self.step, **scores})
        metric, best = self.config.metric, self.history.best
        if metric not in scores:
            raise InvalidInputError(f"metric must be one of {', '.join(scores)} for this task, got {metric!r}")
        if self.step < self.hooks.best_from:
            return
        if not self.best or scores[metric] > best[metric]:
            self.history.best_step = self.step
            self.best = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
            return
        if self.config.patience is not None:
            since = sum(score["step"] > self.history.best_step for score in self.history.scores)
            self.history.stopped_early = since >= self.config.patience

    def load_best(self) -> None:
        """Puts the best weights into the module, in evaluation mode."""
        if self.best:
            self.module.load_state_dict(self.best)
        self.module.eval()

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as tensors by name."""
        tensors = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in entry.items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def load(self, tensors: Mapping[str, Tensor], history: History, step: int, folder: Path) -> None:
        """Restores :meth:`tensors`."""
        load_state(self.module, _under("module.", tensors), folder)
        self.best = {name: tensor.to(self.device) for name, tensor in _under("best.", tensors).items()}
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("optimizer.", tensors).items():
            index, part = name.split(".")
            state.setdefault(int(index), {})[part] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.history, self.step = history, step


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
