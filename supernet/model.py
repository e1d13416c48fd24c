"""The supernet: one set of weights that holds every architecture of a uniform search space.

``Supernet.forward`` takes the architecture with the batch and keeps no state between calls.

A narrow layer (NarrowBERT, Li et al., 2023, arXiv 2301.04761) takes the same weights as a full one: in SparseQueries
with keys and values from the output of the last full layer, in ContextFirst with its feed-forward behind all
attentions. So the weights hold every narrow form of their encoders, whether they were trained for it or not.

Shapes: B batch, T tokens, M positions that narrow layers keep, D hidden, N heads, K head width, L layers, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from search_spaces.architecture import Architecture, TextSpec
from search_spaces.errors import InvalidInputError
from search_spaces.space import SearchSpace
from supernet.elastic import ElasticAttention, ElasticEmbeddings, ElasticFeedForward, ElasticLayerNorm
from supernet.encoder import ACTIVATIONS, check_text, key_mask
from supernet.narrow import check_positions, take

LayerSelection = Literal["alternate", "first"]
MAX_SPECIALISED_WIDTHS = 16


@dataclass(frozen=True)
class SupernetConfig:
    """The shape of a supernet.

    Attributes:
        space: The architectures it holds.
        text: What it reads.
        table_size: Width of its embedding tables, at least the largest embedding size.
        layer_selection: Which layers a shallower subnet takes: ``alternate`` spreads them with the last one kept,
            ``first`` takes the leading ones as AutoTinyBERT does.
        has_mlm_head: Whether it predicts masked tokens.
    """

    space: SearchSpace
    text: TextSpec
    table_size: int
    layer_selection: LayerSelection = "alternate"
    has_mlm_head: bool = False

    def __post_init__(self) -> None:
        if self.layer_selection not in ("alternate", "first"):
            raise InvalidInputError(f"layer_selection must be alternate or first, got {self.layer_selection!r}")
        if self.table_size < max(self.embedding_sizes):
            raise InvalidInputError(
                f"the embedding tables must be at least as wide as the largest embedding size of the space, "
                f"{max(self.embedding_sizes)}, got {self.table_size}; choose smaller hidden sizes or a wider teacher"
            )

    @property
    def embedding_sizes(self) -> tuple[int, ...]:
        """Every embedding size that an architecture of the space may have, ascending."""
        own = {size for size in self.space.embedding_size if size}
        return tuple(sorted(own | (set(self.space.hidden_size) if 0 in self.space.embedding_size else set())))

    @property
    def has_specialised_widths(self) -> bool:
        """Whether each width has its own embedding projection and layer norms: where the widths are few."""
        return len({*self.embedding_sizes, *self.space.hidden_size}) <= MAX_SPECIALISED_WIDTHS


@dataclass
class States:
    """What a forward pass leaves for distillation.

    Attributes:
        hidden: Hidden states after each kept layer, each (B, T, D), behind a narrow layer (B, M, D). Of layers whose
            attentions stand before their feed-forwards (ContextFirst) only the last one has a state.
        layers: Index of each kept layer in the supernet.
        relations: q, k and v of the last layer, each (B, N, T, K), where they were asked for; q of a narrow attention
            is (B, N, M, K).
        num_full: How many of ``hidden``, the first ones, are of all positions; all of them where -1 is given.
        positions: Which positions the others are of, int64 (B, M); None where there are no others.
    """

    hidden: list[Tensor] = field(default_factory=list)
    layers: tuple[int, ...] = ()
    relations: tuple[Tensor, Tensor, Tensor] | None = None
    num_full: int = -1
    positions: Tensor | None = None

    def __post_init__(self) -> None:
        if self.num_full < 0:
            self.num_full = len(self.hidden)


class MlmHead(nn.Module):
    """Predicts tokens from hidden states with the word table, or its leading columns, as output weights."""

    def __init__(self, config: SupernetConfig, hidden_size: int) -> None:
        super().__init__()
        self.transform = nn.Linear(hidden_size, config.table_size)
        self.norm = nn.LayerNorm(config.table_size, eps=config.text.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.text.vocab_size))
        self.activation = ACTIVATIONS[config.text.hidden_act]

    def forward(self, hidden: Tensor, word_table: Tensor) -> Tensor:
        """Maps hidden (M, D) of chosen positions and a table (V, E) to logits (M, V)."""
        size = word_table.shape[1]
        weight, bias = self.transform.weight[:size, : hidden.shape[-1]], self.transform.bias[:size]
        inner = self.activation(F.linear(hidden, weight, bias))  # (M, E)
        normed = F.layer_norm(inner, (size,), self.norm.weight[:size], self.norm.bias[:size], self.norm.eps)
        return F.linear(normed, word_table, self.bias)


class SupernetLayer(nn.Module):
    """One elastic layer: attention, then feed-forward."""

    def __init__(self, largest: Architecture, text: TextSpec, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers = largest.uniform
        assert layers is not None
        size, inner_size = largest.hidden_size, layers.feed_forward.intermediate_size
        self.attention = ElasticAttention(layers.attention, size, text.layer_norm_eps, widths)
        self.feed_forward = ElasticFeedForward(inner_size, size, text, widths)


class Supernet(nn.Module):
    """Weights shared by every architecture of a space.

    Args:
        config: Its shape.

    Raises:
        InvalidInputError: The space's architectures are not one block of equal layers.
    """

    def __init__(self, config: SupernetConfig) -> None:
        super().__init__()
        self.config = config
        space = config.space
        self.largest = largest_envelope(space)
        widths = space.hidden_size if config.has_specialised_widths else ()
        self.embeddings = ElasticEmbeddings(
            config.text,
            table_size=config.table_size,
            sizes=config.embedding_sizes,
            hidden_size=self.largest.hidden_size,
            has_projections=config.has_specialised_widths,
            is_factorised=any(size and size != hidden for size in space.embedding_size for hidden in space.hidden_size),
        )
        self.layers = nn.ModuleList(
            SupernetLayer(self.largest, config.text, widths) for _ in range(self.largest.num_layers)
        )
        self.mlm_head = MlmHead(config, self.largest.hidden_size) if config.has_mlm_head else None
        self.apply(initialise)
        self._initialise_projections()

    def _initialise_projections(self) -> None:
        for projection in self.embeddings.projections.values():
            nn.init.eye_(projection)

    def layer(self, index: int) -> SupernetLayer:
        """The elastic layer at an index."""
        layer = self.layers[index]
        assert isinstance(layer, SupernetLayer)
        return layer

    def select_layers(self, num_layers: int) -> tuple[int, ...]:
        """Indices of the layers that a subnet of that depth uses."""
        return select_layers(num_layers, len(self.layers), self.config.layer_selection)

    def forward(
        self,
        architecture: Architecture,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        with_relations: bool = False,
        positions: Tensor | None = None,
        summed: Tensor | None = None,
    ) -> States:
        """Runs one subnet.

        Args:
            architecture: A member of the space, or a narrow form of one.
            input_ids: Token ids, shape (B, T).
            attention_mask: 1 where a token is real, shape (B, T); all real if None.
            token_type_ids: Segment ids, shape (B, T); all 0 if None.
            with_relations: Whether to keep q, k and v of the last layer.
            positions: Which positions narrow layers keep: an int64 index (B, M), or a boolean mask (B, T), which counts
                as :func:`supernet.narrow.position_index` of it. None: position 0. Full layers keep all of them.
            summed: What ``embeddings.summed`` makes of the batch, (B, T, W), where several subnets share it.

        Returns:
            The hidden states after each kept layer; the last one is the encoder's output.

        Raises:
            InvalidInputError: The text is longer than the position table, or a position is not in the text.
        """
        check_text(self.config.text, input_ids)
        uniform = architecture.uniform
        assert uniform is not None
        attention, inner_size = uniform.attention, uniform.feed_forward.intermediate_size
        mask = key_mask(attention_mask)
        layers = self.select_layers(uniform.num_layers)
        index: Tensor | None = None
        if uniform.num_narrow_layers:
            index = input_ids.new_zeros(len(input_ids), 1)
            index = index if positions is None else check_positions(positions, input_ids)
        hidden: Tensor = self.embeddings(
            input_ids,
            token_type_ids,
            size=architecture.embedding_size,
            hidden_size=architecture.hidden_size,
            summed=summed,
        )
        states = States(layers=layers, num_full=uniform.num_full_layers, positions=index)
        source: Tensor | None = None
        for place, layer in enumerate(map(self.layer, layers)):
            if place == states.num_full and not uniform.is_context_first:
                source, hidden = hidden, take(hidden, index)
            if with_relations and place == len(layers) - 1:
                states.relations = layer.attention.projections(hidden, attention, source)
            hidden = layer.attention(hidden, mask, attention, source)
            if place < states.num_full or not uniform.is_context_first:
                hidden = layer.feed_forward(hidden, inner_size)
                states.hidden.append(hidden)
        if uniform.is_context_first:
            hidden = take(hidden, index)
            for layer in map(self.layer, layers[states.num_full :]):
                hidden = layer.feed_forward(hidden, inner_size)
            states.hidden.append(hidden)
        return states

    def check_member(self, architecture: Architecture) -> None:
        """Raises InvalidInputError where the architecture is not of this supernet's space, nor a narrow form of one."""
        space = self.config.space
        if architecture not in (space.with_narrowing() if space.num_layers[-1] > 1 else space):
            raise InvalidInputError(
                f"{architecture.key()} is not in the supernet's space {self.config.space.name!r}; "
                "choose sizes that the space lists or train a supernet for another space"
            )


def largest_envelope(space: SearchSpace) -> Architecture:
    """The architecture that holds every architecture of the space as a leading slice."""
    heads = space.num_heads or (max(space.hidden_size) // min(space.head_size),)
    return Architecture.bert(
        max(space.num_layers),
        max(space.hidden_size),
        max(space.intermediate_size),
        max(heads),
        head_size=max(space.head_size),
    )


def select_layers(num_layers: int, total: int, selection: LayerSelection) -> tuple[int, ...]:
    """Indices, ascending, of the layers that a subnet of ``num_layers`` out of ``total`` uses.

    ``alternate`` spreads them evenly with the first and the last kept (a single layer is the last one).
    """
    if selection == "first":
        return tuple(range(num_layers))
    if num_layers == 1:
        return (total - 1,)
    return tuple(round(place * (total - 1) / (num_layers - 1)) for place in range(num_layers))


def initialise(module: nn.Module) -> None:
    """BERT's initialisation: normal with deviation 0.02, biases zero, norms one."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
    elif isinstance(module, ElasticLayerNorm | nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
