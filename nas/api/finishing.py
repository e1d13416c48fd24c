"""From an encoder to a task model: fine-tuning, evaluation, prediction."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.config import check_bounds
from nas.errors import InvalidInputError
from nas.progress import Progress
from search_spaces.files import expanded

if TYPE_CHECKING:
    from nas.finish.exit_report import ExitsResult
    from nas.finish.finetune import Finetuned
    from nas.finish.prediction import Prediction

RUNTIMES = {"torch": "model.safetensors", "onnx": "model.onnx", "onnx-int8": "model.int8.onnx"}


@dataclass(frozen=True)
class Evaluated:
    """A task model's figures on a split.

    Attributes:
        model: The folder.
        split: Which split.
        num_texts: How many texts.
        scores: Figures by metric, by runtime: torch, onnx, onnx-int8.
        agreement: By runtime, the share of answers that are PyTorch's.
        largest_difference: By runtime, the largest difference of a logit from PyTorch's.
    """

    model: str
    split: str
    num_texts: int
    scores: dict[str, dict[str, float]]
    agreement: dict[str, float]
    largest_difference: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        names = ("model", "split", "num_texts", "scores", "agreement", "largest_difference")
        return {name: getattr(self, name) for name in names}


def finetune(
    model: str | Path,
    out: str | Path,
    *,
    task: str,
    teacher: str | Path | None = None,
    epochs: float = 4,
    lr: float = 1e-4,
    batch_size: int = 32,
    seed: int = 0,
    metric: str | None = None,
    patience: int | None = None,
    kind: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    seq_len: int | None = None,
    pooling: str | None = None,
    temperature: float = 2.0,
    label_weight: float = 0.5,
    hidden_weight: float = 1.0,
    distil_epochs: float = 0.0,
    augment: int = 0,
    resume: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
) -> "Finetuned":
    """Fine-tunes a model on a task; options that are not here keep their defaults.

    Args:
        model: An encoder's folder (of a search, an export, or a Hugging Face one) or a hub id.
        out: Folder for the task model; must be absent or empty.
        task: A file, folder or hub id.
        teacher: A fine-tuned model to learn from: its folder or hub id.
        epochs: Times every training text is seen.
        lr: Peak learning rate; heads learn five times as fast.
        batch_size: Texts a step.
        seed: Of every draw.
        metric: What chooses the best weights; by default the task's usual one.
        patience: Evaluations (one an epoch) without a better figure after which it stops.
        kind: classification, regression or tagging, where the labels leave a doubt.
        text: Column of the text.
        text_pair: Column of the second text.
        label: Column of the labels.
        seq_len: Longer texts are cut to so many tokens; by default a text beyond the model's limit is an error.
        pooling: ``first``, or ``mean``, for which no stock class exists; None as the model's head reads, where it has
            one, else first.
        temperature: Softens the teacher's answers.
        label_weight: Weight of the labels beside the teacher's answers.
        hidden_weight: Weight of the teacher's hidden states.
        distil_epochs: Epochs of hidden states alone, before.
        augment: Copies of each text with exchanged words that the teacher labels.
        resume: Whether to go on from an unfinished run.
        command: What made it, for the card.
        progress: What is told about it.

    Raises:
        InvalidInputError: An input breaks a law, the folder is occupied, or the loss is no longer finite.
    """
    check_bounds(batch_size=batch_size, lr=lr, seed=seed, seq_len=seq_len)
    options = _options(kind, text, text_pair, label, seq_len)
    from nas.finish.finetune import FinetuneConfig
    from nas.finish.finetune import finetune as finetune_model
    from nas.finish.training import LoopConfig

    loop = LoopConfig(epochs=epochs, batch_size=batch_size, learning_rate=lr, patience=patience, seed=seed)
    config = FinetuneConfig(
        loop,
        metric,
        pooling,  # type: ignore[arg-type]  # checked by FinetuneConfig
        temperature,
        label_weight,
        hidden_weight,
        distil_epochs,
        augment,
    )
    return finetune_model(
        model, task, Path(out), config=config, options=options, teacher=teacher, resume=resume, command=command,
        progress=progress,
    )  # fmt: skip


def exits(
    model: str | Path,
    out: str | Path,
    *,
    task: str,
    methods: Sequence[str] = ("all",),
    taus: Sequence[float] = (0.1, 0.3),
    epochs: float = 4,
    lr: float = 5e-5,
    batch_size: int = 32,
    seed: int = 0,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    seq_len: int | None = None,
    pooling: str = "mean",
    timed: int = 60,
    resume: bool = False,
    progress: Progress | None = None,
) -> "ExitsResult":
    """Teaches a task model to stop where it knows enough, in several ways side by side.

    Args:
        model: A task model of this task, or an encoder, which is fine-tuned first: a folder or hub id.
        out: Folder for a model folder of each way, and the report; must be absent or empty.
        task: A file, folder or hub id; a classification.
        methods: Some of dact, pabee and confidence, or all.
        taus: DACT's prices of a layer, a model folder for each.
        epochs: Times every training text is seen by the exits.
        lr: Peak learning rate; exits that begin afresh learn five times as fast.
        batch_size: Texts a step.
        seed: Of every draw.
        text: Column of the text.
        text_pair: Column of the second text.
        label: Column of the labels.
        seq_len: Longer texts are cut to so many tokens.
        pooling: What early exits read: the ``mean`` over tokens, or the ``first`` position, as published.
        timed: How many texts are timed in every model; 0 times none.
        resume: Whether to go on from an unfinished run.
        progress: What is told about it.

    Raises:
        InvalidInputError: An input breaks a law, the model cannot have exits, or the folder is occupied.
    """
    check_bounds(batch_size=batch_size, lr=lr, seed=seed, seq_len=seq_len)
    options = _options(None, text, text_pair, label, seq_len)
    from nas.finish.exit_run import ExitsRequest, make_exits
    from nas.finish.training import LoopConfig

    loop = LoopConfig(epochs=epochs, batch_size=batch_size, learning_rate=lr, seed=seed)
    request = ExitsRequest(
        tuple(methods),
        tuple(taus),
        loop,
        timed,
        pooling,  # type: ignore[arg-type]  # checked by ExitsRequest
    )
    return make_exits(model, task, Path(out), request, options=options, resume=resume, progress=progress)


def evaluate(
    model: str | Path,
    *,
    task: str,
    split: str = "test",
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    seq_len: int | None = None,
    progress: Progress | None = None,
) -> Evaluated:
    """Evaluates a task model on a split, in PyTorch and with each ONNX file that its folder holds.

    Args:
        model: A task model's folder or hub id.
        task: A file, folder or hub id; one table without splits is taken whole.
        split: train, validation or test.
        text: Column of the text.
        text_pair: Column of the second text.
        label: Column of the labels.
        seq_len: Longer texts are cut to so many tokens.
        progress: What is told about it.

    Raises:
        InvalidInputError: The model has no head, or the split does not ask what it answers.
    """
    check_bounds(seq_len=seq_len)
    options = _options(None, text, text_pair, label, seq_len)
    from nas.finish.evaluation import OnnxRun, Run, agreement, torch_run
    from nas.finish.evaluation import evaluate as evaluate_run
    from nas.finish.exit_evaluation import ExitRun, open_exits
    from nas.finish.exit_folder import is_adaptive
    from nas.finish.model import load_task_model
    from nas.progress import ended
    from supernet.task import load_split

    with ended(progress) as said:
        said.start("reading model and task")
        folder = expanded(model)
        runs: dict[str, Run] = {}
        if is_adaptive(folder):
            loaded, exit_runs = open_exits(folder)
            runs |= exit_runs
        else:
            loaded = load_task_model(model)
            runs["torch"] = torch_run(loaded)
            files = {name: folder / file for name, file in RUNTIMES.items() if name != "torch"}
            runs |= {name: OnnxRun(path) for name, path in files.items() if path.is_file()}
        split, examples = load_split(task, split, loaded.tokenizer, options, text=loaded.text, expected=loaded.spec)
        found = {}
        for name, run in runs.items():
            said.start(f"evaluating with {name}")
            found[name] = evaluate_run(run, loaded.spec, examples)
            if isinstance(run, ExitRun):
                found[name].scores["layers"] = run.average_layers
    others = {name: agreement(loaded.spec, found["torch"], one) for name, one in found.items() if name != "torch"}
    return Evaluated(
        str(model),
        split,
        len(examples),
        {name: one.scores for name, one in found.items()},
        {name: share for name, (share, _) in others.items()},
        {name: difference for name, (_, difference) in others.items()},
    )


def predict(
    model: str | Path,
    lines: Iterable[str],
    *,
    runtime: str = "torch",
    batch_size: int = 32,
    seq_len: int | None = None,
) -> "Iterator[Prediction]":
    """Yields a task model's answer to each line of text.

    Args:
        model: A task model's folder or hub id.
        lines: Texts; the two of a pair are separated by a tab, words to be tagged by spaces.
        runtime: torch, onnx or onnx-int8.
        batch_size: Lines at a time.
        seq_len: Longer texts are cut to so many tokens.

    Raises:
        InvalidInputError: The model has no head, or a line is not what it reads.
    """
    check_bounds(batch_size=batch_size, seq_len=seq_len)
    if runtime not in RUNTIMES:
        raise InvalidInputError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}")
    from nas.finish.evaluation import OnnxRun, Run, torch_run
    from nas.finish.exit_evaluation import open_exits
    from nas.finish.exit_folder import is_adaptive
    from nas.finish.model import load_task_model
    from nas.finish.prediction import predict_lines

    folder = expanded(model)
    if is_adaptive(folder):
        loaded, runs = open_exits(folder)
        if runtime not in runs:
            raise InvalidInputError(f"{folder} holds no int8 graphs; make it again with nas exits, or run it in onnx")
        run: Run = runs[runtime]
    else:
        loaded = load_task_model(model)
        run = torch_run(loaded) if runtime == "torch" else OnnxRun(folder / RUNTIMES[runtime])
    if seq_len is not None:
        loaded.cut_at(seq_len)
    return predict_lines(loaded, run, lines, batch_size=batch_size)


def _options(kind: str | None, text: str | None, text_pair: str | None, label: str | None, seq_len: int | None) -> Any:
    from supernet.task_spec import TaskOptions

    return TaskOptions(kind, text, text_pair, label, seq_len)  # type: ignore[arg-type]  # checked above
