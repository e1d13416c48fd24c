"""A space whose architectures also choose what they run in."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_space_strategies import architectures, spaces

from search_spaces import PRESETS, Architecture, InvalidInputError, PrecisionSpace, decode, encode
from search_spaces.precisions import forms_of, shapes_of

SHAPE = Architecture.bert(3, 64, 128, 2)
INT8 = replace(SHAPE, precision="int8")


@given(architectures(), st.sampled_from(["fp32", "int8"]))
def test_an_architecture_keeps_what_it_runs_in(shape, precision):
    architecture = replace(shape, precision=precision)
    assert Architecture.from_json(architecture.to_json()) == architecture
    assert architecture.shape == shape
    assert architecture.key().removesuffix("-int8") == shape.key()
    assert (architecture.key() != shape.key()) == (precision == "int8")


def test_files_of_before_read_on():
    assert "precision" not in SHAPE.to_dict()
    assert Architecture.from_dict({**SHAPE.to_dict(), "precision": "int8"}) == INT8
    for broken in ("int4", None, 8, ["int8"]):
        with pytest.raises(InvalidInputError, match="precision must be one of int8, fp32, got"):
            Architecture.from_dict({**SHAPE.to_dict(), "precision": broken})


@given(spaces())
def test_it_holds_every_shape_in_every_precision_once(shapes):
    space = PrecisionSpace(shapes, ("fp32", "int8"))
    members = list(space.enumerate())
    expected = {replace(shape, precision=name) for shape in shapes.enumerate() for name in ("fp32", "int8")}
    assert len(members) == space.size == len(expected)
    assert set(members) == expected
    for member in members[:20]:
        assert space.build(space.values(member)) == member
        assert decode(space, encode(space, member)) == member
    assert (space.smallest(), space.largest()) == (
        replace(shapes.smallest(), precision="int8"),
        replace(shapes.largest(), precision="fp32"),
    )


@given(spaces(), st.integers(0, 99))
def test_children_are_members(shapes, seed):
    space, rng = PrecisionSpace(shapes), random.Random(seed)
    first, second = space.sample(rng), space.sample(rng)
    child = space.mutate(first, rng)
    assert child in space
    assert child != first
    child = space.crossover(first, second, rng)
    assert child in space
    assert child.precision in {first.precision, second.precision}


def test_a_mutation_moves_the_precision_now_and_then():
    space, rng = PrecisionSpace(PRESETS["stock"]), random.Random(0)
    parent = space.sample(rng)
    moved = Counter(child.precision for child in (space.mutate(parent, rng) for _ in range(400)))
    assert 60 < moved[({"fp32", "int8"} - {parent.precision}).pop()] < 140


def test_chains_choose_it_too():
    space = PrecisionSpace(PRESETS["nas-bert-small"])
    member = space.sample(random.Random(1))
    assert space.size == 2 * PRESETS["nas-bert-small"].size
    assert space.build(space.values(member)) == member
    assert space.restrict({"hidden_size": 256}).shapes == PRESETS["nas-bert-small"].restrict({"hidden_size": 256})


def test_forms_and_shapes():
    stock = PRESETS["stock"]
    space = PrecisionSpace(stock)
    assert [form.key() for form in forms_of(space, SHAPE)] == [INT8.key(), SHAPE.key()]
    assert forms_of(stock, SHAPE) == [SHAPE]
    assert shapes_of(space) == shapes_of(stock) == stock
    assert json.loads(json.dumps(space.to_dict())) == {**stock.to_dict(), "precision": ["int8", "fp32"]}


def test_what_it_does_not_hold_is_refused():
    with pytest.raises(InvalidInputError, match="L3-D64-F128-H2x32 is not in the search space 'stock': hidden_size"):
        PrecisionSpace(PRESETS["stock"]).values(INT8)
    assert replace(PRESETS["stock"].smallest(), precision="int8") not in PRESETS["stock"]
    for precisions, message in (
        (("fp32", "fp32"), "a precision is named twice in fp32, fp32; leave one out"),
        (("fp32", "int4"), "unknown precision to search 'int4'. Did you mean 'int8'?"),
        (("int8",), "chooses between two precisions or more, got 1"),
    ):
        with pytest.raises(InvalidInputError, match=message.replace("?", r"\?")):
            PrecisionSpace(PRESETS["stock"], precisions)
    with pytest.raises(InvalidInputError, match="precision must be among int8, fp32, got None"):
        PrecisionSpace(PRESETS["stock"]).build(PRESETS["stock"].values(PRESETS["stock"].smallest()))
