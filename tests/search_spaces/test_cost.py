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
from search_spaces.cost import step_macs
from search_spaces.steps import steps
from supernet.encoder import Encoder

anything = architectures() | uniform_architectures
TABLES = ("embeddings.word.", "embeddings.position.", "embeddings.token_type.")


def macs_of(run):
    with FlopCounterMode(display=False) as counter:
        run()
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


@settings(max_examples=40)
@given(anything, texts)
def test_parameters_are_those_of_the_encoder(architecture, text):
    with torch.device("meta"):
        named = dict(Encoder(architecture, text).named_parameters())
    assert num_parameters(architecture, text) == sum(p.numel() for p in named.values())
    tables = sum(p.numel() for name, p in named.items() if name.startswith(TABLES))
    assert encoder_parameters(architecture) == num_parameters(architecture, text) - tables


@settings(max_examples=60, deadline=None)
@given(anything, texts, st.integers(1, 8), st.integers(1, 3), st.sampled_from([None, True, False]), st.data())
def test_macs_are_those_of_the_encoders_products_and_convolutions(
    architecture, text, seq_len, batch_size, is_absorbed, data
):
    """Narrow attention in either form, or in the one that the encoder chooses."""
    encoder = Encoder(architecture, text)
    encoder.absorb(is_absorbed)
    num_positions = data.draw(st.integers(1, seq_len))
    ids = torch.zeros(batch_size, seq_len, dtype=torch.long)

    def run():
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            encoder(ids, torch.ones_like(ids), positions=torch.zeros(batch_size, num_positions, dtype=torch.long))

    counted = num_macs(architecture, seq_len, batch_size, num_narrow_positions=num_positions, is_absorbed=is_absorbed)
    assert counted == macs_of(run)


@given(architectures(), st.integers(1, 600), st.data())
def test_the_form_that_is_chosen_is_the_cheaper_one_of_every_layer(architecture, seq_len, data):
    num_positions = data.draw(st.integers(1, seq_len))
    for step in steps(architecture):
        chosen, plain, absorbed = (
            step_macs(step, seq_len, num_positions, is_absorbed=form) for form in (None, False, True)
        )
        assert chosen == min(plain, absorbed)


def test_narrow_layers_of_bert_base_cost_what_the_paper_says():
    """A FLOP count over the published shape, T 512: the full model over SparseQueries k = 1, 2, 3, 4 (Li et al., 2023).

    A full layer takes 4TDD + 2TDF + 2TTD; a narrow one with one query 2TDD + 2DD + 2DF + 2TD.
    """
    full = num_macs(Architecture.bert(12, 768, 3072, 12), 512)
    ratios = {}
    for is_absorbed in (False, None):
        narrow = [Architecture.bert(12, 768, 3072, 12, num_narrow_layers=12 - k) for k in (1, 2, 3, 4)]
        ratios[is_absorbed] = [round(full / num_macs(a, 512, is_absorbed=is_absorbed), 2) for a in narrow]
    assert ratios[False] == [4.5, 3.41, 2.75, 2.3]
    assert all(absorbed > plain for absorbed, plain in zip(ratios[None], ratios[False], strict=True))


def test_a_separable_convolution_costs_what_torchs_layers_do():
    """Two rounds of depthwise, pointwise and norm: 34,560 parameters at a width of 128 with a kernel of 3."""
    size, kernel, seq_len = 128, 3, 9
    rounds = nn.ModuleList()
    for _ in range(2):
        depthwise, pointwise = nn.Conv1d(size, size, kernel, groups=size, padding="same"), nn.Linear(size, size)
        rounds.append(nn.Sequential(depthwise, pointwise, nn.LayerNorm(size)))
    architecture = Architecture(size, (Block(size, (SepConv(kernel),)),))
    embedding_norm = 2 * size
    expected = sum(parameter.numel() for parameter in rounds.parameters())
    assert encoder_parameters(architecture) == embedding_norm + expected == embedding_norm + 34_560
    hidden = torch.zeros(1, seq_len, size)
    assert num_macs(architecture, seq_len) == macs_of(lambda: [one[1](one[0](hidden.mT).mT) for one in rounds])


def test_narrow_keys_and_values_are_read_at_the_width_of_the_last_full_output():
    """Block 2 narrows from its start: 3 positions pass the 8 -> 4 map, keys and values are projected from width 8."""
    full, narrow = Block(8, (FeedForward(16),)), Block(4, (Attention(2, 3),))
    architecture = Architecture(8, (full, narrow), narrow_from=1)
    tokens, queries, width = 10, 3, 6
    expected = 2 * tokens * 8 * 16 + queries * 8 * 4
    expected += 2 * queries * 4 * width + 2 * tokens * 8 * width + 2 * queries * tokens * width
    assert num_macs(architecture, tokens, num_narrow_positions=queries, is_absorbed=False) == expected
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
        plain = num_macs(architecture, many, num_narrow_positions=few, is_absorbed=False)
        assert num_macs(architecture, many, num_narrow_positions=few) <= plain <= num_macs(full, many)
        assert num_macs(architecture, many, num_narrow_positions=many, is_absorbed=False) == num_macs(full, many)


@given(uniform_architectures, st.sampled_from(["num_layers", "hidden", "intermediate", "num_heads", "head_size"]))
def test_cost_grows_with_every_size(architecture, grown):
    attention, feed_forward = architecture.uniform.attention, architecture.uniform.feed_forward
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
