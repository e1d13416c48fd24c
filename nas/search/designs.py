"""Where a search looks first: architectures that fill the budget, spread over depths and proportions.

Quality grows with size more often than not, so the best architecture within a budget mostly uses nearly all of it.
What is not known is the depth and the proportion. So of every depth three shapes that just fit are evaluated first, of
the proportions that are known to work, and the sampler goes on from there. The baseline "most encoder parameters that
fit" (LiteTransformerSearch, Javaheripi et al., 2022, arXiv 2203.02094) is among them.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from nas.search.chain_designs import filling_chains, spanning_chains
from search_spaces.architecture import Architecture
from search_spaces.chain_space import ChainSpace
from search_spaces.cost import encoder_parameters
from search_spaces.space import SearchSpace
from search_spaces.spaces import Space

#: Feed-forward over hidden size: near what AutoTinyBERT found best (1.6 to 1.9), BERT's own, and wider layers yet.
PROPORTIONS = (2, 4, 1)
PER_RECIPE = 6
MAX_DESIGNS = 24
_LEVELS = 8

Fits = Callable[[Architecture], bool]
T = TypeVar("T")


def budget_filling(space: Space, fits: Fits) -> list[Architecture]:
    """Shapes that fit and would not if they were larger, up to three for each depth: one for each proportion.

    The largest by encoder parameters comes first; then one of each depth, then the second of each, and so on. Chains
    are of some recipes instead of depths, and of every width.

    Args:
        space: Where they are from.
        fits: Whether an architecture fits; larger ones are taken to fit less.
    """
    if isinstance(space, ChainSpace):
        designs = _by_turns([_spread(group, PER_RECIPE) for group in filling_chains(space, fits)])
    else:
        designs = _by_turns([_proportioned(_filling(space, depth, fits)) for depth in _depths(space)])
    largest = max(designs, key=encoder_parameters, default=None)
    return designs if largest is None else [largest, *(shape for shape in designs if shape != largest)]


def size_spanning(space: Space) -> list[Architecture]:
    """Shapes from the smallest to the largest, three sizes for each depth: where the whole front is asked for."""
    if isinstance(space, ChainSpace):
        return _by_turns([_spread(group, PER_RECIPE) for group in spanning_chains(space)])
    found = []
    for level in (_LEVELS // 2, _LEVELS, 0):
        for depth in _depths(space):
            values = {name: _at_level(choices, level) for name, choices in space.dimensions.items()}
            found.append(space.build(_of_depth(space, values, depth)))
    return list(dict.fromkeys(found))


def _by_turns(groups: Sequence[Sequence[Architecture]]) -> list[Architecture]:
    """The first of each group, then the second of each, and so on."""
    turns = itertools.zip_longest(*groups)
    return list(dict.fromkeys(shape for shapes in turns for shape in shapes if shape is not None))


def _depths(space: SearchSpace) -> list[int]:
    return _spread(space.dimensions.get("num_layers", space.num_layers), MAX_DESIGNS // len(PROPORTIONS))


def _proportioned(shapes: Sequence[Architecture]) -> list[Architecture]:
    """For each proportion the shape that comes nearest to it."""
    logs = [math.log(_proportion(shape)) for shape in shapes]
    places = [
        min(range(len(shapes)), key=lambda place: abs(logs[place] - math.log(wanted)))
        for wanted in (PROPORTIONS if shapes else ())
    ]
    return [shapes[place] for place in dict.fromkeys(places)]


def _proportion(shape: Architecture) -> float:
    layers = shape.uniform
    assert layers is not None
    return layers.feed_forward.intermediate_size / shape.hidden_size


def _filling(space: SearchSpace, depth: int, fits: Fits) -> list[Architecture]:
    """For each hidden size, from the widest that fits, the shape of this depth that fills the budget."""
    found = []
    for hidden_size in reversed(space.hidden_size):
        grown = _grow(space, depth, hidden_size, fits)
        if grown is not None:
            found.append(grown)
    return found


def _grow(space: SearchSpace, depth: int, hidden_size: int, fits: Fits) -> Architecture | None:
    """Raises all other sizes together as far as they fit, then each by itself."""
    free = {name: c for name, c in space.dimensions.items() if name not in ("num_layers", "hidden_size")}
    fixed = {"hidden_size": hidden_size} if "hidden_size" in space.dimensions else {}

    def build(values: Mapping[str, int]) -> Architecture:
        return space.build(_of_depth(space, {**values, **fixed}, depth))

    together = [{name: _at_level(c, level) for name, c in free.items()} for level in range(_LEVELS + 1)]
    values = _last_that(lambda sizes: fits(build(sizes)), together)
    if values is None:
        return None
    for name, choices in [*free.items()] * 2:  # embeddings as wide as the hidden size take less than narrower ones
        larger = [{**values, name: choice} for choice in choices[choices.index(values[name]) :]]
        values = _last_that(lambda sizes: fits(build(sizes)), larger) or values
    return build(values)


def _last_that(holds: Callable[[dict[str, int]], bool], options: Sequence[dict[str, int]]) -> dict[str, int] | None:
    """The last of the leading options for which a predicate holds, by bisection."""
    low, high = 0, len(options)
    while low < high:
        middle = (low + high) // 2
        if holds(options[middle]):
            low = middle + 1
        else:
            high = middle
    return options[low - 1] if low else None


def _at_level(choices: Sequence[int], level: int) -> int:
    return choices[level * (len(choices) - 1) // _LEVELS]


def _of_depth(space: SearchSpace, values: Mapping[str, int], depth: int) -> dict[str, int]:
    return {**values, "num_layers": depth} if "num_layers" in space.dimensions else dict(values)


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many items, evenly spaced, the middle one first, then the ends inwards."""
    if len(items) <= 1:
        return list(items)
    count = min(most, len(items))
    places = sorted({round(place * (len(items) - 1) / max(count - 1, 1)) for place in range(count)})
    places.sort(key=lambda place: abs(place - (len(items) - 1) / 2))
    return [items[place] for place in places]
