"""An encoder, or a task model, as a folder that Hugging Face Transformers and sentence-transformers load.

Where the shape allows it the folder names a stock class and needs no code of ours: ``BertModel``, or ``ElectraModel``
where the embedding is factorised, and with a head ``BertForSequenceClassification`` and its like. Other shapes take
``modeling_chain_encoder.py`` along. The files are data, written as such: no model is instantiated, so that
transformers, slow to import, is not needed here.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from nas.export.task_head import TaskHead, stock_activation
from search_spaces.architecture import Architecture, TextSpec
from search_spaces.errors import InvalidInputError

if TYPE_CHECKING:
    from supernet.pooling import Pooling

ModelClass = Literal[
    "BertModel",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "ElectraModel",
    "ElectraForSequenceClassification",
    "ElectraForTokenClassification",
    "ChainEncoderModel",
    "ChainEncoderForSequenceClassification",
    "ChainEncoderForTokenClassification",
]

MODELING_FILE = Path(__file__).with_name("modeling_chain_encoder.py")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_LOCAL_KEYS = ("name_or_path", "_name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file")
_TABLES = {"word": "word_embeddings", "position": "position_embeddings", "token_type": "token_type_embeddings"}
_PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}


def model_class(architecture: Architecture, head: TaskHead | None = None) -> ModelClass:
    """Names the Hugging Face class that an architecture, with a task's head on it, is exported as."""
    family, layers = "ChainEncoder", architecture.uniform
    if layers and layers.attention.width == architecture.hidden_size and not layers.num_narrow_layers:
        family = "Bert" if architecture.embedding_size == architecture.hidden_size else "Electra"
    if head is None:
        return f"{family}Model"  # type: ignore[return-value]  # the three that end so
    if head.spec.kind == "tagging":
        return f"{family}ForTokenClassification"  # type: ignore[return-value]
    is_stock = head.pooling == "first" and head.activation == stock_activation(architecture)
    return f"{family if is_stock else 'ChainEncoder'}ForSequenceClassification"  # type: ignore[return-value]


def is_stock(kind: ModelClass) -> bool:
    """Whether a class comes with Transformers, so that a folder needs no code of ours."""
    return not kind.startswith("ChainEncoder")


def auto_class(kind: ModelClass) -> str:
    """The class of Transformers that opens a folder, e.g. ``AutoModelForSequenceClassification``."""
    return "AutoModel" if kind.endswith("Model") else f"AutoModelFor{kind.partition('For')[2]}"


def hub_config(architecture: Architecture, text: TextSpec, head: TaskHead | None = None) -> dict[str, Any]:
    """Builds the content of ``config.json``."""
    kind = model_class(architecture, head)
    config: dict[str, Any] = {
        "architectures": [kind],
        "dtype": "float32",
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.max_positions,
        "type_vocab_size": text.type_vocab_size,
        "pad_token_id": text.pad_token_id,
        "hidden_act": text.hidden_act,
        "layer_norm_eps": text.layer_norm_eps,
        "hidden_size": architecture.hidden_size,
    }
    if not kind.startswith("Bert"):
        config["embedding_size"] = architecture.embedding_size
    if head is not None:
        config |= head.spec.to_config()
    if not is_stock(kind):
        stem = MODELING_FILE.stem
        auto_map = {"AutoConfig": f"{stem}.ChainEncoderConfig", auto_class(kind): f"{stem}.{kind}"}
        if head is not None:
            config |= {"head_pooling": head.pooling, "head_act": head.activation}
        return config | {
            "model_type": "chain_encoder",
            "auto_map": auto_map,
            "blocks": architecture.to_dict()["blocks"],
            "narrow_from": architecture.narrow_from,
        }
    layers = architecture.uniform
    assert layers is not None
    return config | {
        "model_type": "bert" if kind.startswith("Bert") else "electra",
        "num_hidden_layers": layers.num_layers,
        "num_attention_heads": layers.attention.num_heads,
        "intermediate_size": layers.feed_forward.intermediate_size,
    }


def hub_weights(
    architecture: Architecture, weights: Mapping[str, NDArray[np.float32]], head: TaskHead | None = None
) -> dict[str, NDArray[np.float32]]:
    """Renames an encoder's weights, and its head's, to the names of its Hugging Face class.

    BertModel has a pooler that an encoder lacks; it gets the identity, so that loading warns of nothing, gives the same
    model each time, and ``pooler_output`` is the tanh of the first token's state. In a task model the pooler is the
    head's ``dense``.
    """
    kind = model_class(architecture, head)
    prefix = {"B": "bert.", "E": "electra.", "C": "encoder."}[kind[0]] if head is not None else ""
    named = weights if not is_stock(kind) else {_stock_name(name): array for name, array in weights.items()}
    renamed = {f"{prefix}{name}": array for name, array in named.items()}
    if head is None:
        if kind == "BertModel":
            renamed["pooler.dense.weight"] = np.eye(architecture.hidden_size, dtype=np.float32)
            renamed["pooler.dense.bias"] = np.zeros(architecture.hidden_size, dtype=np.float32)
        return renamed
    assert head.weights is not None
    parts = {"dense": "head.dense", "out": "head.out"}
    if is_stock(kind):
        parts = {"dense": "bert.pooler.dense", "out": "classifier"}
        if kind == "ElectraForSequenceClassification":
            parts = {"dense": "classifier.dense", "out": "classifier.out_proj"}
    for name, array in head.weights.items():
        part, _, end = name.rpartition(".")
        renamed[f"{parts[part]}.{end}"] = array
    return renamed


def write_folder(
    folder: Path,
    architecture: Architecture,
    text: TextSpec,
    weights: Mapping[str, NDArray[np.float32]],
    tokenizer_dir: Path,
    head: TaskHead | None = None,
) -> None:
    """Writes config, weights and tokenizer into a folder.

    Args:
        folder: An existing folder.
        architecture: The encoder's shape.
        text: What it reads.
        weights: Its weights by the names of ``supernet.encoder.Encoder``.
        tokenizer_dir: A Hugging Face tokenizer's folder.
        head: Of a task model; None for an encoder.

    Raises:
        InvalidInputError: The tokenizer is missing, broken, or knows more tokens than the word table has rows.
    """
    copy_tokenizer(tokenizer_dir, folder, text)
    _write_json(folder / "config.json", hub_config(architecture, text, head))
    arrays = {name: np.ascontiguousarray(array) for name, array in hub_weights(architecture, weights, head).items()}
    # Serialised first and then written, so that a full disk is an OSError and not an error of safetensors' own.
    (folder / "model.safetensors").write_bytes(save(arrays, metadata={"format": "pt"}))
    if not is_stock(model_class(architecture, head)):
        shutil.copyfile(MODELING_FILE, folder / MODELING_FILE.name)


def write_sentence_transformers(folder: Path, architecture: Architecture, text: TextSpec, pooling: "Pooling") -> None:
    """Writes into an encoder's folder what sentence-transformers reads: which state stands for a text."""
    # The long-standing type names and keys: old and new sentence-transformers read them.
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"))
    _write_json(
        folder / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(modules)
        ],
    )
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": text.max_positions, "do_lower_case": False})
    (folder / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": pooling == "first", "pooling_mode_mean_tokens": pooling == "mean"}
    _write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": architecture.hidden_size, **modes})


def copy_tokenizer(tokenizer_dir: Path, folder: Path, text: TextSpec) -> None:
    """Copies a tokenizer's files, without fixed padding and truncation, local paths, or a length the tables lack.

    Raises:
        InvalidInputError: The tokenizer is missing, broken, or knows more tokens than the word table has rows.
    """
    files = [tokenizer_dir / name for name in _TOKENIZER_FILES if (tokenizer_dir / name).is_file()]
    if not any(file.name in ("tokenizer.json", "vocab.txt") for file in files):
        raise InvalidInputError(f"{tokenizer_dir} must hold a tokenizer (tokenizer.json or vocab.txt); give its folder")
    for file in files:
        shutil.copyfile(file, folder / file.name)
    if (folder / "tokenizer.json").is_file():
        tokenizer = _read_json(folder / "tokenizer.json", tokenizer_dir)
        _check_vocabulary(_num_tokens(tokenizer), text, tokenizer_dir)
        if tokenizer.get("padding") or tokenizer.get("truncation"):
            _write_json(folder / "tokenizer.json", tokenizer | {"padding": None, "truncation": None}, indent=None)
    else:
        lines = (folder / "vocab.txt").read_bytes().splitlines()
        _check_vocabulary(len(lines), text, tokenizer_dir)
    config_file = folder / "tokenizer_config.json"
    config = _read_json(config_file, tokenizer_dir) if config_file.is_file() else {}
    length = config.get("model_max_length")
    usable = length if isinstance(length, int) and 0 < length < text.max_positions else text.max_positions
    known = {key: value for key, value in config.items() if key not in _LOCAL_KEYS}
    known.setdefault(
        "tokenizer_class", "BertTokenizer" if (folder / "vocab.txt").is_file() else "PreTrainedTokenizerFast"
    )
    _write_json(config_file, known | {"model_max_length": usable})


def _num_tokens(tokenizer: Mapping[str, Any]) -> int:
    """Counts the rows that a tokenizer.json's ids need."""
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    return max([*ids, *(token["id"] for token in tokenizer.get("added_tokens") or ())], default=-1) + 1


def _check_vocabulary(num_tokens: int, text: TextSpec, tokenizer_dir: Path) -> None:
    if not 1 <= num_tokens <= text.vocab_size:
        raise InvalidInputError(
            f"a tokenizer may know 1 to {text.vocab_size} tokens (the word table's rows), got {num_tokens} in "
            f"{tokenizer_dir}; give the tokenizer the encoder was trained with"
        )


def _stock_name(name: str) -> str:
    """Translates a weight's name: ``blocks.0.sublayers.3.up.bias`` is ``encoder.layer.1.intermediate.dense.bias``."""
    match name.split("."):
        case ["embeddings", "norm", end]:
            return f"embeddings.LayerNorm.{end}"
        case ["embeddings", "project", end]:
            return f"embeddings_project.{end}"
        case ["embeddings", table, end]:
            return f"embeddings.{_TABLES[table]}.{end}"
        case [_, _, _, place, "norm", end]:
            layer, is_feed_forward = divmod(int(place), 2)
            owner = "output" if is_feed_forward else "attention.output"
            return f"encoder.layer.{layer}.{owner}.LayerNorm.{end}"
        case [_, _, _, place, part, end]:
            return f"encoder.layer.{int(place) // 2}.{_PARTS[part]}.{end}"
    raise AssertionError(f"no stock name for {name}")


def _read_json(path: Path, source: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInputError(f"{source / path.name} must be JSON: {error}; give an intact tokenizer") from error
    if not isinstance(data, dict):
        raise InvalidInputError(f"{source / path.name} must hold a JSON object; give an intact tokenizer")
    return data


def _write_json(path: Path, data: object, *, indent: int | None = 2) -> None:
    path.write_text(json.dumps(data, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
