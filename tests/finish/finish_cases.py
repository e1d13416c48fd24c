"""Small models for small tasks."""

import torch
from task_cases import TEXT, tokenizer_of

from nas.finish.heads import new_head
from nas.finish.model import TaskModel
from search_spaces.architecture import Architecture
from supernet.encoder import Encoder

SMALL = Architecture.bert(2, 32, 64, 2)


def task_model(architecture, spec, tokenizer_dir, *, pooling="first", seed=0):
    """A task model whose every weight matters."""
    torch.manual_seed(seed)
    encoder = Encoder(architecture, TEXT).eval()
    head = new_head(spec, encoder, seed=seed, pooling=pooling)
    model = TaskModel(encoder, head, tokenizer_of(tokenizer_dir), name="random").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
