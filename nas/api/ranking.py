"""Whether a supernet can be trusted to rank its subnets."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nas.errors import InvalidInputError
from nas.progress import Progress, ended
from nas.rundir import fresh_path

if TYPE_CHECKING:
    from nas.search.ranking import RankResult


def rank(
    out: str | Path | None = None,
    *,
    supernet: str | Path | None = None,
    teacher: str | None = None,
    corpora: Sequence[str] = (),
    task: str | None = None,
    kind: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    num_subnets: int = 15,
    band: tuple[float, float] | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    batch_size: int = 32,
    seq_len: int = 64,
    lr: float = 5e-4,
    seed: int = 0,
    resume: str | Path | None = None,
    command: str | None = None,
    progress: Progress | None = None,
) -> "RankResult":
    """Compares how a supernet ranks subnets with how they rank when each is trained alone, and so for cheap proxies.

    Args:
        out: Folder for what is found; None for ``runs/<time>``.
        supernet: Folder that :func:`train` made; None for the shipped one.
        teacher: Folder or hub id of the teacher that the supernet learned from.
        corpora: Texts that each subnet is trained on.
        task: File or hub id of a labelled task, in place of teacher and corpora: subnets are fine-tuned on it.
        kind: classification, regression or tagging, where the task's labels leave a doubt.
        text: Column of the task's text, or of its words.
        text_pair: Column of the second text.
        label: Column of the labels.
        num_subnets: How many subnets, 5 to 1000.
        band: Only subnets of so many million encoder parameters, from and to; None for all sizes.
        steps: Optimiser steps of each subnet; with a task 120 where None.
        minutes: Minutes of each subnet, in place of steps; not with a task.
        batch_size: Texts a batch.
        seq_len: Most tokens a text.
        lr: Peak learning rate of the distillation.
        seed: Of every draw.
        resume: Folder to go on with; everything else then comes from there.
        command: What the folder keeps as the command that did this; None for this function's name.
        progress: What is told about it.

    Raises:
        InvalidInputError: An argument, the supernet, the teacher, a corpus, the task or the folder breaks a law.
    """
    if out is not None and resume is not None:
        raise InvalidInputError("a ranking is gone on with in its own folder; leave out, or resume, away")
    from nas.search import ranking
    from nas.search.rank_request import RankRequest
    from supernet.task_spec import TaskOptions

    said_command = command or "nas.rank(...)"
    with ended(progress) as said:
        if resume is not None:
            return ranking.resume(Path(resume), said, command=said_command)
        request = RankRequest(
            supernet=None if supernet is None else Path(supernet),
            num_subnets=num_subnets,
            band=band,
            teacher=teacher,
            corpora=tuple(corpora),
            task=task,
            task_options=TaskOptions(kind, text, text_pair, label),  # type: ignore[arg-type]  # checked by TaskOptions
            steps=steps,
            minutes=minutes,
            batch_size=batch_size,
            seq_len=seq_len,
            lr=lr,
            seed=seed,
        )
        return ranking.rank(request, fresh_path() if out is None else Path(out), said, command=said_command)
