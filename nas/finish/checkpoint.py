"""The newest state of a training run on disk, and what the run did so far."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
from torch import Tensor

from nas.errors import InvalidInputError
from search_spaces.files import atomic_folder
from supernet.checkpoint import read_tensors

_NAME = "checkpoint"


@dataclass
class History:
    """What a run did.

    Attributes:
        losses: Each step's parts of the loss.
        scores: Each evaluation's figures, with the ``step`` after which they were taken.
        best_step: Steps after which the best weights were taken; 0 before any evaluation.
        num_steps: Steps the run was meant to take.
        stopped_early: Whether patience ended it.
        elapsed_s: Seconds of training, over all its parts.
    """

    losses: list[dict[str, float]] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    num_steps: int = 0
    stopped_early: bool = False
    elapsed_s: float = 0.0

    @property
    def best(self) -> dict[str, float]:
        """The figures of the best weights."""
        return next((score for score in self.scores if score["step"] == self.best_step), {})


def has_checkpoint(folder: Path) -> bool:
    """Whether a run left a state in a folder, or below it."""
    return any(folder.rglob(_NAME))


class Resumable(Protocol):
    """A run whose state can be taken and restored."""

    step: int
    history: History

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as tensors by name."""

    def load(self, tensors: Mapping[str, Tensor], history: History, step: int, folder: Path) -> None:
        """Restores :meth:`tensors`."""


class Checkpoint:
    """The newest state of a run on disk: one folder, replaced whole.

    Args:
        folder: Where it is kept.
        fingerprint: What must be the same when the run is resumed.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any]) -> None:
        self.folder = folder
        self.fingerprint = json.loads(json.dumps(fingerprint))

    def open(self, run: Resumable, *, resume: bool) -> None:
        """Goes on from a checkpoint, or makes sure that there is none to overwrite.

        Raises:
            InvalidInputError: There is one and ``resume`` was not asked for, or it is damaged or of another run.
        """
        place = self.folder / _NAME
        if not place.exists():
            return
        if not resume:
            raise InvalidInputError(
                f"{self.folder} holds an unfinished run; repeat the command with --resume, or remove that folder"
            )
        try:
            data = json.loads((place / "state.json").read_text(encoding="utf-8"))
            known, step, history = data["fingerprint"], int(data["step"]), History(**data["history"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(f"{place} is damaged; remove {self.folder} and start again") from error
        differing = sorted(
            name for name in known.keys() | self.fingerprint.keys() if known.get(name) != self.fingerprint.get(name)
        )
        if differing:
            raise InvalidInputError(
                f"the run in {self.folder} was started with another {', '.join(differing)}; repeat its options, or "
                "remove that folder"
            )
        run.load(read_tensors(place / "state.safetensors"), history, step, place)

    def write(self, run: Resumable) -> None:
        """Replaces the checkpoint.

        Raises:
            InvalidInputError: The folder cannot be written.
        """
        data = {"fingerprint": self.fingerprint, "step": run.step, "history": asdict(run.history)}
        with atomic_folder(self.folder / _NAME, replace=True) as folder:
            (folder / "state.safetensors").write_bytes(safetensors.torch.save(run.tensors()))
            (folder / "state.json").write_text(json.dumps(data), encoding="utf-8")
