"""A standalone encoder: one architecture with its own weights, in plain torch.

Post-norm residual sub-layers as in BERT (Devlin et al., 2019, arXiv 1810.04805). The parameter names are the ones the
exporters read, so they are part of the contract between rooms::

    embeddings.{word,position,token_type}.weight   embeddings.norm.{weight,bias}   embeddings.project.{weight,bias}
    blocks.B.map.{weight,bias}                      where the width changes between blocks
    blocks.B.sublayers.I.{query,key,value,output}.{weight,bias}    blocks.B.sublayers.I.norm.{weight,bias}
    blocks.B.sublayers.I.{up,down}.{weight,bias}                   blocks.B.sublayers.I.norm.{weight,bias}

Shapes: B batch, T tokens, D hidden, N heads, K head width, F feed-forward width, E embedding width, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from search_spaces.architecture import Architecture, Attention, FeedForward, SepConv, TextSpec
from search_spaces.errors import InvalidInputError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


def check_text(text: TextSpec, input_ids: Tensor) -> None:
    """Raises InvalidInputError where ``input_ids`` (B, T) is not two-dimensional or longer than the position table."""
    if input_ids.ndim != 2:
        raise InvalidInputError(f"input_ids must have the shape (batch, tokens), got {tuple(input_ids.shape)}")
    if input_ids.shape[1] > text.max_positions:
        raise InvalidInputError(
            f"a text may hold {text.max_positions} tokens (the position table's rows), got {input_ids.shape[1]}; "
            "truncate it"
        )


def key_mask(attention_mask: Tensor | None) -> Tensor | None:
    """The boolean mask (B, 1, 1, T) over keys for an attention mask (B, T); None where no token is padding."""
    if attention_mask is None or bool(attention_mask.all()):
        return None
    return attention_mask.bool()[:, None, None, :]


class Embeddings(nn.Module):
    """Word, position and type tables, their layer norm, and the map to the first block's width if it differs."""

    def __init__(self, architecture: Architecture, text: TextSpec) -> None:
        super().__init__()
        size, hidden_size = architecture.embedding_size, architecture.blocks[0].hidden_size
        self.word = nn.Embedding(text.vocab_size, size, padding_idx=text.pad_token_id)
        self.position = nn.Embedding(text.max_positions, size)
        self.token_type = nn.Embedding(text.type_vocab_size, size)
        self.norm = nn.LayerNorm(size, eps=text.layer_norm_eps)
        self.project = nn.Linear(size, hidden_size) if size != hidden_size else None

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Maps input_ids (B, T) to the first hidden state (B, T, D)."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        summed = self.word(input_ids) + self.position(positions) + self.token_type(token_type_ids)  # (B, T, E)
        normed: Tensor = self.norm(summed)
        return normed if self.project is None else self.project(normed)


class AttentionSublayer(nn.Module):
    """Multi-head self-attention with its residual and layer norm."""

    def __init__(self, shape: Attention, hidden_size: int, layer_norm_eps: float) -> None:
        super().__init__()
        self.shape = shape
        self.query = nn.Linear(hidden_size, shape.width)
        self.key = nn.Linear(hidden_size, shape.width)
        self.value = nn.Linear(hidden_size, shape.width)
        self.output = nn.Linear(shape.width, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Maps hidden (B, T, D) and a boolean mask broadcastable to (B, N, T, T) to (B, T, D)."""
        split = (*hidden.shape[:2], self.shape.num_heads, self.shape.head_size)
        query, key, value = (
            linear(hidden).view(split).transpose(1, 2)  # (B, N, T, K)
            for linear in (self.query, self.key, self.value)
        )
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # (B, N, T, K)
        context = context.transpose(1, 2).reshape(*hidden.shape[:2], self.shape.width)
        normed: Tensor = self.norm(hidden + self.output(context))
        return normed


class FeedForwardSublayer(nn.Module):
    """Two linear layers with their residual and layer norm."""

    def __init__(self, shape: FeedForward, hidden_size: int, text: TextSpec) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, shape.intermediate_size)
        self.down = nn.Linear(shape.intermediate_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=text.layer_norm_eps)
        self.activation = ACTIVATIONS[text.hidden_act]

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Maps hidden (B, T, D) to (B, T, D); the mask is not needed."""
        normed: Tensor = self.norm(hidden + self.down(self.activation(self.up(hidden))))
        return normed


class EncoderBlock(nn.Module):
    """A run of sub-layers of one width, behind a linear map where the width changes."""

    def __init__(self, incoming_size: int, architecture: Architecture, index: int, text: TextSpec) -> None:
        super().__init__()
        block = architecture.blocks[index]
        self.map = nn.Linear(incoming_size, block.hidden_size) if incoming_size != block.hidden_size else None
        self.sublayers = nn.ModuleList()
        for shape in block.sublayers:
            match shape:
                case Attention():
                    self.sublayers.append(AttentionSublayer(shape, block.hidden_size, text.layer_norm_eps))
                case FeedForward():
                    self.sublayers.append(FeedForwardSublayer(shape, block.hidden_size, text))
                case SepConv():
                    raise InvalidInputError(
                        "separable convolutions cannot be built yet; use attention and feed-forward"
                    )

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Maps hidden (B, T, D_in) to (B, T, D)."""
        if self.map is not None:
            hidden = self.map(hidden)
        for sublayer in self.sublayers:
            hidden = sublayer(hidden, mask)
        return hidden


class Encoder(nn.Module):
    """One architecture with its own weights.

    Args:
        architecture: The shape, without narrow layers and convolutions.
        text: What the encoder reads.

    Raises:
        InvalidInputError: The architecture holds a part that cannot be built.
    """

    def __init__(self, architecture: Architecture, text: TextSpec) -> None:
        super().__init__()
        if architecture.narrow_from is not None:
            raise InvalidInputError("an encoder with narrow layers cannot be built yet; leave narrow_from out")
        self.architecture = architecture
        self.text = text
        self.embeddings = Embeddings(architecture, text)
        sizes = [architecture.blocks[0].hidden_size, *(block.hidden_size for block in architecture.blocks)]
        self.blocks = nn.ModuleList(
            EncoderBlock(sizes[index], architecture, index, text) for index in range(len(architecture.blocks))
        )

    def block(self, index: int) -> EncoderBlock:
        """The block at an index."""
        block = self.blocks[index]
        assert isinstance(block, EncoderBlock)
        return block

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Encodes a batch.

        Args:
            input_ids: Token ids, shape (B, T).
            attention_mask: 1 where a token is real and 0 where it is padding, shape (B, T); all real if None.
            token_type_ids: Segment ids, shape (B, T); all 0 if None.

        Returns:
            The last hidden state, shape (B, T, D).

        Raises:
            InvalidInputError: The text is longer than the position table.
        """
        check_text(self.text, input_ids)
        mask = key_mask(attention_mask)
        hidden: Tensor = self.embeddings(input_ids, token_type_ids)
        for block in self.blocks:
            hidden = block(hidden, mask)
        return hidden
