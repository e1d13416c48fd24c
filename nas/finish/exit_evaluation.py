"""Models with exits among task models: what ``nas eval`` and ``nas predict`` need of their folders."""

from pathlib import Path

import numpy as np

from nas.export.onnx_graph import INPUT_NAMES
from nas.finish.evaluation import Logits
from nas.finish.exit_curves import Answers
from nas.finish.exit_export import answers, load_exits
from nas.finish.exit_folder import precisions_of
from nas.finish.exit_model import TorchLayers
from nas.finish.exits import Layers, OnnxLayers, padded, run
from nas.finish.halting import Policy
from nas.finish.model import TaskModel
from nas.progress import Progress
from search_spaces.architecture import TextSpec
from supernet.examples import Examples, TaskBatch
from supernet.teacher import load_tokenizer

_SMALLEST = 1e-30


class ExitRun:
    """Answers batches as a model with exits does, and counts the layers.

    Args:
        layers: The backbone.
        policy: When it stops.
        halts: Whether it may.
    """

    def __init__(self, layers: Layers, policy: Policy, *, halts: bool = True) -> None:
        self._layers, self._policy, self._halts = layers, policy, halts
        self._passed: list[int] = []

    def __call__(self, batch: TaskBatch) -> Logits:
        """The logarithms of a batch's probabilities, (B, C): logits as good as any."""
        arrays = {name: getattr(batch, name).numpy() for name in INPUT_NAMES}
        probabilities, passed = run(self._layers, arrays, self._policy, halts=self._halts)
        self._passed += passed.tolist()
        return np.log(np.maximum(probabilities, _SMALLEST)).astype(np.float32)

    @property
    def average_layers(self) -> float:
        """Over all texts so far."""
        return float(np.mean(self._passed))


def open_exits(folder: Path) -> tuple[TaskModel, dict[str, ExitRun]]:
    """Reads a folder of ``nas exits``.

    Returns:
        The task model at its last exit, which says how texts are read and what answers mean; and by name the ways to
        run the folder: ``torch``, ``onnx``, ``onnx-int8`` where it holds such graphs, and ``never stopping``.

    Raises:
        InvalidInputError: It is none, or a part of it is missing or damaged.
    """
    exits, description = load_exits(folder)
    tokenizer = load_tokenizer(str(folder), description.text)
    model = TaskModel(exits.encoder, exits.head(exits.num_exits - 1), tokenizer, name=str(folder)).eval()
    torch_layers, policy = TorchLayers(exits), description.policy
    runs = {"torch": ExitRun(torch_layers, policy)}
    for precision, name in (("fp32", "onnx"), ("int8", "onnx-int8")):
        if precision == "fp32" or precision in precisions_of(folder, description.num_exits):
            runs[name] = ExitRun(OnnxLayers(folder, description, precision=precision), policy)
    return model, {**runs, "never stopping": ExitRun(torch_layers, policy, halts=False)}


def answers_alone(layers: Layers, examples: Examples, text: TextSpec, progress: Progress) -> Answers:
    """What every exit says of a split, a text at a time, as int8 graphs round by the range of what they are given.

    Args:
        layers: The backbone; nothing stops.
        examples: The split.
        text: What the backbone reads.
        progress: What is told about it.
    """
    logits, gates = [], []
    progress.start("evaluating in int8, a text at a time", len(examples))
    for number, (ids, types) in enumerate(zip(examples.input_ids, examples.token_type_ids, strict=True)):
        progress.update(number)
        found = list(answers(layers, padded([ids], [types], text)))
        logits.append(np.stack([own[0] for own, *_ in found]))
        gates.append([float(gate[0]) for _, *of_exit in found for gate in of_exit])
    progress.finish()
    labels = np.asarray(examples.labels, dtype=np.int64)
    has_gates = bool(gates and gates[0])
    return Answers(
        np.stack(logits, 1).astype(np.float32), np.array(gates, dtype=np.float32).T if has_gates else None, labels
    )
