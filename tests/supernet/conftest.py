import pytest
import torch

from supernet.data import tokenise
from supernet.teacher import load_teacher, sort_by_importance


@pytest.fixture(scope="session")
def teacher(teacher_dir, corpus):
    loaded = load_teacher(str(teacher_dir))
    chunks, _ = tokenise([str(corpus)], loaded.tokenizer, seq_len=32)
    sort_by_importance(loaded, [(batch.input_ids, batch.attention_mask) for batch in chunks.batches(32)[:3]])
    return loaded


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 600, (3, 11), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    mask[2, 3:] = 0
    return ids, mask
