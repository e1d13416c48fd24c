"""What a task model answers on a split, in PyTorch and in ONNX Runtime, and how good that is.

Shapes: B batch, T tokens, M words, C outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from nas.errors import InvalidInputError
from nas.export.onnx_graph import INPUT_NAMES, LOGITS_NAME, POSITIONS_NAME
from nas.finish.model import TaskModel
from supernet.examples import Examples, TaskBatch
from supernet.task_metrics import score
from supernet.task_spec import TaskSpec

BATCH_SIZE = 64

Logits = NDArray[np.float32]
Run = Callable[[TaskBatch], Logits]


@dataclass(frozen=True)
class Evaluation:
    """A model's answers on a split.

    Attributes:
        scores: Figures by metric.
        answers: A class, a number, or the classes of the words; for each text.
        logits: Outputs behind each answer, (C,) or (M, C).
    """

    scores: dict[str, float]
    answers: list[Any]
    logits: list[Logits]


def evaluate(run: Run, spec: TaskSpec, examples: Examples, *, batch_size: int = BATCH_SIZE) -> Evaluation:
    """Takes a model's answers on every example, and scores them.

    Args:
        run: From a batch to logits, (B, C) or (B, M, C); see :func:`torch_run` and :class:`OnnxRun`.
        spec: What is asked.
        examples: The split.
        batch_size: Texts at a time.
    """
    logits = logits_of(run, examples, batch_size=batch_size)
    answers = [answer(spec, one) for one in logits]
    return Evaluation(score(spec, answers, examples.labels), answers, logits)


def logits_of(run: Run, examples: Examples, *, batch_size: int = BATCH_SIZE) -> list[Logits]:
    """The logits of every example, (C,) or (M, C), in the examples' order."""
    found: list[Logits] = [np.empty(0, np.float32)] * len(examples)
    for batch in examples.batches(batch_size):
        for index, logits in zip(batch.indices.tolist(), run(batch), strict=True):
            found[index] = logits if examples.positions is None else logits[: len(examples.positions[index])]
    return found


def answer(spec: TaskSpec, logits: Logits) -> Any:
    """The class, the number, or the list of classes that logits (C,) or (M, C) mean."""
    if spec.kind == "regression":
        return float(logits[0])
    return logits.argmax(-1).tolist()


def agreement(spec: TaskSpec, first: Evaluation, second: Evaluation) -> tuple[float, float]:
    """The share of equal answers of two forms of a model, and the largest difference of their logits.

    Numbers are equal where they differ by less than a thousandth.
    """
    difference = max(float(np.abs(a - b).max(initial=0)) for a, b in zip(first.logits, second.logits, strict=True))
    if spec.kind == "regression":
        pairs = zip(first.answers, second.answers, strict=True)
        return float(np.mean([abs(a - b) < 1e-3 for a, b in pairs])), difference
    return float((flat(first.answers) == flat(second.answers)).mean()), difference


def torch_run(model: TaskModel) -> Run:
    """Runs a task model where it is, in evaluation mode."""
    device = next(model.parameters()).device

    def run(batch: TaskBatch) -> Logits:
        with torch.inference_mode():
            logits: Logits = model(**batch.to(device).inputs).float().cpu().numpy()
        return logits

    return run


class OnnxRun:
    """Runs an exported file on one CPU thread.

    Args:
        path: ``model.onnx`` or ``model.int8.onnx`` of a task model's folder.

    Raises:
        InvalidInputError: It is absent, damaged, or gives no logits.
    """

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no root class for its own
            raise InvalidInputError(f"{path} cannot be opened: {str(error).splitlines()[0][:200]}") from error
        if [output.name for output in self._session.get_outputs()] != [LOGITS_NAME]:
            raise InvalidInputError(f"{path} gives no {LOGITS_NAME}: it is an encoder; fine-tune it first")
        self._takes_positions = any(given.name == POSITIONS_NAME for given in self._session.get_inputs())

    def __call__(self, batch: TaskBatch) -> Logits:
        """The logits of a batch, (B, C) or (B, M, C)."""
        inputs = {name: getattr(batch, name).numpy() for name in INPUT_NAMES}
        positions = None if batch.positions is None else batch.positions.numpy()
        if self._takes_positions and positions is not None:
            inputs[POSITIONS_NAME] = positions
        logits: Logits = self._session.run([LOGITS_NAME], inputs)[0]
        if positions is None or self._takes_positions:
            return logits
        return np.take_along_axis(logits, positions[..., None], axis=1)


def probabilities(spec: TaskSpec, logits: Logits) -> Logits:
    """Softmax over the labels; of numbers, themselves."""
    if spec.kind == "regression":
        return logits
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    shares: Logits = shifted / shifted.sum(-1, keepdims=True)
    return shares


def flat(values: Sequence[Any]) -> NDArray[np.int64]:
    """Classes of all texts, or of all words, one after the other."""
    return np.concatenate([np.atleast_1d(np.asarray(one, np.int64)) for one in values])
