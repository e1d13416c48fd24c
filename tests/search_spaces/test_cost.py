import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_space_strategies import architectures, texts, uniform_architectures
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from search_spaces import (
    Architecture,
    Attention,
    Block,
    FeedForward,
    InvalidInputError,
    SepConv,
    TextSpec,
    encoder_parameters,
    num_macs,
    num_parameters,
)
from supernet.encoder import Encoder

buildable = architectures(convolutions=False, narrowing=False) | uniform_architectures
TABLES = ("embeddings.word.", "embeddings.position.", "embeddings.token_type.")


def macs_of(run):
    with FlopCounterMode(display=False) as counter:
        run()
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


@settings(max_examples=25)
@given(buildable, texts)
def test_parameters_are_those_of_the_encoder(architecture, text):
    with torch.device("meta"):
        named = dict(Encoder(architecture, text).named_parameters())
    assert num_parameters(architecture, text) == sum(p.numel() for p in named.values())
    tables = sum(p.numel() for name, p in named.items() if name.startswith(TABLES))
    assert encoder_parameters(architecture) == num_parameters(architecture, text) - tables


@settings(max_examples=25)
@given(buildable, texts, st.integers(1, 8), st.integers(1, 3))
def test_macs_are_those_of_the_encoders_matrix_products(architecture, text, seq_len, batch_size):
    encoder = Encoder(architecture, text)
    ids = torch.zeros(batch_size, seq_len, dtype=torch.long)

    def run():
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            encoder(ids, torch.ones_like(ids))

    assert num_macs(architecture, seq_len, batch_size) == macs_of(run)


@settings(max_examples=25)
@given(uniform_architectures, st.integers(1, 8), st.data())
def test_narrow_macs_are_those_of_narrow_matrix_products(full, seq_len, data):
    """SparseQueries: narrow layers read keys and values of all tokens, and update the first ``queries`` ones."""
    attention, feed_forward = full.bert_layer
    hidden_size, width, layers = full.hidden_size, attention.width, full.num_layers
    num_narrow = data.draw(st.integers(0, layers - 1))
    queries = data.draw(st.integers(1, seq_len))
    architecture = Architecture.bert(
        layers,
        hidden_size,
        feed_forward.intermediate_size,
        attention.num_heads,
        head_size=attention.head_size,
        num_narrow_layers=num_narrow,
    )

    def run():
        everything = torch.zeros(seq_len, hidden_size)
        for layer in range(layers):
            chosen = everything[: seq_len if layer < layers - num_narrow else queries]
            query = (chosen @ torch.zeros(hidden_size, width)).view(-1, attention.num_heads, attention.head_size)
            key, value = (
                (everything @ torch.zeros(hidden_size, width)).view(-1, attention.num_heads, attention.head_size)
                for _ in range(2)
            )
            scores = query.transpose(0, 1) @ key.permute(1, 2, 0)
            context = (scores @ value.transpose(0, 1)).transpose(0, 1).reshape(-1, width)
            updated = context @ torch.zeros(width, hidden_size)
            updated @ torch.zeros(hidden_size, feed_forward.intermediate_size)
            torch.zeros(len(chosen), feed_forward.intermediate_size) @ torch.zeros(
                feed_forward.intermediate_size, hidden_size
            )

    assert num_macs(architecture, seq_len, num_narrow_positions=queries) == macs_of(run)


def test_a_separable_convolution_costs_what_torchs_layers_do():
    size, kernel, seq_len = 12, 5, 9
    depthwise, pointwise = nn.Conv1d(size, size, kernel, groups=size, padding="same"), nn.Linear(size, size)
    layers = nn.ModuleList([depthwise, pointwise, nn.LayerNorm(size)])
    architecture = Architecture(size, (Block(size, (SepConv(kernel),)),))
    embedding_norm = 2 * size
    assert encoder_parameters(architecture) == embedding_norm + sum(p.numel() for p in layers.parameters())
    hidden = torch.zeros(1, seq_len, size)
    assert num_macs(architecture, seq_len) == macs_of(lambda: pointwise(depthwise(hidden.mT).mT))


def test_narrow_keys_and_values_are_read_at_the_width_of_the_last_full_output():
    """Block 2 narrows from its start: 3 positions pass the 8 -> 4 map, keys and values are projected from width 8."""
    full, narrow = Block(8, (FeedForward(16),)), Block(4, (Attention(2, 3),))
    architecture = Architecture(8, (full, narrow), narrow_from=1)
    tokens, queries, width = 10, 3, 6
    expected = 2 * tokens * 8 * 16 + queries * 8 * 4
    expected += 2 * queries * 4 * width + 2 * tokens * 8 * width + 2 * queries * tokens * width
    assert num_macs(architecture, tokens, num_narrow_positions=queries) == expected
    keys_and_values = 2 * (8 * width + width)
    others = (4 * width + width) + (width * 4 + 4) + 2 * 4
    feed_forward = 8 * 16 + 16 + 16 * 8 + 8 + 2 * 8
    assert encoder_parameters(architecture) == 2 * 8 + feed_forward + (8 * 4 + 4) + keys_and_values + others


@given(architectures(), st.integers(1, 64), st.integers(1, 64))
def test_narrowing_and_shorter_texts_never_cost_more(architecture, seq_len, other):
    full = Architecture(architecture.embedding_size, architecture.blocks)
    few, many = sorted((seq_len, other))
    assert num_macs(architecture, few) <= num_macs(architecture, many)
    if len({block.hidden_size for block in architecture.blocks}) == 1:
        assert num_macs(architecture, many, num_narrow_positions=few) <= num_macs(full, many)
        assert num_macs(architecture, many, num_narrow_positions=many) == num_macs(full, many)


@given(uniform_architectures, st.sampled_from(["num_layers", "hidden", "intermediate", "num_heads", "head_size"]))
def test_cost_grows_with_every_size(architecture, grown):
    attention, feed_forward = architecture.bert_layer
    sizes = {
        "num_layers": architecture.num_layers,
        "hidden": architecture.hidden_size,
        "intermediate": feed_forward.intermediate_size,
        "num_heads": attention.num_heads,
        "head_size": attention.head_size,
    }

    def make(num_layers, hidden, intermediate, num_heads, head_size):
        return Architecture.bert(num_layers, hidden, intermediate, num_heads, head_size=head_size)

    small, large = make(**sizes), make(**(sizes | {grown: sizes[grown] + 1}))
    assert num_parameters(small, TextSpec()) < num_parameters(large, TextSpec())
    assert encoder_parameters(small) < encoder_parameters(large)
    assert num_macs(small, 16) < num_macs(large, 16)
    assert num_macs(small, 16, 3) == 3 * num_macs(small, 16)


def test_bert_base_has_its_published_size():
    """Devlin et al., 2019: 110 M parameters; 109,482,240 with the pooler's 768 * 768 + 768."""
    assert num_parameters(Architecture.bert(12, 768, 3072, 12), TextSpec()) == 109_482_240 - (768 * 768 + 768)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"seq_len": 0}, "seq_len must be a whole number from 1 to 65536, got 0"),
        ({"seq_len": 8.0}, "seq_len must be a whole number from 1 to 65536, got 8.0"),
        ({"seq_len": 8, "batch_size": True}, "batch_size must be a whole number"),
        ({"seq_len": 8, "num_narrow_positions": 9}, "num_narrow_positions must be a whole number from 1 to 8, got 9"),
    ],
)
def test_counts_out_of_bounds_are_refused(counts, message):
    with pytest.raises(InvalidInputError, match=message):
        num_macs(Architecture.bert(1, 8, 8, 1), **counts)
