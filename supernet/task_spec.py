"""What a task asks of a model, and what is said about a task where it cannot, or should not, be found."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from search_spaces.errors import InvalidInputError, shown

Kind = Literal["classification", "regression", "tagging"]

MAX_LABELS = 1000
_CONFIG_KEY = "nas_task"


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What a model is asked.

    Attributes:
        kind: One label a text, one number a text, or one label a word.
        labels: The label of each output; empty for a number.
        is_pair: Whether a text is two texts; None where that is not known.
        max_tokens: Longest text the model was made for, in tokens; longer ones are cut where that was asked for.
        is_cut: Whether longer texts are cut; else they are refused.
    """

    kind: Kind
    labels: tuple[str, ...]
    is_pair: bool | None = None
    max_tokens: int = 512
    is_cut: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InvalidInputError(f"a task must be one of {', '.join(get_args(Kind))}, got {shown(self.kind)}")
        if self.kind == "regression" and self.labels:
            raise InvalidInputError(f"a regression has no labels, got {len(self.labels)}")
        if self.kind != "regression" and not 2 <= len(self.labels) <= MAX_LABELS:
            raise InvalidInputError(
                f"a {self.kind} task must have 2 to {MAX_LABELS} labels, got {len(self.labels)}: "
                f"{shown(self.labels[:3])}"
            )
        if len(set(self.labels)) != len(self.labels):
            raise InvalidInputError("the labels of a task must differ from each other")

    @property
    def num_outputs(self) -> int:
        """Outputs of the head: one a label, or one for a number."""
        return max(1, len(self.labels))

    def to_config(self) -> dict[str, Any]:
        """The entries of a Hugging Face ``config.json`` that say what the model answers."""
        names = self.labels or ("value",)
        own = {"kind": self.kind, "is_pair": self.is_pair, "max_tokens": self.max_tokens, "is_cut": self.is_cut}
        config: dict[str, Any] = {
            "id2label": {str(index): name for index, name in enumerate(names)},
            "label2id": {name: index for index, name in enumerate(names)},
            _CONFIG_KEY: own,
        }
        if self.kind != "tagging":
            config["problem_type"] = "regression" if self.kind == "regression" else "single_label_classification"
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TaskSpec":
        """Reads what a Hugging Face ``config.json`` says, ours or another's.

        Raises:
            InvalidInputError: It names no task, or one that is not of a known kind.
        """
        architecture = str(next(iter(config.get("architectures") or ()), ""))
        found = config.get(_CONFIG_KEY)
        own: dict[str, Any] = found if isinstance(found, dict) else {}
        id2label = config.get("id2label") or {}
        labels = tuple(str(id2label[key]) for key in sorted(id2label, key=int))
        if config.get("problem_type") == "multi_label_classification":
            raise InvalidInputError("a model of several labels a text is not known here; give one of one label a text")
        if architecture.endswith("ForTokenClassification"):
            kind: Kind = "tagging"
        elif architecture.endswith("ForSequenceClassification"):
            kind = "regression" if len(labels) == 1 or config.get("problem_type") == "regression" else "classification"
        else:
            raise InvalidInputError(f"a model of class {architecture or 'unknown'} has no head for a task")
        longest = config.get("max_position_embeddings", 512)
        known = {name: own[name] for name in ("is_pair", "max_tokens", "is_cut") if name in own}
        return cls(kind, () if kind == "regression" else labels, **{"max_tokens": longest} | known)


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What is said about a task where it cannot, or should not, be found.

    Attributes:
        kind: What is asked; None finds it from the labels.
        text: Column of the text, or of the words; None finds it.
        text_pair: Column of the second text; None finds it.
        label: Column of the labels; None finds it.
        seq_len: Texts are cut to so many tokens; None cuts none, and one beyond the model's limit is an error.
    """

    kind: Kind | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    seq_len: int | None = None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in get_args(Kind):
            raise InvalidInputError(f"kind must be one of {', '.join(get_args(Kind))}, got {shown(self.kind)}")

    @classmethod
    def from_dict(cls, data: object) -> "TaskOptions":
        """Reads what ``dataclasses.asdict`` makes of it.

        Raises:
            InvalidInputError: It is something else.
        """
        if not isinstance(data, dict) or set(data) != {field.name for field in fields(cls)}:
            raise InvalidInputError(f"the options of a task must be a kind, columns and seq_len, got {shown(data)}")
        return cls(**data)
