"""What an architecture is: a chain of sub-layers, each with a residual around it and a layer norm behind it.

One grammar covers BERT, AutoTinyBERT (Yin et al., 2021, arXiv 2107.13686), NAS-BERT (Xu et al., 2021,
arXiv 2105.14444) and NarrowBERT (Li et al., 2023, arXiv 2301.04761)::

    Attention(num_heads, head_size)      q, k and v are num_heads * head_size wide, free of the hidden size
    FeedForward(intermediate_size)
    SepConv(kernel_size)                 depthwise separable convolution over positions
    Block(hidden_size, sublayers)        a linear map stands where two blocks of different width meet
    Architecture(embedding_size, blocks, narrow_from, precision)

Values are frozen, hashable and compare by value. Everything asked of an architecture is a function of it alone.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from search_spaces.errors import InvalidInputError, shown

SCHEMA_VERSION = 1
MAX_SIZE = 65_536
MAX_SUBLAYERS = 512
#: Number formats that a search may choose between, the one with less work first.
PRECISIONS = ("int8", "fp32")
#: How the last layers of a uniform encoder may be narrow, the form with less work first.
NARROW_FORMS = ("sparse-queries", "context-first")


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_size(name: str, value: object, maximum: int = MAX_SIZE) -> None:
    if not _is_whole(value) or not 1 <= value <= maximum:
        raise InvalidInputError(f"{name} must be a whole number from 1 to {maximum}, got {shown(value)}")


@dataclass(frozen=True, slots=True)
class Attention:
    """Multi-head self-attention whose q, k and v are ``num_heads * head_size`` wide."""

    num_heads: int
    head_size: int

    def __post_init__(self) -> None:
        _check_size("num_heads", self.num_heads)
        _check_size("head_size", self.head_size)
        _check_size("num_heads * head_size", self.width)

    @property
    def width(self) -> int:
        """Width of q, k and v together."""
        return self.num_heads * self.head_size


@dataclass(frozen=True, slots=True)
class FeedForward:
    """Two linear layers with the activation between them."""

    intermediate_size: int

    def __post_init__(self) -> None:
        _check_size("intermediate_size", self.intermediate_size)


@dataclass(frozen=True, slots=True)
class SepConv:
    """NAS-BERT's separable convolution over positions; the kernel is odd so that positions stay centred."""

    kernel_size: int

    def __post_init__(self) -> None:
        _check_size("kernel_size", self.kernel_size, 127)
        if self.kernel_size % 2 == 0:
            raise InvalidInputError(f"kernel_size must be odd, got {self.kernel_size}; nearest: {self.kernel_size + 1}")


Sublayer = Attention | FeedForward | SepConv


@dataclass(frozen=True, slots=True)
class Block:
    """A run of sub-layers of one hidden size."""

    hidden_size: int
    sublayers: tuple[Sublayer, ...]

    def __post_init__(self) -> None:
        _check_size("hidden_size", self.hidden_size)
        if not isinstance(self.sublayers, tuple) or not all(isinstance(s, Sublayer) for s in self.sublayers):
            raise InvalidInputError("sublayers must be a tuple of Attention, FeedForward and SepConv values")


@dataclass(frozen=True, slots=True)
class UniformLayers:
    """Equal layers of an attention and a feed-forward each, the last of them narrow in one of two forms.

    SparseQueries ends with whole layers that update chosen positions only; ContextFirst has the attentions of its last
    layers first, over all positions, and then their feed-forwards, over chosen ones (NarrowBERT, Li et al., 2023,
    arXiv 2301.04761).

    Attributes:
        num_layers: How many there are.
        attention: Of every layer.
        feed_forward: Of every layer.
        num_narrow_layers: How many of the last ones are narrow; at least one layer is full.
        narrow_form: One of :data:`NARROW_FORMS`; the first where no layer is narrow.
    """

    num_layers: int
    attention: Attention
    feed_forward: FeedForward
    num_narrow_layers: int = 0
    narrow_form: str = NARROW_FORMS[0]

    @property
    def num_full_layers(self) -> int:
        """How many layers update every position."""
        return self.num_layers - self.num_narrow_layers

    @property
    def is_context_first(self) -> bool:
        """Whether the attentions of its last layers stand before their feed-forwards."""
        return self.narrow_form == "context-first" and self.num_narrow_layers > 0

    @property
    def sublayers(self) -> tuple[Sublayer, ...]:
        """All sub-layers, first to last."""
        turns: tuple[Sublayer, ...] = (self.attention, self.feed_forward)
        if not self.is_context_first:
            return turns * self.num_layers
        rest = (self.attention,) * self.num_narrow_layers + (self.feed_forward,) * self.num_narrow_layers
        return turns * self.num_full_layers + rest

    @property
    def narrow_from(self) -> int | None:
        """Index of the first narrow sub-layer, or None."""
        if self.num_narrow_layers == 0:
            return None
        return 2 * self.num_full_layers + (self.num_narrow_layers if self.is_context_first else 0)

    def places(self, layer: int) -> tuple[int, int]:
        """Indices, over all sub-layers, of a layer's attention and of its feed-forward."""
        if layer < self.num_full_layers or not self.is_context_first:
            return 2 * layer, 2 * layer + 1
        place = self.num_full_layers + layer
        return place, place + self.num_narrow_layers


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of one encoder, and where a search chooses that, the number format in which it runs.

    Attributes:
        embedding_size: Width of the word, position and type tables; where it differs from the first block's
            hidden size a linear map follows the embedding's layer norm (a factorised embedding).
        blocks: At least one block; together they hold at least one sub-layer.
        narrow_from: Index, over all sub-layers, of the first one that updates chosen positions only, or None.
        precision: One of :data:`PRECISIONS`. ``int8`` says that a search chose it; weights, shapes that are timed and
            exported folders know :attr:`shape` alone.
    """

    embedding_size: int
    blocks: tuple[Block, ...]
    narrow_from: int | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        _check_size("embedding_size", self.embedding_size)
        if not isinstance(self.blocks, tuple) or not self.blocks or not all(isinstance(b, Block) for b in self.blocks):
            raise InvalidInputError("blocks must be a non-empty tuple of Block values")
        if len(self.blocks) > MAX_SUBLAYERS:
            raise InvalidInputError(f"an architecture holds at most {MAX_SUBLAYERS} blocks, got {len(self.blocks)}")
        total = sum(len(block.sublayers) for block in self.blocks)
        if not 1 <= total <= MAX_SUBLAYERS:
            raise InvalidInputError(f"an architecture holds 1 to {MAX_SUBLAYERS} sub-layers, got {total}")
        if self.narrow_from is not None:
            _check_narrowing(self.narrow_from, self.sublayers)
        if self.precision not in PRECISIONS:
            raise InvalidInputError(f"precision must be one of {', '.join(PRECISIONS)}, got {shown(self.precision)}")

    @classmethod
    def bert(
        cls,
        num_layers: int,
        hidden_size: int,
        intermediate_size: int,
        num_heads: int,
        *,
        head_size: int | None = None,
        embedding_size: int | None = None,
        num_narrow_layers: int = 0,
        narrow_form: str = NARROW_FORMS[0],
    ) -> "Architecture":
        """The everyday case: ``num_layers`` equal layers of attention and feed-forward.

        Args:
            num_layers: Number of layers, each an attention and a feed-forward sub-layer.
            hidden_size: Width of the residual stream.
            intermediate_size: Width between the two feed-forward layers.
            num_heads: Attention heads a layer.
            head_size: Width of a head; by default ``hidden_size / num_heads``.
            embedding_size: Width of the embedding tables; by default ``hidden_size``.
            num_narrow_layers: How many of the last layers are narrow.
            narrow_form: How they are, one of :data:`NARROW_FORMS`; see :class:`UniformLayers`.

        Raises:
            InvalidInputError: A size is out of bounds, ``hidden_size`` does not divide into the heads, or the form is
                not known.
        """
        _check_size("num_layers", num_layers, MAX_SUBLAYERS // 2)
        _check_size("num_heads", num_heads)
        _check_size("hidden_size", hidden_size)
        if head_size is None:
            if hidden_size % num_heads:
                raise InvalidInputError(
                    "hidden_size must divide into num_heads when head_size is not given, "
                    f"got {hidden_size} and {num_heads}"
                )
            head_size = hidden_size // num_heads
        if not _is_whole(num_narrow_layers) or not 0 <= num_narrow_layers < num_layers:
            raise InvalidInputError(
                f"num_narrow_layers must be from 0 to {num_layers - 1}, got {shown(num_narrow_layers)}"
            )
        if narrow_form not in NARROW_FORMS:
            raise InvalidInputError(f"narrow_form must be one of {', '.join(NARROW_FORMS)}, got {shown(narrow_form)}")
        attention, feed_forward = Attention(num_heads, head_size), FeedForward(intermediate_size)
        layers = UniformLayers(num_layers, attention, feed_forward, num_narrow_layers, narrow_form)
        return cls(
            embedding_size=hidden_size if embedding_size is None else embedding_size,
            blocks=(Block(hidden_size, layers.sublayers),),
            narrow_from=layers.narrow_from,
        )

    @property
    def shape(self) -> "Architecture":
        """The architecture without the choice of a number format."""
        return self if self.precision == "fp32" else replace(self, precision="fp32")

    @property
    def sublayers(self) -> tuple[Sublayer, ...]:
        """All sub-layers, first to last."""
        return tuple(sublayer for block in self.blocks for sublayer in block.sublayers)

    @property
    def hidden_size(self) -> int:
        """Width of the last hidden state."""
        return self.blocks[-1].hidden_size

    @property
    def uniform(self) -> UniformLayers | None:
        """What its layers are where they are all alike, in one block; else None."""
        chain, narrow_from = self.sublayers, self.narrow_from
        if len(self.blocks) != 1 or len(chain) % 2:
            return None
        attention, feed_forward = chain[0], chain[1]
        if not isinstance(attention, Attention) or not isinstance(feed_forward, FeedForward):
            return None
        num_layers, num_narrow = len(chain) // 2, len(chain) - (len(chain) if narrow_from is None else narrow_from)
        for form, num_narrow_layers in zip(NARROW_FORMS, (num_narrow // 2, num_narrow), strict=True):
            layers = UniformLayers(num_layers, attention, feed_forward, num_narrow_layers, form)
            if num_narrow_layers < num_layers and (layers.sublayers, layers.narrow_from) == (chain, narrow_from):
                return layers
        return None

    @property
    def num_layers(self) -> int:
        """Number of (attention, feed-forward) layers, counted as attention sub-layers."""
        return sum(isinstance(sublayer, Attention) for sublayer in self.sublayers)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; :meth:`from_dict` restores an equal value. Of fp32 it says nothing."""
        data: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "embedding_size": self.embedding_size,
            "blocks": [
                {"hidden_size": block.hidden_size, "sublayers": [_sublayer_to_dict(s) for s in block.sublayers]}
                for block in self.blocks
            ],
            "narrow_from": self.narrow_from,
        }
        return data if self.precision == "fp32" else data | {"precision": self.precision}

    @classmethod
    def from_dict(cls, data: object) -> "Architecture":
        """Reads :meth:`to_dict`'s form.

        Raises:
            InvalidInputError: The data is of another schema or breaks a bound.
        """
        names = {"schema_version", "embedding_size", "blocks", "narrow_from"}
        chosen = {"precision"} if isinstance(data, dict) and "precision" in data else set()
        fields = _fields("architecture", data, names | chosen)
        if fields["schema_version"] != SCHEMA_VERSION:
            raise InvalidInputError(
                f"architecture schema must be {SCHEMA_VERSION}, got {shown(fields['schema_version'])}"
            )
        if not isinstance(fields["blocks"], list):
            raise InvalidInputError("an architecture's blocks must be a list")
        blocks = []
        for entry in fields["blocks"]:
            block = _fields("block", entry, {"hidden_size", "sublayers"})
            if not isinstance(block["sublayers"], list):
                raise InvalidInputError("a block's sublayers must be a list")
            blocks.append(Block(block["hidden_size"], tuple(_sublayer_from_dict(s) for s in block["sublayers"])))
        return cls(fields["embedding_size"], tuple(blocks), fields["narrow_from"], fields.get("precision", "fp32"))

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Architecture":
        """Reads :meth:`to_json`'s form; raises InvalidInputError where it is not one."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"an architecture must be JSON: {error}") from error
        return cls.from_dict(data)

    def key(self) -> str:
        """A stable name: readable where the layers are equal, with a digest otherwise, e.g. ``L3-D256-F1024-H8x32``."""
        if self.precision != "fp32":
            return f"{self.shape.key()}-{self.precision}"
        layers = self.uniform
        if layers is None:
            digest = hashlib.sha256(self.to_json().encode()).hexdigest()[:12]
            return f"chain{len(self.sublayers)}-D{self.hidden_size}-{digest}"
        name = (
            f"L{layers.num_layers}-D{self.hidden_size}-F{layers.feed_forward.intermediate_size}"
            f"-H{layers.attention.num_heads}x{layers.attention.head_size}"
        )
        if self.embedding_size != self.hidden_size:
            name += f"-E{self.embedding_size}"
        form = "C" if layers.is_context_first else "N"
        return name if self.narrow_from is None else f"{name}-{form}{self.narrow_from}"


def _check_narrowing(narrow_from: object, chain: tuple[Sublayer, ...]) -> None:
    if not _is_whole(narrow_from) or not 1 <= narrow_from < len(chain):
        law = f"an index from 1 to {len(chain) - 1}" if len(chain) > 1 else "left out where there is one sub-layer"
        raise InvalidInputError(f"narrow_from must be None or {law}, got {shown(narrow_from)}")
    if any(isinstance(sublayer, SepConv) for sublayer in chain[narrow_from:]):
        raise InvalidInputError(
            "a narrow sub-layer cannot be a convolution: it needs the neighbours that narrowing drops"
        )


def _sublayer_to_dict(sublayer: Sublayer) -> dict[str, Any]:
    match sublayer:
        case Attention(num_heads, head_size):
            return {"kind": "attention", "num_heads": num_heads, "head_size": head_size}
        case FeedForward(intermediate_size):
            return {"kind": "feed_forward", "intermediate_size": intermediate_size}
        case SepConv(kernel_size):
            return {"kind": "sep_conv", "kernel_size": kernel_size}


def _sublayer_from_dict(data: object) -> Sublayer:
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind == "attention":
        fields = _fields("attention", data, {"kind", "num_heads", "head_size"})
        return Attention(fields["num_heads"], fields["head_size"])
    if kind == "feed_forward":
        return FeedForward(_fields("feed_forward", data, {"kind", "intermediate_size"})["intermediate_size"])
    if kind == "sep_conv":
        return SepConv(_fields("sep_conv", data, {"kind", "kernel_size"})["kernel_size"])
    raise InvalidInputError(f"a sub-layer's kind must be attention, feed_forward or sep_conv, got {shown(kind)}")


def _fields(what: str, data: object, names: set[str]) -> dict[str, Any]:
    if not isinstance(data, dict) or set(data) != names:
        found = shown(list(data)) if isinstance(data, dict) else type(data).__name__
        raise InvalidInputError(f"{what} must hold exactly {sorted(names)}, got {found}")
    return data


@dataclass(frozen=True, slots=True)
class TextSpec:
    """What an encoder reads: the facts of a tokenizer and its tables that no search changes.

    Attributes:
        vocab_size: Rows of the word table.
        max_positions: Rows of the position table; the longest text in tokens.
        type_vocab_size: Rows of the token type table.
        pad_token_id: Id that fills a batch up.
        hidden_act: Activation of feed-forward sub-layers, in Hugging Face's names.
        layer_norm_eps: Epsilon of every layer norm.
    """

    vocab_size: int = 30_522
    max_positions: int = 512
    type_vocab_size: int = 2
    pad_token_id: int = 0
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        _check_size("vocab_size", self.vocab_size, 4_000_000)
        _check_size("max_positions", self.max_positions)
        _check_size("type_vocab_size", self.type_vocab_size, 64)
        if not _is_whole(self.pad_token_id) or not 0 <= self.pad_token_id < self.vocab_size:
            raise InvalidInputError(
                f"pad_token_id must be from 0 to {self.vocab_size - 1}, got {shown(self.pad_token_id)}"
            )
        if self.hidden_act not in ("gelu", "relu"):
            raise InvalidInputError(f"hidden_act must be gelu or relu, got {shown(self.hidden_act)}")
        if not isinstance(self.layer_norm_eps, float) or not 0 < self.layer_norm_eps < 1:
            raise InvalidInputError(f"layer_norm_eps must be between 0 and 1, got {shown(self.layer_norm_eps)}")
