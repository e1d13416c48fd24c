"""What a task model learns from: its labels and, where one is given, a fine-tuned teacher."""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from nas.errors import InvalidInputError
from nas.export.task_head import Pooling
from nas.finish.augmentation import augmented
from nas.finish.companion import Beside, Companion
from nas.finish.distillation import HiddenMaps, Lessons, ask, label_order, match_layers
from nas.finish.evaluation import evaluate, torch_run
from nas.finish.model import TaskModel, load_task_model
from nas.finish.training import Hooks, LoopConfig
from nas.progress import Progress
from supernet.examples import Examples, TaskBatch
from supernet.task import Task, load_task
from supernet.task_losses import label_loss, teacher_loss
from supernet.task_spec import TaskOptions


@dataclass(frozen=True)
class FinetuneConfig:
    """How a model is fine-tuned.

    Attributes:
        loop: How long and how fast.
        metric: What chooses the best weights; None takes the task's usual one.
        pooling: Which state stands for a text; None as the model's head reads it, or the first where it has none.
        temperature: Softens the teacher's answers.
        label_weight: How much the labels count beside the teacher, whose answers count 1.
        hidden_weight: How much the teacher's hidden states count.
        distil_epochs: Epochs of hidden states alone, before.
        augment: Copies of each text with exchanged words that the teacher labels.
    """

    loop: LoopConfig = field(default_factory=LoopConfig)
    metric: str | None = None
    pooling: Pooling | None = None
    temperature: float = 2.0
    label_weight: float = 0.5
    hidden_weight: float = 1.0
    distil_epochs: float = 0.0
    augment: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.1, 100.0),
            ("label_weight", 0.0, 1e3),
            ("hidden_weight", 0.0, 1e3),
            ("distil_epochs", 0.0, 1e4),
        ):
            if not low <= getattr(self, name) <= high:
                raise InvalidInputError(f"{name} must be from {low:g} to {high:g}, got {getattr(self, name)!r}")
        if self.pooling not in (None, "first", "mean"):
            raise InvalidInputError(f"pooling must be first or mean, got {self.pooling!r}")


def placed(model: TaskModel) -> TaskModel:
    """Moves a model to a GPU where there is one."""
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class School:
    """A teacher, what it was asked, and what it answered."""

    teacher: TaskModel
    examples: Examples
    lessons: Lessons
    maps: HiddenMaps | None

    @classmethod
    def of(
        cls,
        source: str | Path,
        model: TaskModel,
        task: Task,
        task_source: str,
        options: TaskOptions | None,
        config: FinetuneConfig,
        progress: Progress,
    ) -> "School":
        """Reads the teacher and asks it about the training texts, and about copies of them."""
        teacher = placed(load_task_model(source))
        label_order(teacher.spec, task.spec)
        shares_tokens = teacher.tokenizer.get_vocab() == model.tokenizer.get_vocab()
        if not shares_tokens and (config.augment or config.distil_epochs):
            raise InvalidInputError(
                "augment and distil_epochs need a teacher that reads the same tokens as the model; leave them out, or "
                "give a teacher with the model's tokenizer"
            )
        examples = augmented(task.train, config.augment, model.tokenizer, seed=config.loop.seed)
        asked, maps = examples, None
        if not shares_tokens:
            progress.note("The teacher has a tokenizer of its own: its answers are learnt, its hidden states are not.")
            found = load_task(task_source, teacher.tokenizer, options or TaskOptions(), text=teacher.text)
            asked = found.train
        elif config.hidden_weight or config.distil_epochs:
            matches = match_layers(model.architecture, teacher.architecture)
            maps = HiddenMaps(model.architecture, teacher.architecture.hidden_size, matches)
        layers = sorted({layer for _, layer in maps.matches}) if maps is not None else []
        progress.start("asking the teacher", len(asked))
        lessons = ask(teacher, asked, task.spec, layers=layers, on_batch=progress.update)
        if lessons.asker is not None:
            progress.note("The teacher's states of all texts are beyond 2 GB: it is asked again in each step.")
        if maps is not None:
            maps.to(next(model.parameters()).device).fit(model, examples, lessons)
        return cls(teacher, examples, lessons, maps)


class Lesson:
    """A model about to learn a task, and all that goes with it.

    Args:
        model: What learns.
        task: What is learnt.
        config: How.
        school: A teacher and its answers; None learns from labels alone.
        companion: What goes along.
        num_steps: Optimiser steps of the training.
    """

    def __init__(
        self,
        model: TaskModel,
        task: Task,
        config: FinetuneConfig,
        school: School | None,
        companion: Companion | None,
        num_steps: int,
    ) -> None:
        self._model, self._task, self._config, self._school = model, task, config, school
        self.examples = task.train if school is None else school.examples
        self.beside = Beside(Hooks()) if companion is None else companion.begin(model.encoder, num_steps)
        parts: dict[str, nn.Module] = {"model": model}
        if school is not None and school.maps is not None:
            parts["maps"] = school.maps
        if self.beside.module is not None:
            parts["beside"] = self.beside.module
        self.module = nn.ModuleDict(parts)

    @classmethod
    def on_a_copy(
        cls,
        model: TaskModel,
        task: Task,
        config: FinetuneConfig,
        school: School | None,
        companion: Companion | None,
        num_steps: int,
    ) -> "Lesson":
        """The same with weights of its own, to be tried out."""
        if school is not None:
            school = replace(school, maps=copy.deepcopy(school.maps))
        return cls(copy.deepcopy(model), task, config, school, companion, num_steps)

    def of_states(self, batch: TaskBatch) -> dict[str, Tensor]:
        """The loss of the teacher's hidden states alone."""
        school = self._school
        assert school is not None
        assert school.maps is not None
        return {"hidden": school.maps.loss(self._model, batch, school.lessons)[1]}

    def of_everything(self, batch: TaskBatch) -> dict[str, Tensor]:
        """The losses of labels, the teacher's answers and its hidden states."""
        kind, spread = self._task.spec.kind, self._task.label_scale[1]
        model, config, school = self._model, self._config, self._school
        if school is None:
            return {"label": label_loss(kind, model(**batch.inputs), batch.labels, spread)}
        losses: dict[str, Tensor] = {}
        if school.maps is not None and config.hidden_weight:
            logits, hidden = school.maps.loss(model, batch, school.lessons)
            losses["hidden"] = config.hidden_weight * hidden
        else:
            logits = model(**batch.inputs)
        target = school.lessons.batch_logits(batch)
        losses["teacher"] = teacher_loss(
            kind, logits, target, batch.words, temperature=config.temperature, spread=spread
        )
        if config.label_weight:
            losses["label"] = config.label_weight * label_loss(kind, logits, batch.labels, spread)
        return losses

    def on_validation(self) -> dict[str, float]:
        """Figures on the validation split."""
        return evaluate(torch_run(self._model), self._task.spec, self._task.validation).scores
