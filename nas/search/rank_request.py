"""What a ranking is asked, and which subnets it looks at."""

import random
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nas.config import check_bounds
from nas.errors import InvalidInputError
from search_spaces.architecture import Architecture
from search_spaces.cost import encoder_parameters
from search_spaces.spaces import Space
from supernet.task_spec import TaskOptions

NUM_DRAWN = 20_000
DRAWN_PER_SUBNET = 40


@dataclass(frozen=True)
class RankRequest:
    """What to rank, and what the truth is.

    Attributes:
        supernet: Its folder; None for the one that ships.
        num_subnets: How many subnets to train alone.
        band: Only subnets of so many million encoder parameters, from and to; None for all sizes.
        teacher: Folder or hub id of the teacher that the supernet learned from; None with a task.
        corpora: Texts to train on; empty with a task.
        task: File or hub id of a labelled task; None to train alone by distillation.
        task_options: What is named of the task rather than found.
        steps: Optimiser steps of each subnet; None where minutes bound them.
        minutes: Minutes of each subnet; None where steps bound them.
        batch_size: Texts a batch.
        seq_len: Most tokens a text.
        lr: Peak learning rate of distillation.
        seed: Of every draw.
    """

    supernet: Path | None = None
    num_subnets: int = 15
    band: tuple[float, float] | None = None
    teacher: str | None = None
    corpora: tuple[str, ...] = ()
    task: str | None = None
    task_options: TaskOptions = field(default_factory=TaskOptions)
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 32
    seq_len: int = 64
    lr: float = 5e-4
    seed: int = 0

    def check(self) -> None:
        """Checks every number, and that what is given goes together.

        Raises:
            InvalidInputError: It does not, or a number is out of bounds.
        """
        check_bounds(
            num_subnets=self.num_subnets,
            steps=self.steps,
            minutes=self.minutes,
            batch_size=self.batch_size,
            seq_len=self.seq_len,
            lr=self.lr,
            seed=self.seed,
        )
        if self.band is not None and not 0 <= self.band[0] < self.band[1]:
            raise InvalidInputError(f"a band must rise, such as 1.2 to 2.2 million parameters, got {self.band}")
        if self.task is None:
            if self.task_options != TaskOptions():
                raise InvalidInputError("a kind and columns are those of a task; add --task")
            self._check_distillation()
        elif self.teacher is not None or self.corpora or self.minutes is not None:
            raise InvalidInputError(
                "with a task subnets are fine-tuned on it for a number of steps; leave --teacher, --corpus and "
                "--minutes out"
            )

    def _check_distillation(self) -> None:
        if self.teacher is None or not self.corpora:
            raise InvalidInputError(
                "training subnets alone needs what the supernet learned from: give --teacher and --corpus, or --task"
            )
        if (self.steps is None) == (self.minutes is None):
            raise InvalidInputError("say how long to train each subnet: give either --steps or --minutes")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; :meth:`from_dict` reads it."""
        supernet = None if self.supernet is None else str(self.supernet.resolve())
        return {**asdict(self), "supernet": supernet, "corpora": list(self.corpora), "band": self.band and [*self.band]}

    @classmethod
    def from_dict(cls, data: object) -> "RankRequest":
        """Reads :meth:`to_dict`'s form; raises InvalidInputError where it is not one."""
        if not isinstance(data, dict) or set(data) != {field.name for field in fields(cls)}:
            raise InvalidInputError("the folder does not say what was to be ranked; start the ranking anew")
        supernet, band = data["supernet"], data["band"]
        request = cls(
            **{
                **data,
                "supernet": None if supernet is None else Path(str(supernet)),
                "band": None if band is None else tuple(band),
                "corpora": tuple(data["corpora"]),
                "task_options": TaskOptions.from_dict(data["task_options"]),
            }
        )
        request.check()
        return request


def choose_subnets(space: Space, count: int, band: tuple[float, float] | None, seed: int) -> list[Architecture]:
    """Different subnets: evenly over the sizes of the space, its smallest and largest among them, or within a band.

    Args:
        space: Where they come from.
        count: How many.
        band: Only those of so many million encoder parameters, drawn at random; None for all sizes.
        seed: Of the draws.

    Raises:
        InvalidInputError: The space, or the band, holds too few.
    """
    if space.size < count:
        raise InvalidInputError(f"the space {space.name!r} holds {space.size} architectures, {count} are asked for")
    rng = random.Random(f"rank-{seed}")
    if band is None:
        found = dict.fromkeys([space.smallest(), space.largest()])
        for _ in range(NUM_DRAWN):
            found[space.sample(rng)] = None
            if len(found) >= min(space.size, DRAWN_PER_SUBNET * count):
                break
        by_size = sorted(found, key=encoder_parameters)
        return [by_size[round(place * (len(by_size) - 1) / (count - 1))] for place in range(count)]
    low, high = (1e6 * edge for edge in band)
    within = dict.fromkeys(
        architecture
        for architecture in (space.sample(rng) for _ in range(NUM_DRAWN))
        if low <= encoder_parameters(architecture) <= high
    )
    if len(within) < count:
        sizes = [encoder_parameters(end) / 1e6 for end in (space.smallest(), space.largest())]
        raise InvalidInputError(
            f"only {len(within)} architectures of {band[0]:g} to {band[1]:g} million encoder parameters were found and "
            f"{count} are asked for; the space {space.name!r} goes from {sizes[0]:.3g} to {sizes[1]:.3g} million"
        )
    return list(within)[:count]
