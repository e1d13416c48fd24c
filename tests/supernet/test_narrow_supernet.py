"""Narrow layers in the supernet: the same weights as full ones, keys and values from the last full layer's output."""

import random

import pytest
import torch
from supernet_cases import SPACES, random_supernet

from search_spaces.architecture import NARROW_FORMS, Architecture
from search_spaces.errors import InvalidInputError
from search_spaces.space import SearchSpace
from supernet.encoder import key_mask
from supernet.extract import extract
from supernet.losses import Kept, OutputMaps, hidden_loss, unexplained
from supernet.narrow import take

SPACE = SearchSpace("narrow", (2, 3, 4), (16, 32), (32, 64), head_size=(8,), num_narrow_layers=(0, 1, 2))
POSITIONS = torch.tensor([[0, 9, 4], [6, 2, 2], [1, 0, 2]])


def narrow_architectures(space, count=4):
    """The smallest and the largest, each as narrow as can be, and random narrow ones."""
    narrowed, rng = space.with_narrowing(), random.Random(5)
    most = narrowed.num_narrow_layers[0]
    drawn = (narrowed.sample(rng) for _ in range(100))
    corners = [
        narrowed.values(corner) | {"num_narrow_layers": most, "narrow_form": form}
        for corner in (space.smallest(), space.largest())
        for form in narrowed.narrow_form
    ]
    found = dict.fromkeys([*map(narrowed.build, corners), *drawn])
    return [architecture for architecture in found if architecture.narrow_from is not None][: count + 3]


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("chosen", ["default", "index", "mask"])
def test_an_extracted_narrow_encoder_equals_its_subnet(name, chosen, batch):
    supernet = random_supernet(SPACES[name])
    ids, mask = batch
    marked = torch.zeros_like(mask, dtype=torch.bool).scatter(1, POSITIONS, value=True)
    positions = {"default": None, "index": POSITIONS, "mask": marked}[chosen]
    for architecture in narrow_architectures(SPACES[name]):
        encoder = extract(supernet, architecture)
        with torch.no_grad():
            subnet = supernet(architecture, ids, mask, positions=positions).hidden[-1]
            for is_absorbed in (False, True):
                encoder.absorb(is_absorbed)
                torch.testing.assert_close(encoder(ids, mask, None, positions), subnet, atol=1e-5, rtol=1e-5)


def test_one_narrow_layer_over_all_positions_is_the_full_layer(batch):
    """Its keys and values are then those of the full layer: what narrowing is, checked without our narrow encoder."""
    ids, mask = batch
    supernet = random_supernet(SPACE)
    everywhere = torch.arange(ids.shape[1]).expand(len(ids), -1)
    with torch.no_grad():
        full = supernet(Architecture.bert(3, 32, 64, 4), ids, mask)
        narrow = supernet(Architecture.bert(3, 32, 64, 4, num_narrow_layers=1), ids, mask, positions=everywhere)
        deeper = supernet(Architecture.bert(3, 32, 64, 4, num_narrow_layers=2), ids, mask, positions=everywhere)
    for ours, theirs in zip(narrow.hidden, full.hidden, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(deeper.hidden[1], full.hidden[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(deeper.hidden[2], full.hidden[2], atol=1e-2), "its keys and values are of an older layer"


def context_first(num_layers, num_narrow_layers):
    return Architecture.bert(num_layers, 32, 64, 4, num_narrow_layers=num_narrow_layers, narrow_form="context-first")


def test_one_context_first_layer_is_the_full_layer_at_the_chosen_positions(batch):
    """Only the last feed-forward is narrow then, which looks at no other position."""
    supernet = random_supernet(SPACE)
    with torch.no_grad():
        full = supernet(Architecture.bert(3, 32, 64, 4), *batch)
        narrow = supernet(context_first(3, 1), *batch, positions=POSITIONS)
        deeper = supernet(context_first(3, 2), *batch, positions=POSITIONS)
    for ours, theirs in zip(narrow.hidden[:2], full.hidden[:2], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    expected = torch.stack([row[index] for row, index in zip(full.hidden[2], POSITIONS, strict=True)])
    torch.testing.assert_close(narrow.hidden[2], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(deeper.hidden[-1], expected, atol=1e-2), "its second attention reads no feed-forward's"


def test_context_first_is_attentions_and_then_feed_forwards(batch):
    """By the layers' own modules, in the order of the paper's sf s s : f f."""
    supernet, (ids, mask) = random_supernet(SPACE), batch
    with torch.no_grad():
        hidden = supernet.embeddings(ids, None, size=32, hidden_size=32)
        shape, bits = Architecture.bert(3, 32, 64, 4).uniform.attention, key_mask(mask)
        layers = [supernet.layer(index) for index in supernet.select_layers(3)]
        hidden = layers[0].feed_forward(layers[0].attention(hidden, bits, shape), 64)
        for layer in layers[1:]:
            hidden = layer.attention(hidden, bits, shape)
        hidden = hidden[:, :1]
        for layer in layers[1:]:
            hidden = layer.feed_forward(hidden, 64)
        states = supernet(context_first(3, 2), *batch)
    torch.testing.assert_close(states.hidden[-1], hidden, atol=1e-5, rtol=1e-5)
    assert [state.shape[1] for state in states.hidden] == [11, 1]
    assert (states.num_full, states.layers) == (1, supernet.select_layers(3))


@pytest.mark.parametrize("form", NARROW_FORMS)
def test_a_narrow_subnet_learns_each_layer_from_the_one_at_its_depth(form, batch):
    """Where the target is the subnet's own full form, nothing is left to learn of the layers that they share."""
    supernet, mask = random_supernet(SPACE), batch[1]
    maps = OutputMaps((32,), 32)
    narrow = Architecture.bert(4, 32, 64, 4, num_narrow_layers=1, narrow_form=form)
    kept = Kept(POSITIONS, torch.ones_like(POSITIONS))
    with torch.no_grad():
        target = supernet(Architecture.bert(4, 32, 64, 4), *batch)
        states = supernet(narrow, *batch, positions=POSITIONS)
        assert float(hidden_loss(states, target, mask, maps, kept)) == pytest.approx(0, abs=1e-6)
        wide = supernet(context_first(4, 2), *batch, positions=POSITIONS)
        last = float(unexplained(wide.hidden[-1], take(target.hidden[-1], POSITIONS), kept.is_kept))
        assert float(hidden_loss(wide, target, mask, maps, kept)) == pytest.approx(last, abs=1e-6)
        assert last > 0.01


def test_a_position_s_state_is_the_same_whichever_others_are_kept(batch):
    ids, mask = batch
    supernet, architecture = random_supernet(SPACE), Architecture.bert(4, 32, 64, 4, num_narrow_layers=2)
    with torch.no_grad():
        several = supernet(architecture, ids, mask, positions=POSITIONS).hidden[-1]
        for place in range(POSITIONS.shape[1]):
            alone = supernet(architecture, ids, mask, positions=POSITIONS[:, place : place + 1]).hidden[-1]
            torch.testing.assert_close(alone[:, 0], several[:, place], atol=1e-5, rtol=1e-5)


def test_the_states_say_which_of_them_are_of_which_positions(batch):
    ids, mask = batch
    supernet, architecture = random_supernet(SPACE), Architecture.bert(4, 32, 64, 4, num_narrow_layers=2)
    states = supernet(architecture, ids, mask, positions=POSITIONS, with_relations=True)
    assert [hidden.shape[1] for hidden in states.hidden] == [11, 11, 3, 3]
    assert states.num_full == 2
    assert torch.equal(states.positions, POSITIONS)
    assert [part.shape for part in states.relations] == [(3, 4, 3, 8), (3, 4, 11, 8), (3, 4, 11, 8)]
    assert torch.equal(supernet(architecture, ids, mask).positions, torch.zeros(3, 1, dtype=torch.long))
    full = supernet(Architecture.bert(4, 32, 64, 4), ids, mask, positions=POSITIONS)
    assert (full.num_full, full.positions) == (4, None)
    assert {hidden.shape[1] for hidden in full.hidden} == {11}


def test_depth_is_counted_over_full_and_narrow_layers_together(batch):
    supernet = random_supernet(SPACE)
    for num_layers in (2, 3, 4):
        full, narrow = (Architecture.bert(num_layers, 32, 64, 4, num_narrow_layers=count) for count in (0, 1))
        assert supernet(narrow, *batch).layers == supernet(full, *batch).layers == supernet.select_layers(num_layers)


def test_gradients_of_narrow_layers_reach_their_own_keys_and_the_last_full_layer(batch):
    supernet = random_supernet(SPACE)
    supernet(Architecture.bert(4, 32, 64, 4, num_narrow_layers=2), *batch).hidden[-1].sum().backward()
    for index in range(4):
        assert supernet.layer(index).attention.key.weight.grad.abs().sum() > 0


def test_the_weights_hold_narrow_forms_whether_trained_for_them_or_not(batch):
    supernet = random_supernet(SPACES["uniform"])
    narrow = Architecture.bert(3, 64, 128, 4, num_narrow_layers=2)
    assert narrow not in SPACES["uniform"]
    supernet.check_member(narrow)
    supernet.check_member(SPACES["uniform"].largest())
    supernet.check_member(Architecture.bert(3, 64, 128, 4, num_narrow_layers=2, narrow_form="context-first"))
    half = Architecture(64, narrow.blocks, 3)
    with pytest.raises(InvalidInputError, match="not in the supernet's space"):
        supernet.check_member(half)
    with pytest.raises(InvalidInputError, match="not in the supernet's space"):
        extract(supernet, Architecture.bert(4, 64, 128, 4, num_narrow_layers=2))


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (torch.tensor([[0], [1], [11]]), "positions must be from 0 to 10, got 11"),
        (torch.tensor([[0.0], [1.0], [2.0]]), "positions must be an int64 index"),
        (torch.ones(3, 4, dtype=torch.bool), "positions must be an int64 index"),
    ],
)
def test_positions_that_are_not_in_the_text_are_refused(batch, positions, message):
    supernet = random_supernet(SPACE)
    with pytest.raises(InvalidInputError, match=message):
        supernet(Architecture.bert(2, 32, 64, 4, num_narrow_layers=1), *batch, positions=positions)
