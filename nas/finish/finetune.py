"""Fine-tuning: an encoder becomes a task model, taught by labels and, where one is given, by a fine-tuned teacher.

With a teacher the student first learns the teacher's hidden states on the task's own text (``distil_epochs``), then
logits, hidden states and labels together (Jiao et al., 2020, arXiv 1909.10351).
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nas.errors import InvalidInputError
from nas.export.card import CardFacts, ExportReport
from nas.export.int8 import quantize
from nas.finish.companion import Companion, Locked
from nas.finish.evaluation import Evaluation, evaluate, torch_run
from nas.finish.heads import new_head
from nas.finish.lesson import FinetuneConfig as FinetuneConfig
from nas.finish.lesson import Lesson, School, placed
from nas.finish.model import TaskModel, has_head, load_model, load_task_model, save_task_model
from nas.finish.pace import Pace, measure_pace, planned_steps
from nas.finish.report import write_report
from nas.finish.training import History, Hooks, train
from nas.progress import Progress, ended
from supernet.task import Task, load_task
from supernet.task_metrics import choose_metric
from supernet.task_spec import TaskOptions
from supernet.teacher import weights_digest


@dataclass(frozen=True)
class Finetuned:
    """What fine-tuning left.

    Attributes:
        report: The folder, its files and parities.
        facts: What its card says beside.
        task: What was learnt.
        history: Of the training.
        validation: Answers of the best weights on the validation split.
        test: On the test split; None where there is none.
    """

    report: ExportReport
    facts: CardFacts
    task: Task
    history: History
    validation: Evaluation
    test: Evaluation | None


def finetune(
    source: str | Path,
    task_source: str,
    out: Path,
    *,
    config: FinetuneConfig,
    options: TaskOptions | None = None,
    teacher: str | Path | None = None,
    companion: Companion | None = None,
    minutes: float | None = None,
    resume: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
) -> Finetuned:
    """Fine-tunes a model on a task and writes the task model's folder, whole or not at all.

    Args:
        source: An encoder's folder or hub id; a head that stands on it is kept where it answers this task.
        task_source: A file, folder or hub id, see :func:`supernet.task.load_task`.
        out: The folder; must be absent or empty. ``OUT.unfinished`` beside it holds the run until then.
        config: How to train.
        options: What is named of the task.
        teacher: A task model's folder or hub id to learn from.
        companion: What goes along; None keeps the lock of a sparse model.
        minutes: Wall-clock minutes of training, which take the place of the steps in ``config``.
        resume: Whether to go on from an unfinished run.
        command: What made it, for the card.
        progress: What is told about it.

    Raises:
        InvalidInputError: An input breaks a law, the folder is occupied, or the loss is no longer finite.
    """
    check_free(out)
    with ended(progress) as said:
        said.start("reading model and task")
        model, task = prepare(source, task_source, options or TaskOptions(), config)
        config = replace(config, metric=choose_metric(task.spec, config.metric))
        school = None if teacher is None else School.of(teacher, model, task, task_source, options, config, said)
        if school is None and (config.augment or config.distil_epochs):
            raise InvalidInputError("augment and distil_epochs need a teacher's answers; give --teacher")
        companion = Locked.of(source, model.encoder) if companion is None else companion
        work = unfinished(out)
        facts = {
            "model": weights_digest(model),
            "task": task_source,
            "spec": asdict(task.spec),
            "data": task.digest(),
            "teacher": None if school is None else weights_digest(school.teacher),
            "finetune": {name: value for name, value in asdict(config).items() if name != "loop"},
            "beside": None if companion is None else dict(companion.facts),
        }
        history = _learn(model, task, config, school, companion, work, facts, minutes, resume, said)
        said.start("evaluating and exporting")
        validation = evaluate(torch_run(model), task.spec, task.validation)
        test = None if task.test is None else evaluate(torch_run(model), task.spec, task.test)
        known = _card_facts(model, task, validation, test, teacher, command)
        report = _save(model.cpu(), task, config, history, validation, test, out, known, companion)
        shutil.rmtree(work, ignore_errors=True)
    return Finetuned(report, known, task, history, validation, test)


def prepare(
    source: str | Path, task_source: str, options: TaskOptions, config: FinetuneConfig
) -> tuple[TaskModel, Task]:
    """Reads a model and its task; a head that answers the task is kept, else a fresh one is put on.

    Raises:
        InvalidInputError: One of them breaks a law.
    """
    loaded = load_model(source)
    task = load_task(task_source, loaded.tokenizer, options, text=loaded.encoder.text)
    if has_head(source):
        trained = load_task_model(source)
        same = (trained.spec.kind, trained.spec.labels) == (task.spec.kind, task.spec.labels)
        if same and config.pooling in (None, trained.head.pooling):
            trained.head.spec = task.spec
            return placed(trained), task
    pooling = config.pooling or "first"
    head = new_head(task.spec, loaded.encoder, seed=config.loop.seed, pooling=pooling, label_scale=task.label_scale)
    return placed(TaskModel(loaded.encoder, head, loaded.tokenizer, name=str(source))), task


def check_free(out: Path) -> None:
    """Refuses a place that is taken, before any work is done.

    Raises:
        InvalidInputError: There is something else.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInputError(f"{out} is already there and not empty; choose another --out or remove it")


def unfinished(out: Path) -> Path:
    """Where a step keeps its checkpoints until its result is written."""
    return out.with_name(f"{out.name}.unfinished")


def _learn(
    model: TaskModel,
    task: Task,
    config: FinetuneConfig,
    school: School | None,
    companion: Companion | None,
    work: Path,
    facts: Mapping[str, Any],
    minutes: float | None,
    resume: bool,
    progress: Progress,
) -> History:
    """Trains the model: hidden states alone first where that was asked for, then everything."""
    loop = replace(config.loop, fresh=("model.head",), metric=config.metric or "")
    num_examples = len(task.train if school is None else school.examples)

    def paced(num_steps: int) -> Pace:
        lesson = Lesson.on_a_copy(model, task, config, school, companion, num_steps)
        return measure_pace(
            lesson.module, lesson.examples, lesson.of_everything, lesson.on_validation, loop, lesson.beside
        )

    if minutes is not None:
        every = loop.steps_per_epoch(num_examples)
        loop = replace(loop, steps=planned_steps(minutes, paced, work, every=every, resume=resume, progress=progress))
    lesson = Lesson(model, task, config, school, companion, loop.num_steps(num_examples))
    shared: dict[str, Any] = {"fingerprint": facts, "resume": resume, "progress": progress}
    if config.distil_epochs and school is not None and school.maps is not None:
        first = replace(loop, epochs=config.distil_epochs, patience=None)
        train(
            lesson.module, lesson.examples, lesson.of_states, None, first, work / "distil",
            hooks=Hooks(after_step=lesson.beside.keep), phase="distilling on the task's text", **shared,
        )  # fmt: skip
    return train(
        lesson.module, lesson.examples, lesson.of_everything, lesson.on_validation, loop, work / "learn",
        hooks=lesson.beside.hooks, phase="fine-tuning", **shared,
    )  # fmt: skip


def _card_facts(
    model: TaskModel,
    task: Task,
    validation: Evaluation,
    test: Evaluation | None,
    teacher: str | Path | None,
    command: str | None,
) -> CardFacts:
    split, scored = ("validation", validation) if test is None else ("test", test)
    return CardFacts(
        scores=scored.scores,
        scores_of=f"the {split} split of {Path(task.name).name}, {len(task.split(split)):,} texts",
        supernet=Path(model.name).name,
        teacher=None if teacher is None else Path(teacher).name,
        command=command,
    )


def _save(
    model: TaskModel,
    task: Task,
    config: FinetuneConfig,
    history: History,
    validation: Evaluation,
    test: Evaluation | None,
    out: Path,
    facts: CardFacts,
    companion: Companion | None,
) -> ExportReport:
    summary = {
        "task": task.name,
        "kind": task.spec.kind,
        "validation": validation.scores,
        "test": None if test is None else test.scores,
        "best_step": history.best_step,
        "num_steps": history.num_steps,
        "elapsed_s": round(history.elapsed_s, 1),
        "config": asdict(config),
        "teacher": facts.teacher,
        "beside": None if companion is None else dict(companion.facts),
    }
    write_int8 = quantize if companion is None else companion.end(model.encoder)

    def add(folder: Path) -> None:
        (folder / "finetune.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        write_report(folder / "report.html", task, history, {"validation": validation, "test": test}, config.metric)
        if companion is not None:
            companion.write(folder, model.encoder)

    return save_task_model(model.eval(), out, facts=facts, write_int8=write_int8, add=add)
