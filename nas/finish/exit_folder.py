"""The folder of a model with exits, and what its description says.

Made by ``nas exits``::

    exits.json             what it is: shape, task, halting policy (data only, validated)
    weights.safetensors    the backbone, a head for each exit and, of DACT, the gates
    exits/exit-1.onnx      for each exit the graph from where the one before left off; the first holds the embeddings
    exits/exit-1.int8.onnx the same in eight bits
    tokenizer.json         and what else a Hugging Face tokenizer has
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nas.errors import InvalidInputError
from nas.export.task_head import Activation, Pooling
from nas.finish.exit_layers import layers_of
from nas.finish.halting import Policy, policy_from_dict
from search_spaces.architecture import Architecture, TextSpec
from supernet.task_spec import TaskSpec

SCHEMA_VERSION = 1
DESCRIPTION_FILE = "exits.json"
WEIGHTS_FILE = "weights.safetensors"
EXITS_FOLDER = "exits"
#: Where a description's facts tell what its policy does on the validation split, by number format.
FACTS = {"fp32": "validation", "int8": "validation_int8"}
#: Names in an exit's graph: the states (B * T, D) that it reads and leaves, and what it answers.
STATES_NAME, NEXT_NAME, LOGITS_NAME, GATES_NAME = "states", "next_states", "logits", "gates"
MAX_JSON_BYTES = 4_000_000


@dataclass(frozen=True)
class Description:
    """What ``exits.json`` says.

    Attributes:
        architecture: The backbone's shape.
        text: What it reads.
        spec: What it answers.
        pooling: Which state stands for a text at the last exit.
        early: The same of all other exits.
        activation: Of every head.
        method: How it was trained: ``dact``, or ``joint`` for PABEE and confidence.
        tau: What a layer cost in DACT's training; None of other methods.
        num_exits: How many layers, and exits.
        policy: When it stops.
        facts: What was found out about it, for people.
    """

    architecture: Architecture
    text: TextSpec
    spec: TaskSpec
    pooling: Pooling
    early: Pooling
    activation: Activation
    method: str
    tau: float | None
    num_exits: int
    policy: Policy
    facts: Mapping[str, Any]

    def to_json(self) -> str:
        """The file's content."""
        data = {
            "schema_version": SCHEMA_VERSION,
            "architecture": self.architecture.to_dict(),
            "text": asdict(self.text),
            "task": asdict(self.spec),
            "pooling": self.pooling,
            "early": self.early,
            "activation": self.activation,
            "method": self.method,
            "tau": self.tau,
            "num_exits": self.num_exits,
            "policy": self.policy.to_dict(),
            "facts": dict(self.facts),
        }
        return json.dumps(data, indent=2, allow_nan=False) + "\n"


def is_adaptive(folder: Path) -> bool:
    """Whether a folder holds a model with exits.

    Raises:
        InvalidInputError: It cannot be looked into.
    """
    try:
        return (folder / DESCRIPTION_FILE).is_file()
    except OSError as error:
        raise InvalidInputError(
            f"cannot look into {folder}: {error.strerror}; give a folder that you may read"
        ) from error


def read_description(folder: Path) -> Description:
    """Reads what a folder of ``nas exits`` holds.

    Raises:
        InvalidInputError: It is none, or it is damaged.
    """
    path = folder / DESCRIPTION_FILE
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InvalidInputError(f"{path} is larger than {MAX_JSON_BYTES} bytes: not a description of exits")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(
            f"{folder} holds no model with exits: {DESCRIPTION_FILE} cannot be read ({error.strerror}); give a folder "
            "that nas exits made"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path} is damaged: {error}; restore it or run nas exits again") from error
    try:
        return _description(data)
    except (KeyError, TypeError, AttributeError, InvalidInputError) as error:
        reason = error if isinstance(error, InvalidInputError) else f"{type(error).__name__} {error}"
        raise InvalidInputError(f"{path} is damaged: {reason}; restore it or run nas exits again") from error


def _description(data: Any) -> Description:
    if data["schema_version"] != SCHEMA_VERSION:
        raise InvalidInputError(f"its schema must be {SCHEMA_VERSION}, got {data['schema_version']!r}")
    task, text, num_exits = data["task"], data["text"], data["num_exits"]
    architecture = Architecture.from_dict(data["architecture"])
    if num_exits != len(layers_of(architecture)):
        raise InvalidInputError(f"num_exits must be {len(layers_of(architecture))}, got {num_exits!r}")
    if set(text) != {field.name for field in fields(TextSpec)} or set(task) != {f.name for f in fields(TaskSpec)}:
        raise InvalidInputError("text and task must hold exactly the fields of a TextSpec and of a TaskSpec")
    poolings = {data["pooling"], data["early"]}
    if not poolings <= {"first", "mean"} or data["activation"] not in ("tanh", "gelu", "relu"):
        raise InvalidInputError("pooling or activation is not known")
    return Description(
        architecture,
        TextSpec(**text),
        TaskSpec(**{**task, "labels": tuple(map(str, task["labels"]))}),
        data["pooling"],
        data["early"],
        data["activation"],
        str(data["method"]),
        None if data["tau"] is None else float(data["tau"]),
        num_exits,
        policy_from_dict(data["policy"], num_exits),
        dict(data["facts"]),
    )


def exit_file(folder: Path, place: int, precision: str = "fp32") -> Path:
    """Where the graph of an exit lies, in a number format; exits are counted from 1 for people."""
    return folder / EXITS_FOLDER / f"exit-{place + 1}{'' if precision == 'fp32' else f'.{precision}'}.onnx"


def precisions_of(folder: Path, num_exits: int) -> tuple[str, ...]:
    """The number formats in which a folder holds the graphs of all its exits."""
    return tuple(
        precision
        for precision in FACTS
        if all(exit_file(folder, place, precision).is_file() for place in range(num_exits))
    )
