"""Which shapes of a space are measured, so that a predictor knows the whole of it, or the neighbourhood of a budget."""

import random
from collections.abc import Sequence

from nas.devices.predictor import LatencyPredictor
from search_spaces.architecture import Architecture
from search_spaces.chain_space import ChainSpace
from search_spaces.operations import IDENTITY, sublayer_operations
from search_spaces.spaces import Space

#: Among how many random shapes those near a budget are looked for.
NEAR_POOL = 2000


def choose_shapes(space: Space, num: int, *, seed: int) -> list[Architecture]:
    """Shapes to measure: the extremes of every dimension, so that nothing lies outside, then plain random draws.

    Draws that keep far from each other predict no better (1.2 to 1.8 % median error either way), and they are not like
    the shapes a search asks for, so that errors on shapes left out promised 90 % and kept 80 %.
    """
    if space.size <= num:
        return sorted(space.enumerate(), key=Architecture.key)
    rng = random.Random(seed)
    chosen = dict.fromkeys(extremes(space)[:num])
    while len(chosen) < num:
        chosen[draw(space, rng)] = None
    return list(chosen)


def draw(space: Space, rng: random.Random) -> Architecture:
    """A random shape: of a uniform space any with equal probability, of chains one of any length.

    Nearly all chains of a space are as long as may be, but a budget asks for others: so the number of sub-layers is
    drawn first, and then where they stand and what they are.
    """
    if not isinstance(space, ChainSpace) or IDENTITY not in space.operations:
        return space.sample(rng)
    operations = sublayer_operations(space.operations)
    filled = set(rng.sample(range(1, space.num_places + 1), rng.randint(1, space.num_places)))
    values = {name: rng.choice(choices) for name, choices in space.dimensions.items()}
    for place in range(1, space.num_places + 1):
        values[f"place_{place}"] = rng.choice(operations) if place in filled else IDENTITY
    return space.build(values)


def extremes(space: Space) -> list[Architecture]:
    """The smallest and the largest shape, and each of them with one dimension at its other end.

    Of chains, which have too many dimensions for that: also each operation at all places, at the ends of the widths,
    and a chain that goes from one end to the other at every block.
    """
    corners = [space.smallest(), space.largest()]
    if isinstance(space, ChainSpace):
        return list(dict.fromkeys([*corners, *_chain_extremes(space)]))
    for name, choices in space.dimensions.items():
        for corner, value in ((corners[0], choices[-1]), (corners[1], choices[0])):
            corners.append(space.build({**space.values(corner), name: value}))
    if "narrow_form" in space.dimensions:  # where many layers are narrow
        many = space.values(corners[1]) | {"num_narrow_layers": space.num_narrow_layers[0]}
        corners += [space.build(many | {"narrow_form": form}) for form in space.narrow_form]
    return list(dict.fromkeys(corners))


def shapes_near(
    predictor: LatencyPredictor, space: Space, budgets_s: Sequence[float], num: int, *, seed: int
) -> list[Architecture]:
    """Shapes to measure next: of those that may lie at a budget as far as is known, the least certain.

    Candidates are drawn at random; at a budget may be what has it in its predicted interval. Where those are too few,
    the nearest stand in. What it gains is small: of 24 samples the last 8 chosen so, and not at random, left errors of
    2.7, 3.1 and 4.2 % near a budget against 2.7, 3.3 and 4.2 % (one CPU: fp32, fp32 at half the length, int8).

    Args:
        predictor: What is known so far; its samples are not chosen again.
        space: Where the shapes come from.
        budgets_s: The budgets; at least one.
        num: How many to choose.
        seed: Of the draws.
    """
    rng = random.Random(f"{seed} {len(predictor.samples)}")
    draws = (draw(space, rng) for _ in range(NEAR_POOL))
    pool = dict.fromkeys(space.enumerate() if space.size <= NEAR_POOL else draws)
    known = {sample.architecture for sample in predictor.samples}
    distances = {}
    for shape in pool:
        if shape not in known:
            latency = predictor.predict(shape)
            distances[shape] = min(max(latency.low_s / time_s, time_s / latency.high_s) for time_s in budgets_s)
    nearest = sorted(distances, key=lambda shape: distances[shape])
    touching = sum(distance <= 1 for distance in distances.values())
    return predictor.least_certain(nearest[: max(num, touching)], num)


def _chain_extremes(space: ChainSpace) -> list[Architecture]:
    ends = (space.hidden_size[0], space.hidden_size[-1])
    runs = [[operation] * space.places_per_block for operation in sublayer_operations(space.operations)]
    widths = [[width] * space.num_blocks for width in ends]
    widths.append([ends[number % 2] for number in range(space.num_blocks)])
    sizes = [(space.embedding_size[0], space.embedding_size[-1])[number % 2] for number in range(3)]
    return [
        Architecture(size or of_blocks[0], tuple(space.block(width, run) for width in of_blocks))
        for size, of_blocks in zip(sizes, widths, strict=True)
        for run in (runs if len(set(of_blocks)) == 1 else runs[:1])
    ]
