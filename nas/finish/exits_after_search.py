"""The end of a search over exits: the chosen task model gets its exits, which are set to the budget and measured.

Times are of single texts filled up to the length that was asked for, on one thread, in this process, by the clock of
:mod:`nas.finish.exit_timing`; rounds alternate with a model of reference, as everywhere.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from analysis.goal import Goal
from analysis.latency import Conditions, Latency, measured
from nas.devices.target import Settings
from nas.finish.exit_curves import Answers, confidences, point
from nas.finish.exit_evaluation import answers_alone
from nas.finish.exit_export import save_exits
from nas.finish.exit_folder import FACTS
from nas.finish.exit_measure import measure_exits
from nas.finish.exit_model import ExitModel
from nas.finish.exit_run import describe, one_graph, stopping
from nas.finish.exit_timing import times_of
from nas.finish.exit_training import answers_of, teach_exits, with_exits
from nas.finish.exits import AdaptiveModel, Batch, OnnxLayers, padded
from nas.finish.halting import Confidence, replay
from nas.finish.heads import new_head
from nas.finish.model import TaskModel, load_task_model
from nas.finish.training import LoopConfig
from nas.progress import Progress, SilentProgress
from nas.rundir import RunDir
from nas.search.exit_policy import Exits
from nas.search.request import SearchRequest
from search_spaces.architecture import TextSpec
from supernet.encoder import Encoder
from supernet.examples import Examples
from supernet.task import load_task
from supernet.task_spec import TaskSpec
from supernet.teacher import load_tokenizer

EXIT_EPOCHS, RATE = 3.0, 1e-4
SECONDS_EACH = 1.0
ROUNDS, NUM_TEXTS = 10, 24
#: The share of a budget that exits are set to, so that a measurement of other texts still shows it kept.
SHARE = 0.95
FOLDER = "exit-model"


def time_exits(encoder: Encoder, spec: TaskSpec, tokenizer_dir: Path, conditions: Conditions) -> list[Latency]:
    """The latency of leaving at each layer of an encoder whose exits have learnt nothing.

    Args:
        encoder: The backbone.
        spec: What the exits answer.
        tokenizer_dir: The folder of its tokenizer.
        conditions: For which length, in which precision.
    """
    tokenizer = load_tokenizer(str(tokenizer_dir), encoder.text)
    model = TaskModel(encoder, new_head(spec, encoder, seed=0), tokenizer).eval()
    exits = with_exits(model, has_gates=False, seed=0).eval()
    policy = Confidence(1.0, (1.0,) * exits.num_exits)
    evenly = {FACTS[conditions.precision]: {"exits": [1] * exits.num_exits}}
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "exits"
        save_exits(made, exits, describe(exits, None, policy, evenly), tokenizer)
        settings = Settings(seq_len=conditions.seq_len, precision=conditions.precision)
        rows = measure_exits(made, [settings], seconds_each=SECONDS_EACH, progress=SilentProgress()).rows
    return [row.latency for row in rows[1:]]  # the first is their mean


def add_exits(
    run_dir: RunDir, request: SearchRequest, goal: Goal, precision: str, progress: Progress
) -> tuple[dict[str, Any], Latency]:
    """Teaches the run's task model to leave early, sets its confidence to the budget, writes and measures it.

    Args:
        run_dir: The search's folder; its model is the fine-tuned task model.
        request: What was asked.
        goal: What the budget binds.
        precision: What the model was chosen to run in.
        progress: What is told about it.

    Returns:
        What ``run.json`` keeps of it, and the latency that the budget binds.

    Raises:
        InvalidInputError: The task or the model is damaged, or the loss is no longer finite.
    """
    assert request.task is not None
    folder, training = run_dir.path / FOLDER, run_dir.path / "exit-training"
    model = load_task_model(run_dir.model_dir)
    options = replace(request.task_options, seq_len=model.text.max_positions)
    task = load_task(request.task, model.tokenizer, options, text=model.text, expected=model.spec)
    loop = LoopConfig(epochs=request.epochs or EXIT_EPOCHS, learning_rate=RATE, seed=request.seed)
    exits, _ = teach_exits(model, task, None, loop, training, resume=True, progress=progress)
    split = "test" if task.test is not None else "validation"
    judged = task.split(split)
    progress.start("timing each exit")
    conditions = replace(goal.conditions, precision=precision)
    by_layer = time_exits(exits.cpu().encoder, model.spec, run_dir.model_dir, conditions)
    with _int8_layers(exits, model) as layers:
        in_int8 = partial(answers_alone, layers, text=model.text, progress=progress)
        on_validation = {"fp32": answers_of(exits, task.validation), "int8": in_int8(task.validation)}
        on_judged = answers_of(exits, judged) if precision == "fp32" else in_int8(judged)
    progress.start("setting and measuring the exits")
    policy = _set_to_budget(on_validation[precision], by_layer, request.exits, goal.budget_s)
    judge = partial(point, "confidence", f"confidence {policy.threshold:.4g}", policy)
    found = judge(on_judged)
    shutil.rmtree(folder, ignore_errors=True)
    facts = {FACTS[name]: judge(answers).to_dict() for name, answers in on_validation.items()}
    save_exits(folder, exits, describe(exits, None, policy, facts), model.tokenizer)
    latencies = _measured(AdaptiveModel.load(folder, precision=precision), model, judged, conditions, request.seed)
    progress.finish()
    shutil.rmtree(training, ignore_errors=True)
    told = {
        "bound": request.exits,
        "precision": precision,
        "folder": str(folder),
        "confidence": policy.threshold,
        "layers": found.layers,
        "num_exits": exits.num_exits,
        "shares": [count / sum(found.exits) for count in found.exits],
        "split": split,
        "accuracy": found.accuracy,
        "accuracy_whole": found.accuracy_whole,
        "expected_ms": latencies["expected"].p50_s * 1e3,
        "worst_ms": latencies["worst"].p50_s * 1e3,
        "without_exits_ms": latencies["without exits"].p50_s * 1e3,
        "seq_len": goal.conditions.seq_len,
    }
    return told, latencies["expected" if request.exits == "expected" else "worst"]


@contextmanager
def _int8_layers(exits: ExitModel, model: TaskModel) -> Iterator[OnnxLayers]:
    """The int8 graphs of a model whose policy is not known yet."""
    description = describe(exits, None, Confidence(1.0, (1.0,) * exits.num_exits), {})
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "exits"
        save_exits(made, exits, description, model.tokenizer)
        yield OnnxLayers(made, description, precision="int8")


def _set_to_budget(
    answers: Answers, by_layer: Sequence[Latency], bound: str | None, budget_s: float | None
) -> Confidence:
    """The confidence that is most accurate on validation texts where the expected latency keeps to the budget.

    Where the worst case is bound, or nothing, the expected latency is free, and the fastest of the most accurate is
    taken.
    """
    policies = [policy for policy in confidences(answers).values() if isinstance(policy, Confidence)]

    def worth(policy: Confidence) -> tuple[bool, float, float]:
        probabilities, passed = replay(policy, answers.logits, None)
        shares = np.bincount(passed, minlength=answers.num_exits + 1)[1:] / len(passed)
        accuracy = float((probabilities.argmax(1) == answers.labels).mean())
        expected_s = Exits(policy.threshold, accuracy, tuple(shares.tolist())).expected(by_layer).high_s
        is_within = bound != "expected" or budget_s is None or expected_s <= SHARE * budget_s
        return (True, accuracy, -expected_s) if is_within else (False, -expected_s, 0.0)

    return max(policies, key=worth)


def _measured(
    adaptive: AdaptiveModel, model: TaskModel, judged: Examples, conditions: Conditions, seed: int
) -> dict[str, Latency]:
    """What the model takes with its exits, where nothing stops, and without any, on texts of the judged split.

    A sample is the mean over the texts.
    """
    models: dict[str, Callable[[Batch], object]] = {
        "without exits": one_graph(model, precision=conditions.precision),
        "expected": stopping(adaptive),
        "worst": stopping(adaptive, halts=False),
    }
    drawn = np.random.default_rng(seed).permutation(len(judged))[:NUM_TEXTS].tolist()
    texts = [_filled(judged, at, model.text, conditions.seq_len) for at in drawn]
    taken = times_of(models, texts, seed=seed, repeats=ROUNDS, progress=SilentProgress())
    means = {name: times_s.mean(1).tolist() for name, times_s in taken.items()}
    beside = means["without exits"]
    reference_s = float(np.median(beside))
    return {name: measured(conditions, found, beside, reference_s) for name, found in means.items()}


def _filled(examples: Examples, at: int, text: TextSpec, seq_len: int) -> Batch:
    """One text, filled up or cut to a length."""
    ids, types = examples.input_ids[at][:seq_len], examples.token_type_ids[at][:seq_len]
    batch = padded([ids], [types], text)
    missing = seq_len - len(ids)
    fill = {"input_ids": text.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
    return {name: np.pad(array, ((0, 0), (0, missing)), constant_values=fill[name]) for name, array in batch.items()}
