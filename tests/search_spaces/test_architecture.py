import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_space_strategies import JUNK, architectures, raises_only_invalid_input, spoilt, uniform_architectures

import search_spaces
from search_spaces import Architecture, Attention, Block, FeedForward, InvalidInputError, SepConv, TextSpec
from search_spaces.architecture import UniformLayers
from search_spaces.errors import NasError, shown, unknown_name


@given(architectures())
def test_json_round_trip_restores_an_equal_value(architecture):
    restored = Architecture.from_json(architecture.to_json())
    assert restored == architecture
    assert hash(restored) == hash(architecture)
    assert restored.key() == architecture.key()
    assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture


@given(uniform_architectures | architectures(), uniform_architectures | architectures())
def test_keys_are_equal_exactly_where_architectures_are(first, second):
    assert (first.key() == second.key()) == (first == second)


@given(st.data(), architectures())
def test_spoilt_data_raises_nothing_but_invalid_input(data, architecture):
    raises_only_invalid_input(Architecture.from_dict, spoilt(data.draw, architecture.to_dict()))


@given(JUNK)
def test_junk_is_refused(junk):
    assert raises_only_invalid_input(Architecture.from_dict, junk)


@given(st.text() | st.just("[" * 100_000) | st.just('{"a":' * 100_000) | st.just("9" * 5_000))
def test_text_that_is_no_architecture_is_refused(text):
    assert raises_only_invalid_input(Architecture.from_json, text)


def test_bert_is_a_chain_of_equal_layers():
    architecture = Architecture.bert(2, 64, 256, 4)
    layer = (Attention(4, 16), FeedForward(256))
    assert architecture == Architecture(64, (Block(64, layer * 2),))
    assert architecture.uniform == UniformLayers(2, *layer)
    assert architecture.num_layers == 2
    assert architecture.key() == "L2-D64-F256-H4x16"
    assert Architecture.bert(2, 64, 256, 4, embedding_size=32).key() == "L2-D64-F256-H4x16-E32"


def test_bert_with_narrow_layers_narrows_the_last_ones():
    architecture = Architecture.bert(4, 64, 256, 4, num_narrow_layers=3)
    assert architecture.narrow_from == 2
    assert architecture.uniform == UniformLayers(4, Attention(4, 16), FeedForward(256), 3)
    assert architecture.key() == "L4-D64-F256-H4x16-N2"


def test_context_first_has_the_attentions_of_its_last_layers_before_their_feed_forwards():
    """NarrowBERT's sfsf{10, s}:{10, f}."""
    s, f = Attention(12, 64), FeedForward(3072)
    architecture = Architecture.bert(12, 768, 3072, 12, num_narrow_layers=10, narrow_form="context-first")
    assert architecture == Architecture(768, (Block(768, (s, f, s, f) + (s,) * 10 + (f,) * 10),), 14)
    layers = architecture.uniform
    assert layers == UniformLayers(12, s, f, 10, "context-first")
    assert architecture.num_layers == 12
    assert [layers.places(number) for number in (0, 1, 2, 11)] == [(0, 1), (2, 3), (4, 14), (13, 23)]
    assert architecture.key() == "L12-D768-F3072-H12x64-C14"
    without = Architecture.bert(2, 64, 256, 4, narrow_form="context-first")
    assert without == Architecture.bert(2, 64, 256, 4)
    assert without.uniform == UniformLayers(2, Attention(4, 16), FeedForward(256))


def test_chains_that_are_no_bert_have_no_equal_layers():
    attention, feed_forward = Attention(4, 16), FeedForward(256)
    chains = [
        (attention,),
        (feed_forward, attention),
        (attention, feed_forward, attention, FeedForward(128)),
        (SepConv(3), feed_forward),
        (attention, feed_forward, attention, attention, feed_forward, feed_forward),
    ]
    assert all(Architecture(64, (Block(64, chain),)).uniform is None for chain in chains)
    assert Architecture(64, (Block(64, (attention, feed_forward)),) * 2).uniform is None
    turns, rest = (attention, feed_forward), (attention, attention, feed_forward, feed_forward)
    assert Architecture(64, (Block(64, turns * 3),), 3).uniform is None, "narrow within a layer that is not the last"
    assert Architecture(64, (Block(64, turns + rest),), 5).uniform is None, "narrow within the feed-forwards"
    assert Architecture(64, (Block(64, rest),), 2).uniform is None, "without a full layer"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Attention(0, 8), "num_heads must be a whole number from 1 to 65536, got 0"),
        (lambda: Attention(True, 8), "num_heads must be a whole number"),
        (lambda: Attention(1.0, 8), "num_heads must be a whole number"),
        (lambda: Attention(60_000, 60_000), r"num_heads \* head_size must be a whole number from 1 to 65536"),
        (lambda: FeedForward(10**9), "intermediate_size must be .* to 65536, got 1000000000"),
        (lambda: FeedForward(1 << 40_000), "got a int too large to print"),
        (lambda: SepConv(4), "kernel_size must be odd, got 4; nearest: 5"),
        (lambda: Block(8, [FeedForward(8)]), "sublayers must be a tuple"),
        (lambda: Architecture(8, ()), "blocks must be a non-empty tuple"),
        (lambda: Architecture(8, (Block(8, ()),)), "holds 1 to 512 sub-layers, got 0"),
        (lambda: Architecture(8, (Block(8, (FeedForward(8),) * 513),)), "holds 1 to 512 sub-layers, got 513"),
        (lambda: Architecture(8, (Block(8, (FeedForward(8),)),) * 513), "at most 512 blocks, got 513"),
        (lambda: Architecture(8, (Block(8, (FeedForward(8),)),), 0), "narrow_from must be None or left out"),
        (lambda: Architecture(8, (Block(8, (FeedForward(8),) * 3),), 3), "an index from 1 to 2, got 3"),
        (lambda: Architecture(8, (Block(8, (FeedForward(8), SepConv(3))),), 1), "cannot be a convolution"),
        (lambda: Architecture.bert(2, 64, 256, 5), "must divide into num_heads .* got 64 and 5"),
        (lambda: Architecture.bert(2, 64, 256, 4, num_narrow_layers=2), "num_narrow_layers must be from 0 to 1"),
        (lambda: Architecture.bert(2, 64, 256, 4, num_narrow_layers="1"), "num_narrow_layers must be from 0 to 1"),
        (
            lambda: Architecture.bert(2, 64, 256, 4, narrow_form="wide"),
            "narrow_form must be one of sparse-q",
        ),
        (lambda: Architecture.bert(257, 64, 256, 4), "num_layers must be a whole number from 1 to 256"),
        (lambda: Architecture.from_dict({"blocks": []}), "architecture must hold exactly"),
        (lambda: TextSpec(vocab_size=0), "vocab_size must be a whole number from 1 to 4000000"),
        (lambda: TextSpec(pad_token_id=30_522), "pad_token_id must be from 0 to 30521, got 30522"),
        (lambda: TextSpec(pad_token_id="0"), "pad_token_id must be from 0 to 30521"),
        (lambda: TextSpec(hidden_act="swish"), "hidden_act must be gelu or relu, got 'swish'"),
        (lambda: TextSpec(layer_norm_eps=float("nan")), "layer_norm_eps must be between 0 and 1, got nan"),
        (lambda: TextSpec(layer_norm_eps="1"), "layer_norm_eps must be between 0 and 1, got '1'"),
    ],
)
def test_values_out_of_bounds_name_the_law_and_the_fact(make, message):
    with pytest.raises(InvalidInputError, match=message):
        make()


def test_another_schema_version_is_refused():
    data = Architecture.bert(1, 8, 8, 1).to_dict() | {"schema_version": 2}
    with pytest.raises(InvalidInputError, match="schema must be 1, got 2"):
        Architecture.from_dict(data)


def test_unknown_names_list_the_known_and_suggest_the_nearest():
    error = unknown_name("preset", "stok", ["stock", "other"])
    assert str(error) == "unknown preset 'stok'. Did you mean 'stock'? Known: other, stock."
    assert "Did you mean" not in str(unknown_name("preset", "zzzz", ["stock"]))
    assert isinstance(error, NasError)
    assert isinstance(error, ValueError)
    assert error.exit_code == 2


@given(JUNK)
def test_shown_values_are_short(junk):
    assert 0 < len(shown(junk)) <= 80


def test_facade_exports_exist_and_import_standard_library_only():
    assert all(hasattr(search_spaces, name) for name in search_spaces.__all__)
    script = (
        "import sys; before = set(sys.modules); import search_spaces; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'search_spaces'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
