"""Spaces of every kind the supernet holds, and supernets with random weights."""

import random

import torch

from search_spaces.architecture import TextSpec
from search_spaces.space import SearchSpace
from supernet.model import Supernet, SupernetConfig

SPACES = {
    "uniform": SearchSpace("uniform", (1, 2, 3), (16, 32, 64), (32, 64, 128), head_size=(16,)),
    "factorised": SearchSpace("factorised", (1, 3), (32, 64), (64, 128), head_size=(16,), embedding_size=(16, 0)),
    "free heads": SearchSpace("free heads", (1, 2), (24, 40, 64), (32, 128), num_heads=(1, 2, 4), head_size=(16,)),
    "head widths": SearchSpace("head widths", (2, 3), (24, 64), (128,), num_heads=(4,), head_size=(5, 16)),
    "many widths": SearchSpace(
        "many widths", (1, 3), tuple(range(16, 65, 2)), (32, 128), num_heads=(2,), head_size=(8,)
    ),
}
TEXT = TextSpec(vocab_size=600, max_positions=64)


def random_supernet(space, seed=0):
    """A supernet whose every parameter is random, norms, biases and projections included."""
    torch.manual_seed(seed)
    table_size = max(size or max(space.hidden_size) for size in space.embedding_size)
    supernet = Supernet(SupernetConfig(space, TEXT, table_size))
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.normal_(std=0.3)
    return supernet.eval()


def some_architectures(space, count=4):
    rng = random.Random(5)
    return [space.smallest(), space.largest(), *(space.sample(rng) for _ in range(count))]
