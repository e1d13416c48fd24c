import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_space_strategies import (
    JUNK,
    architectures,
    product_of,
    raises_only_invalid_input,
    spaces,
    spaces_and_members,
    spoilt,
    uniform_architectures,
)

from search_spaces import (
    AS_HIDDEN,
    PRESETS,
    Architecture,
    Attention,
    Block,
    FeedForward,
    InvalidInputError,
    SearchSpace,
)
from search_spaces.space import DIMENSIONS, MUTATION
from search_spaces.spaces import space_from_toml

SMALL = SearchSpace("small", (1, 2, 3), (64, 128), (128, 256), (), (32,), (64, AS_HIDDEN))
ONE = SearchSpace("one", (2,), (64,), (128,), (), (32,), (64, AS_HIDDEN))
seeds = st.integers(0, 2**32).map(random.Random)


@given(spaces())
def test_json_round_trip_restores_an_equal_space(space):
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


@given(spaces())
def test_enumeration_is_every_combination_once(space):
    found = list(space.enumerate())
    assert len(found) == len(set(found)) == space.size
    assert set(found) == product_of(space)
    assert len({architecture.key() for architecture in found}) == space.size


@given(spaces(), uniform_architectures | architectures())
def test_membership_agrees_with_enumeration(space, architecture):
    assert (architecture in space) == (architecture in product_of(space))


@given(spaces_and_members())
def test_build_inverts_values(space_and_member):
    space, member = space_and_member
    values = space.values(member)
    assert member in space
    assert set(values) == set(space.dimensions)
    assert all(values[name] in choices for name, choices in space.dimensions.items())
    assert space.build(values) == member


@given(spaces_and_members(count=2), seeds)
def test_samples_and_children_lie_in_the_space(space_and_members, rng):
    space, first, second = space_and_members
    assert space.sample(rng) in space
    child = space.crossover(first, second, rng)
    mutant = space.mutate(first, rng)
    assert child in space
    assert mutant in space
    assert (mutant != first) == (space.size > 1)
    ours, theirs, got = space.values(first), space.values(second), space.values(child)
    for name, value in got.items():
        is_inherited = value in (ours[name], theirs[name])
        is_cut = name == "num_narrow_layers" and value < max(ours[name], theirs[name])
        assert is_inherited or is_cut or child.embedding_size == child.hidden_size


@given(spaces_and_members(aliases=False), seeds)
def test_a_mutation_moves_no_dimension_beyond_its_reach(space_and_member, rng):
    space, member = space_and_member
    mutant = space.mutate(member, rng)
    before, after = space.values(member), space.values(mutant)
    for name, choices in space.dimensions.items():
        is_cut = name == "num_narrow_layers" and mutant.num_layers < member.num_layers
        assert is_cut or abs(choices.index(before[name]) - choices.index(after[name])) <= MUTATION[name][1]


def test_mutation_rates_are_autotinyberts():
    """A move draws -reach..reach with 0; the draws that change nothing (.267) become one of the 12 neighbours."""
    space, rng, draws = PRESETS["autotinybert-mlm"], random.Random(7), 6_000
    parent = Architecture.bert(4, 400, 1024, 6, head_size=64)
    changed = Counter()
    for _ in range(draws):
        values = space.values(space.mutate(parent, rng))
        changed.update(name for name, value in values.items() if value != space.values(parent)[name])
    moves = {
        "num_layers": (0.25 * 2 / 3, 2),
        "hidden_size": (0.5 * 2 / 3, 2),
        "intermediate_size": (0.5 * 4 / 5, 4),
        "num_heads": (0.25 * 4 / 5, 4),
    }
    unchanged = (1 - 0.25 * 2 / 3) * (1 - 0.5 * 2 / 3) * (1 - 0.5 * 4 / 5) * (1 - 0.25 * 4 / 5)
    for name, (rate, neighbours) in moves.items():
        expected = rate + unchanged * neighbours / 12
        deviation = (expected * (1 - expected) / draws) ** 0.5
        assert changed[name] / draws == pytest.approx(expected, abs=5 * deviation)


def test_crossover_takes_each_dimension_from_either_parent_alike():
    space, rng, draws = PRESETS["autotinybert-kd"], random.Random(11), 2_000
    children = Counter(space.crossover(space.smallest(), space.largest(), rng) for _ in range(draws))
    assert len(children) == 2 ** len(space.dimensions)
    assert all(abs(count - draws / 16) < 5 * (draws / 16) ** 0.5 for count in children.values())


def test_samples_are_uniform_over_distinct_architectures():
    rng, per_member = random.Random(3), 400
    assert SMALL.size == 3 * 2 * 3, "at hidden size 64 both embeddings are the same"
    counts = Counter(SMALL.sample(rng) for _ in range(per_member * SMALL.size))
    assert set(counts) == product_of(SMALL)
    assert all(abs(count - per_member) < 5 * per_member**0.5 for count in counts.values())


def test_the_same_seed_draws_the_same():
    assert [SMALL.sample(random.Random(5)) for _ in range(2)] == [SMALL.sample(random.Random(5))] * 2


@given(spaces())
def test_smallest_and_largest_bound_every_dimension(space):
    smallest, largest = space.smallest(), space.largest()
    assert smallest in space
    assert largest in space
    for member in space.enumerate():
        for read in (
            lambda a: a.num_layers,
            lambda a: a.hidden_size,
            lambda a: a.uniform.feed_forward.intermediate_size,
            lambda a: a.uniform.attention.head_size,
            lambda a: a.embedding_size,
        ):
            assert read(smallest) <= read(member) <= read(largest)
        if space.num_heads:
            heads = [a.uniform.attention.num_heads for a in (smallest, member, largest)]
            assert heads == sorted(heads)


@given(
    spaces(), st.dictionaries(st.sampled_from(["num_layers", "hidden_size", "intermediate_size"]), st.integers(1, 32))
)
def test_restricting_keeps_exactly_what_obeys_the_bounds(space, upper):
    kept = {
        member
        for member in product_of(space)
        if member.num_layers <= upper.get("num_layers", 99)
        and member.hidden_size <= upper.get("hidden_size", 99)
        and member.uniform.feed_forward.intermediate_size <= upper.get("intermediate_size", 99)
    }
    if kept:
        assert product_of(space.restrict(upper)) == kept
    else:
        with pytest.raises(InvalidInputError, match="leaves none"):
            space.restrict(upper)


def test_a_bound_on_the_embedding_drops_as_hidden_where_it_could_break_the_bound():
    assert SMALL.restrict({"embedding_size": 64}).embedding_size == (64,)
    assert SMALL.restrict({"embedding_size": 64, "hidden_size": 64}).embedding_size == (64, AS_HIDDEN)
    with pytest.raises(InvalidInputError, match="leaves none"):
        PRESETS["stock"].restrict({"embedding_size": 256})


def test_a_space_of_one_has_no_dimension_but_as_many_embeddings_as_listed():
    space = SearchSpace("one", (2,), (64,), (128,))
    only = space.build({})
    assert (space.size, space.dimensions, space.smallest(), space.largest()) == (1, {}, only, only)
    assert space.mutate(only, random.Random(0)) == space.crossover(only, only, random.Random(0)) == only
    assert ONE.size == 1
    assert ONE.mutate(only, random.Random(0)) == only


def test_choices_are_sorted_and_as_hidden_comes_last():
    space = SearchSpace("mine", (3, 1), (64, 32), (8,), (), (8,), (AS_HIDDEN, 64, 16))
    assert space.dimensions == {"num_layers": (1, 3), "hidden_size": (32, 64), "embedding_size": (16, 64, AS_HIDDEN)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name must be 1 to 100 printable characters"),
        ({"name": "a\nb"}, "name must be 1 to 100 printable characters"),
        ({"num_layers": ()}, "num_layers must have at least one choice"),
        ({"num_layers": (257,)}, "num_layers must be a whole number from 1 to 256, got 257"),
        ({"hidden_size": (0,)}, "hidden_size must be a whole number from 1 to 65536, got 0"),
        ({"hidden_size": (64.0,)}, "hidden_size must be a whole number from 1 to 65536, got 64.0"),
        ({"hidden_size": 64}, "hidden_size must be a tuple of choices, got 64"),
        ({"hidden_size": (64, 64)}, "hidden_size lists a choice twice"),
        ({"hidden_size": (64, 100)}, "hidden_size must be a multiple of every head_size .* got 100 and 32"),
        ({"intermediate_size": tuple(range(1, 5_000))}, "at most 4096 choices, got 4999; use a larger step"),
        ({"embedding_size": (-1,)}, "embedding_size must be a whole number from 1 to 65536, got -1"),
        ({"num_heads": (4096,), "head_size": (64,)}, r"num_heads \* head_size must be at most 65536, got 262144"),
    ],
)
def test_a_space_out_of_bounds_is_refused(changes, message):
    fields = {"name": "mine", "num_layers": (1,), "hidden_size": (64,), "intermediate_size": (64,)}
    with pytest.raises(InvalidInputError, match=message):
        SearchSpace(**(fields | changes))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"num_layers": 1, "hidden_size": 64, "embedding_size": 64},
            "values must choose intermediate_size, one of 128, 256",
        ),
        ({"num_layer": 1}, "unknown dimension 'num_layer'. Did you mean 'num_layers'"),
        ({"num_layers": 9}, "num_layers must be among 1, 2, 3, got 9"),
        ({"num_layers": 1, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2}, "num_heads is derived"),
    ],
)
def test_values_that_choose_nothing_of_the_space_are_refused(values, message):
    with pytest.raises(InvalidInputError, match=message):
        SMALL.build(values)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (
            Architecture.bert(4, 64, 128, 2),
            "L4-D64-F128-H2x32 is not in the search space 'small': num_layers 4 is not among",
        ),
        (Architecture.bert(1, 64, 128, 4), "head_size 16 is not among 32"),
        (Architecture.bert(1, 64, 128, 4, head_size=32), "its heads are 128 wide, not as the hidden size"),
        (Architecture.bert(2, 64, 128, 2, num_narrow_layers=1), "num_narrow_layers 1 is not among 0"),
        (Architecture(64, Architecture.bert(2, 64, 128, 2).blocks, 3), "its one narrow layer computes more"),
        (Architecture(64, Architecture.bert(2, 64, 128, 2).blocks, 1), "and narrow from a layer on"),
        (Architecture(64, (Block(64, (FeedForward(128), Attention(2, 32))),)), "layers are not all alike"),
        (Architecture.bert(1, 128, 128, 4, embedding_size=32), 'embedding_size 32 is not among 64, "hidden"'),
    ],
)
def test_values_of_a_stranger_say_why_it_is_one(architecture, message):
    assert architecture not in SMALL
    with pytest.raises(InvalidInputError, match=message):
        SMALL.values(architecture)
    with pytest.raises(InvalidInputError, match=message):
        SMALL.mutate(architecture, random.Random(0))


def test_other_calls_name_their_law():
    assert "L1-D64-F128-H2x32" not in SMALL
    with pytest.raises(InvalidInputError, match="must be from 0 to 17, got 18"):
        SMALL.at(18)
    with pytest.raises(InvalidInputError, match="must be from 0 to 17, got -1"):
        SMALL.at(-1)
    with pytest.raises(InvalidInputError, match="unknown dimension 'depth'"):
        SMALL.restrict({"depth": 3})
    with pytest.raises(InvalidInputError, match="num_heads is derived in 'small'; bound hidden_size instead"):
        SMALL.restrict({"num_heads": 3})
    with pytest.raises(InvalidInputError, match=r"the upper bound of num_layers must be a whole number, got 2.5"):
        SMALL.restrict({"num_layers": 2.5})


TOML = """
num_layers = [1, 2, 3]
hidden_size = { min = 128, max = 384, step = 64 }
intermediate_size = 512
head_size = 32
num_heads = "derived"
embedding_size = [64, "hidden"]
"""


def test_a_toml_file_is_read_as_documented(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TOML)
    expected = SearchSpace("mine", (1, 2, 3), (128, 192, 256, 320, 384), (512,), (), (32,), (64, AS_HIDDEN))
    assert space_from_toml(path) == expected
    path.write_text(
        'name = "other"\n' + TOML.replace('"derived"', "{ min = 2, max = 3 }").replace('[64, "hidden"]', '"hidden"')
    )
    space = space_from_toml(path)
    assert (space.name, space.num_heads, space.embedding_size) == ("other", (2, 3), (AS_HIDDEN,))
    path.write_text(
        "\n".join(line for line in TOML.splitlines() if "num_heads" not in line and "embedding" not in line)
    )
    space = space_from_toml(path)
    assert (space.num_heads, space.embedding_size) == ((), (AS_HIDDEN,))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_layers", "num_layer", "unknown search space key 'num_layer'. Did you mean 'num_layers'"),
        ("intermediate_size = 512", "", "a search space must say intermediate_size; add it"),
        ("step", "stop", "unknown key in the range of hidden_size 'stop'. Did you mean 'step'"),
        ("min = 128, ", "", "the range of hidden_size must have min and max"),
        ("384", "100", "min of hidden_size must be at most max, got 128 and 100"),
        ("384", "400", "max of hidden_size must be min plus whole steps of 64, got 400; nearest: 384 or 448"),
        ("step = 64", "step = 0", "step of hidden_size must be a whole number from 1 to 65536, got 0"),
        ("384", "0x" + "f" * 9_999, "max of hidden_size must be .* got a int too large to print"),
        ("64 }", "32.5 }", "step of hidden_size must be a whole number from 1 to 65536, got 32.5"),
        ("max = 384, step = 64", "max = 65472, step = 1", "hidden_size may have at most 4096 choices"),
        ("[1, 2, 3]", "[]", "num_layers must have at least one choice"),
        ("[1, 2, 3]", "[1, 1]", "num_layers lists a choice twice in 1, 1"),
        ("[1, 2, 3]", "[[1]]", r"num_layers must be a whole number from 1 to 256, got \[1\]"),
        ("512", "1979-05-27", "intermediate_size must be a whole number"),
        ('"derived"', '"derive"', "unknown word for num_heads 'derive'. Did you mean 'derived'"),
        ('"derived"', "[]", "num_heads must have at least one choice"),
        ('"hidden"', '"hiden"', "unknown word for embedding_size 'hiden'. Did you mean 'hidden'"),
        ('"hidden"', "0", 'embedding_size must be at least 1, got 0; as wide as hidden_size is "hidden"'),
        ("512", '"derived"', "intermediate_size must be a number, a list of numbers or a range, got 'derived'"),
        ("head_size = 32", "head_size = 24", "hidden_size must be a multiple of every head_size .* got 128 and 24"),
        ("num_layers", "schema_version = 9\nnum_layers", "search space schema must be 1, got 9"),
        ("num_layers", "name = 3\nnum_layers", "a space's name must be 1 to 100 printable characters, got 3"),
        ("[1, 2, 3]", "[1, 2", "mine.toml is not TOML: "),
    ],
)
def test_a_toml_file_with_a_mistake_is_refused_by_name(tmp_path, old, new, message):
    assert old in TOML
    path = tmp_path / "mine.toml"
    path.write_text(TOML.replace(old, new, 1))
    with pytest.raises(InvalidInputError, match=message) as caught:
        space_from_toml(path)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match=r"cannot read search space .*: No such file"):
        space_from_toml(tmp_path / "absent.toml")
    with pytest.raises(InvalidInputError, match=r"cannot read search space .*: Is a directory"):
        space_from_toml(tmp_path)
    with pytest.raises(InvalidInputError, match=r"cannot read search space .*: embedded null byte"):
        space_from_toml(tmp_path / "a\0b")
    binary, large, deep = tmp_path / "binary.toml", tmp_path / "large.toml", tmp_path / "deep.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    large.write_bytes(b"#" * 1_000_001)
    deep.write_text("a = " + "[" * 100_000)
    with pytest.raises(InvalidInputError, match=r"binary.toml is not TOML"):
        space_from_toml(binary)
    with pytest.raises(InvalidInputError, match=r"at most 1000000 bytes, .*large.toml holds more"):
        space_from_toml(large)
    with pytest.raises(InvalidInputError, match=r"deep.toml is not TOML"):
        space_from_toml(deep)


@given(st.data(), spaces())
def test_spoilt_data_raises_nothing_but_invalid_input(data, space):
    raises_only_invalid_input(SearchSpace.from_dict, spoilt(data.draw, space.to_dict()))


@given(JUNK)
def test_junk_is_refused(junk):
    assert raises_only_invalid_input(SearchSpace.from_dict, junk)


@given(st.sampled_from(DIMENSIONS), JUNK)
def test_any_entry_for_a_dimension_gives_a_space_or_invalid_input(name, junk):
    raises_only_invalid_input(SearchSpace.from_dict, SMALL.to_dict() | {name: junk})
