"""A Hugging Face encoder as teacher: loaded, converted, sorted.

The teacher becomes our own :class:`Encoder`, its hidden units, heads, head units and neurons sorted by importance
(DynaBERT, Hou et al., 2020, arXiv 2004.04037) on real text, so that leading slices keep what matters. Sorting permutes
and changes no output beyond float rounding.

Shapes: B batch, T tokens, D hidden, N heads, K head width, F feed-forward width, V vocabulary.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from search_spaces.architecture import Architecture, TextSpec
from search_spaces.errors import InvalidInputError
from search_spaces.files import expanded
from supernet.encoder import AttentionSublayer, Encoder, FeedForwardSublayer

_BERT_NAMES = {
    r"embeddings\.word_embeddings\.": "embeddings.word.",
    r"embeddings\.position_embeddings\.": "embeddings.position.",
    r"embeddings\.token_type_embeddings\.": "embeddings.token_type.",
    r"embeddings\.LayerNorm\.": "embeddings.norm.",
    r"embeddings_project\.": "embeddings.project.",
    r"encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.": r"blocks.0.sublayers.@\1.\2.",
    r"encoder\.layer\.(\d+)\.attention\.output\.dense\.": r"blocks.0.sublayers.@\1.output.",
    r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.": r"blocks.0.sublayers.@\1.norm.",
    r"encoder\.layer\.(\d+)\.intermediate\.dense\.": r"blocks.0.sublayers.#\1.up.",
    r"encoder\.layer\.(\d+)\.output\.dense\.": r"blocks.0.sublayers.#\1.down.",
    r"encoder\.layer\.(\d+)\.output\.LayerNorm\.": r"blocks.0.sublayers.#\1.norm.",
}
_DISTILBERT_NAMES = {
    r"embeddings\.word_embeddings\.": "embeddings.word.",
    r"embeddings\.position_embeddings\.": "embeddings.position.",
    r"embeddings\.LayerNorm\.": "embeddings.norm.",
    r"transformer\.layer\.(\d+)\.attention\.q_lin\.": r"blocks.0.sublayers.@\1.query.",
    r"transformer\.layer\.(\d+)\.attention\.k_lin\.": r"blocks.0.sublayers.@\1.key.",
    r"transformer\.layer\.(\d+)\.attention\.v_lin\.": r"blocks.0.sublayers.@\1.value.",
    r"transformer\.layer\.(\d+)\.attention\.out_lin\.": r"blocks.0.sublayers.@\1.output.",
    r"transformer\.layer\.(\d+)\.sa_layer_norm\.": r"blocks.0.sublayers.@\1.norm.",
    r"transformer\.layer\.(\d+)\.ffn\.lin1\.": r"blocks.0.sublayers.#\1.up.",
    r"transformer\.layer\.(\d+)\.ffn\.lin2\.": r"blocks.0.sublayers.#\1.down.",
    r"transformer\.layer\.(\d+)\.output_layer_norm\.": r"blocks.0.sublayers.#\1.norm.",
}
_MLM_NAMES = {
    r"cls\.predictions\.transform\.dense\.": "transform.",
    r"cls\.predictions\.transform\.LayerNorm\.": "norm.",
    r"cls\.predictions\.bias$": "bias",
    r"lm_head\.dense\.": "transform.",
    r"lm_head\.layer_norm\.": "norm.",
    r"lm_head\.bias$": "bias",
    r"vocab_transform\.": "transform.",
    r"vocab_layer_norm\.": "norm.",
    r"vocab_projector\.bias$": "bias",
}
_FAMILIES = {
    "bert": _BERT_NAMES,
    "electra": _BERT_NAMES,
    "roberta": _BERT_NAMES,
    "xlm-roberta": _BERT_NAMES,
    "camembert": _BERT_NAMES,
    "distilbert": _DISTILBERT_NAMES,
}
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert"}


@dataclass
class Teacher:
    """A pre-trained encoder ready to distil from.

    Attributes:
        name: The folder or hub id it came from.
        encoder: Its weights, in evaluation mode.
        mlm_head: Parameters of its masked-language head by our names, or None where it has none.
        tokenizer: Its Hugging Face fast tokenizer.
    """

    name: str
    encoder: Encoder
    mlm_head: dict[str, Tensor] | None
    tokenizer: Any


def load_teacher(name_or_path: str) -> Teacher:
    """Loads a BERT-like encoder and its tokenizer from a local folder or a hub id.

    Args:
        name_or_path: A folder with ``config.json`` and ``model.safetensors``, or a hub id.

    Raises:
        InvalidInputError: It cannot be found, is not an encoder this project can slice, or lacks a fast tokenizer.
    """
    transformers = _transformers()
    path = expanded(name_or_path)
    source = str(path) if path.is_dir() else name_or_path
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"teacher {name_or_path!r} cannot be loaded as a Hugging Face model: {_first_line(error)}; "
            "give a folder with config.json and model.safetensors, or a hub id that this machine can reach"
        ) from error
    _check_encoder(name_or_path, config)
    has_mlm = any(str(entry).endswith("ForMaskedLM") for entry in config.architectures or ())
    loader = transformers.AutoModelForMaskedLM if has_mlm else transformers.AutoModel
    try:
        model = loader.from_pretrained(source, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise InvalidInputError(
            f"the weights of teacher {name_or_path!r} cannot be read: {_first_line(error)}"
        ) from error
    encoder, mlm_head = convert(model, config)
    return Teacher(name_or_path, encoder, mlm_head, load_tokenizer(source, encoder.text))


def load_tokenizer(source: str, text: TextSpec | None = None) -> Any:
    """Loads a fast tokenizer with [CLS] and [SEP] from a folder or hub id.

    Raises:
        InvalidInputError: There is none, it is not a fast one, or its vocabulary exceeds the word table.
    """
    transformers = _transformers()
    try:
        # An empty config where the model's own is code, so that none is run, nor asked about, for a tokenizer.
        options = {"config": transformers.PretrainedConfig()} if _ships_code(Path(source)) else {}
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, use_fast=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise InvalidInputError(
            f"no tokenizer could be loaded from {source!r}: {_first_line(error)}; "
            "put tokenizer.json and tokenizer_config.json beside the model"
        ) from error
    if not getattr(tokenizer, "is_fast", False) or tokenizer.pad_token_id is None or tokenizer.cls_token_id is None:
        raise InvalidInputError(f"the tokenizer of {source!r} must be a fast one with padding, [CLS] and [SEP] tokens")
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what a missing vocabulary becomes
        raise InvalidInputError(f"the tokenizer of {source!r} has no vocabulary; put tokenizer.json beside the model")
    if text is not None and len(tokenizer) > text.vocab_size:
        raise InvalidInputError(
            f"the tokenizer knows {len(tokenizer)} tokens but the model's word table has {text.vocab_size} rows; "
            "use the tokenizer that the model was trained with"
        )
    return tokenizer


def _ships_code(folder: Path) -> bool:
    try:
        return "auto_map" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _transformers() -> Any:
    import transformers  # lazy: takes seconds and is needed only where models enter

    transformers.utils.logging.disable_progress_bar()
    return transformers


def _check_encoder(name: str, config: Any) -> None:
    family = getattr(config, "model_type", None)
    if family not in _FAMILIES or getattr(config, "is_decoder", False):
        raise InvalidInputError(
            f"teacher {name!r} must be a BERT-like encoder ({', '.join(sorted(_FAMILIES))}), got model type {family!r}"
        )
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation", None)
    if activation not in ("gelu", "relu"):
        raise InvalidInputError(f"teacher {name!r} must use gelu or relu, got {activation!r}")
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        raise InvalidInputError(f"teacher {name!r} must use absolute positions, got {config.position_embedding_type!r}")


def convert(model: Any, config: Any) -> tuple[Encoder, dict[str, Tensor] | None]:
    """Copies a Hugging Face model's weights into an Encoder, and its masked-language head if it has one."""
    family = config.model_type
    names = _FAMILIES[family]
    state = {}
    head = {}
    for name, tensor in model.state_dict().items():
        inner = re.sub(rf"^{re.escape(model.base_model_prefix)}\.", "", name)
        for pattern, replacement in names.items():
            if re.match(pattern, inner):
                renamed = re.sub(rf"^{pattern}", replacement, inner)
                renamed = re.sub(r"@(\d+)", lambda found: str(2 * int(found[1])), renamed)
                state[re.sub(r"#(\d+)", lambda found: str(2 * int(found[1]) + 1), renamed)] = tensor
        for pattern, replacement in _MLM_NAMES.items():
            if re.match(pattern, name):
                head[re.sub(rf"^{pattern}", replacement, name)] = tensor.clone()
    pad = config.pad_token_id or 0
    if family in _OFFSET_POSITIONS:  # their first real position is pad + 1
        state["embeddings.position.weight"] = state["embeddings.position.weight"][pad + 1 :]
    state.setdefault("embeddings.token_type.weight", torch.zeros(1, state["embeddings.word.weight"].shape[1]))
    encoder = Encoder(_architecture(state, config), _text(state, config, pad))
    encoder.load_state_dict(state)
    complete = {"transform.weight", "transform.bias", "norm.weight", "norm.bias", "bias"} <= set(head)
    return encoder.eval(), head if complete else None


def _architecture(state: dict[str, Tensor], config: Any) -> Architecture:
    num_layers = 1 + max(int(name.split(".")[3]) for name in state if name.startswith("blocks.")) // 2
    hidden_size = state["blocks.0.sublayers.0.query.weight"].shape[1]
    return Architecture.bert(
        num_layers,
        hidden_size,
        state["blocks.0.sublayers.1.up.weight"].shape[0],
        getattr(config, "num_attention_heads", None) or config.n_heads,
        embedding_size=state["embeddings.word.weight"].shape[1],
    )


def _text(state: dict[str, Tensor], config: Any, pad: int) -> TextSpec:
    return TextSpec(
        vocab_size=state["embeddings.word.weight"].shape[0],
        max_positions=state["embeddings.position.weight"].shape[0],
        type_vocab_size=state["embeddings.token_type.weight"].shape[0],
        pad_token_id=pad,
        hidden_act=getattr(config, "hidden_act", None) or config.activation,
        layer_norm_eps=getattr(config, "layer_norm_eps", 1e-12),
    )


@torch.no_grad()
def sort_by_importance(teacher: Teacher, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Permutes the teacher's hidden units, heads, head units and neurons, most important first.

    Hidden units rank by mean absolute activation over all layers, heads and head units by the mean size of what they
    add to the residual stream, neurons by mean activation times the norm of their outgoing weights.

    Args:
        teacher: Changed in place; its outputs stay the same up to the order of hidden units.
        batches: Pairs of input_ids and attention_mask, each (B, T), of real text.
    """
    encoder = teacher.encoder
    scores = _activation_scores(encoder, batches)
    state = encoder.state_dict()
    for name, module in encoder.named_modules():
        if isinstance(module, AttentionSublayer):
            _sort_heads(state, name, module, scores)
        elif isinstance(module, FeedForwardSublayer):
            order = _descending(scores[f"{name}.down"] * module.down.weight.norm(dim=0))
            state[f"{name}.up.weight"] = state[f"{name}.up.weight"][order]
            state[f"{name}.up.bias"] = state[f"{name}.up.bias"][order]
            state[f"{name}.down.weight"] = state[f"{name}.down.weight"][:, order]
    encoder.load_state_dict(state)
    reorder_hidden(teacher, _descending(scores["hidden"]))


@torch.no_grad()
def reorder_hidden(teacher: Teacher, hidden_order: Tensor) -> None:
    """Permutes the teacher's hidden units, in place: unit ``i`` becomes what unit ``hidden_order[i]`` was."""
    encoder = teacher.encoder
    state = encoder.state_dict()
    _sort_hidden(state, hidden_order, has_project=encoder.embeddings.project is not None)
    encoder.load_state_dict(state)
    if teacher.mlm_head is not None:
        head = teacher.mlm_head
        head["transform.weight"] = head["transform.weight"][:, hidden_order]
        if encoder.embeddings.project is None:  # the head's output meets the permuted word table
            for part in ("transform.weight", "transform.bias", "norm.weight", "norm.bias"):
                head[part] = head[part][hidden_order]


def _activation_scores(encoder: Encoder, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Mean absolute activation per unit: inputs of ``output`` and ``down``, outputs of q, k and the layer norms."""
    totals: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
    mask = torch.ones(())

    def add(name: str, activations: Tensor) -> None:
        totals[name] = totals[name] + (activations.abs() * mask).sum((0, 1))

    handles = []
    for name, module in encoder.named_modules():
        part = name.rsplit(".", 1)[-1]
        if part in ("output", "down"):
            handles.append(module.register_forward_pre_hook(lambda _, inputs, name=name: add(name, inputs[0])))
        elif part in ("query", "key"):
            handles.append(module.register_forward_hook(lambda _, inputs, output, name=name: add(name, output)))
        elif part == "norm" and name != "embeddings.norm":
            handles.append(module.register_forward_hook(lambda _, inputs, output: add("hidden", output)))
    for input_ids, attention_mask in batches:
        mask = attention_mask[..., None].float()
        encoder(input_ids, attention_mask)
    for handle in handles:
        handle.remove()
    if not totals:
        raise InvalidInputError("sorting by importance needs at least one batch of text")
    return dict(totals)


def _sort_heads(state: dict[str, Tensor], name: str, module: AttentionSublayer, scores: dict[str, Tensor]) -> None:
    num_heads, head_size = module.shape.num_heads, module.shape.head_size
    contribution = (scores[f"{name}.output"] * module.output.weight.norm(dim=0)).view(num_heads, head_size)
    agreement = (scores[f"{name}.query"] * scores[f"{name}.key"]).view(num_heads, head_size)
    heads = _descending(contribution.sum(1))
    rows = {
        part: torch.cat([head * head_size + _descending(units[head]) for head in heads])
        for part, units in (("value", contribution), ("query", agreement))
    }
    for part in ("query", "key", "value"):
        order = rows["value" if part == "value" else "query"]
        state[f"{name}.{part}.weight"] = state[f"{name}.{part}.weight"][order]
        state[f"{name}.{part}.bias"] = state[f"{name}.{part}.bias"][order]
    state[f"{name}.output.weight"] = state[f"{name}.output.weight"][:, rows["value"]]


def _sort_hidden(state: dict[str, Tensor], order: Tensor, *, has_project: bool) -> None:
    for name, tensor in state.items():
        part = name.split(".")[-2]
        if name.startswith("embeddings."):
            if has_project:
                state[name] = tensor[order] if part == "project" else tensor
            else:
                state[name] = tensor[..., order]
        elif part in ("query", "key", "value", "up") and name.endswith("weight"):
            state[name] = tensor[:, order]
        elif part in ("output", "down", "norm"):
            state[name] = tensor[order]


def _descending(scores: Tensor) -> Tensor:
    return torch.argsort(scores, descending=True, stable=True)


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 over names and bytes of all parameters: a stable name for weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
