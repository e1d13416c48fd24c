"""From a supernet and an architecture to a standalone encoder with its own weights."""

from collections.abc import Iterable

import torch
from torch import Tensor

from search_spaces.architecture import Architecture
from supernet.chain_supernet import ChainSupernet
from supernet.encoder import Encoder
from supernet.model import Supernet
from supernet.partitions import PartitionedSupernet


def extract(supernet: Supernet | PartitionedSupernet | ChainSupernet, architecture: Architecture) -> Encoder:
    """Copies a subnet's weights into an encoder that needs the supernet no more.

    Embedding projections are folded into the tables, and of a chain each pair of maps between blocks into one, so that
    the result is plain: its output equals the supernet's for the same batch up to float rounding.

    Args:
        supernet: Where the weights come from; not changed.
        architecture: A member of its space, or a narrow form of one.

    Returns:
        The encoder in evaluation mode, on the CPU, in float32.

    Raises:
        InvalidInputError: The architecture is not of the supernet's space.
    """
    supernet.check_member(architecture)
    if isinstance(supernet, PartitionedSupernet):
        supernet = supernet.part_of(architecture)
    encoder = Encoder(architecture, supernet.config.text)
    weights: Iterable[tuple[str, Tensor]]
    if isinstance(supernet, ChainSupernet):
        weights = supernet.encoder_weights(architecture)
    else:
        weights = sliced_weights(supernet, architecture)
    encoder.load_state_dict({name: tensor.detach().float().cpu() for name, tensor in weights})
    return encoder.eval()


@torch.no_grad()
def sliced_weights(supernet: Supernet, architecture: Architecture) -> list[tuple[str, Tensor]]:
    """The encoder's parameters by name, as views of the supernet's weights (folded tables are new tensors)."""
    uniform = architecture.uniform
    assert uniform is not None
    attention, inner_size = uniform.attention, uniform.feed_forward.intermediate_size
    size, hidden_size = architecture.embedding_size, architecture.hidden_size
    embeddings = supernet.embeddings
    weights = [
        (f"embeddings.{name}.weight", embeddings.narrowed(getattr(embeddings, name).weight, size))
        for name in ("word", "position", "token_type")
    ]
    weights += _named("embeddings.norm", embeddings.norm.sliced(size))
    if size != hidden_size:
        assert embeddings.project is not None
        weights += _named("embeddings.project", embeddings.project.sliced(hidden_size, size))
    for layer, index in enumerate(supernet.select_layers(uniform.num_layers)):
        module = supernet.layer(index).attention
        name, feed_name = (f"blocks.0.sublayers.{place}" for place in uniform.places(layer))
        for part in ("query", "key", "value"):
            weights += _named(f"{name}.{part}", module.sliced_input(getattr(module, part), attention, hidden_size))
        weights += _named(f"{name}.output", module.sliced_output(attention, hidden_size))
        weights += _named(f"{name}.norm", module.norm.sliced(hidden_size))
        feed = supernet.layer(index).feed_forward
        weights += _named(f"{feed_name}.up", feed.up.sliced(inner_size, hidden_size))
        weights += _named(f"{feed_name}.down", feed.down.sliced(hidden_size, inner_size))
        weights += _named(f"{feed_name}.norm", feed.norm.sliced(hidden_size))
    return weights


def _named(name: str, pair: tuple[Tensor, Tensor]) -> list[tuple[str, Tensor]]:
    return [(f"{name}.weight", pair[0]), (f"{name}.bias", pair[1])]
