"""Teaching a model's exits: heads and backbone together, from a task model that is fine-tuned already.

Two ways. DACT (Eyzaguirre et al., 2022, arXiv 2109.11745) learns the answer of its mixture and pays tau for what is
left open at each exit; one model for each tau. Joint training (PABEE, Zhou et al., 2020, arXiv 2006.04152) gives every
head the labels, later ones in proportion to their place; patience and confidence stop the same model. Neither stops
while it learns.

Shapes: B batch, C classes, N exits.
"""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from nas.export.task_head import Pooling
from nas.finish.exit_curves import Answers
from nas.finish.exit_model import ExitModel
from nas.finish.halting import Dact, replay
from nas.finish.model import TaskModel
from nas.finish.sparsity import Lock, prunable
from nas.finish.training import History, Hooks, LoopConfig, train
from nas.progress import Progress
from supernet.examples import Examples, TaskBatch
from supernet.task import Task
from supernet.teacher import weights_digest

#: How many times as fast as the backbone fresh heads and gates learn.
FRESH_FACTOR = 10.0
_SMALLEST = 1e-7  # of a probability before its logarithm
_EVALUATION_BATCH = 64


def dact_mixture(logits: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """DACT's answer and what was left open on the way.

    With y_n the answers, h_n the gates and p_n = h_1 ... h_n, p_0 = 1: a_n = y_n p_(n-1) + a_(n-1) (1 - p_(n-1)).

    Args:
        logits: Every exit's head, (N, B, C).
        gates: Every gate before its sigmoid, (N - 1, B): the last exit ends everything, whatever a gate there said.

    Returns:
        The probabilities a_N, (B, C), and p_1 ... p_(N-1), (N - 1, B); both in float32.
    """
    answers, rests = logits.float().softmax(-1), gates.float().sigmoid().cumprod(0)
    answer = answers[0]
    for own, rest in zip(answers[1:], rests, strict=True):
        answer = own * rest[:, None] + answer * (1 - rest[:, None])
    return answer, rests


def dact_loss(logits: Tensor, gates: Tensor, labels: Tensor, tau: float) -> dict[str, Tensor]:
    """The negative log-likelihood of the mixture, and tau times the sum of p_n.

    The mixture is a probability already, so its logarithm is taken and no softmax. p_n is how much exit n + 1 still
    counts, so that their sum is near the layers that are taken; the last exit has none.

    Args:
        logits: Shape (N, B, C).
        gates: Shape (N - 1, B).
        labels: Shape (B,).
        tau: What a layer costs, in nats.
    """
    answer, rests = dact_mixture(logits, gates)
    return {"label": F.nll_loss(answer.clamp(min=_SMALLEST).log(), labels), "layers": tau * rests.sum(0).mean()}


def joint_loss(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The cross-entropy of every exit, weighted with its place: 1 for the first, N for the last.

    Args:
        logits: Shape (N, B, C).
        labels: Shape (B,).
    """
    places = torch.arange(1, len(logits) + 1, device=logits.device, dtype=torch.float32)
    losses = torch.stack([F.cross_entropy(own.float(), labels) for own in logits])
    return {"label": (losses * places).sum() / places.sum()}


def with_exits(model: TaskModel, *, early: Pooling = "mean", has_gates: bool, seed: int) -> ExitModel:
    """A copy of a task model with fresh exits; the last one has the task model's head.

    Raises:
        InvalidInputError: See :func:`nas.finish.exit_layers.check_can_exit`.
    """
    exits = ExitModel(
        copy.deepcopy(model.encoder),
        model.spec,
        pooling=model.head.pooling,
        early=early,
        activation=model.head.activation,
        has_gates=has_gates,
        seed=seed,
    )
    exits.heads[-1].load_state_dict(model.head.state_dict())
    return exits.requires_grad_(True).to(next(model.parameters()).device)


def teach_exits(
    model: TaskModel,
    task: Task,
    tau: float | None,
    config: LoopConfig,
    folder: Path,
    *,
    early: Pooling = "mean",
    is_locked: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> tuple[ExitModel, History]:
    """Trains exits on a task.

    Its last weights are kept and not the best ones of the validation split: which are best depends on what a layer is
    worth, and the learning rate ends at zero.

    Args:
        model: The fine-tuned task model; left as it is.
        task: What is learnt.
        tau: DACT's price of a layer; None for joint training.
        config: How long and how fast.
        folder: Where the checkpoint is kept.
        early: Which state stands for a text at every exit but the last.
        is_locked: Whether the encoder is sparse and its pattern is kept.
        resume: Whether to go on from a checkpoint there.
        progress: What is told about it.
    """
    exits = with_exits(model, early=early, has_gates=tau is not None, seed=config.seed)
    lock = Lock(prunable(exits.encoder)).hold() if is_locked else None
    hooks = Hooks(best_from=config.num_steps(len(task.train)))
    if lock is not None:
        hooks = replace(hooks, after_step=lock.after_step)
    fresh = (*(f"heads.{place}." for place in range(exits.num_exits - 1)), "gates.")

    def loss(batch: TaskBatch) -> dict[str, Tensor]:
        logits, gates = exits(**batch.inputs)
        if tau is None:
            return joint_loss(logits, batch.labels)
        assert gates is not None
        return dact_loss(logits, gates, batch.labels, tau)

    def evaluate() -> dict[str, float]:
        answers = answers_of(exits, task.validation)
        policy = Dact()
        if answers.gates is None:
            return {"accuracy": float((answers.logits[-1].argmax(1) == answers.labels).mean())}
        probabilities, passed = replay(policy, answers.logits, answers.gates)
        accuracy = float((probabilities.argmax(1) == answers.labels).mean())
        return {"accuracy": accuracy, "layers": float(passed.mean())}

    history = train(
        exits,
        task.train,
        loss,
        evaluate,
        replace(config, fresh=fresh, fresh_factor=FRESH_FACTOR, metric="accuracy", patience=None),
        folder,
        fingerprint={
            "model": weights_digest(model),
            "task": task.name,
            "data": task.digest(),
            "tau": tau,
            "early": early,
        },
        resume=resume,
        hooks=hooks,
        progress=progress,
        phase="teach exits jointly" if tau is None else f"teach DACT, tau {tau:g}",
    )
    return exits, history


def answers_of(model: ExitModel, examples: Examples) -> Answers:
    """What every exit says of a split, in the split's order; nothing stops."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    order, logits, gates = [], [], []
    with torch.no_grad():
        for batch in examples.batches(_EVALUATION_BATCH):
            own, gate = model(**batch.to(device).inputs)
            order.append(batch.indices)
            logits.append(own.float().cpu())
            gates += [] if gate is None else [gate.float().cpu()]
    model.train(was_training)
    back = torch.cat(order).argsort()
    return Answers(
        torch.cat(logits, 1)[:, back].numpy(),
        torch.cat(gates, 1)[:, back].numpy() if gates else None,
        np.asarray(examples.labels, dtype=np.int64),
    )
