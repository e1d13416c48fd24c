"""What every search space can do once it has a size, a place for each architecture, and choices behind each."""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from search_spaces.architecture import Architecture
from search_spaces.errors import InvalidInputError, shown


class Enumerable(ABC):
    """A finite set of architectures, each at one index."""

    name: str
    #: What its architectures run in, as far as that is chosen.
    precision: tuple[str, ...] = ("fp32",)

    @property
    @abstractmethod
    def size(self) -> int:
        """The exact number of distinct architectures."""

    @abstractmethod
    def values(self, architecture: Architecture) -> dict[str, Any]:
        """The choices that make a member; raises InvalidInputError for any other architecture."""

    @abstractmethod
    def _at(self, index: int) -> Architecture:
        """The architecture at an index from 0 to ``size - 1``."""

    def __contains__(self, architecture: object) -> bool:
        if not isinstance(architecture, Architecture) or architecture.precision not in self.precision:
            return False
        try:
            self.values(architecture)
        except InvalidInputError:
            return False
        return True

    def at(self, index: int) -> Architecture:
        """The architecture at a place of the enumeration, without walking there.

        Raises:
            InvalidInputError: The index is not from 0 to ``size - 1``.
        """
        if not isinstance(index, int) or not 0 <= index < self.size:
            raise InvalidInputError(
                f"an index into {self.name!r} must be from 0 to {self.size - 1}, got {shown(index)}"
            )
        return self._at(index)

    def enumerate(self) -> Iterator[Architecture]:
        """Every architecture of the space, each once, in a fixed order."""
        return (self._at(index) for index in range(self.size))

    def sample(self, rng: random.Random) -> Architecture:
        """Draws one architecture, each with equal probability."""
        return self._at(rng.randrange(self.size))
