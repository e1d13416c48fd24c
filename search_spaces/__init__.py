"""What an architecture is, which architectures a search may choose from, and what they cost. Standard library only."""

from search_spaces.architecture import Architecture, Attention, Block, FeedForward, SepConv, Sublayer, TextSpec
from search_spaces.chain_space import ChainSpace
from search_spaces.choices import AS_HIDDEN
from search_spaces.cost import encoder_parameters, num_macs, num_parameters
from search_spaces.encoding import decode, encode
from search_spaces.errors import InvalidInputError, NasError
from search_spaces.precisions import PrecisionSpace
from search_spaces.presets import PRESETS, load_space
from search_spaces.space import SearchSpace
from search_spaces.spaces import Space, space_from_dict

__all__ = [
    "AS_HIDDEN",
    "PRESETS",
    "Architecture",
    "Attention",
    "Block",
    "ChainSpace",
    "FeedForward",
    "InvalidInputError",
    "NasError",
    "PrecisionSpace",
    "SearchSpace",
    "SepConv",
    "Space",
    "Sublayer",
    "TextSpec",
    "decode",
    "encode",
    "encoder_parameters",
    "load_space",
    "num_macs",
    "num_parameters",
    "space_from_dict",
]
