"""Small encoders of every kind of shape, and batches for them."""

import torch

from search_spaces.architecture import Architecture, Attention, Block, FeedForward, TextSpec
from supernet.encoder import Encoder

TEXT = TextSpec(vocab_size=600, max_positions=64)

ARCHITECTURES = {
    "bert": Architecture.bert(3, 48, 80, 4),
    "electra": Architecture.bert(2, 48, 80, 3, embedding_size=24),
    "wide heads": Architecture.bert(2, 44, 72, 3, head_size=20),
    "blocks": Architecture(
        24,
        (
            Block(32, (Attention(2, 16), FeedForward(40), FeedForward(24))),
            Block(20, (Attention(3, 10),)),
            Block(28, (FeedForward(36),)),
        ),
    ),
}


def build_encoder(architecture: Architecture, text: TextSpec = TEXT, seed: int = 0) -> Encoder:
    """An encoder whose every weight matters: biases and norms differ from their defaults too."""
    torch.manual_seed(seed)
    encoder = Encoder(architecture, text).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder


def padded_batch(text: TextSpec, batch: int, tokens: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random ids and types, the rows of different lengths, the first row full."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, tokens + 1, (batch, 1), generator=generator)
    lengths[0] = tokens
    return {
        "input_ids": torch.randint(0, text.vocab_size, (batch, tokens), generator=generator),
        "attention_mask": (torch.arange(tokens) < lengths).long(),
        "token_type_ids": torch.randint(0, text.type_vocab_size, (batch, tokens), generator=generator),
    }
