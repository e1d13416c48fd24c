"""A device that is not here, known from the profile that was measured on it and carried here.

It predicts and cannot measure. What it predicts it has seen: a space or settings beyond its samples are refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from analysis.latency import Conditions
from nas.devices.fingerprint import Fingerprint
from nas.devices.predictor import LatencyPredictor
from nas.devices.profile import Profile
from nas.devices.target import Settings
from nas.errors import InvalidInputError
from search_spaces.architecture import Architecture, TextSpec
from search_spaces.chain_space import ChainSpace
from search_spaces.choices import AS_HIDDEN
from search_spaces.operations import sublayer_operations
from search_spaces.space import SearchSpace
from search_spaces.spaces import Space, space_from_dict

MAX_NAME = 200


@dataclass(frozen=True)
class CarriedProfile:
    """A device known from a profile; :meth:`read` makes one.

    Attributes:
        name: What the device is called here.
        path: The profile's file.
        profile: What it says.
    """

    name: str
    path: Path
    profile: Profile

    @classmethod
    def read(cls, name: str, path: Path) -> "CarriedProfile":
        """Reads a profile's file.

        Args:
            name: What the device shall be called.
            path: The file.

        Raises:
            InvalidInputError: The file cannot be read, or is no profile or one that breaks a bound.
        """
        try:
            carried = cls(name, path, Profile.read(path))
            _ = carried.settings, [carried.space.values(sample.architecture) for sample in carried.profile.samples]
            return carried
        except InvalidInputError as error:
            raise InvalidInputError(
                f"the profile {path} cannot be used: {error}; give a file that nas devices profile wrote"
            ) from error

    @property
    def conditions(self) -> Conditions:
        """What its predictions hold for, the device by its name here."""
        return replace(self.profile.conditions, device=self.name[-MAX_NAME:])

    @property
    def description(self) -> str:
        """The device in words."""
        return f"predicted from a profile of {self.measured_at[:10]}: {self.profile.description}"

    @property
    def measured_at(self) -> str:
        """When the last sample was taken, as ISO 8601."""
        return self.profile.measured_at

    @property
    def fingerprint(self) -> Fingerprint:
        """The facts of the device when it was measured."""
        return self.profile.fingerprint

    @property
    def space(self) -> Space:
        """What its samples come from."""
        return space_from_dict(self.profile.space)

    @property
    def settings(self) -> Settings:
        """What its samples were measured with.

        Raises:
            InvalidInputError: It cannot be asked for: the runtime or a number is none that is known here.
        """
        conditions = self.profile.conditions
        return Settings(
            runtime=conditions.runtime.partition(" ")[0],
            precision=conditions.precision,
            threads=conditions.threads,
            batch_size=conditions.batch_size,
            seq_len=conditions.seq_len,
        )

    def check(self, settings: Settings) -> None:
        """Makes sure that settings are those of the samples.

        Raises:
            InvalidInputError: They differ; the text says what the profile holds.
        """
        held, wanted = asdict(self.settings), asdict(settings)
        differing = [name for name in held if wanted[name] != held[name] and name != "cpus"]
        if settings.cpus is not None and not self.profile.conditions.device.endswith(_cores(settings.cpus)):
            differing.append("cpus")
        if differing:
            asked = ", ".join(f"{name} {_shown(wanted[name])}" for name in differing)
            holds = ", ".join(f"{name} {_shown(value)}" for name, value in held.items() if value is not None)
            raise InvalidInputError(
                f"the profile {self.path} says nothing about {asked}: it holds {holds}; ask for that, or profile the "
                "device again with nas devices profile and those settings"
            )

    def predictor(self, space: Space, text: TextSpec) -> LatencyPredictor:
        """The predictor of its samples, for a space that lies within what they span.

        Raises:
            InvalidInputError: A choice of the space lies outside, the encoders are of another kind, or a text is
                longer than they can read.
        """
        if self.conditions.seq_len > text.max_positions:
            raise InvalidInputError(
                f"the profile {self.path} is of texts of {self.conditions.seq_len} tokens, and these encoders read at "
                f"most {text.max_positions}; profile the device with --seq-len {text.max_positions}"
            )
        if self.profile.hidden_act != text.hidden_act:
            raise InvalidInputError(
                f"the profile {self.path} is of encoders with {self.profile.hidden_act}, and these have "
                f"{text.hidden_act}; profile the device with --supernet"
            )
        outside = _outside(space, self.space, [sample.architecture for sample in self.profile.samples])
        if outside:
            raise InvalidInputError(
                f"the space {space.name!r} goes beyond what the profile {self.path} was measured on ({outside}), and "
                "nothing is guessed beyond it; narrow the space, or profile the device with --space"
            )
        return replace(self.profile, conditions=self.conditions).predictor()


def check_profile_name(path: Path) -> None:
    """Checks where a profile shall be written: its ending is what tells it from a device's name.

    Raises:
        InvalidInputError: The file's name does not end in ``.json``.
    """
    if path.suffix != ".json":
        raise InvalidInputError(
            f"a profile's file must end in .json, got {str(path)!r}; name it {path.stem or path}.json"
        )


def _outside(space: Space, measured: Space, seen: Sequence[Architecture]) -> str:
    """How a space goes beyond shapes that were seen of another, in words; empty where it does not."""
    if isinstance(space, ChainSpace) and isinstance(measured, ChainSpace):
        return "; ".join(_outside_chains(space, measured, seen))
    if isinstance(space, SearchSpace) and isinstance(measured, SearchSpace):
        return "; ".join(_outside_uniform(space, seen))
    return "chains of blocks, measured only layers that are all alike, or the reverse"


def _outside_chains(space: ChainSpace, measured: ChainSpace, seen: Sequence[Architecture]) -> Iterator[str]:
    blocks = [block for architecture in seen for block in architecture.blocks if block.sublayers]
    known = {operation for block in blocks for operation in measured.operations_of(block)}
    missing = [operation for operation in sublayer_operations(space.operations) if operation not in known]
    if missing:
        yield f"{', '.join(missing)}, of which none was measured"
    if (space.head_size, space.feed_forward_ratio) != (measured.head_size, measured.feed_forward_ratio):
        yield "heads or feed-forwards of other proportions"
    embeddings = [size for choice in space.embedding_size for size in ([choice] if choice else space.hidden_size)]
    yield from _beyond("hidden_size", space.hidden_size, [block.hidden_size for block in blocks])
    yield from _beyond("embedding_size", embeddings, [architecture.embedding_size for architecture in seen])
    most = max(len(architecture.sublayers) for architecture in seen)
    yield from _beyond("sub-layers", [min(most, space.num_places), space.num_places], [1, most])


def _outside_uniform(space: SearchSpace, seen: Sequence[Architecture]) -> Iterator[str]:
    rows = [_sizes(architecture) for architecture in seen]
    for name, reach in _reach(space).items():
        yield from _beyond(name, reach, [row[name] for row in rows])
    layers = [architecture.uniform for architecture in seen]
    forms = {of.narrow_form for of in layers if of is not None and of.num_narrow_layers}
    if space.has_narrowing and (missing := [form for form in space.narrow_form if form not in forms]):
        yield f"{', '.join(missing)} layers, of which none was measured"
    widths = {heads * size for heads in space.num_heads for size in space.head_size}
    if _differ(widths, space.hidden_size) and all(
        row["num_heads"] * row["head_size"] == row["hidden_size"] for row in rows
    ):
        yield "heads that together are not as wide as the layers, measured only such as are"
    if _differ(set(space.embedding_size) - {AS_HIDDEN}, space.hidden_size) and all(
        row["embedding_size"] == row["hidden_size"] for row in rows
    ):
        yield "embeddings that are not as wide as the layers, measured only such as are"


def _beyond(name: str, asked: Sequence[int], seen: Sequence[int]) -> Iterator[str]:
    if min(asked) < min(seen) or max(asked) > max(seen):
        yield f"{name} {_range(min(asked), max(asked))}, measured {_range(min(seen), max(seen))}"


def _differ(sizes: set[int], hidden_sizes: tuple[int, ...]) -> bool:
    return any(size != hidden_size for size in sizes for hidden_size in hidden_sizes)


def _reach(space: SearchSpace) -> dict[str, tuple[int, int]]:
    """The least and the largest value of every size in a space."""
    hidden, heads = space.hidden_size, space.head_size
    counts = space.num_heads or (hidden[0] // heads[-1], hidden[-1] // heads[0])
    embeddings = [size for choice in space.embedding_size for size in ([choice] if choice else hidden)]
    return {
        "num_layers": (space.num_layers[0], space.num_layers[-1]),
        "hidden_size": (hidden[0], hidden[-1]),
        "intermediate_size": (space.intermediate_size[0], space.intermediate_size[-1]),
        "num_heads": (counts[0], counts[-1]),
        "head_size": (heads[0], heads[-1]),
        "embedding_size": (min(embeddings), max(embeddings)),
        "num_narrow_layers": (min(space.num_narrow_layers), max(space.num_narrow_layers)),
    }


def _sizes(architecture: Architecture) -> dict[str, int]:
    """A uniform encoder's sizes."""
    layers = architecture.uniform
    assert layers is not None  # it is of a uniform space
    return {
        "num_layers": layers.num_layers,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": layers.feed_forward.intermediate_size,
        "num_heads": layers.attention.num_heads,
        "head_size": layers.attention.head_size,
        "embedding_size": architecture.embedding_size,
        "num_narrow_layers": layers.num_narrow_layers,
    }


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


def _cores(cpus: tuple[int, ...]) -> str:
    return f" on cores {_shown(cpus)}"


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
