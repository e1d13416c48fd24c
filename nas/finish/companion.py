"""What may go along with a training: a lock on a sparse pattern, pruning, rounding."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from nas.export.export import WriteInt8
from nas.export.int8 import quantize
from nas.finish.sparsity import Lock, SparsityFacts, prunable, read_lock, write_lock
from nas.finish.training import Hooks
from search_spaces.files import expanded
from supernet.encoder import Encoder


@dataclass(frozen=True)
class Beside:
    """What goes on beside a training.

    Attributes:
        hooks: Called by the loop.
        keep: Called after each step of an earlier loop, which learns hidden states alone.
        module: What of it must survive a kill; None where nothing must.
        num_choices: How often, over the whole run, something is done that no usual step contains.
        choose: Does it once, to be timed on a copy.
    """

    hooks: Hooks
    keep: Callable[[int], None] = lambda step: None
    module: nn.Module | None = None
    num_choices: int = 0
    choose: Callable[[], None] = lambda: None


class Companion(Protocol):
    """What goes along with a training, from the loaded encoder to its folder."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What must be the same when a run is resumed; also written into the folder's ``finetune.json``."""

    def begin(self, encoder: Encoder, num_steps: int) -> Beside:
        """Prepares an encoder, on its device, for so many steps of training."""

    def end(self, encoder: Encoder) -> WriteInt8:
        """Leaves a plain encoder behind, to be exported; returns what writes its int8 file."""

    def write(self, folder: Path, encoder: Encoder) -> None:
        """Writes what else belongs into the folder."""


@dataclass
class Locked:
    """Keeps the pattern of a sparse encoder.

    Attributes:
        sparsity: What its folder says of it.
        facts: See :class:`Companion`.
    """

    sparsity: SparsityFacts
    facts: Mapping[str, Any] = field(default_factory=lambda: {"lock": True})

    @classmethod
    def of(cls, source: str | Path, encoder: Encoder) -> "Locked | None":
        """The companion of a model from a folder with a lock; None where there is none.

        Raises:
            InvalidInputError: The lock does not match the model.
        """
        found = read_lock(expanded(source), encoder)
        return None if found is None else cls(found[1])

    def begin(self, encoder: Encoder, num_steps: int) -> Beside:
        """See :class:`Companion`."""
        lock = Lock(prunable(encoder)).hold()
        return Beside(Hooks(after_step=lock.after_step), lock.after_step)

    def end(self, encoder: Encoder) -> WriteInt8:
        """See :class:`Companion`."""
        return quantize

    def write(self, folder: Path, encoder: Encoder) -> None:
        """See :class:`Companion`."""
        write_lock(folder, encoder, self.sparsity)
