"""Which architectures a search may choose from: uniform one-block encoders, each size from a list of choices.

A space is a value object. A user's own space is a small TOML file::

    name = "mine"                                      # optional; the file's name otherwise
    num_layers = [1, 2, 3]                             # a list of choices, or one number,
    hidden_size = { min = 128, max = 384, step = 64 }  # or a range with both ends in it (step 1 where left out)
    intermediate_size = [256, 512, 1024]
    head_size = 32
    num_heads = "derived"                              # optional: hidden_size / head_size heads; or choices of its own
    embedding_size = [64, 128, "hidden"]               # optional: "hidden", as wide as hidden_size; or choices
    num_narrow_layers = { min = 0, max = 2 }           # optional: how many of the last layers are narrow; 0 by default
    narrow_form = "sparse-queries"                     # optional: that one, "context-first", or a list of both

The JSON form of a space (:meth:`SearchSpace.to_dict`) has the same keys. In Python an empty ``num_heads`` means
derived, and the ``embedding_size`` 0 (:data:`AS_HIDDEN`) means as wide as ``hidden_size``; 0 stands last in its
dimension, as the widest choice it mostly is.

Narrow layers (NarrowBERT, Li et al., 2023, arXiv 2301.04761) update chosen positions only, in one of the two forms of
:class:`search_spaces.architecture.UniformLayers`. They have the weights of full ones, so that their number is one more
size. At least one layer is full: where more are chosen than that leaves, an encoder has the largest number listed that
it can have. Narrow layers compute least, so that their choices stand from the most to the fewest. One narrow layer
gives the same states in either form, so that the form says nothing where fewer than two are narrow: there it is
``sparse-queries``, which computes less.
"""

import bisect
import itertools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from search_spaces.architecture import MAX_SIZE, NARROW_FORMS, Architecture
from search_spaces.choices import (
    AS_HIDDEN,
    check_narrow_layers,
    checked_choices,
    checked_forms,
    forms_for,
    read_choices,
    summary,
)
from search_spaces.enumerable import Enumerable
from search_spaces.errors import InvalidInputError, shown, unknown_name

SPACE_SCHEMA_VERSION = 1
OPTIONAL = ("num_heads", "embedding_size", "num_narrow_layers", "narrow_form")
MAX_NAME = 100

# AutoTinyBERT's mutation (Yin et al., 2021): how likely a dimension moves, and by how many choices at most.
# The paper's embedding follows the hidden size; a factorised one moves as heads do, and narrow layers as depth does.
MUTATION = {
    "num_layers": (0.25, 1),
    "hidden_size": (0.5, 1),
    "intermediate_size": (0.5, 2),
    "num_heads": (0.25, 2),
    "head_size": (0.25, 2),
    "embedding_size": (0.25, 2),
    "num_narrow_layers": (0.25, 1),
    "narrow_form": (0.25, 1),
}
DIMENSIONS = tuple(MUTATION)


@dataclass(frozen=True)
class SearchSpace(Enumerable):
    """A set of uniform encoders, one per combination of choices.

    Attributes:
        name: What reports call the space.
        num_layers: Choices for the number of (attention, feed-forward) layers.
        hidden_size: Choices for the width of the residual stream.
        intermediate_size: Choices for the feed-forward width.
        num_heads: Choices for the number of heads; empty: derived, ``hidden_size // head_size``.
        head_size: Choices for the width of a head.
        embedding_size: Choices for the width of the embedding tables; 0: as wide as ``hidden_size``.
        num_narrow_layers: Choices for how many of the last layers are narrow, the most first.
        narrow_form: Choices for how they are narrow.

    Raises:
        InvalidInputError: A choice breaks a bound or is listed twice, derived heads do not divide a hidden size, narrow
            layers leave no full one, or a form is listed where fewer than two layers are narrow.
    """

    name: str
    num_layers: tuple[int, ...]
    hidden_size: tuple[int, ...]
    intermediate_size: tuple[int, ...]
    num_heads: tuple[int, ...] = ()
    head_size: tuple[int, ...] = (32,)
    embedding_size: tuple[int, ...] = (AS_HIDDEN,)
    num_narrow_layers: tuple[int, ...] = (0,)
    narrow_form: tuple[str, ...] = NARROW_FORMS[:1]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 1 <= len(self.name) <= MAX_NAME or not self.name.isprintable():
            raise InvalidInputError(
                f"a space's name must be 1 to {MAX_NAME} printable characters, got {shown(self.name)}"
            )
        for name in DIMENSIONS[:-1]:
            object.__setattr__(self, name, checked_choices(name, getattr(self, name)))
        object.__setattr__(self, "narrow_form", checked_forms(self.narrow_form))
        check_narrow_layers(self.num_narrow_layers, self.num_layers)
        if self.num_narrow_layers[0] < 2 and self.narrow_form != NARROW_FORMS[:1]:
            raise InvalidInputError(
                "narrow_form says how two and more layers are narrow, and here "
                f"{'one is' if self.has_narrowing else 'none is'}; list num_narrow_layers above 1, or leave "
                "narrow_form out"
            )
        if self.num_heads:
            width = self.num_heads[-1] * self.head_size[-1]
            if width > MAX_SIZE:
                raise InvalidInputError(f"num_heads * head_size must be at most {MAX_SIZE}, got {width}")
            return
        multiple = math.lcm(*self.head_size)
        for hidden_size in self.hidden_size:
            if hidden_size % multiple:
                raise InvalidInputError(
                    "hidden_size must be a multiple of every head_size where num_heads is derived, got "
                    f"{hidden_size} and {summary(self.head_size)}; change one, or list num_heads"
                )

    @property
    def dimensions(self) -> dict[str, tuple[Any, ...]]:
        """What a sampler chooses: every dimension with at least two choices, the smallest encoders' first."""
        return {name: getattr(self, name) for name in DIMENSIONS if len(getattr(self, name)) > 1}

    @property
    def size(self) -> int:
        """The exact number of distinct architectures."""
        return self._widths_up_to()[-1] * len(self._depths()) * len(self.intermediate_size) * self._num_attentions

    @property
    def has_narrowing(self) -> bool:
        """Whether some of its architectures have narrow layers."""
        return self.num_narrow_layers[0] > 0

    def with_narrowing(self) -> "SearchSpace":
        """The same space with every number of narrow layers that leaves a full one, in both forms.

        Raises:
            InvalidInputError: Its encoders have one layer, which has to be full.
        """
        most = self.num_layers[-1] - 1
        if most == 0:
            raise InvalidInputError(
                f"the encoders of {self.name!r} have one layer, and narrow layers need a full one before them; "
                "choose a space with more layers"
            )
        choices = tuple(range(most, -1, -1))
        forms = forms_for(NARROW_FORMS, choices)
        if (choices, forms) == (self.num_narrow_layers, self.narrow_form):
            return self
        suffix = "-narrow"
        name = self.name if self.name.endswith(suffix) else self.name[: MAX_NAME - len(suffix)] + suffix
        return replace(self, name=name, num_narrow_layers=choices, narrow_form=forms)

    def build(self, values: Mapping[str, Any]) -> Architecture:
        """Makes the architecture of one choice for every dimension in :attr:`dimensions`.

        Args:
            values: A choice for each dimension; a dimension of one choice may be left out. More narrow layers than
                there can be count as the largest choice that leaves a full layer.

        Raises:
            InvalidInputError: A dimension is unknown or missing, or its value is not among the choices.
        """
        for name in values:
            if name not in DIMENSIONS:
                raise unknown_name("dimension", str(name), DIMENSIONS)
        chosen = {name: self._choice(name, values) for name in DIMENSIONS}
        hidden_size, head_size = chosen["hidden_size"], chosen["head_size"]
        most = min(chosen["num_narrow_layers"], chosen["num_layers"] - 1)
        num_narrow_layers = next(count for count in self.num_narrow_layers if count <= most)
        return Architecture.bert(
            chosen["num_layers"],
            hidden_size,
            chosen["intermediate_size"],
            chosen["num_heads"] or hidden_size // head_size,
            head_size=head_size,
            embedding_size=chosen["embedding_size"] or hidden_size,
            num_narrow_layers=num_narrow_layers,
            narrow_form=chosen["narrow_form"] if num_narrow_layers > 1 else NARROW_FORMS[0],
        )

    def values(self, architecture: Architecture) -> dict[str, Any]:
        """The choice of each dimension in :attr:`dimensions` that :meth:`build` makes this architecture of.

        Raises:
            InvalidInputError: The architecture is not in the space; the text says why.
        """
        layers = architecture.uniform
        if layers is None:
            law = "its layers are not all alike, attention then feed-forward, and narrow from a layer on"
            raise self._not_in(architecture, law)
        if layers.num_narrow_layers == 1 and layers.is_context_first:
            raise self._not_in(architecture, "its one narrow layer computes more than the form sparse-queries needs")
        attention = layers.attention
        embedding_size = architecture.embedding_size
        if embedding_size == architecture.hidden_size and AS_HIDDEN in self.embedding_size:
            embedding_size = AS_HIDDEN
        values = {
            "num_layers": layers.num_layers,
            "hidden_size": architecture.hidden_size,
            "intermediate_size": layers.feed_forward.intermediate_size,
            "num_heads": attention.num_heads,
            "head_size": attention.head_size,
            "embedding_size": embedding_size,
            "num_narrow_layers": layers.num_narrow_layers,
            "narrow_form": layers.narrow_form if layers.num_narrow_layers > 1 else self.narrow_form[0],
        }
        if not self.num_heads:
            del values["num_heads"]
            if attention.width != architecture.hidden_size:
                raise self._not_in(architecture, f"its heads are {attention.width} wide, not as the hidden size")
        for name, value in values.items():
            if value not in getattr(self, name):
                raise self._not_in(architecture, f"{name} {value} is not among {self._listed(name)}")
        return {name: values[name] for name in self.dimensions}

    def _at(self, index: int) -> Architecture:
        widths_up_to = self._widths_up_to()
        values = {}
        for name in ("head_size", "num_heads", "intermediate_size"):
            choices = getattr(self, name)
            if choices:
                index, place = divmod(index, len(choices))
                values[name] = choices[place]
        depth_place, width = divmod(index, widths_up_to[-1])
        num_layers, num_narrow_layers, narrow_form = self._depths()[depth_place]
        hidden_place = bisect.bisect_right(widths_up_to, width)
        hidden_size = self.hidden_size[hidden_place]
        place = width - (widths_up_to[hidden_place - 1] if hidden_place else 0)
        values |= {
            "num_layers": num_layers,
            "num_narrow_layers": num_narrow_layers,
            "narrow_form": narrow_form,
            "hidden_size": hidden_size,
            "embedding_size": self.embedding_size[place],  # the last, as hidden, is out of reach where listed twice
        }
        return self.build(values)

    def mutate(self, architecture: Architecture, rng: random.Random) -> Architecture:
        """A near relative, by AutoTinyBERT's mutation (:data:`MUTATION`).

        A dimension that moves draws a step from -reach to reach, 0 included, and stays where the step leaves its
        choices. The paper's search draws again until the child is new; here a draw that changes nothing is replaced
        by a change of one dimension, so that the child always differs and the time is bounded. A space of one
        architecture gives that one back.

        Raises:
            InvalidInputError: The architecture is not in the space.
        """
        values = self.values(architecture)
        for name, choices in self.dimensions.items():
            probability, reach = MUTATION[name]
            if rng.random() < probability:
                place = choices.index(values[name]) + rng.randint(-reach, reach)
                values[name] = choices[place] if 0 <= place < len(choices) else values[name]
        child = self.build(values)
        if child != architecture:
            return child
        neighbours = self._neighbours(architecture)
        return rng.choice(neighbours) if neighbours else architecture

    def crossover(self, first: Architecture, second: Architecture, rng: random.Random) -> Architecture:
        """A child that takes each dimension from one parent or the other, each with probability one half.

        Of a deep parent's narrow layers a shallow child keeps as many as :meth:`build` lets it.

        Raises:
            InvalidInputError: A parent is not in the space.
        """
        parents = (self.values(first), self.values(second))
        return self.build({name: rng.choice(parents)[name] for name in self.dimensions})

    def smallest(self) -> Architecture:
        """The architecture that is smallest in every dimension: the fewest layers, as many of them narrow as can be."""
        return self._extreme(0, min)

    def largest(self) -> Architecture:
        """The architecture that is largest in every dimension: the most layers, as few of them narrow as can be."""
        return self._extreme(-1, max)

    def restrict(self, upper: Mapping[str, int]) -> "SearchSpace":
        """The part of the space that obeys upper bounds; it keeps its name.

        Args:
            upper: The largest value allowed for each named dimension. A bound on ``embedding_size`` drops "as hidden"
                where a hidden size left is above it, one on ``num_layers`` the numbers of narrow layers that leave no
                full one.

        Raises:
            InvalidInputError: A name is unknown, ``num_heads`` is derived, or no choice is left.
        """
        kept: dict[str, tuple[int, ...]] = {}
        for name, bound in upper.items():
            if name not in (sizes := DIMENSIONS[:-1]):
                raise unknown_name("dimension", str(name), sizes)
            if name == "num_heads" and not self.num_heads:
                raise InvalidInputError(f"num_heads is derived in {self.name!r}; bound hidden_size instead")
            if not isinstance(bound, int) or isinstance(bound, bool):
                raise InvalidInputError(f"the upper bound of {name} must be a whole number, got {shown(bound)}")
            kept[name] = tuple(choice for choice in getattr(self, name) if choice <= bound)
        if "embedding_size" in kept and (kept.get("hidden_size") or self.hidden_size)[-1] > upper["embedding_size"]:
            kept["embedding_size"] = tuple(size for size in kept["embedding_size"] if size != AS_HIDDEN)
        for name, choices in kept.items():
            if not choices:
                law = f"{name} of {self.name!r} is among {self._listed(name)}"
                raise InvalidInputError(f"{law}; an upper bound of {shown(upper[name])} leaves none")
        most = kept.get("num_layers", self.num_layers)[-1] - 1
        narrow = kept.get("num_narrow_layers", self.num_narrow_layers)
        kept["num_narrow_layers"] = tuple(count for count in narrow if count <= most)
        forms = forms_for(self.narrow_form, kept["num_narrow_layers"])
        return replace(self, narrow_form=forms, **kept)  # type: ignore[arg-type]  # every key is a dimension

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; :meth:`from_dict` restores an equal value. Of narrowing it says what there is."""
        data: dict[str, Any] = {"schema_version": SPACE_SCHEMA_VERSION, "name": self.name}
        data |= {name: list(getattr(self, name)) for name in DIMENSIONS}
        if not self.has_narrowing:
            del data["num_narrow_layers"]
        if self.narrow_form == NARROW_FORMS[:1]:
            del data["narrow_form"]
        data["num_heads"] = list(self.num_heads) or "derived"
        data["embedding_size"] = [size or "hidden" for size in self.embedding_size]
        return data

    @classmethod
    def from_dict(cls, data: object) -> "SearchSpace":
        """Reads :meth:`to_dict`'s form or the TOML file's, which the module's docstring describes.

        Raises:
            InvalidInputError: A key is unknown or missing, or a value breaks a bound.
        """
        if not isinstance(data, dict):
            raise InvalidInputError(f"a search space must be a table of keys, got {type(data).__name__}")
        for key in data:
            if key not in (known := ("schema_version", "name", *DIMENSIONS)):
                raise unknown_name("search space key", str(key), known)
        version = data.get("schema_version", SPACE_SCHEMA_VERSION)
        if version != SPACE_SCHEMA_VERSION:
            raise InvalidInputError(f"search space schema must be {SPACE_SCHEMA_VERSION}, got {shown(version)}")
        missing = {"name", *DIMENSIONS} - set(OPTIONAL) - set(data)
        if missing:
            raise InvalidInputError(f"a search space must say {', '.join(sorted(missing))}; add it")
        choices = {name: read_choices(name, data[name]) for name in DIMENSIONS if name in data}
        return cls(data["name"], **choices)

    @property
    def _num_attentions(self) -> int:
        return max(1, len(self.num_heads)) * len(self.head_size)

    def _lists_twice(self, hidden_size: int) -> bool:
        """Whether two embedding choices, "as hidden" and a number, are the same at this hidden size."""
        return AS_HIDDEN in self.embedding_size and hidden_size in self.embedding_size

    def _widths_up_to(self) -> list[int]:
        """For each hidden size, how many distinct (hidden, embedding) pairs there are up to it."""
        return list(
            itertools.accumulate(len(self.embedding_size) - self._lists_twice(size) for size in self.hidden_size)
        )

    def _depths(self) -> list[tuple[int, int, str]]:
        """The distinct numbers of layers, with how many of them are narrow and in which form."""
        return [
            (layers, narrow, form)
            for layers in self.num_layers
            for narrow in self.num_narrow_layers
            for form in (self.narrow_form if narrow > 1 else self.narrow_form[:1])
            if narrow < layers
        ]

    def _listed(self, name: str) -> str:
        return ", ".join(self.narrow_form) if name == "narrow_form" else summary(getattr(self, name), name)

    def _choice(self, name: str, values: Mapping[str, Any]) -> Any:
        choices: tuple[Any, ...] = getattr(self, name)
        if name not in values:
            if len(choices) > 1:
                raise InvalidInputError(f"values must choose {name}, one of {self._listed(name)}")
            return choices[0] if choices else 0
        value = values[name]
        if not choices:
            raise InvalidInputError(f"num_heads is derived in {self.name!r}; leave it out")
        if value not in choices:
            raise InvalidInputError(f"{name} must be among {self._listed(name)}, got {shown(value)}")
        return value

    def _neighbours(self, architecture: Architecture) -> list[Architecture]:
        """Every other architecture that one move of :data:`MUTATION` in one dimension reaches."""
        values = self.values(architecture)
        found = []
        for name, choices in self.dimensions.items():
            place, reach = choices.index(values[name]), MUTATION[name][1]
            near = choices[max(0, place - reach) : place + reach + 1]
            found += [self.build(values | {name: choice}) for choice in near]
        return [neighbour for neighbour in found if neighbour != architecture]

    def _extreme(self, place: int, pick: Callable[..., int]) -> Architecture:
        hidden_size = self.hidden_size[place]
        values = {name: choices[place] for name, choices in self.dimensions.items()}
        values["embedding_size"] = pick(self.embedding_size, key=lambda size: size or hidden_size)
        return self.build(values)

    def _not_in(self, architecture: Architecture, reason: str) -> InvalidInputError:
        return InvalidInputError(f"{architecture.key()} is not in the search space {self.name!r}: {reason}")
