import math

import pytest
import torch

from supernet.losses import (
    Kept,
    OutputMaps,
    attention_loss,
    hidden_loss,
    masked_token_loss,
    num_relation_heads,
    output_loss,
    pool,
    pooled_loss,
    relation_loss,
    unexplained,
)
from supernet.model import States

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def _states(seed, size=8, num_layers=2):
    generator = torch.Generator().manual_seed(seed)
    hidden = [torch.randn(2, 4, size, generator=generator) for _ in range(num_layers)]
    relations = tuple(torch.randn(2, 2, 4, size // 2, generator=generator) for _ in range(3))
    return States(hidden, tuple(range(num_layers)), relations)


def test_unexplained_is_zero_for_the_target_and_one_for_its_mean():
    target = _states(0).hidden[0]
    mean = target[MASK.bool()].mean(0).expand_as(target)
    assert unexplained(target, target, MASK).item() == 0
    assert unexplained(mean, target, MASK).item() == pytest.approx(1)


def test_unexplained_does_not_see_padding():
    target = _states(0).hidden[0]
    other = target.clone()
    other[1, 2:] = 99
    assert unexplained(other, target, MASK).item() == 0


def test_every_distillation_loss_is_zero_only_for_the_target_itself():
    maps = OutputMaps((4, 8), 8)
    same, other = _states(0), _states(1)
    for loss in (
        lambda a, b: hidden_loss(a, b, MASK, maps),
        lambda a, b: pooled_loss(pool(a.hidden[-1], MASK), pool(b.hidden[-1], MASK)),
        lambda a, b: relation_loss(a, b, MASK),
        lambda a, b: attention_loss(a, b, MASK),
        lambda a, b: output_loss(a, b, MASK, maps),
    ):
        assert loss(same, same).item() == pytest.approx(0, abs=1e-6)
        assert loss(other, same).item() > 0.01


def test_relation_loss_equals_a_plain_loop():
    ours, theirs = _states(1), _states(0)
    total = 0.0
    heads = num_relation_heads(8, 8)
    for a, b in zip(ours.relations, theirs.relations, strict=True):
        for text, length in ((0, 4), (1, 2)):
            flat_a = a[text].transpose(0, 1).reshape(4, 8)[:length]
            flat_b = b[text].transpose(0, 1).reshape(4, 8)[:length]
            for head in range(heads):
                part = slice(head * (8 // heads), (head + 1) * (8 // heads))
                pa = torch.softmax(flat_a[:, part] @ flat_a[:, part].T / math.sqrt(8 // heads), -1)
                pb = torch.softmax(flat_b[:, part] @ flat_b[:, part].T / math.sqrt(8 // heads), -1)
                total += (pb * (pb.log() - pa.log())).sum().item()
    assert relation_loss(ours, theirs, MASK).item() == pytest.approx(total / (3 * heads * 6), rel=1e-4)


@pytest.mark.parametrize(("ours", "theirs", "expected"), [(384, 384, 12), (256, 384, 8), (5, 384, 1), (180, 768, 12)])
def test_relation_heads_divide_both_widths(ours, theirs, expected):
    assert num_relation_heads(ours, theirs) == expected


def test_pool_is_the_mean_over_real_tokens():
    hidden = _states(0).hidden[0]
    expected = torch.stack([hidden[0].mean(0), hidden[1, :2].mean(0)])
    torch.testing.assert_close(pool(hidden, MASK), expected)


def test_a_batch_without_masked_tokens_costs_nothing():
    assert masked_token_loss(torch.randn(0, 5), torch.zeros(0, dtype=torch.long)).item() == 0


def test_attention_loss_is_the_mean_square_over_real_pairs_each_scaled_by_its_own_width():
    ours, theirs = _states(1), _states(0, size=16)
    squares = []
    for text, length in ((0, 4), (1, 2)):
        for head in range(2):
            a = ours.relations[0][text, head, :length] @ ours.relations[1][text, head, :length].T / 4**0.5
            b = theirs.relations[0][text, head, :length] @ theirs.relations[1][text, head, :length].T / 8**0.5
            squares += (a - b).square().flatten().tolist()
    assert attention_loss(ours, theirs, MASK).item() == pytest.approx(sum(squares) / len(squares), rel=1e-5)


def test_output_loss_is_the_mean_square_over_real_tokens():
    ours, theirs = _states(1), _states(0)
    expected = (ours.hidden[-1] - theirs.hidden[-1]).square()[MASK.bool()].mean()
    assert output_loss(ours, theirs, MASK, OutputMaps((8,), 8)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_narrow_states_are_compared_at_the_kept_positions_only():
    full, target, maps = _states(1), _states(0), OutputMaps((8,), 8)
    index, is_kept = torch.tensor([[0, 2], [0, 3]]), torch.tensor([[True, True], [True, False]])
    taken = torch.stack([row[places] for row, places in zip(full.hidden[1], index, strict=True)])
    narrow = States([full.hidden[0], taken], (0, 1), num_full=1, positions=index)
    kept = Kept(index, is_kept)
    only = torch.zeros_like(MASK)
    only[0, 0] = only[0, 2] = only[1, 0] = 1
    expected = unexplained(full.hidden[0], target.hidden[0], MASK) + unexplained(full.hidden[1], target.hidden[1], only)
    assert hidden_loss(narrow, target, MASK, maps, kept).item() == pytest.approx(expected.item(), rel=1e-5)
    assert output_loss(narrow, target, MASK, maps, kept).item() == pytest.approx(
        output_loss(full, target, only, maps).item(), rel=1e-5
    )


def test_a_shallow_subnet_learns_from_the_same_relative_depth():
    target = _states(0, num_layers=4)
    shallow = States([target.hidden[0], target.hidden[3]], (0, 1))
    assert hidden_loss(shallow, target, MASK, OutputMaps((8,), 8)).item() == pytest.approx(0, abs=1e-6)


def test_many_widths_share_one_map_whose_columns_are_sliced():
    sizes = tuple(range(8, 44, 2))
    maps = OutputMaps(sizes, 48)
    (shared,) = maps.linears()
    torch.nn.init.normal_(shared.weight)
    hidden = torch.randn(3, 10)
    torch.testing.assert_close(maps(hidden), hidden @ shared.weight[:, :10].T + shared.bias)
    few = OutputMaps((10, 12), 48)
    few.inherit(maps)
    torch.testing.assert_close(few(hidden), maps(hidden))
