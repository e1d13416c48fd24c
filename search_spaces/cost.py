"""What an architecture costs: parameters and multiply-accumulates, counted exactly from its shape.

Symbols: B batch, T tokens, D hidden, W heads times head width, F feed-forward, m positions of a narrow sub-layer.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from search_spaces.architecture import MAX_SIZE, Architecture, Attention, FeedForward, SepConv, Sublayer, TextSpec
from search_spaces.errors import InvalidInputError, shown


def num_parameters(architecture: Architecture, text: TextSpec) -> int:
    """Every weight and bias of the encoder, embedding tables included."""
    rows = text.vocab_size + text.max_positions + text.type_vocab_size
    return rows * architecture.embedding_size + encoder_parameters(architecture)


def encoder_parameters(architecture: Architecture) -> int:
    """Every weight and bias but the word, position and type tables."""
    first = architecture.blocks[0].hidden_size
    total = 2 * architecture.embedding_size + _map_parameters(architecture.embedding_size, first)
    total += sum(_map_parameters(*widths) for widths in _maps(architecture))
    return total + sum(_sublayer_parameters(place) for place in _places(architecture))


def num_macs(architecture: Architecture, seq_len: int, batch_size: int = 1, *, num_narrow_positions: int = 1) -> int:
    """Multiply-accumulates of the matrix products of one forward pass.

    Linear maps, attention scores and attention contexts count; look-ups, biases, norms, softmax and activations do not.
    A full attention takes 4TDW + 2TTW, a feed-forward 2TDF. A narrow attention (NarrowBERT, Li et al., 2023,
    arXiv 2301.04761) takes 2mDW + 2mTW for its m queries and 2TSW for keys and values, which are projected from the
    last full output, S wide; a narrow feed-forward takes 2mDF.

    Args:
        architecture: The encoder's shape.
        seq_len: T, tokens a text.
        batch_size: B, texts.
        num_narrow_positions: m, positions that narrow sub-layers update; 1 is sentence classification.

    Raises:
        InvalidInputError: A count is below 1 or absurd, or more positions are narrow than there are tokens.
    """
    for name, value, most in (
        ("seq_len", seq_len, MAX_SIZE),
        ("batch_size", batch_size, MAX_SIZE),
        ("num_narrow_positions", num_narrow_positions, seq_len),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise InvalidInputError(f"{name} must be a whole number from 1 to {most}, got {shown(value)}")
    first = architecture.blocks[0].hidden_size
    total = _map_macs(architecture.embedding_size, first, seq_len)
    for place in _places(architecture):
        positions = num_narrow_positions if place.is_narrow else seq_len
        total += _sublayer_macs(place, seq_len, positions)
    for index, (incoming, outgoing) in enumerate(_maps(architecture)):
        depth = sum(len(block.sublayers) for block in architecture.blocks[: index + 1])
        is_narrow = architecture.narrow_from is not None and depth >= architecture.narrow_from
        total += _map_macs(incoming, outgoing, num_narrow_positions if is_narrow else seq_len)
    return batch_size * total


@dataclass(frozen=True, slots=True)
class _Place:
    """A sub-layer where it stands: its width, and the width its keys and values are read from."""

    sublayer: Sublayer
    hidden_size: int
    source_size: int
    is_narrow: bool


def _places(architecture: Architecture) -> Iterator[_Place]:
    source_size, index = 0, 0
    for block in architecture.blocks:
        for sublayer in block.sublayers:
            is_narrow = architecture.narrow_from is not None and index >= architecture.narrow_from
            source_size = source_size if is_narrow else block.hidden_size
            yield _Place(sublayer, block.hidden_size, source_size, is_narrow)
            index += 1


def _maps(architecture: Architecture) -> list[tuple[int, int]]:
    """The widths each block border leads from and to, whether or not they differ."""
    widths = [block.hidden_size for block in architecture.blocks]
    return list(itertools.pairwise(widths))


def _map_parameters(incoming: int, outgoing: int) -> int:
    return 0 if incoming == outgoing else _linear_parameters(incoming, outgoing)


def _map_macs(incoming: int, outgoing: int, positions: int) -> int:
    return 0 if incoming == outgoing else incoming * outgoing * positions


def _linear_parameters(incoming: int, outgoing: int) -> int:
    return incoming * outgoing + outgoing


def _sublayer_parameters(place: _Place) -> int:
    size, norm = place.hidden_size, 2 * place.hidden_size
    match place.sublayer:
        case Attention() as attention:
            query_and_output = _linear_parameters(size, attention.width) + _linear_parameters(attention.width, size)
            return query_and_output + 2 * _linear_parameters(place.source_size, attention.width) + norm
        case FeedForward(intermediate_size):
            return _linear_parameters(size, intermediate_size) + _linear_parameters(intermediate_size, size) + norm
        case SepConv(kernel_size):  # one kernel and bias a channel, then a linear map over channels
            return (kernel_size + 1) * size + _linear_parameters(size, size) + norm


def _sublayer_macs(place: _Place, seq_len: int, positions: int) -> int:
    size = place.hidden_size
    match place.sublayer:
        case Attention() as attention:
            query_and_output = 2 * positions * size * attention.width
            key_and_value = 2 * seq_len * place.source_size * attention.width
            return query_and_output + key_and_value + 2 * positions * seq_len * attention.width
        case FeedForward(intermediate_size):
            return 2 * positions * size * intermediate_size
        case SepConv(kernel_size):
            return positions * size * (kernel_size + size)
