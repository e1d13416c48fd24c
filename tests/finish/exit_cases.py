"""Small models with exits whose every weight matters, and padded batches for them."""

import numpy as np
import torch

from nas.finish.exit_model import ExitModel
from search_spaces.architecture import Architecture, Attention, Block, FeedForward, SepConv, TextSpec
from supernet.encoder import Encoder
from supernet.task_spec import TaskSpec

TEXT = TextSpec(vocab_size=600, max_positions=64)
SPEC = TaskSpec("classification", ("bad", "so so", "good"), is_pair=False, max_tokens=64)

EXIT_SHAPES = {
    "bert": Architecture.bert(4, 48, 80, 4),
    "electra": Architecture.bert(3, 48, 80, 3, embedding_size=24),
    "widths": Architecture(
        24,
        (
            Block(32, (Attention(2, 16), FeedForward(40), FeedForward(24))),
            Block(20, (Attention(3, 10), FeedForward(30))),
            Block(28, (FeedForward(36), Attention(2, 8))),
        ),
    ),
    "convolutions": Architecture(
        24,
        (
            Block(32, (FeedForward(40), SepConv(3), Attention(2, 16), SepConv(5))),
            Block(48, ()),
            Block(40, (SepConv(5), FeedForward(40), Attention(4, 8), FeedForward(40))),
        ),
    ),
}


def exit_model(shape="bert", *, pooling="first", early=None, has_gates=True, seed=0, spec=SPEC) -> ExitModel:
    """A model whose exits disagree with each other and whose gates are everything from open to closed."""
    torch.manual_seed(seed)
    encoder = Encoder(EXIT_SHAPES[shape] if isinstance(shape, str) else shape, TEXT)
    model = ExitModel(encoder, spec, pooling=pooling, early=early or pooling, has_gates=has_gates, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("heads") and ".out." in name:
                parameter.normal_(0, 0.6, generator=generator)
            elif name.startswith("gates"):
                parameter.normal_(0, 0.7, generator=generator)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.08)
    return model.eval()


def padded_batch(batch_size: int, longest: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Texts of many lengths in one batch."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(min(2, longest), longest + 1, batch_size)
    lengths[0] = longest
    mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
    return {
        "input_ids": rng.integers(5, TEXT.vocab_size, (batch_size, longest)) * mask,
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, (batch_size, longest)) * mask,
    }
