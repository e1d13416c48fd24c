"""The end of a search for a task: the chosen encoder learns it, is measured again, and takes its place.

While the search runs, models are exported with a head that was not fine-tuned yet, so that what is timed is the task
model whole. The chosen one then learns from a teacher: one that is given, or the supernet's largest subnet, which is
fine-tuned before. Every step finds what an interrupted one left.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.goal import overall, standings
from analysis.latency import Latency
from nas.devices.resolve import resolve
from nas.errors import InvalidInputError
from nas.export.card import CardFacts, ExportReport, write_card
from nas.finish.distillation import label_order
from nas.finish.evaluation import OnnxRun, evaluate
from nas.finish.exits_after_search import add_exits
from nas.finish.finetune import FinetuneConfig, Finetuned, finetune, unfinished
from nas.finish.heads import new_head
from nas.finish.model import TaskModel, load_model, load_task_model, save_task_model
from nas.finish.training import LoopConfig
from nas.progress import Progress
from nas.rundir import RunDir
from nas.search.conclusion import Conclusion
from nas.search.finalists import EXPORT_SECONDS, seconds_for
from nas.search.request import SearchRequest
from nas.search.result import SearchResult, load_result
from nas.search.sizes import model_file
from search_spaces.architecture import TextSpec
from search_spaces.files import expanded
from supernet.adapt import AdaptedTask, load_adapted
from supernet.checkpoint import SHIPPED, load_supernet
from supernet.encoder import Encoder
from supernet.extract import extract
from supernet.task import load_task
from supernet.task_spec import TaskOptions
from supernet.teacher import load_tokenizer

EPOCHS, TEACHER_EPOCHS, DISTIL_EPOCHS = 4.0, 3.0, 1.0
RATE, TEACHER_RATE = 2e-4, 5e-5


def write_untaught(
    encoder: Encoder, adapted: AdaptedTask, tokenizer_dir: Path, folder: Path, facts: CardFacts
) -> ExportReport:
    """Writes a task model that was not fine-tuned yet, to time it, and to begin with.

    Tags have the head that the supernet was adapted with. That of whole texts has another form here and has learnt
    nothing; of numbers it begins among them.

    Raises:
        InvalidInputError: The place is occupied or cannot be written.
    """
    scale = 0.0, 1.0
    if adapted.spec.kind == "regression":
        numbers = np.asarray(adapted.validation.labels, np.float64)
        scale = float(numbers.mean()), float(numbers.std()) or 1.0
    head = new_head(adapted.spec, encoder, seed=0, label_scale=scale)
    if adapted.spec.kind == "tagging":
        weight, bias = adapted.head.sliced(adapted.spec.num_outputs, encoder.architecture.hidden_size)
        head.out.load_state_dict({"weight": weight, "bias": bias})
    tokenizer = load_tokenizer(str(tokenizer_dir), encoder.text)
    return save_task_model(TaskModel(encoder, head, tokenizer).eval(), folder, facts=facts)


def check_task(request: SearchRequest) -> None:
    """Reads the task and its teacher as they will be read once the search is over, so that a fault shows before it.

    Raises:
        InvalidInputError: The task cannot be read by a model of this supernet, or the teacher answers another one.
    """
    if request.task is None:
        return
    loaded = load_supernet(request.supernet)
    tokenizer = load_tokenizer(str(loaded.tokenizer_dir), loaded.text)
    task = load_task(request.task, tokenizer, _options(request, loaded.text), text=loaded.text)
    if request.teacher is not None:
        label_order(load_task_model(request.teacher).spec, task.spec)


def _options(request: SearchRequest, text: TextSpec) -> TaskOptions:
    """Texts beyond the supernet's limit are cut, as they are while the search judges by them."""
    return replace(request.task_options, seq_len=text.max_positions)


def learn_task(result: SearchResult, progress: Progress) -> SearchResult:
    """Teaches a search's chosen model its task, once; a search without a task, or without a choice, stays as it is.

    Args:
        result: What the search found.
        progress: What is told about it.

    Returns:
        The result with the task model in the chosen model's place, measured; its exit code is 3 or 5 where the task
        model is not shown to keep to what was asked.

    Raises:
        InvalidInputError: The task, the teacher or the run folder breaks a law.
    """
    run = RunDir.open(result.run)
    facts = run.read()
    request = SearchRequest.from_dict(facts.get("request"))
    if request.task is None or result.chosen is None or "task_model" in facts:
        return result
    conclusion = Conclusion.from_dict(facts.get("conclusion"), len(result.goals))
    with run.locked():
        taught, found = run.path / "task-model", None
        teacher = request.teacher or _own_teacher(run, request, progress)
        if not taught.exists() and not (run.model_dir / "finetune.json").exists():
            loop = LoopConfig(epochs=request.epochs or EPOCHS, learning_rate=RATE, seed=request.seed)
            config = FinetuneConfig(loop, distil_epochs=DISTIL_EPOCHS)
            found = _finetune(run.model_dir, taught, request, config, progress, teacher)
        if taught.exists():
            shutil.rmtree(run.model_dir, ignore_errors=True)
            taught.rename(run.model_dir)
        told = _told(run.model_dir, teacher)
        if result.chosen.precision == "int8":
            told["scores"] = _int8_scores(run.model_dir, request, told["split"], progress)
        if request.exits is not None:
            exits, latency = add_exits(run, request, result.goals[0], result.chosen.precision, progress)
            concluded = _with_exits(conclusion, result, latency)
            run.update(conclusion=concluded.to_dict(), task_model=told, exits=exits)
            return load_result(run)
        latencies = _measured(run.model_dir, request, result, progress)
        if found is not None:
            _write_card(found, told["scores"], result, latencies, run.model_dir)
        run.update(conclusion=_concluded(conclusion, result, latencies, run.model_dir).to_dict(), task_model=told)
        shutil.rmtree(unfinished(taught), ignore_errors=True)
    return load_result(run)


def _own_teacher(run: RunDir, request: SearchRequest, progress: Progress) -> str:
    """The supernet's largest subnet, fine-tuned on the task; in the run folder."""
    out, encoder_dir = run.path / "teacher", run.path / "teacher-encoder"
    if out.exists():
        return str(out)
    adapted = load_adapted(run.path / "adapted")
    if not encoder_dir.exists():
        progress.start("cutting the teacher from the supernet")
        encoder = extract(adapted.supernet, adapted.supernet.config.space.largest())
        write_untaught(encoder, adapted, (request.supernet or SHIPPED) / "tokenizer", encoder_dir, CardFacts())
    loop = LoopConfig(epochs=TEACHER_EPOCHS, learning_rate=TEACHER_RATE, seed=request.seed)
    _finetune(encoder_dir, out, request, FinetuneConfig(loop), progress, None)
    shutil.rmtree(encoder_dir, ignore_errors=True)
    return str(out)


def _finetune(
    source: Path, out: Path, request: SearchRequest, config: FinetuneConfig, progress: Progress, teacher: str | None
) -> Finetuned:
    assert request.task is not None
    return finetune(
        source,
        request.task,
        out,
        config=config,
        options=_options(request, load_model(source).encoder.text),
        teacher=teacher,
        resume=True,
        command=f"{request.command} --task {_shown(request.task)}",
        progress=progress,
    )


def _shown(task: str) -> str:
    """A task as a card names it: a file without its folders, a hub id whole."""
    path = expanded(task)
    return path.name if path.exists() else task


def _write_card(
    found: Finetuned,
    scores: dict[str, float],
    result: SearchResult,
    latencies: tuple[Latency | None, ...],
    model_dir: Path,
) -> None:
    """Writes the model card again, with what the task model takes, and how good it is in its precision."""
    by_file: dict[str, list[Latency]] = {}
    for latency in latencies:
        if latency is not None:
            by_file.setdefault(model_file(latency.conditions), []).append(latency)
    device = "; ".join(dict.fromkeys(goal.description for goal in result.goals if goal.is_measurable))
    assert result.chosen is not None
    of = f"{found.facts.scores_of}, computed in int8" if result.chosen.precision == "int8" else found.facts.scores_of
    facts = replace(found.facts, scores=scores, scores_of=of, latencies=by_file, device=device or None)
    write_card(model_dir, replace(found.report, folder=model_dir), facts)


def _measured(
    model_dir: Path, request: SearchRequest, result: SearchResult, progress: Progress
) -> tuple[Latency | None, ...]:
    """What the task model takes on each device that is here, in the precision that was chosen."""
    assert result.chosen is not None
    found: list[Latency | None] = []
    for goal, asked, before in zip(result.goals, request.goals, result.chosen.trial.latencies, strict=True):
        if not goal.is_measurable:
            found.append(None)
            continue
        target: Any = resolve(asked.device, replace(asked.settings, precision=before.conditions.precision))
        progress.start(f"measuring the task model{f' on {goal.name}' if len(result.goals) > 1 else ''}")
        latency = target.measure({"model": model_dir}, seconds_each=seconds_for(goal, EXPORT_SECONDS))["model"]
        progress.finish(f"{latency.p50_s * 1e3:.2f} ms, {latency.verdict}")
        found.append(latency)
    return tuple(found)


def _concluded(
    before: Conclusion, result: SearchResult, latencies: tuple[Latency | None, ...], model_dir: Path
) -> Conclusion:
    """The conclusion with what the task model takes; chosen no more where it is not shown to keep to what was asked."""
    assert result.chosen is not None
    key, predicted = result.chosen.key, result.chosen.trial.latencies
    known = [latency or prediction for latency, prediction in zip(latencies, predicted, strict=True)]
    size = max((model_dir / model_file(latency.conditions)).stat().st_size for latency in known)
    state = overall(standings(result.goals, result.limits, known, size))
    found = replace(before, measured={**before.measured, key: latencies}, sizes={**before.sizes, key: size})
    if state == "meets":
        return found
    return replace(found, exit_code=3 if state == "exceeds" else 5, chosen=None, closest=key)


def _with_exits(before: Conclusion, result: SearchResult, latency: Latency) -> Conclusion:
    """The conclusion with the latency that the budget binds; chosen no more where it is not shown to be kept."""
    assert result.chosen is not None
    key, state = result.chosen.key, result.goals[0].judge(latency)
    found = replace(before, measured={**before.measured, key: (latency,)})
    if state == "meets":
        return found
    return replace(found, exit_code=3 if state == "exceeds" else 5, chosen=None, closest=key)


def _int8_scores(model_dir: Path, request: SearchRequest, split: str, progress: Progress) -> dict[str, float]:
    """How good the int8 file is, one text at a time: its roundings are a text's own."""
    assert request.task is not None
    model = load_task_model(model_dir)
    progress.start("evaluating the int8 file")
    task = load_task(request.task, model.tokenizer, _options(request, model.text), text=model.text, expected=model.spec)
    scores = evaluate(OnnxRun(model_dir / "model.int8.onnx"), model.spec, task.split(split), batch_size=1).scores
    progress.finish()
    return scores


def _told(model_dir: Path, teacher: str) -> dict[str, Any]:
    """What ``run.json`` keeps of the task model."""

    def scores_of(folder: Path) -> tuple[str, dict[str, float]] | None:
        try:
            summary = json.loads((folder / "finetune.json").read_text(encoding="utf-8"))
            split = "validation" if summary["test"] is None else "test"
            return split, summary[split]
        except (OSError, ValueError, KeyError, TypeError):
            return None  # a teacher from elsewhere

    ours, theirs = scores_of(model_dir), scores_of(Path(teacher))
    if ours is None:
        raise InvalidInputError(f"{model_dir / 'finetune.json'} is damaged; start the search anew")
    split, scores = ours
    teacher_scores = theirs[1] if theirs is not None and theirs[0] == split else None
    return {"split": split, "scores": scores, "teacher": teacher, "teacher_scores": teacher_scores}
