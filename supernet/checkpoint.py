"""The folder of a supernet: what it is, its weights, its tokenizer, and what its quality is judged on.

supernet.json            schema, space, text, table size, what trained it (data only, validated)
part-1/ part-2/ ...      instead of weights, where the space is partitioned: each part's own supernet folder
weights.safetensors      float32, or compact: matrices as int8 with a float16 scale per 64 columns, the rest float16
reference.safetensors    held-out tokens and the teacher's pooled states for them
tokenizer/               a Hugging Face fast tokenizer
blocks.json              of a chain supernet: the blocks it can be assembled from, see supernet.block_table
README.md                the card
training/                checkpoints of a run, see supernet.runlog
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from search_spaces.architecture import TextSpec
from search_spaces.chain_space import ChainSpace
from search_spaces.errors import InvalidInputError
from search_spaces.files import expanded, write_atomic
from search_spaces.space import SearchSpace
from search_spaces.spaces import Space
from supernet.chain_supernet import ChainSupernet, ChainSupernetConfig
from supernet.model import Supernet, SupernetConfig
from supernet.partitions import PartitionedSupernet, part_folder
from supernet.teacher import weights_digest

SCHEMA_VERSION = 1
GROUP = 64
WeightFormat = Literal["float32", "compact"]
SHIPPED = Path(__file__).parent / "shipped"
MAX_JSON_BYTES = 4_000_000
MAX_PARTS = 64
AnySupernet = Supernet | PartitionedSupernet | ChainSupernet


@dataclass(frozen=True)
class Reference:
    """What quality is judged on: held-out text and what the teacher makes of it.

    Attributes:
        input_ids: Token ids, shape (M, T).
        attention_mask: 1 where a token is real, shape (M, T).
        teacher_pooled: The teacher's mean-pooled last hidden states, shape (M, D), float32.
    """

    input_ids: Tensor
    attention_mask: Tensor
    teacher_pooled: Tensor


@dataclass(frozen=True)
class LoadedSupernet:
    """A supernet folder, read.

    Attributes:
        folder: Where it was read from.
        supernet: The weights, in evaluation mode.
        reference: What its quality is judged on; None where it was trained without a teacher.
        training: Facts about its training, for cards and reports.
    """

    folder: Path
    supernet: AnySupernet
    reference: Reference | None
    training: Mapping[str, Any]

    @property
    def space(self) -> Space:
        """The architectures it holds."""
        return self.supernet.config.space

    @property
    def text(self) -> TextSpec:
        """What it reads."""
        return self.supernet.config.text

    @property
    def tokenizer_dir(self) -> Path:
        """Folder of its tokenizer."""
        return self.folder / "tokenizer"

    @property
    def digest(self) -> str:
        """A stable name of its weights: the first 16 hexadecimal digits of their SHA-256."""
        return weights_digest(self.supernet)[:16]


def config_to_dict(config: SupernetConfig | ChainSupernetConfig) -> dict[str, Any]:
    """A JSON-ready form of a supernet's shape; that of a chain supernet says so under ``kind``."""
    common = {"space": config.space.to_dict(), "text": asdict(config.text), "table_size": config.table_size}
    if isinstance(config, ChainSupernetConfig):
        return {"kind": "chain", **common, "teacher_size": config.teacher_size}
    return {**common, "layer_selection": config.layer_selection, "has_mlm_head": config.has_mlm_head}


def config_from_dict(data: object) -> SupernetConfig | ChainSupernetConfig:
    """Reads :func:`config_to_dict`'s form.

    Raises:
        InvalidInputError: A field is missing, unknown or out of bounds.
    """
    names = {"space", "text", "table_size"}
    is_chain = isinstance(data, dict) and data.get("kind") == "chain"
    names |= {"kind", "teacher_size"} if is_chain else {"layer_selection", "has_mlm_head"}
    if not isinstance(data, dict) or set(data) != names:
        raise InvalidInputError(f"a supernet's shape must hold exactly {sorted(names)}")
    text = data["text"]
    if not isinstance(text, dict) or set(text) != {field.name for field in fields(TextSpec)}:
        raise InvalidInputError("a supernet's text must hold exactly the fields of a TextSpec")
    for name in {"table_size", "teacher_size"} & names:
        if not isinstance(data[name], int) or not 1 <= data[name] <= 65_536:
            raise InvalidInputError(f"{name} must be a whole number from 1 to 65536, got {data[name]!r}")
    try:
        text_spec = TextSpec(**text)
    except TypeError as error:
        raise InvalidInputError(f"a supernet's text is not valid: {error}") from error
    if is_chain:
        space = ChainSpace.from_dict(data["space"])
        return ChainSupernetConfig(space, text_spec, data["table_size"], data["teacher_size"])
    if not isinstance(data["has_mlm_head"], bool):
        raise InvalidInputError(f"has_mlm_head must be true or false, got {data['has_mlm_head']!r}")
    return SupernetConfig(
        SearchSpace.from_dict(data["space"]),
        text_spec,
        data["table_size"],
        data["layer_selection"],
        data["has_mlm_head"],
    )


def save_supernet(
    folder: Path,
    supernet: AnySupernet,
    *,
    reference: Reference | None,
    training: Mapping[str, Any],
    weight_format: WeightFormat = "float32",
) -> None:
    """Writes a supernet's weights, reference and description.

    ``supernet.json`` goes first and comes last, so that a torn save is no supernet.

    Raises:
        InvalidInputError: The folder cannot be written.
    """
    (folder / "supernet.json").unlink(missing_ok=True)
    parts = list(supernet.each()) if isinstance(supernet, PartitionedSupernet) else []
    for place, part in enumerate(parts, 1):
        save_supernet(
            part_folder(folder, place), part, reference=reference, training=training, weight_format=weight_format
        )
    if not parts:
        state = {name: tensor.detach().cpu().float().contiguous() for name, tensor in supernet.state_dict().items()}
        stored = compact(state) if weight_format == "compact" else state
        write_atomic(folder / "weights.safetensors", safetensors.torch.save(stored))
    if reference is not None:
        tensors = {
            "input_ids": reference.input_ids.to(torch.int32),
            "attention_mask": reference.attention_mask.to(torch.uint8),
            "teacher_pooled": reference.teacher_pooled.to(torch.float16),
        }
        write_atomic(folder / "reference.safetensors", safetensors.torch.save(tensors))
    description = {
        "schema_version": SCHEMA_VERSION,
        "weight_format": weight_format,
        "config": config_to_dict(supernet.config),
        "has_reference": reference is not None,
        "training": dict(training),
    } | ({"num_parts": len(parts)} if parts else {})
    write_atomic(folder / "supernet.json", json.dumps(description, indent=2) + "\n")


def load_supernet(folder: Path | None = None) -> LoadedSupernet:
    """Reads a supernet folder.

    Args:
        folder: Where it is; None for the one that ships with the project.

    Raises:
        InvalidInputError: It is absent, truncated, of another schema, or its weights are not those of its space.
    """
    folder = SHIPPED if folder is None else expanded(folder)
    data = _read_description(folder)
    supernet = _read_supernet(folder, data)
    supernet.eval().requires_grad_(False)
    reference = _read_reference(folder, supernet) if data["has_reference"] else None
    return LoadedSupernet(folder, supernet, reference, data["training"])


def _read_supernet(folder: Path, data: Mapping[str, Any]) -> AnySupernet:
    config = config_from_dict(data["config"])
    if "num_parts" in data:
        parts = [load_supernet(part_folder(folder, place)).supernet for place in range(1, data["num_parts"] + 1)]
        if isinstance(config, ChainSupernetConfig) or not all(isinstance(part, Supernet) for part in parts):
            raise InvalidInputError(f"the parts in {folder} must be whole supernets of uniform spaces; restore it")
        return PartitionedSupernet(config, [part for part in parts if isinstance(part, Supernet)])
    supernet = ChainSupernet(config) if isinstance(config, ChainSupernetConfig) else Supernet(config)
    state = read_tensors(folder / "weights.safetensors")
    if data["weight_format"] == "compact":
        state = expand(state)
    load_state(supernet, state, folder)
    return supernet


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / "supernet.json"
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InvalidInputError(f"{path} is larger than {MAX_JSON_BYTES} bytes: not a supernet's description")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(
            f"{folder} is not a supernet folder: supernet.json cannot be read ({error.strerror}); "
            "train one with `nas train` or leave --supernet out to use the one that ships"
        ) from error
    except ValueError as error:
        raise InvalidInputError(f"{path} is damaged: {error}; train again or restore the folder") from error
    names = {"schema_version", "weight_format", "config", "has_reference", "training"}
    if not isinstance(data, dict) or set(data) - {"num_parts"} != names or data["schema_version"] != SCHEMA_VERSION:
        raise InvalidInputError(f"{path} must be a supernet description of schema {SCHEMA_VERSION}")
    if data["weight_format"] not in ("float32", "compact") or not isinstance(data["training"], dict):
        raise InvalidInputError(f"{path} is damaged: weight_format or training is not valid; restore the folder")
    if not isinstance(data.get("num_parts", 2), int) or not 2 <= data.get("num_parts", 2) <= MAX_PARTS:
        raise InvalidInputError(f"{path} is damaged: num_parts must be from 2 to {MAX_PARTS}; restore the folder")
    return data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file.

    Raises:
        InvalidInputError: It is absent, truncated or not a safetensors file.
    """
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise InvalidInputError(f"{path} is missing or damaged ({error}); restore it or train again") from error
    return tensors


def load_state(module: torch.nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    """Loads weights into a module; every name, shape and value is checked.

    Raises:
        InvalidInputError: A name or shape differs, or a value is not finite.
    """
    expected = module.state_dict()
    if set(state) != set(expected):
        differing = sorted(set(state) ^ set(expected))[0]
        raise InvalidInputError(f"the weights in {folder} belong to another space: {differing!r} does not match")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise InvalidInputError(
                f"the weights in {folder} belong to another space: {name} must be {tuple(expected[name].shape)}, "
                f"got {tuple(tensor.shape)}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidInputError(f"the weights in {folder} are damaged: {name} holds values that are not finite")
    module.load_state_dict(dict(state))


def _read_reference(folder: Path, supernet: AnySupernet) -> Reference:
    tensors = read_tensors(folder / "reference.safetensors")
    if set(tensors) != {"input_ids", "attention_mask", "teacher_pooled"}:
        raise InvalidInputError(
            f"{folder / 'reference.safetensors'} does not hold a reference; restore it or train again"
        )
    ids, mask, pooled = tensors["input_ids"].long(), tensors["attention_mask"].long(), tensors["teacher_pooled"].float()
    text = supernet.config.text
    valid = ids.ndim == 2 and ids.shape == mask.shape and pooled.ndim == 2 and len(pooled) == len(ids) > 1
    if not valid or ids.shape[1] > text.max_positions or int(ids.min()) < 0 or int(ids.max()) >= text.vocab_size:
        raise InvalidInputError(
            f"{folder / 'reference.safetensors'} does not fit the supernet; restore it or train again"
        )
    return Reference(ids, mask, pooled)


def compact(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stores matrices as int8 with one float16 scale per row and 64 columns, everything else as float16."""
    stored = {}
    for name, tensor in state.items():
        if tensor.ndim != 2 or tensor.shape[1] % GROUP or tensor.numel() < 65_536 or name.startswith("embeddings.proj"):
            stored[name] = tensor.to(torch.float16)
            continue
        grouped = tensor.view(tensor.shape[0], -1, GROUP)
        scale = (grouped.abs().amax(-1, keepdim=True) / 127).to(torch.float16)
        rounded = torch.round(grouped / scale.float().clamp(min=1e-8)).clamp(-127, 127)
        stored[f"{name}.int8"] = rounded.to(torch.int8).view(tensor.shape).contiguous()
        stored[f"{name}.scale"] = scale.squeeze(-1).contiguous()
    return stored


def expand(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undoes :func:`compact`, up to its rounding.

    Raises:
        InvalidInputError: A quantised matrix lacks its scale, or their shapes disagree.
    """
    state = {}
    for name, tensor in stored.items():
        if name.endswith(".scale") and f"{name.removesuffix('.scale')}.int8" in stored:
            continue
        if not name.endswith(".int8"):
            state[name] = tensor.float()
            continue
        base = name.removesuffix(".int8")
        scale = stored.get(f"{base}.scale")
        if scale is None or tensor.ndim != 2 or scale.shape != (tensor.shape[0], tensor.shape[1] // GROUP):
            raise InvalidInputError(
                f"the compact weights are damaged: {base} lacks a scale that fits; restore the file"
            )
        grouped = tensor.view(tensor.shape[0], -1, GROUP).float() * scale.float()[..., None]
        state[base] = grouped.view(tensor.shape)
    return state
