"""A search space whose architectures also choose the number format in which they run."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from search_spaces.architecture import PRECISIONS, Architecture
from search_spaces.enumerable import Enumerable
from search_spaces.errors import InvalidInputError, shown, unknown_name
from search_spaces.spaces import Space

#: How likely a mutation changes the number format and keeps the shape.
MOVE_PROBABILITY = 0.25


@dataclass(frozen=True)
class PrecisionSpace(Enumerable):
    """Every architecture of a space in each of several number formats.

    Attributes:
        shapes: What is to be run.
        precision: Choices for what it runs in, the one with less work first.
        name: That of the space of shapes.

    Raises:
        InvalidInputError: There are fewer than two choices, one is not known, or one is named twice.
    """

    shapes: Space
    precision: tuple[str, ...] = PRECISIONS
    name: str = field(init=False)

    def __post_init__(self) -> None:
        check_precisions(self.precision)
        object.__setattr__(self, "precision", tuple(one for one in PRECISIONS if one in self.precision))
        object.__setattr__(self, "name", self.shapes.name)

    @property
    def dimensions(self) -> dict[str, tuple[Any, ...]]:
        """What a sampler chooses: the dimensions of the shapes, then ``precision``."""
        return {**self.shapes.dimensions, "precision": self.precision}

    @property
    def size(self) -> int:
        """The exact number of distinct architectures."""
        return self.shapes.size * len(self.precision)

    def build(self, values: Mapping[str, Any]) -> Architecture:
        """Makes the architecture of one choice for every dimension in :attr:`dimensions`.

        Raises:
            InvalidInputError: A dimension is unknown or missing, or its value is not among the choices.
        """
        sizes = dict(values)
        precision = sizes.pop("precision", None)
        if precision not in self.precision:
            raise InvalidInputError(f"precision must be among {', '.join(self.precision)}, got {shown(precision)}")
        return replace(self.shapes.build(sizes), precision=precision)

    def values(self, architecture: Architecture) -> dict[str, Any]:
        """The choice of each dimension in :attr:`dimensions` that :meth:`build` makes this architecture of.

        Raises:
            InvalidInputError: The architecture is not in the space; the text says why.
        """
        if architecture.precision not in self.precision:
            law = f"precision {architecture.precision} is not among {', '.join(self.precision)}"
            raise InvalidInputError(f"{architecture.key()} is not in the search space {self.name!r}: {law}")
        return {**self.shapes.values(architecture.shape), "precision": architecture.precision}

    def _at(self, index: int) -> Architecture:
        index, place = divmod(index, len(self.precision))
        return replace(self.shapes.at(index), precision=self.precision[place])

    def mutate(self, architecture: Architecture, rng: random.Random) -> Architecture:
        """A near relative: the same shape in another number format, or a mutant of the shape in the same.

        Raises:
            InvalidInputError: The architecture is not in the space.
        """
        self.values(architecture)
        if self.shapes.size == 1 or rng.random() < MOVE_PROBABILITY:
            others = [precision for precision in self.precision if precision != architecture.precision]
            return replace(architecture, precision=rng.choice(others))
        return replace(self.shapes.mutate(architecture.shape, rng), precision=architecture.precision)

    def crossover(self, first: Architecture, second: Architecture, rng: random.Random) -> Architecture:
        """A child of both shapes that runs as one parent or the other does.

        Raises:
            InvalidInputError: A parent is not in the space.
        """
        precisions = [self.values(parent)["precision"] for parent in (first, second)]
        shape = self.shapes.crossover(first.shape, second.shape, rng)
        return replace(shape, precision=rng.choice(precisions))

    def smallest(self) -> Architecture:
        """The smallest shape in the number format with the least work."""
        return replace(self.shapes.smallest(), precision=self.precision[0])

    def largest(self) -> Architecture:
        """The largest shape in the number format with the most work."""
        return replace(self.shapes.largest(), precision=self.precision[-1])

    def restrict(self, upper: Mapping[str, int]) -> "PrecisionSpace":
        """The part of the space whose shapes obey upper bounds; raises as the restriction of the shapes does."""
        return replace(self, shapes=self.shapes.restrict(upper))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form: that of the shapes, and the choices of ``precision``."""
        return {**self.shapes.to_dict(), "precision": list(self.precision)}


#: What a search may search.
AnySpace = Space | PrecisionSpace


def check_precisions(precisions: Sequence[str]) -> None:
    """Checks what a search shall choose the number format from.

    Raises:
        InvalidInputError: There are fewer than two, one is not known, or one is named twice.
    """
    for precision in precisions:
        if precision not in PRECISIONS:
            raise unknown_name("precision to search", str(precision), PRECISIONS)
    if len(set(precisions)) < len(precisions):
        raise InvalidInputError(f"a precision is named twice in {', '.join(precisions)}; leave one out")
    if len(precisions) < 2:
        raise InvalidInputError(f"a search chooses between two precisions or more, got {len(precisions)}")


def shapes_of(space: AnySpace) -> Space:
    """The shapes of a space, whatever they run in."""
    return space.shapes if isinstance(space, PrecisionSpace) else space


def forms_of(space: AnySpace, shape: Architecture) -> list[Architecture]:
    """A shape in every number format that a space has."""
    return [replace(shape, precision=precision) for precision in space.precision]
