"""A text encoder whose layers need not be alike, for Hugging Face Transformers.

This file travels with the weights and needs only torch and transformers::

    AutoModel.from_pretrained(folder, trust_remote_code=True)

An encoder is a chain of post-norm residual sub-layers (BERT: Devlin et al., 2019, arXiv 1810.04805), in blocks of one
hidden size each. Heads may be of any width, and a linear map stands where two widths meet.

Shapes: B batch, T tokens, D hidden, N heads, K head width, E embedding width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


class ChainEncoderConfig(PretrainedConfig):  # type: ignore[misc]
    """The shape of a chain encoder.

    Args:
        blocks: One entry a block: ``{"hidden_size": D, "sublayers": [...]}``; a sub-layer is
            ``{"kind": "attention", "num_heads": N, "head_size": K}`` or
            ``{"kind": "feed_forward", "intermediate_size": F}``.
        embedding_size: Width of the word, position and type tables.
        vocab_size: Rows of the word table.
        max_position_embeddings: Rows of the position table.
        type_vocab_size: Rows of the token type table.
        pad_token_id: Id that fills a batch up.
        hidden_act: ``gelu`` or ``relu``.
        layer_norm_eps: Epsilon of every layer norm.
        **kwargs: What every Hugging Face config knows.
    """

    model_type = "chain_encoder"

    def __init__(
        self,
        blocks: list[dict[str, Any]] | None = None,
        embedding_size: int = 128,
        vocab_size: int = 30_522,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        pad_token_id: int = 0,
        hidden_act: str = "gelu",
        layer_norm_eps: float = 1e-12,
        **kwargs: Any,
    ) -> None:
        self.blocks = blocks or []
        self.embedding_size = embedding_size
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.hidden_size = self.blocks[-1]["hidden_size"] if self.blocks else embedding_size
        self.num_hidden_layers = sum(len(block["sublayers"]) for block in self.blocks)
        derived = ("hidden_size", "num_hidden_layers")
        super().__init__(pad_token_id=pad_token_id, **{k: v for k, v in kwargs.items() if k not in derived})


class Embeddings(nn.Module):
    """Word, position and type tables, their layer norm, and the map to the first block's width if it differs."""

    def __init__(self, config: ChainEncoderConfig, hidden_size: int) -> None:
        super().__init__()
        size = config.embedding_size
        self.word = nn.Embedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        self.position = nn.Embedding(config.max_position_embeddings, size)
        self.token_type = nn.Embedding(config.type_vocab_size, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.project = nn.Linear(size, hidden_size) if size != hidden_size else None

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Maps ids (B, T) to the first hidden state (B, T, D)."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        summed = self.word(input_ids) + self.position(positions) + self.token_type(token_type_ids)  # (B, T, E)
        normed: Tensor = self.norm(summed)
        return normed if self.project is None else self.project(normed)


class AttentionSublayer(nn.Module):
    """Multi-head self-attention, N * K wide, with its residual and layer norm."""

    def __init__(self, num_heads: int, head_size: int, hidden_size: int, layer_norm_eps: float) -> None:
        super().__init__()
        self.num_heads, self.head_size = num_heads, head_size
        self.query = nn.Linear(hidden_size, num_heads * head_size)
        self.key = nn.Linear(hidden_size, num_heads * head_size)
        self.value = nn.Linear(hidden_size, num_heads * head_size)
        self.output = nn.Linear(num_heads * head_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Maps hidden (B, T, D) and a boolean mask (B, 1, 1, T) to (B, T, D)."""
        split = (*hidden.shape[:2], self.num_heads, self.head_size)
        query, key, value = (
            linear(hidden).view(split).transpose(1, 2)  # (B, N, T, K)
            for linear in (self.query, self.key, self.value)
        )
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)  # (B, T, N, K)
        normed: Tensor = self.norm(hidden + self.output(context.flatten(2)))
        return normed


class FeedForwardSublayer(nn.Module):
    """Two linear layers with the activation between them, their residual and layer norm."""

    def __init__(self, intermediate_size: int, hidden_size: int, config: ChainEncoderConfig) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.down = nn.Linear(intermediate_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.activation: Callable[[Tensor], Tensor] = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Maps hidden (B, T, D) to (B, T, D); the mask is not needed."""
        normed: Tensor = self.norm(hidden + self.down(self.activation(self.up(hidden))))
        return normed


class Block(nn.Module):
    """A run of sub-layers of one width, behind a linear map where the width changes."""

    def __init__(self, incoming_size: int, block: dict[str, Any], config: ChainEncoderConfig) -> None:
        super().__init__()
        size = block["hidden_size"]
        self.map = nn.Linear(incoming_size, size) if incoming_size != size else None
        self.sublayers = nn.ModuleList()
        for shape in block["sublayers"]:
            if shape["kind"] == "attention":
                heads = (shape["num_heads"], shape["head_size"])
                self.sublayers.append(AttentionSublayer(*heads, size, config.layer_norm_eps))
            elif shape["kind"] == "feed_forward":
                self.sublayers.append(FeedForwardSublayer(shape["intermediate_size"], size, config))
            else:
                raise ValueError(f"a sub-layer's kind must be attention or feed_forward, got {shape['kind']!r}")

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Maps hidden (B, T, D_in) to (B, T, D)."""
        if self.map is not None:
            hidden = self.map(hidden)
        for sublayer in self.sublayers:
            hidden = sublayer(hidden, mask)
        return hidden


class ChainEncoderModel(PreTrainedModel):  # type: ignore[misc]
    """The encoder; its output's ``last_hidden_state`` has the shape (B, T, D)."""

    config_class = ChainEncoderConfig

    def __init__(self, config: ChainEncoderConfig) -> None:
        super().__init__(config)
        sizes = [config.blocks[0]["hidden_size"], *(block["hidden_size"] for block in config.blocks)]
        self.embeddings = Embeddings(config, sizes[0])
        self.blocks = nn.ModuleList(
            Block(size, block, config) for size, block in zip(sizes, config.blocks, strict=False)
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word table."""
        return self.embeddings.word

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word table."""
        self.embeddings.word = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Encodes a batch of token ids (B, T); mask 1 marks a real token, 0 padding."""
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]  # (B, 1, 1, T)
        hidden = self.embeddings(input_ids, token_type_ids)
        for block in self.blocks:
            hidden = block(hidden, mask)
        return (hidden,) if return_dict is False else BaseModelOutput(last_hidden_state=hidden)
