"""Few-shot supernets: a space in disjoint parts, each with weights of its own.

Subnets that share all their weights disturb each other; the fewer share, the less (Few-Shot NAS, Zhao et al., 2021,
arXiv 2006.06863; AutoDistil, Xu et al., 2022, arXiv 2201.12507, splits a space of encoders in three). A part's weights
start from those of a supernet of the whole space.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from search_spaces.architecture import Architecture
from search_spaces.choices import forms_for
from search_spaces.errors import InvalidInputError
from search_spaces.space import MAX_NAME, SearchSpace
from supernet.model import States, Supernet, SupernetConfig


def part_folder(folder: Path, place: int) -> Path:
    """Where a partitioned supernet's folder keeps a part, counted from 1."""
    return folder / f"part-{place}"


def split_space(space: SearchSpace, count: int) -> tuple[SearchSpace, ...]:
    """Splits a space into disjoint parts that cover it: by hidden size, or by depth where hidden sizes are too few.

    Args:
        space: What is split; not changed.
        count: How many parts; each takes neighbouring choices, as many as the others or one more.

    Raises:
        InvalidInputError: Neither dimension has so many choices.
    """
    for dimension in ("hidden_size", "num_layers"):
        choices: tuple[int, ...] = getattr(space, dimension)
        if len(choices) >= count:
            borders = [len(choices) * place // count for place in range(count + 1)]
            groups = [choices[low:high] for low, high in itertools.pairwise(borders)]
            return tuple(_part(space, dimension, kept, f"-{place}of{count}") for place, kept in enumerate(groups, 1))
    raise InvalidInputError(
        f"{space.name!r} cannot be split into {count} parts: it has {len(space.hidden_size)} hidden sizes and "
        f"{len(space.num_layers)} depths; give at most {max(len(space.hidden_size), len(space.num_layers))} partitions"
    )


def _part(space: SearchSpace, dimension: str, choices: tuple[int, ...], suffix: str) -> SearchSpace:
    name = space.name[: MAX_NAME - len(suffix)] + suffix
    fields: dict[str, tuple[Any, ...]] = {dimension: choices}
    if dimension == "num_layers":  # a shallow part has fewer numbers of narrow layers to choose from
        fields["num_narrow_layers"] = tuple(count for count in space.num_narrow_layers if count < choices[-1])
        fields["narrow_form"] = forms_for(space.narrow_form, fields["num_narrow_layers"])
    return replace(space, name=name, **fields)


class PartitionedSupernet(nn.Module):
    """Several supernets, each of a part of one space; offers what a :class:`Supernet` offers.

    Args:
        config: Of the whole space.
        parts: A supernet for each part of :func:`split_space`.

    Raises:
        InvalidInputError: The parts do not cover the space exactly, or read other text.
    """

    def __init__(self, config: SupernetConfig, parts: Sequence[Supernet]) -> None:
        super().__init__()
        if [part.config.space for part in parts] != list(split_space(config.space, len(parts))):
            raise InvalidInputError(f"the parts of this supernet do not cover its space {config.space.name!r} exactly")
        if any(part.config.text != config.text for part in parts):
            raise InvalidInputError("the parts of this supernet must read the same text")
        self.config = config
        self.parts = nn.ModuleList(parts)

    def each(self) -> Iterator[Supernet]:
        """The parts in their order."""
        for part in self.parts:
            assert isinstance(part, Supernet)
            yield part

    def part_of(self, architecture: Architecture) -> Supernet:
        """The part that holds an architecture, or the full form of a narrow one.

        Raises:
            InvalidInputError: It is not in the space.
        """
        for part in self.each():
            with contextlib.suppress(InvalidInputError):
                part.check_member(architecture)
                return part
        raise InvalidInputError(
            f"{architecture.key()} is not in the supernet's space {self.config.space.name!r}; "
            "choose sizes that the space lists or train a supernet for another space"
        )

    def check_member(self, architecture: Architecture) -> None:
        """Raises InvalidInputError where the architecture is not of this supernet's space."""
        self.part_of(architecture)

    def forward(
        self,
        architecture: Architecture,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        with_relations: bool = False,
        positions: Tensor | None = None,
    ) -> States:
        """Runs one subnet of the part that holds it; see :meth:`Supernet.forward`."""
        states: States = self.part_of(architecture)(
            architecture,
            input_ids,
            attention_mask,
            token_type_ids,
            with_relations=with_relations,
            positions=positions,
        )
        return states
