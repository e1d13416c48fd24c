import math

import pytest
import torch

from supernet.losses import (
    OutputMaps,
    hidden_loss,
    masked_token_loss,
    num_relation_heads,
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
        lambda a, b: pooled_loss(a, b, MASK, maps),
        lambda a, b: relation_loss(a, b, MASK),
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
