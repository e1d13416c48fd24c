"""Which state stands for a whole text: the mean over its tokens, or that of position 0.

Narrow layers keep chosen positions only, and position 0 is the one that they keep where nothing is said.

Shapes: B batch, T tokens, M positions that are kept, D hidden.
"""

from typing import Literal

from torch import Tensor

from search_spaces.architecture import Architecture
from search_spaces.space import SearchSpace
from search_spaces.spaces import Space
from supernet.losses import pool
from supernet.narrow import check_all_positions

Pooling = Literal["mean", "first"]
POOLINGS: tuple[Pooling, ...] = ("mean", "first")


def pooling_of(space: Space) -> Pooling:
    """The pooling by which all architectures of a space can be judged alike: position 0 where some are narrow."""
    return "first" if isinstance(space, SearchSpace) and space.has_narrowing else "mean"


def usual_pooling(architecture: Architecture) -> Pooling:
    """The pooling of an architecture by itself: the mean, or position 0 where nothing else is kept for sure."""
    return "mean" if architecture.narrow_from is None else "first"


def check_pooling(architecture: Architecture, pooling: Pooling) -> None:
    """Raises InvalidInputError where the mean over all tokens is asked of an architecture with narrow layers."""
    if pooling == "mean":
        check_all_positions(architecture, "mean pooling")


def text_states(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """The states of whole texts.

    Args:
        hidden: Last hidden states of all positions, (B, T, D), or of kept ones with position 0 first, (B, M, D).
        mask: 1 where a token is real, shape (B, T).
        pooling: Which state stands for a text.

    Returns:
        Shape (B, D), float32.
    """
    return hidden[:, 0].float() if pooling == "first" else pool(hidden, mask)


def taught_states(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """A teacher's last states, as those learn them whose texts are judged by a pooling.

    A teacher's state of a whole text is the mean over its tokens. Where position 0 shall stand for the text, that mean
    is what it learns, instead of the teacher's position 0.

    Args:
        hidden: The teacher's last states, shape (B, T, D).
        mask: 1 where a token is real, shape (B, T).
        pooling: Which state of those that learn stands for a text.

    Returns:
        Shape (B, T, D).
    """
    if pooling == "mean":
        return hidden
    taught = hidden.clone()
    taught[:, 0] = pool(hidden, mask)
    return taught
