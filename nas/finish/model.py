"""A task model: an encoder with a head, a tokenizer, and what it is asked; read from folders and written to them.

Every finishing step reads a model folder and writes one. A folder is what ``nas export`` or ``nas search`` wrote (an
encoder), what a finishing step wrote (a task model), or any BERT-like Hugging Face folder or hub id of either kind.

Shapes: B batch, T tokens, M positions that are wanted, C outputs.
"""

import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import InvalidInputError
from nas.export.card import CardFacts, ExportReport
from nas.export.export import WriteInt8, export_task_model
from nas.export.huggingface import hub_weights
from nas.export.int8 import quantize
from nas.export.task_head import Activation, Pooling
from nas.finish.exit_folder import is_adaptive
from nas.finish.heads import Head
from search_spaces.architecture import SCHEMA_VERSION, Architecture, TextSpec
from search_spaces.files import expanded
from supernet.checkpoint import load_state, read_tensors
from supernet.encoder import Encoder
from supernet.task_spec import TaskSpec
from supernet.teacher import load_teacher, load_tokenizer

_CHAIN = "chain_encoder"
_CLASSIFIERS: dict[str, tuple[str, str, Activation]] = {
    "bert": ("bert.pooler.dense", "classifier", "tanh"),
    "electra": ("classifier.dense", "classifier.out_proj", "gelu"),
    "roberta": ("classifier.dense", "classifier.out_proj", "tanh"),
    "xlm-roberta": ("classifier.dense", "classifier.out_proj", "tanh"),
    "camembert": ("classifier.dense", "classifier.out_proj", "tanh"),
    "distilbert": ("pre_classifier", "classifier", "relu"),
}


@dataclass
class LoadedEncoder:
    """An encoder without a head, read.

    Attributes:
        name: The folder or hub id.
        encoder: Its weights, in evaluation mode.
        tokenizer: Its Hugging Face fast tokenizer.
        mlm_head: Its masked-language head, by the names of ``supernet.teacher``; None where it has none.
    """

    name: str
    encoder: Encoder
    tokenizer: Any
    mlm_head: dict[str, Tensor] | None = None


class TaskModel(nn.Module):
    """An encoder with a task's head.

    Args:
        encoder: The encoder.
        head: Made for it.
        tokenizer: A Hugging Face fast tokenizer.
        name: Where the encoder came from, for cards and messages.
    """

    def __init__(self, encoder: Encoder, head: Head, tokenizer: Any, *, name: str = "") -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.tokenizer, self.name = tokenizer, name

    @property
    def spec(self) -> TaskSpec:
        """What it answers."""
        return self.head.spec

    @property
    def text(self) -> TextSpec:
        """What it reads."""
        return self.encoder.text

    @property
    def architecture(self) -> Architecture:
        """The encoder's shape."""
        return self.encoder.architecture

    def cut_at(self, seq_len: int) -> None:
        """From now on, cuts longer texts to so many tokens.

        Raises:
            InvalidInputError: The encoder reads no texts of that length.
        """
        if not 2 <= seq_len <= self.text.max_positions:
            raise InvalidInputError(
                f"seq_len must be from 2 to {self.text.max_positions}, the longest text of this model, got {seq_len}"
            )
        self.head.spec = replace(self.spec, max_tokens=seq_len, is_cut=True)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Answers a batch.

        Args:
            input_ids: Token ids, (B, T).
            attention_mask: 1 where a token is real, (B, T); all real if None.
            token_type_ids: Segments, (B, T); all 0 if None.
            positions: Tagging: the first token of each word, (B, M); None answers for every token, which an encoder
                with narrow layers cannot.

        Returns:
            Logits (B, C); of tags (B, M, C), or (B, T, C) without positions. A number is C = 1.
        """
        states = self.encoder(input_ids, attention_mask, token_type_ids, positions)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        logits: Tensor = self.head(states, attention_mask)
        return logits


def load_model(source: str | Path) -> LoadedEncoder:
    """Reads an encoder; a head that stands on it is left out.

    Args:
        source: A model folder of this project, a BERT-like Hugging Face folder, or a hub id.

    Raises:
        InvalidInputError: It is absent, damaged, or not a BERT-like encoder with a fast tokenizer.
    """
    config = read_config(source)
    if config is not None and config.get("model_type") == _CHAIN:
        folder = expanded(source)
        encoder = _chain_encoder(folder, config)
        return LoadedEncoder(str(source), encoder.eval(), load_tokenizer(str(folder), encoder.text))
    with _quiet_transformers():  # it says at length that a head was left out
        teacher = load_teacher(str(source))
    _check_complete(teacher.encoder, read_tensors(_weights_file(source)), source)
    return LoadedEncoder(str(source), teacher.encoder, teacher.tokenizer, teacher.mlm_head)


def load_task_model(source: str | Path) -> TaskModel:
    """Reads a task model.

    Args:
        source: A folder that a finishing step wrote, a BERT-like Hugging Face folder for sequence or token
            classification, or a hub id of one.

    Raises:
        InvalidInputError: It is absent, damaged, or has no head.
    """
    loaded = load_model(source)
    config = _hub_config(source)
    spec = _spec(config, source)
    tensors = read_tensors(_weights_file(source))
    family = str(config["model_type"])
    if family == _CHAIN:
        dense, out = "head.dense", "head.out"
        activation: Activation = config.get("head_act", "tanh")
        pooling: Pooling = config.get("head_pooling", "first")
        if activation not in ("tanh", "gelu", "relu") or pooling not in ("first", "mean"):
            raise InvalidInputError(f"the head of {source} is damaged: {activation!r} and {pooling!r} are not known")
    else:
        (dense, out, activation), pooling = _CLASSIFIERS[family], "first"
        out = "classifier" if spec.kind == "tagging" else out
    head = Head(spec, loaded.encoder.architecture.hidden_size, pooling=pooling, activation=activation)
    parts = {"out": out} if spec.kind == "tagging" else {"dense": dense, "out": out}
    names = {f"{ours}.{end}": f"{theirs}.{end}" for ours, theirs in parts.items() for end in ("weight", "bias")}
    missing = [theirs for theirs in names.values() if theirs not in tensors]
    if missing:
        raise InvalidInputError(f"{source} is damaged: its head lacks {missing[0]}; fine-tune it again")
    load_state(head, {ours: tensors[theirs].float() for ours, theirs in names.items()}, Path(source))
    return TaskModel(loaded.encoder, head, loaded.tokenizer, name=str(source)).eval()


def save_task_model(
    model: TaskModel,
    out: Path,
    *,
    facts: CardFacts | None = None,
    write_int8: WriteInt8 = quantize,
    add: Callable[[Path], None] = lambda folder: None,
) -> ExportReport:
    """Writes a task model as a folder: Hugging Face, ONNX in float and int8, tokenizer, card; all of it or nothing.

    It loads as stock ``BertForSequenceClassification`` and its like where the shape allows, else with the modelling
    file that is shipped in it. Every file is checked against the model.

    Args:
        model: In float32, on any device.
        out: The folder; must be absent or empty.
        facts: What is known for the card.
        write_int8: Writes the int8 file; by default activations are quantised as they come.
        add: Writes what else belongs into the folder, before it is in place.

    Raises:
        InvalidInputError: The place is occupied or cannot be written, or a weight is not finite.
        ParityError: A file does not compute what the model computes.
    """
    with tempfile.TemporaryDirectory() as tokenizer_dir:
        model.tokenizer.save_pretrained(tokenizer_dir)
        return export_task_model(
            model,
            model.encoder,
            model.head.exported(),
            Path(tokenizer_dir),
            out,
            facts=facts,
            write_int8=write_int8,
            add=add,
        )


def read_config(source: str | Path) -> dict[str, Any] | None:
    """The ``config.json`` of a local folder; None where the source is no folder.

    Raises:
        InvalidInputError: The folder holds none, or a damaged one.
    """
    folder = expanded(source)
    if not folder.is_dir():
        return None
    if is_adaptive(folder):
        raise InvalidInputError(
            f"{folder} holds a model with exits, which nas eval, nas predict and nas measure take; give the task model "
            "that the exits were taught to"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"{folder} is not a model folder: its config.json cannot be read ({error}); give a folder that nas export, "
            "nas search or nas finetune wrote, or a Hugging Face one"
        ) from error
    if not isinstance(config, dict):
        raise InvalidInputError(f"{folder / 'config.json'} must hold a JSON object; restore it")
    return config


def has_head(source: str | Path) -> bool:
    """Whether a model answers a task; one that cannot be read does not."""
    architectures = _hub_config(source).get("architectures") or [""]
    return str(architectures[0]).endswith(("ForSequenceClassification", "ForTokenClassification"))


def _hub_config(source: str | Path) -> Mapping[str, Any]:
    """The configuration of a folder or hub id as a mapping."""
    config = read_config(source)
    if config is not None:
        return config
    return json.loads(_cached(str(source), "config.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _weights_file(source: str | Path) -> Path:
    folder = expanded(source)
    return folder / "model.safetensors" if folder.is_dir() else _cached(str(source), "model.safetensors")


def _cached(hub_id: str, file: str) -> Path:
    from transformers.utils import cached_file  # lazy: takes seconds

    try:
        return Path(cached_file(hub_id, file))
    except OSError as error:
        raise InvalidInputError(
            f"{hub_id!r} is neither a folder nor a hub id with {file} that this machine can reach; give a model folder"
        ) from error


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging  # lazy: takes seconds

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_complete(encoder: Encoder, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Refuses a file that lacks weights: Transformers would make them up."""
    arrays = {name: tensor.numpy() for name, tensor in encoder.state_dict().items()}
    wanted = {name for name in hub_weights(encoder.architecture, arrays) if not name.startswith("pooler.")}
    found = {
        re.sub(r"^(bert|electra|roberta)\.", "", name).replace("LayerNorm.gamma", "LayerNorm.weight")
        for name in tensors
    }
    missing = sorted(name for name in wanted - {name.replace("LayerNorm.beta", "LayerNorm.bias") for name in found})
    if missing and not any(name.startswith("distilbert.") or "transformer.layer" in name for name in tensors):
        raise InvalidInputError(f"the weights of {source} are damaged: {missing[0]} is missing; restore the file")


def _spec(config: Mapping[str, Any], source: str | Path) -> TaskSpec:
    try:
        return TaskSpec.from_config(config)
    except (InvalidInputError, ValueError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"{source} is no task model: {error}; fine-tune it with nas finetune first") from error


def _chain_encoder(folder: Path, config: Mapping[str, Any]) -> Encoder:
    """Reads the weights of a folder with a modelling file of ours, without running that file."""
    try:
        shape = {name: config[name] for name in ("embedding_size", "blocks", "narrow_from")}
        architecture = Architecture.from_dict({"schema_version": SCHEMA_VERSION} | shape)
        text = TextSpec(
            vocab_size=config["vocab_size"],
            max_positions=config["max_position_embeddings"],
            type_vocab_size=config["type_vocab_size"],
            pad_token_id=config["pad_token_id"],
            hidden_act=config["hidden_act"],
            layer_norm_eps=config["layer_norm_eps"],
        )
    except KeyError as error:
        raise InvalidInputError(f"{folder / 'config.json'} is damaged: it lacks {error}; restore it") from error
    encoder = Encoder(architecture, text)
    tensors = read_tensors(folder / "model.safetensors")
    state = {name.removeprefix("encoder."): tensor.float() for name, tensor in tensors.items() if name[:5] != "head."}
    load_state(encoder, state, folder)
    return encoder
