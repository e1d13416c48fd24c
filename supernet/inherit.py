"""Where a supernet's first weights come from: an encoder, a teacher, or another supernet.

All three are one thing, since an encoder is the supernet of a space of one architecture.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from search_spaces.architecture import NARROW_FORMS, Architecture
from search_spaces.errors import InvalidInputError
from search_spaces.space import SearchSpace
from supernet.elastic import ElasticLayerNorm
from supernet.encoder import Encoder
from supernet.extract import sliced_weights
from supernet.model import Supernet, SupernetConfig, SupernetLayer, largest_envelope, select_layers
from supernet.teacher import Teacher


def space_of(architecture: Architecture) -> SearchSpace:
    """The space that holds one architecture only.

    Raises:
        InvalidInputError: Its layers are not all alike, or it becomes narrow within one.
    """
    layers = architecture.uniform
    if layers is None:
        raise InvalidInputError(
            f"{architecture.key()} cannot be trained alone: its layers must all be alike, attention then feed-forward, "
            "and become narrow between two layers or between all attentions and all feed-forwards of the last ones"
        )
    return SearchSpace(
        architecture.key(),
        num_layers=(layers.num_layers,),
        hidden_size=(architecture.hidden_size,),
        intermediate_size=(layers.feed_forward.intermediate_size,),
        num_heads=(layers.attention.num_heads,),
        head_size=(layers.attention.head_size,),
        embedding_size=(architecture.embedding_size,),
        num_narrow_layers=(layers.num_narrow_layers,),
        narrow_form=(layers.narrow_form if layers.num_narrow_layers > 1 else NARROW_FORMS[0],),
    )


@torch.no_grad()
def from_encoder(encoder: Encoder, mlm_head: Mapping[str, Tensor] | None = None) -> Supernet:
    """A supernet of one architecture with an encoder's weights; :func:`supernet.extract.extract` gives it back.

    Args:
        encoder: Not changed.
        mlm_head: Parameters of its masked-language head, where it has one.

    Raises:
        InvalidInputError: The encoder's layers are not all alike.
    """
    architecture = encoder.architecture
    has_head = mlm_head is not None
    config = SupernetConfig(space_of(architecture), encoder.text, architecture.embedding_size, has_mlm_head=has_head)
    alone = Supernet(config)
    state = encoder.state_dict()
    for name, view in sliced_weights(alone, architecture):
        view.copy_(state[name])
    if alone.mlm_head is not None and mlm_head is not None:
        alone.mlm_head.load_state_dict(dict(mlm_head))
    return alone


def check_fits(space: SearchSpace, teacher: Teacher) -> None:
    """Raises InvalidInputError where the space's largest architecture is not a part of the teacher's."""
    largest, source = largest_envelope(space), teacher.encoder.architecture
    ours, theirs = largest.uniform, source.uniform
    assert ours is not None
    assert theirs is not None
    embedding_size = max(size or largest.hidden_size for size in space.embedding_size)
    pairs = {
        "num_layers": (ours.num_layers, theirs.num_layers),
        "hidden_size": (largest.hidden_size, source.hidden_size),
        "intermediate_size": (ours.feed_forward.intermediate_size, theirs.feed_forward.intermediate_size),
        "num_heads": (ours.attention.num_heads, theirs.attention.num_heads),
        "head_size": (ours.attention.head_size, theirs.attention.head_size),
        "embedding_size": (embedding_size, source.embedding_size),
    }
    for name, (wanted, available) in pairs.items():
        if wanted > available:
            raise InvalidInputError(
                f"the space's largest {name} must fit inside the teacher, got {wanted} and {available}; "
                f"keep {name} within {available} or choose a larger teacher"
            )


def initialise_from(supernet: Supernet, teacher: Teacher) -> None:
    """Gives the supernet the leading slices of a sorted teacher's weights.

    Where the space's largest architecture has the teacher's shape, its output equals the teacher's.

    Raises:
        InvalidInputError: The space's largest architecture does not fit inside the teacher.
    """
    check_fits(supernet.config.space, teacher)
    inherit(supernet, from_encoder(teacher.encoder, teacher.mlm_head))


@torch.no_grad()
def inherit(target: Supernet, source: Supernet) -> None:
    """Gives a supernet the leading slices of another one's weights.

    Every subnet that the source holds then computes what it computes there. Where the target is shallower and layers
    are selected alternately, some subnets may take a neighbouring layer instead.

    Args:
        target: With tables as wide as the source's, and nowhere larger.
        source: Not changed.
    """
    ours, theirs = target.embeddings, source.embeddings
    for name in ("word", "position", "token_type"):
        getattr(ours, name).weight.copy_(getattr(theirs, name).weight)
    for key, projection in ours.projections.items():  # where the source slices, their start: the leading columns
        if key in theirs.projections:
            projection.copy_(theirs.projections[key])
    _inherit_norm(ours.norm, theirs.norm)
    if ours.project is not None and theirs.project is not None:
        _copy(ours.project, theirs.project.sliced(*ours.project.weight.shape))
    selection = source.config.layer_selection
    for index, origin in enumerate(select_layers(len(target.layers), len(source.layers), selection)):
        _inherit_layer(target.layer(index), source.layer(origin), target.largest)
    if target.mlm_head is not None:
        assert source.mlm_head is not None
        for name, tensor in target.mlm_head.state_dict().items():
            whole = source.mlm_head.state_dict()[name]
            tensor.copy_(whole[..., : tensor.shape[-1]])


def _inherit_layer(target: SupernetLayer, source: SupernetLayer, largest: Architecture) -> None:
    layers = largest.uniform
    assert layers is not None
    attention, hidden_size, intermediate_size = (
        layers.attention,
        largest.hidden_size,
        layers.feed_forward.intermediate_size,
    )
    ours, theirs = target.attention, source.attention
    for name in ("query", "key", "value"):
        _copy(getattr(ours, name), theirs.sliced_input(getattr(theirs, name), attention, hidden_size))
    _copy(ours.output, theirs.sliced_output(attention, hidden_size))
    _inherit_norm(ours.norm, theirs.norm)
    _copy(target.feed_forward.up, source.feed_forward.up.sliced(intermediate_size, hidden_size))
    _copy(target.feed_forward.down, source.feed_forward.down.sliced(hidden_size, intermediate_size))
    _inherit_norm(target.feed_forward.norm, source.feed_forward.norm)


def _inherit_norm(target: ElasticLayerNorm, source: ElasticLayerNorm) -> None:
    for width, row in (target.rows or {target.weight.shape[1]: 0}).items():
        origin = source.rows.get(width, 0)  # one architecture keeps one gain and bias; narrower ones are its slices
        target.weight[row, :width] = source.weight[origin, :width]
        target.bias[row, :width] = source.bias[origin, :width]


def _copy(linear: nn.Linear, parameters: tuple[Tensor, Tensor]) -> None:
    linear.weight.copy_(parameters[0])
    linear.bias.copy_(parameters[1])
