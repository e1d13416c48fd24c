"""An architecture as a vector in the unit cube, for samplers and predictors that want numbers."""

import math
from collections.abc import Sequence

from search_spaces.architecture import Architecture
from search_spaces.errors import InvalidInputError, shown
from search_spaces.precisions import AnySpace


def encode(space: AnySpace, architecture: Architecture) -> tuple[float, ...]:
    """The place of each choice in its dimension, from 0 (first) to 1 (last), in the order of ``space.dimensions``.

    Raises:
        InvalidInputError: The architecture is not in the space.
    """
    values = space.values(architecture)
    return tuple(choices.index(values[name]) / (len(choices) - 1) for name, choices in space.dimensions.items())


def decode(space: AnySpace, vector: Sequence[float]) -> Architecture:
    """The architecture whose choices are nearest to a vector; numbers outside 0 to 1 count as the nearer end.

    Raises:
        InvalidInputError: The vector has another length than ``space.dimensions``, or holds a NaN.
    """
    dimensions = space.dimensions
    if len(vector) != len(dimensions):
        raise InvalidInputError(f"a vector of {space.name!r} must hold {len(dimensions)} numbers, got {len(vector)}")
    values = {}
    for number, (name, choices) in zip(vector, dimensions.items(), strict=True):
        if math.isnan(number):
            raise InvalidInputError(f"a vector must hold numbers from 0 to 1, got {shown(number)} for {name}")
        values[name] = choices[round(min(max(number, 0.0), 1.0) * (len(choices) - 1))]
    return space.build(values)
