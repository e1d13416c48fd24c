"""Narrow layers as a dimension of a search space: how many of the last layers update chosen positions only."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from search_space_strategies import product_of, spaces

from search_spaces import PRESETS, Architecture, InvalidInputError, SearchSpace, decode, encode, num_macs
from search_spaces.spaces import space_from_toml

SPACE = SearchSpace("mine", (1, 2, 4), (64,), (128,), num_narrow_layers=(0, 1, 3))


BOTH = replace(SPACE, narrow_form=("context-first", "sparse-queries"))


def shape(num_layers, num_narrow_layers, narrow_form="sparse-queries"):
    return Architecture.bert(num_layers, 64, 128, 2, num_narrow_layers=num_narrow_layers, narrow_form=narrow_form)


def test_every_depth_has_the_numbers_that_leave_a_full_layer():
    pairs = [(1, 0), (2, 0), (2, 1), (4, 0), (4, 1), (4, 3)]
    assert SPACE.size == len(pairs)
    assert set(SPACE.enumerate()) == {shape(*pair) for pair in pairs}
    assert (SPACE.smallest(), SPACE.largest()) == (shape(1, 0), shape(4, 0))
    deep = SearchSpace("deep", (3, 4), (64,), (128,), num_narrow_layers=(1, 2))
    assert (deep.smallest(), deep.largest()) == (shape(3, 2), shape(4, 1))


@pytest.mark.parametrize(("asked", "built"), [((4, 3), 3), ((2, 3), 1), ((1, 3), 0), ((4, 1), 1), ((2, 0), 0)])
def test_more_than_can_be_narrow_count_as_the_most_that_can(asked, built):
    num_layers, num_narrow_layers = asked
    architecture = SPACE.build({"num_layers": num_layers, "num_narrow_layers": num_narrow_layers})
    assert architecture == shape(num_layers, built)
    assert SPACE.values(architecture) == {"num_layers": num_layers, "num_narrow_layers": built}


def test_encoders_of_two_and_more_narrow_layers_have_each_form():
    """One narrow layer gives the same states in either form: it has the one that computes less."""
    alike = {shape(*pair) for pair in [(1, 0), (2, 0), (4, 0), (2, 1), (4, 1)]}
    members = alike | {shape(4, 3), shape(4, 3, "context-first")}
    assert set(BOTH.enumerate()) == members
    assert BOTH.size == len(members) == 7
    one = {"num_layers": 4, "num_narrow_layers": 1, "narrow_form": "context-first"}
    assert BOTH.build(one) == shape(4, 1)
    assert num_macs(shape(4, 1), 32) < num_macs(shape(4, 1, "context-first"), 32)
    with pytest.raises(InvalidInputError, match="computes more than the form sparse-queries needs"):
        BOTH.values(shape(4, 1, "context-first"))
    assert BOTH.narrow_form == ("sparse-queries", "context-first"), "the one with less work first"
    values = {"num_layers": 4, "num_narrow_layers": 3, "narrow_form": "context-first"}
    assert BOTH.build(values) == shape(4, 3, "context-first")
    assert BOTH.values(shape(4, 3, "context-first")) == values
    assert BOTH.values(shape(4, 0)) == {"num_layers": 4, "num_narrow_layers": 0, "narrow_form": "sparse-queries"}
    only = replace(SPACE, narrow_form=("context-first",))
    assert set(only.enumerate()) == members - {shape(4, 3)}
    with pytest.raises(InvalidInputError, match="narrow_form sparse-queries is not among context-first"):
        only.values(shape(4, 3))


@pytest.mark.parametrize("space", [SPACE, BOTH])
def test_samples_are_uniform_over_depths_and_their_narrowing(space):
    rng, per_member = random.Random(3), 400
    counts = Counter(space.sample(rng) for _ in range(per_member * space.size))
    assert set(counts) == product_of(space)
    assert all(abs(count - per_member) < 5 * per_member**0.5 for count in counts.values())


def test_a_mutation_reaches_the_other_form():
    rng = random.Random(1)
    forms = {BOTH.mutate(shape(4, 3), rng).uniform.narrow_form for _ in range(50)}
    assert forms == {"sparse-queries", "context-first"}


@given(spaces())
def test_with_narrowing_adds_every_number_to_every_depth(space):
    if max(space.num_layers) == 1:
        with pytest.raises(InvalidInputError, match="have one layer, and narrow layers need a full one before them"):
            space.with_narrowing()
        return
    narrowed = space.with_narrowing()
    full = {member for member in product_of(space) if member.narrow_from is None}
    assert narrowed.has_narrowing
    assert {member for member in narrowed.enumerate() if member.narrow_from is None} >= full
    for layers in space.num_layers:
        starts = {member.narrow_from for member in narrowed.enumerate() if member.num_layers == layers}
        assert starts == {None, *range(2, 2 * layers, 2), *range(layers + 1, 2 * layers - 1)}
    assert narrowed.with_narrowing() is narrowed
    assert narrowed.largest().narrow_from is None


def test_its_name_says_so_and_stays_in_bounds():
    assert PRESETS["stock"].with_narrowing() == PRESETS["stock-narrow"]
    assert PRESETS["stock-narrow"].size == 6_417
    long = SearchSpace("x" * 100, (2,), (64,), (128,))
    assert long.with_narrowing().name == "x" * 93 + "-narrow"


def test_a_space_without_narrowing_reads_and_writes_as_before():
    data = PRESETS["stock"].to_dict()
    assert not {"num_narrow_layers", "narrow_form"} & set(data)
    assert SearchSpace.from_dict(data) == PRESETS["stock"]
    assert not PRESETS["stock"].has_narrowing
    assert SearchSpace.from_dict(json.loads(json.dumps(PRESETS["stock-narrow"].to_dict()))) == PRESETS["stock-narrow"]


def test_old_indices_keep_their_architectures():
    stock = PRESETS["stock"]
    assert stock.at(0).key() == "L1-D128-F128-H4x32"
    assert stock.at(1000).key() == "L5-D352-F832-H11x32"


TOML = "num_layers = [1, 2, 3]\nhidden_size = 64\nintermediate_size = 128\nhead_size = 32\nnum_narrow_layers = "


def test_a_file_names_choices_or_a_range(tmp_path):
    path = tmp_path / "mine.toml"
    for entry in ("[2, 0, 1]", "{ min = 0, max = 2 }"):
        path.write_text(TOML + entry)
        assert space_from_toml(path).num_narrow_layers == (2, 1, 0)
    path.write_text(TOML + "0")
    assert not space_from_toml(path).has_narrowing


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("[0, 3]", "num_narrow_layers must be at most 2, one less than the most layers, got 3"),
        ("[1, 2]", "a choice that leaves a full layer at every depth, got at least 1 and 1 layers; add 0"),
        ("[0, -1]", "num_narrow_layers must be a whole number from 0 to 255, got -1"),
        ("[]", "num_narrow_layers must have at least one choice"),
        ("[0, 0]", "num_narrow_layers lists a choice twice in 0, 0"),
        ('"hidden"', "num_narrow_layers must be a number, a list of numbers or a range, got 'hidden'"),
        ("{ min = -1, max = 2 }", "min of num_narrow_layers must be a whole number from 0 to"),
    ],
)
def test_a_number_of_narrow_layers_that_cannot_be_is_refused(tmp_path, entry, message):
    path = tmp_path / "mine.toml"
    path.write_text(TOML + entry)
    with pytest.raises(InvalidInputError, match=message):
        space_from_toml(path)


def test_a_file_names_the_form_or_both(tmp_path):
    path = tmp_path / "mine.toml"
    for entry, forms in (
        ('"context-first"', ("context-first",)),
        ('["context-first", "sparse-queries"]', ("sparse-queries", "context-first")),
    ):
        path.write_text(f"{TOML}[0, 2]\nnarrow_form = {entry}")
        assert space_from_toml(path).narrow_form == forms
    path.write_text(TOML + "[0, 1]")
    assert space_from_toml(path).narrow_form == ("sparse-queries",)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('"context-fist"', "unknown narrow_form 'context-fist'. Did you mean 'context-first'"),
        ("1", "unknown narrow_form '1'"),
        ("[]", "narrow_form must be a list of sparse-queries, context-first, got"),
        ('["context-first", "context-first"]', "narrow_form lists a form twice in context-first, context-first"),
    ],
)
def test_a_form_that_is_not_known_is_refused(tmp_path, entry, message):
    path = tmp_path / "mine.toml"
    path.write_text(f"{TOML}[0, 1]\nnarrow_form = {entry}")
    with pytest.raises(InvalidInputError, match=message):
        space_from_toml(path)


@pytest.mark.parametrize(("counts", "said"), [((0,), "none is"), ((1, 0), "one is")])
def test_a_form_where_it_says_nothing_is_refused(counts, said):
    with pytest.raises(InvalidInputError, match=f"how two and more layers are narrow, and here {said}"):
        SearchSpace("mine", (1, 2), (64,), (128,), num_narrow_layers=counts, narrow_form=("context-first",))


def test_a_space_of_sparse_queries_is_written_as_before_there_was_a_choice():
    """So that a run which was started then goes on."""
    assert "narrow_form" not in SPACE.to_dict()
    assert BOTH.to_dict()["narrow_form"] == ["sparse-queries", "context-first"]
    assert all(SearchSpace.from_dict(space.to_dict()) == space for space in (SPACE, BOTH))


def test_a_bound_on_depth_takes_the_narrow_layers_along():
    restricted = PRESETS["stock-narrow"].restrict({"num_layers": 2})
    assert restricted.num_narrow_layers == (1, 0)
    assert PRESETS["stock-narrow"].restrict({"num_layers": 1}).num_narrow_layers == (0,)
    assert PRESETS["stock-narrow"].restrict({"num_narrow_layers": 0}).size == PRESETS["stock"].size
    with pytest.raises(InvalidInputError, match="unknown dimension 'narrow_form'"):
        PRESETS["stock-narrow"].restrict({"narrow_form": 1})
    with pytest.raises(InvalidInputError, match="num_narrow_layers of 'stock-narrow' is among 0 to 5 in steps of 1"):
        PRESETS["stock-narrow"].restrict({"num_narrow_layers": -1})


def test_the_code_of_a_narrow_encoder_runs_from_the_least_work_to_the_most():
    space = PRESETS["stock-narrow"]
    narrow, full = (Architecture.bert(6, 384, 1536, 12, num_narrow_layers=count) for count in (5, 0))
    assert (encode(space, narrow)[-2], encode(space, full)[-2]) == (0.0, 1.0)
    context_first = Architecture.bert(6, 384, 1536, 12, num_narrow_layers=5, narrow_form="context-first")
    assert (encode(space, narrow)[-1], encode(space, context_first)[-1]) == (0.0, 1.0)
    works = [num_macs(one, 128) for one in (narrow, context_first, full)]
    assert works == sorted(works)
    assert decode(space, encode(space, narrow)) == narrow


def test_a_message_about_narrow_layers_counts_from_zero():
    with pytest.raises(InvalidInputError, match="num_narrow_layers must be among 0, 1, 3, got 2"):
        SPACE.build({"num_layers": 4, "num_narrow_layers": 2})
