"""Training a supernet: data, steps, schedule, checkpoints, resume.

Every draw (batches, subnets, masked tokens) is a function of the seed and the step, so that a run that was killed
and resumed walks the same path as one that was not.
"""

import json
import math
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from search_spaces.architecture import Architecture, TextSpec
from search_spaces.errors import InvalidInputError
from search_spaces.files import atomic_folder, write_atomic
from search_spaces.space import SearchSpace
from supernet.calibrate import calibrate
from supernet.checkpoint import (
    Reference,
    WeightFormat,
    config_to_dict,
    load_state,
    read_tensors,
    save_supernet,
)
from supernet.data import Batch, BatchOrder, TokenChunks, tokenise
from supernet.distil import LossWeights, Masking, Teaching
from supernet.encoder import Encoder
from supernet.losses import pool
from supernet.model import LayerSelection, Supernet, SupernetConfig
from supernet.precision import choose_precision
from supernet.sampling import STRATEGIES, Strategy, subnets_of_step
from supernet.teacher import Teacher, initialise_from, load_teacher, load_tokenizer, sort_by_importance

Precision = Literal["auto", "fp32", "bf16", "fp16"]
CALIBRATION_BATCHES = 8
HELD_OUT_CHUNKS = 128
REFERENCE_TEXTS = 256
REFERENCE_TOKENS = 48


@dataclass(frozen=True)
class TrainingConfig:
    """How a supernet is trained.

    Attributes:
        steps: Optimiser steps; None where ``minutes`` bounds the run.
        minutes: Wall-clock minutes of training; None where ``steps`` bounds it.
        strategy: Which subnets a step trains.
        num_random: Random subnets a step.
        in_place: Whether smaller subnets learn from the largest one of the step rather than from the teacher.
        largest_every: The sandwich's largest is trained in one step out of so many.
        losses: Weights of the losses.
        mask_rate: Share of tokens that the mlm loss masks.
        batch_size: Chunks of text a batch.
        seq_len: Most tokens a chunk.
        accumulate: Batches a step.
        learning_rate: Peak of the schedule.
        warmup: Share of the run in which the learning rate rises.
        weight_decay: AdamW's, on matrices.
        trains_embeddings: Whether the word table learns; by default only where there is no teacher.
        precision: ``auto`` takes bf16 where the hardware computes in it, else fp32.
        evaluate_every: Steps between held-out losses.
        checkpoint_every: Steps between checkpoints.
        max_tokens: Most tokens read from each corpus; None for all.
        seed: Of every draw.
    """

    steps: int | None = None
    minutes: float | None = None
    strategy: Strategy = "sandwich"
    num_random: int = 2
    in_place: bool = True
    largest_every: int = 1
    losses: LossWeights = field(default_factory=LossWeights)
    mask_rate: float = 0.15
    batch_size: int = 32
    seq_len: int = 64
    accumulate: int = 1
    learning_rate: float = 5e-4
    warmup: float = 0.05
    weight_decay: float = 0.01
    trains_embeddings: bool | None = None
    precision: Precision = "auto"
    evaluate_every: int = 100
    checkpoint_every: int = 50
    max_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise InvalidInputError("give either steps or minutes as the training budget")
        bounds: dict[str, tuple[float | None, float, float]] = {
            "steps": (self.steps, 1, 10_000_000),
            "minutes": (self.minutes, 0.01, 100_000),
            "num_random": (self.num_random, 0, 64),
            "largest_every": (self.largest_every, 1, 1000),
            "mask_rate": (self.mask_rate, 0.01, 0.9),
            "batch_size": (self.batch_size, 1, 65_536),
            "seq_len": (self.seq_len, 8, 65_536),
            "accumulate": (self.accumulate, 1, 4096),
            "learning_rate": (self.learning_rate, 1e-9, 1.0),
            "warmup": (self.warmup, 0.0, 0.9),
            "weight_decay": (self.weight_decay, 0.0, 1.0),
            "evaluate_every": (self.evaluate_every, 1, 10_000_000),
            "checkpoint_every": (self.checkpoint_every, 1, 10_000_000),
            "max_tokens": (self.max_tokens, 100, 10**12),
            "seed": (self.seed, 0, 2**31 - 1),
        }
        for name, (value, low, high) in bounds.items():
            if value is not None and not low <= value <= high:
                raise InvalidInputError(f"{name} must be from {low:g} to {high:g}, got {value!r}")
        if self.strategy not in STRATEGIES:
            raise InvalidInputError(f"strategy must be one of {', '.join(STRATEGIES)}, got {self.strategy!r}")
        if self.strategy == "uniform" and self.num_random == 0:
            raise InvalidInputError("the uniform strategy needs num_random of at least 1")
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise InvalidInputError(f"precision must be auto, fp32, bf16 or fp16, got {self.precision!r}")


@dataclass(frozen=True)
class TrainingStatus:
    """What a run says of itself after a step.

    Attributes:
        step: Steps done.
        fraction: Share of the budget used, 0 to 1.
        remaining_s: Estimated seconds to the end; None before the first step.
        loss: Mean loss of the step's subnets; None before the first step.
        held_out: Held-out losses by place (smallest, middle, largest) where they were just taken, else empty.
    """

    step: int
    fraction: float
    remaining_s: float | None
    loss: float | None
    held_out: Mapping[str, float]


OnStatus = Callable[[TrainingStatus], None]


def train(
    out: Path,
    *,
    space: SearchSpace,
    corpora: Sequence[str],
    config: TrainingConfig,
    teacher: str | None,
    tokenizer: str | None = None,
    layer_selection: LayerSelection = "alternate",
    weight_format: WeightFormat = "float32",
    resume: bool = False,
    device: str | None = None,
    on_status: OnStatus = lambda status: None,
    on_note: Callable[[str], None] = lambda message: None,
) -> Path:
    """Trains a supernet and writes its folder.

    Args:
        out: The folder; must be absent or empty unless ``resume``.
        space: The architectures it shall hold.
        corpora: Text files, folders or hub ids.
        config: How to train.
        teacher: Folder or hub id of a BERT-like encoder; None for a fresh start with the mlm loss.
        tokenizer: Folder or hub id of a tokenizer where there is no teacher.
        layer_selection: Which layers shallow subnets take.
        weight_format: How the final weights are stored.
        resume: Whether to go on from the last checkpoint in ``out``.
        device: A torch device; by default CUDA where there is one, else the CPU.
        on_status: Called after every step.
        on_note: Called with a sentence at the start of each phase.

    Returns:
        The folder.

    Raises:
        InvalidInputError: An input breaks a law, the folder is occupied, or the loss is no longer finite.
    """
    _check_out(out, resume=resume)
    on_note("loading the teacher" if teacher else "starting without a teacher")
    loaded = load_teacher(str(teacher)) if teacher else None
    if loaded is None and tokenizer is None:
        raise InvalidInputError("without a teacher a tokenizer must be given (--tokenizer DIR_OR_ID)")
    words = loaded.tokenizer if loaded else load_tokenizer(str(tokenizer))
    on_note("reading the corpus")
    chunks, held_out = tokenise(corpora, words, seq_len=config.seq_len, max_tokens=config.max_tokens)
    if loaded is not None:
        sort_by_importance(loaded, _calibration(chunks, config))
    supernet = build_supernet(
        space, loaded, words, layer_selection, has_mlm_head=config.losses.mlm > 0, seed=config.seed
    )
    trainer = Trainer(supernet, loaded, words, chunks, held_out, config, device=device)
    if loaded is not None and not resume:
        trainer.calibrate(_calibration(chunks, config))
    fingerprint = {
        "config": asdict(config),
        "supernet": config_to_dict(supernet.config),
        "corpora": list(corpora),
        "num_tokens": len(chunks.tokens),
        "teacher": str(teacher) if teacher else None,
    }
    log = RunLog(out, fingerprint)
    if resume:
        on_note(f"resuming after step {log.restore(trainer)}")
    else:
        out.mkdir(parents=True, exist_ok=True)
        log.save(trainer)
    on_note(f"training on {trainer.device} in {trainer.precision}: {len(chunks.tokens):,} tokens")
    trainer.run(log, on_status)
    finish(out, trainer, loaded, fingerprint, weight_format)
    return out


def finish(
    out: Path, trainer: "Trainer", teacher: Teacher | None, facts: Mapping[str, Any], weight_format: WeightFormat
) -> None:
    """Writes the tokenizer, the reference and the final weights."""
    with atomic_folder(out / "tokenizer", replace=True) as folder:
        trainer.tokenizer.save_pretrained(folder)
    reference = None
    if teacher is not None:
        reference = make_reference(teacher.encoder.cpu(), trainer.held_out, trainer.supernet.largest.hidden_size)
    training = {
        "teacher": facts["teacher"],
        "corpora": [Path(source).name for source in facts["corpora"]],
        "num_tokens": facts["num_tokens"],
        "config": facts["config"],
        "steps": trainer.step,
        "elapsed_s": round(trainer.elapsed_s, 1),
        "precision": trainer.precision,
        "device": str(trainer.device),
        "held_out": dict(trainer.held_out_losses),
    }
    save_supernet(out, trainer.supernet, reference=reference, training=training, weight_format=weight_format)


def make_reference(teacher: Encoder, held_out: TokenChunks, width: int) -> Reference:
    """Held-out texts, evenly spread over the held-out chunks and cut to 48 tokens, and the teacher's pooled states."""
    count = min(REFERENCE_TEXTS, len(held_out))
    picks = [round(place * (len(held_out) - 1) / max(1, count - 1)) for place in range(count)]
    batch = held_out.batch(picks)
    ids, mask = batch.input_ids[:, :REFERENCE_TOKENS], batch.attention_mask[:, :REFERENCE_TOKENS]
    with torch.no_grad():
        pooled = torch.cat(
            [
                pool(teacher(ids[start : start + 64], mask[start : start + 64]), mask[start : start + 64])
                for start in range(0, count, 64)
            ]
        )
    return Reference(ids, mask, pooled[:, :width])


def build_supernet(
    space: SearchSpace,
    teacher: Teacher | None,
    tokenizer: Any,
    layer_selection: LayerSelection,
    *,
    has_mlm_head: bool,
    seed: int,
) -> Supernet:
    """A supernet with the sorted teacher's weights, or with random ones from the seed."""
    torch.manual_seed(seed)
    if teacher is not None:
        text, table_size = teacher.encoder.text, teacher.encoder.architecture.embedding_size
    else:
        vocab_size = -8 * (-len(tokenizer) // 8)
        text = TextSpec(vocab_size=vocab_size, pad_token_id=tokenizer.pad_token_id)
        table_size = max(size or max(space.hidden_size) for size in space.embedding_size)
    supernet = Supernet(SupernetConfig(space, text, table_size, layer_selection, has_mlm_head))
    if teacher is not None:
        initialise_from(supernet, teacher)
    return supernet


class Trainer:
    """The state of a run: parameters, optimiser, step and clock."""

    def __init__(
        self,
        supernet: Supernet,
        teacher: Teacher | None,
        tokenizer: Any,
        chunks: TokenChunks,
        held_out: TokenChunks,
        config: TrainingConfig,
        *,
        device: str | None = None,
    ) -> None:
        if config.seq_len > supernet.config.text.max_positions:
            raise InvalidInputError(
                f"seq_len must be at most {supernet.config.text.max_positions} (the position table's rows), "
                f"got {config.seq_len}"
            )
        self.config = config
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.precision = choose_precision(config.precision, self.device)
        self.supernet = supernet.to(self.device)
        self.teacher = teacher.encoder.to(self.device).requires_grad_(False) if teacher is not None else None
        self.tokenizer = tokenizer
        masking = None
        if config.losses.mlm:
            if tokenizer.mask_token_id is None:
                raise InvalidInputError("the mlm loss needs a tokenizer with a [MASK] token")
            masking = Masking(tokenizer.mask_token_id, tuple(tokenizer.all_special_ids), config.mask_rate)
        self.teaching = Teaching(supernet, self.teacher, config.losses, in_place=config.in_place, masking=masking)
        self.teaching.to(self.device)
        trains_embeddings = teacher is None if config.trains_embeddings is None else config.trains_embeddings
        supernet.embeddings.word.weight.requires_grad_(trains_embeddings)
        self.optimizer = torch.optim.AdamW(
            self._parameter_groups(), lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-6
        )
        self.scaler = torch.amp.GradScaler(enabled=True) if self.precision == "fp16" else None
        self.order = BatchOrder(chunks, config.batch_size, config.seed)
        self.held_out = held_out
        self.step = 0
        self.elapsed_s = 0.0
        self.held_out_losses: dict[str, float] = {}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        named = [*self.supernet.named_parameters(), *self.teaching.named_parameters()]
        learned = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        plain = [parameter for name, parameter in learned if name.endswith("bias") or "norm" in name]
        decayed = [parameter for name, parameter in learned if not (name.endswith("bias") or "norm" in name)]
        return [
            {"params": decayed, "weight_decay": self.config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]

    def calibrate(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Gives what is specialised per width its closed-form start."""
        assert self.teacher is not None
        moved = [(ids.to(self.device), mask.to(self.device)) for ids, mask in batches]
        calibrate(self.supernet, self.teaching.maps, self.teacher, moved)

    @property
    def fraction(self) -> float:
        """Share of the budget used, 0 to 1."""
        if self.config.steps is not None:
            return min(1.0, self.step / self.config.steps)
        assert self.config.minutes is not None
        return min(1.0, self.elapsed_s / (60 * self.config.minutes))

    def run(self, log: "RunLog", on_status: OnStatus) -> None:
        """Trains to the end of the budget, with checkpoints and held-out losses on the way."""
        if self.teacher is not None and self.step == 0:
            self.held_out_losses = self.evaluate()
            on_status(TrainingStatus(0, 0.0, None, None, self.held_out_losses))
        while self.fraction < 1:
            started = time.monotonic()
            losses = self.train_step()
            self.elapsed_s += time.monotonic() - started
            is_last = self.fraction >= 1
            held_out: dict[str, float] = {}
            if self.teacher is not None and (self.step % self.config.evaluate_every == 0 or is_last):
                held_out = self.held_out_losses = self.evaluate()
            log.append(self, losses, held_out)
            if self.step % self.config.checkpoint_every == 0 or is_last:
                log.save(self)
            remaining = self.elapsed_s / max(self.fraction, 1e-9) * (1 - self.fraction)
            mean_loss = sum(losses.values()) / len(losses)
            on_status(TrainingStatus(self.step, self.fraction, remaining, mean_loss, held_out))

    def train_step(self) -> dict[str, float]:
        """One optimiser step; returns the loss of each subnet by key.

        Raises:
            InvalidInputError: A loss is not finite.
        """
        config = self.config
        self.supernet.train()
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(self.fraction, config.warmup)
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        for place in range(config.accumulate):
            subnets = subnets_of_step(
                self.supernet.config.space,
                config.strategy,
                num_random=config.num_random,
                seed=config.seed,
                step=self.step * config.accumulate + place,
                largest_every=config.largest_every,
            )
            losses = self._backward(self.order[self.step * config.accumulate + place].to(self.device), subnets, place)
            for key, loss in losses.items():
                if not math.isfinite(loss):
                    raise InvalidInputError(
                        f"the loss of {key} is {loss} at step {self.step + 1}; lower the learning rate "
                        f"(now {config.learning_rate:g}) or use fp32, and resume from the last checkpoint"
                    )
                totals[key] = totals.get(key, 0.0) + loss / config.accumulate
        self._apply()
        self.step += 1
        return totals

    def _backward(self, batch: Batch, subnets: Sequence[Architecture], place: int) -> dict[str, float]:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return self.teaching.backward(
                self.supernet,
                self.teacher,
                batch,
                subnets,
                seed=(self.config.seed * 1_000_003 + self.step * self.config.accumulate + place) % 2**31,
                scale=1 / (len(subnets) * self.config.accumulate),
                scaler=self.scaler,
            )

    def _apply(self) -> None:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Held-out unexplained shares of the smallest, a middle and the largest subnet."""
        assert self.teacher is not None
        self.supernet.eval()
        space = self.supernet.config.space
        batches = [batch.to(self.device) for batch in spread(self.held_out, HELD_OUT_CHUNKS).batches(32)]
        subnets = {"smallest": space.smallest(), "middle": middle(space), "largest": space.largest()}
        return {
            name: round(self.teaching.held_out_loss(self.supernet, self.teacher, architecture, batches), 5)
            for name, architecture in subnets.items()
        }

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as tensors by name."""
        tensors = {f"supernet.{name}": tensor for name, tensor in self.supernet.state_dict().items()}
        tensors |= {f"teaching.{name}": tensor for name, tensor in self.teaching.state_dict().items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in entry.items()}
        if self.scaler is not None:
            scale = self.scaler.state_dict()
            tensors |= {f"scaler.{name}": torch.tensor(scale[name]) for name in ("scale", "_growth_tracker")}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def load(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Restores :meth:`state`.

        Raises:
            InvalidInputError: The tensors are not those of this run.
        """
        load_state(self.supernet, _under("supernet.", tensors), folder)
        load_state(self.teaching, _under("teaching.", tensors), folder)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("optimizer.", tensors).items():
            index, part = name.split(".")
            state.setdefault(int(index), {})[part] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if self.scaler is not None:
            saved = self.scaler.state_dict()
            self.scaler.load_state_dict(saved | {k: v.item() for k, v in _under("scaler.", tensors).items()})


class RunLog:
    """What a run leaves on disk while it trains: ``training/`` in the supernet's folder.

    ``run.json`` says what is trained, ``curve.jsonl`` holds a line a step, ``step-N/`` the newest checkpoints and
    ``latest`` the name of the newest whole one.

    Args:
        out: The supernet's folder.
        fingerprint: What must be the same when the run is resumed.
    """

    def __init__(self, out: Path, fingerprint: Mapping[str, Any]) -> None:
        self.folder = out / "training"
        self.fingerprint = json.loads(json.dumps(fingerprint))

    def append(self, trainer: Trainer, losses: Mapping[str, float], held_out: Mapping[str, float]) -> None:
        """Adds a step to the loss curve."""
        entry = {
            "step": trainer.step,
            "losses": dict(losses),
            "held_out": dict(held_out),
            "elapsed_s": trainer.elapsed_s,
        }
        with (self.folder / "curve.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def save(self, trainer: Trainer) -> None:
        """Writes a checkpoint and then its name; older ones go."""
        name = f"step-{trainer.step:08d}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(f"cannot write {self.folder}: {error.strerror}; choose another --out") from error
        if not (self.folder / "run.json").exists():
            write_atomic(self.folder / "run.json", json.dumps(self.fingerprint, indent=2) + "\n")
        with atomic_folder(self.folder / name, replace=True) as folder:
            (folder / "state.safetensors").write_bytes(safetensors.torch.save(trainer.state()))
            clock = {"step": trainer.step, "elapsed_s": trainer.elapsed_s, "held_out": trainer.held_out_losses}
            (folder / "clock.json").write_text(json.dumps(clock))
        write_atomic(self.folder / "latest", name)
        for old in self.folder.glob("step-*"):
            if old.name != name:
                shutil.rmtree(old, ignore_errors=True)

    def restore(self, trainer: Trainer) -> int:
        """Loads the newest checkpoint and cuts the curve to it; returns its step.

        Raises:
            InvalidInputError: There is no run to resume, or it was another one.
        """
        try:
            known = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            name = (self.folder / "latest").read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise InvalidInputError(
                f"{self.folder.parent} holds no training to resume; start without --resume"
            ) from error
        if known != self.fingerprint:
            differing = sorted(key for key in self.fingerprint if known.get(key) != self.fingerprint[key])
            raise InvalidInputError(
                f"the run in {self.folder.parent} was started with another {', '.join(differing)}; "
                "repeat its options or train into another folder"
            )
        if not re.fullmatch(r"step-\d{8}", name):
            raise InvalidInputError(f"{self.folder / 'latest'} is damaged: it must name a checkpoint; restore it")
        folder = self.folder / name
        trainer.load(read_tensors(folder / "state.safetensors"), folder)
        try:
            clock = json.loads((folder / "clock.json").read_text(encoding="utf-8"))
            trainer.step, trainer.elapsed_s = int(clock["step"]), float(clock["elapsed_s"])
            trainer.held_out_losses = dict(clock["held_out"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(f"{folder / 'clock.json'} is damaged; restore it or train again") from error
        self._cut_curve(trainer.step)
        return trainer.step

    def _cut_curve(self, step: int) -> None:
        path = self.folder / "curve.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()[:step]
            write_atomic(path, "".join(line + "\n" for line in lines))


def schedule(fraction: float, warmup: float) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to 2 %."""
    if fraction < warmup:
        return max(fraction, 1e-3) / warmup
    place = (fraction - warmup) / (1 - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * place))


def middle(space: SearchSpace) -> Architecture:
    """The architecture whose every dimension takes the middle choice."""
    return space.build({name: choices[len(choices) // 2] for name, choices in space.dimensions.items()})


def spread(chunks: TokenChunks, count: int) -> TokenChunks:
    """At most ``count`` chunks, evenly spread."""
    if len(chunks) <= count:
        return chunks
    picks = [round(place * (len(chunks) - 1) / (count - 1)) for place in range(count)]
    rows = [chunks.tokens[chunks.starts[pick] : chunks.starts[pick + 1]] for pick in picks]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return TokenChunks(np.concatenate(rows), starts, chunks.pad_token_id)


def _calibration(chunks: TokenChunks, config: TrainingConfig) -> list[tuple[Tensor, Tensor]]:
    order = BatchOrder(chunks, config.batch_size, config.seed + 1)
    batches = [order[place] for place in range(min(CALIBRATION_BATCHES, order.per_epoch))]
    return [(batch.input_ids, batch.attention_mask) for batch in batches]


def _check_out(out: Path, *, resume: bool) -> None:
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInputError(f"{out} is already there and not empty; give another --out, or --resume to go on")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
