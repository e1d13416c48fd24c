import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_space_strategies import spaces, spaces_and_members

from search_spaces import PRESETS, Architecture, InvalidInputError, decode, encode


@given(spaces_and_members())
def test_decode_inverts_encode(space_and_member):
    space, member = space_and_member
    vector = encode(space, member)
    assert len(vector) == len(space.dimensions)
    assert all(0 <= number <= 1 for number in vector)
    assert decode(space, vector) == member


@given(spaces(), st.data())
def test_any_vector_decodes_to_the_nearest_choices(space, data):
    number = st.floats(0, 1) | st.sampled_from([0.2, 0.45, 0.8]) | st.floats(allow_nan=False)
    vector = data.draw(st.tuples(*[number] * len(space.dimensions)))
    got = decode(space, vector)
    assert got in space
    inside = [min(max(number, 0.0), 1.0) for number in vector]
    grids = [[place / (len(choices) - 1) for place in range(len(choices))] for choices in space.dimensions.values()]
    nearest = min(math.dist(inside, point) for point in itertools.product(*grids))
    reached = [point for point in itertools.product(*grids) if decode(space, point) == got]
    assert min(math.dist(inside, point) for point in reached) == pytest.approx(nearest, abs=1e-12)


def test_a_number_between_two_choices_decodes_to_the_nearer():
    space = PRESETS["stock"]
    step = 1 / 5
    depths = [
        decode(space, (number, 0.0, 0.0)).num_layers for number in (0.4 * step, 0.6 * step, 4.4 * step, 4.6 * step)
    ]
    assert depths == [1, 2, 5, 6]


def test_the_corners_are_the_smallest_and_the_largest():
    for space in PRESETS.values():
        corners = [0.0] * len(space.dimensions), [1.0] * len(space.dimensions)
        assert [decode(space, corner) for corner in corners] == [space.smallest(), space.largest()]


def test_vectors_and_architectures_of_no_member_are_refused():
    space = PRESETS["stock"]
    with pytest.raises(InvalidInputError, match="a vector of 'stock' must hold 3 numbers, got 2"):
        decode(space, (0.0, 1.0))
    with pytest.raises(InvalidInputError, match="must hold numbers from 0 to 1, got nan for hidden_size"):
        decode(space, (0.0, math.nan, 1.0))
    with pytest.raises(InvalidInputError, match="num_layers 7 is not among 1 to 6"):
        encode(space, Architecture.bert(7, 128, 128, 4))
