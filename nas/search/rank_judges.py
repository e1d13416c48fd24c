"""What a subnet is worth by itself: trained alone by distillation, or fine-tuned alone on a task."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

import torch

from nas.errors import InvalidInputError
from nas.progress import Progress
from nas.search.rank_request import RankRequest
from search_spaces.architecture import Architecture
from supernet.adapt import AdaptConfig, adapt, quality_name, task_to_adapt
from supernet.checkpoint import LoadedSupernet
from supernet.encoder import Encoder
from supernet.evaluate import TeacherAgreement, similarity_agreement, task_quality
from supernet.further import train_alone
from supernet.inherit import space_of
from supernet.losses import pool
from supernet.material import load_start, read_material
from supernet.pooling import pooling_of
from supernet.runlog import RunLog
from supernet.teacher import load_tokenizer, sort_by_importance
from supernet.trainer import TrainingConfig, TrainingStatus

# Agreement of a teacher with the reference that the supernet keeps of its own: rounding apart it is 1, but the
# reference may hold the leading units only.
SAME_TEACHER, SAME_LEADING_UNITS = 0.999, 0.9
BATCH = 64
MAX_TOKENS = 3_000_000  # of each corpus; a subnet that is trained for minutes sees fewer

OnStep = Callable[[float, float], None]  # told the share that is done, and the loss


class Judge(Protocol):
    """What a subnet is worth by itself."""

    name: str

    def __call__(self, architecture: Architecture, folder: Path, on_step: OnStep) -> float:
        """Trains a subnet alone and judges it; what an interrupted training left in ``folder`` is gone on with."""
        ...


class Distilled:
    """A subnet trained alone by distillation, judged as the supernet's subnets are: by agreement with the teacher.

    Args:
        request: What is ranked.
        loaded: The supernet, whose reference the quality is judged on.

    Raises:
        InvalidInputError: The teacher is not the supernet's, or a corpus cannot be read.
    """

    def __init__(self, request: RankRequest, loaded: LoadedSupernet) -> None:
        self._loaded, self._pooling = loaded, pooling_of(loaded.space)
        teacher, tokenizer = load_start(request.teacher, None)
        assert teacher is not None
        _check_teacher(teacher.encoder, loaded)
        self._config = TrainingConfig(
            steps=request.steps,
            minutes=request.minutes,
            batch_size=request.batch_size,
            seq_len=request.seq_len,
            learning_rate=request.lr,
            seed=request.seed,
        )
        self._material = read_material(
            request.corpora, teacher, tokenizer, seq_len=request.seq_len, max_tokens=MAX_TOKENS
        )
        sort_by_importance(teacher, self._material.calibration(request.batch_size, request.seed))
        self.name = "agreement after training alone"

    def __call__(self, architecture: Architecture, folder: Path, on_step: OnStep) -> float:
        """The agreement that a subnet reaches alone."""

        def on_status(status: TrainingStatus) -> None:
            on_step(status.fraction, status.loss or 0.0)

        log = RunLog(folder, {"architecture": architecture.to_dict(), "config": asdict(self._config)})
        alone = train_alone(architecture, self._material, self._config, log=log, on_status=on_status)
        return TeacherAgreement(replace(self._loaded, supernet=alone), self._pooling)(architecture)


class FineTuned:
    """A subnet fine-tuned alone on a task from its inherited weights, judged by a figure on the validation split.

    Args:
        request: What is ranked.
        loaded: The supernet.

    Raises:
        InvalidInputError: The task cannot be read.
    """

    def __init__(self, request: RankRequest, loaded: LoadedSupernet) -> None:
        assert request.task is not None
        usual = AdaptConfig(batch_size=request.batch_size, seq_len=request.seq_len, seed=request.seed)
        self._loaded = loaded
        self._config = usual if request.steps is None else replace(usual, steps=request.steps)
        tokenizer = load_tokenizer(str(loaded.tokenizer_dir), loaded.text)
        self._task = task_to_adapt(request.task, tokenizer, loaded.text, usual, request.task_options)
        self._usual = usual
        self.name = f"{quality_name(self._task.spec)} after fine-tuning alone"

    def __call__(self, architecture: Architecture, folder: Path, on_step: OnStep) -> float:
        """The figure that a subnet reaches alone."""
        steps = self._config.steps
        adapt(
            self._loaded,
            self._task,
            folder,
            self._config,
            space=space_of(architecture),
            on_step=lambda step, loss: on_step(step / steps, loss),
        )
        return task_quality(folder)(architecture)

    def adapted(self, folder: Path, progress: Progress) -> Path:
        """The whole supernet adapted to the task, as a search with the task does it."""
        if not folder.exists():
            progress.start("adapting the supernet to the task", self._usual.steps)
            adapt(
                self._loaded,
                self._task,
                folder,
                self._usual,
                on_step=lambda step, loss: progress.update(step, loss=round(loss, 3)),
            )
            progress.finish()
        return folder


def _check_teacher(teacher: Encoder, loaded: LoadedSupernet) -> None:
    """Refuses a teacher that does not see the reference texts as the supernet's teacher does."""
    reference = loaded.reference
    assert reference is not None
    differs = InvalidInputError(
        "the teacher is not the one that the supernet learned from: what it makes of the supernet's reference texts is "
        "something else; give the same"
    )
    if teacher.text.vocab_size != loaded.text.vocab_size:
        raise differs
    with torch.inference_mode():
        ids, mask = reference.input_ids, reference.attention_mask
        parts = [slice(start, start + BATCH) for start in range(0, len(ids), BATCH)]
        pooled = torch.cat([pool(teacher(ids[part], mask[part]), mask[part]) for part in parts])
    is_whole = pooled.shape == reference.teacher_pooled.shape
    least = SAME_TEACHER if is_whole else SAME_LEADING_UNITS
    if similarity_agreement(pooled, reference.teacher_pooled) < least:
        raise differs
