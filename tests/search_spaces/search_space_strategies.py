"""Hypothesis strategies for architectures and spaces, small enough to enumerate and to build."""

import itertools

import pytest
from hypothesis import strategies as st

from search_spaces import (
    AS_HIDDEN,
    Architecture,
    Attention,
    Block,
    FeedForward,
    InvalidInputError,
    SearchSpace,
    SepConv,
    TextSpec,
)
from search_spaces.architecture import NARROW_FORMS

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**4_000),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def architectures(draw, *, convolutions=True, narrowing=True):
    sublayer = st.builds(Attention, st.integers(1, 4), st.integers(1, 6)) | st.builds(FeedForward, st.integers(1, 24))
    if convolutions:
        sublayer |= st.builds(SepConv, st.sampled_from([1, 3, 5, 7]))
    run = st.lists(sublayer, max_size=5).map(tuple)
    blocks = draw(
        st.lists(st.builds(Block, st.integers(1, 16), run), min_size=1, max_size=3).filter(
            lambda found: any(block.sublayers for block in found)
        )
    )
    architecture = Architecture(draw(st.integers(1, 16)), tuple(blocks))
    chain = architecture.sublayers
    if narrowing and len(chain) > 1 and draw(st.booleans()):
        narrow_from = draw(st.integers(1, len(chain) - 1))
        if not any(isinstance(sublayer, SepConv) for sublayer in chain[narrow_from:]):
            return Architecture(architecture.embedding_size, architecture.blocks, narrow_from)
    return architecture


uniform_architectures = st.integers(1, 4).flatmap(
    lambda num_layers: st.builds(
        Architecture.bert,
        st.just(num_layers),
        st.sampled_from([8, 16, 24]),
        st.sampled_from([8, 16, 24, 32]),
        st.integers(1, 3),
        head_size=st.sampled_from([2, 4, 8]),
        embedding_size=st.sampled_from([4, 8, 16, 24]),
        num_narrow_layers=st.integers(0, num_layers - 1),
        narrow_form=st.sampled_from(NARROW_FORMS),
    )
)


def choices(values, max_size=3):
    return st.lists(st.sampled_from(values), min_size=1, max_size=max_size, unique=True).map(tuple)


@st.composite
def spaces(draw, *, aliases=True):
    num_layers = draw(choices([1, 2, 3, 4]))
    num_narrow_layers = draw(st.just((0,)) | choices(range(max(num_layers))))
    if min(num_narrow_layers) >= min(num_layers):
        num_narrow_layers = (0, *num_narrow_layers)
    return SearchSpace(
        name=draw(st.sampled_from(["mine", "yours"])),
        num_layers=num_layers,
        hidden_size=draw(choices([8, 16, 24])),
        intermediate_size=draw(choices([8, 16, 24, 32])),
        num_heads=draw(st.just(()) | choices([1, 2, 3], 2)),
        head_size=draw(choices([2, 4, 8], 2)),
        embedding_size=draw(choices([AS_HIDDEN, 4, 8, 16] if aliases else [AS_HIDDEN, 4, 12])),
        num_narrow_layers=num_narrow_layers,
        narrow_form=draw(choices(NARROW_FORMS)) if max(num_narrow_layers) > 1 else NARROW_FORMS[:1],
    )


@st.composite
def spaces_and_members(draw, *, count=1, **options):
    space = draw(spaces(**options))
    return space, *(space.at(draw(st.integers(0, space.size - 1))) for _ in range(count))


texts = st.builds(
    TextSpec, vocab_size=st.integers(2, 40), max_positions=st.integers(8, 20), type_vocab_size=st.integers(1, 3)
)


def product_of(space):
    """The space by brute force: every combination of choices, duplicates gone."""
    found = set()
    for layers, narrow, form, hidden, intermediate, heads, head_size, embedding in itertools.product(
        space.num_layers,
        space.num_narrow_layers,
        space.narrow_form,
        space.hidden_size,
        space.intermediate_size,
        space.num_heads or (None,),
        space.head_size,
        space.embedding_size,
    ):
        num_narrow = max(count for count in space.num_narrow_layers if count <= min(narrow, layers - 1))
        found.add(
            Architecture.bert(
                layers,
                hidden,
                intermediate,
                hidden // head_size if heads is None else heads,
                head_size=head_size,
                embedding_size=embedding or hidden,
                num_narrow_layers=num_narrow,
                narrow_form=form if num_narrow > 1 else NARROW_FORMS[0],
            )
        )
    return found


def spoilt(draw, data):
    """A copy of JSON-ready data with one place replaced by junk, removed, or joined by a key that is not known."""
    if isinstance(data, dict) and data and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(data)))
        action = draw(st.sampled_from(["descend", "descend", "remove", "add"]))
        rest = {name: value for name, value in data.items() if name != key}
        if action == "remove":
            return rest
        return data | {draw(st.text(max_size=9)): 1} if action == "add" else rest | {key: spoilt(draw, data[key])}
    if isinstance(data, list) and data and draw(st.integers(0, 3)):
        place = draw(st.integers(0, len(data) - 1))
        return [*data[:place], spoilt(draw, data[place]), *data[place + 1 :]]
    return draw(JUNK)


def raises_only_invalid_input(function, argument):
    """Whether the argument was refused; any other error than InvalidInputError goes through and fails the test."""
    try:
        function(argument)
    except InvalidInputError as error:
        if not 0 < len(str(error)) < 1_000:
            pytest.fail(f"an error text of {len(str(error))} characters is no sentence")
        return True
    return False
