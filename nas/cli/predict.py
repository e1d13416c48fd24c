"""``nas predict``: a task model's answers to lines of text."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli import options
from nas.cli.outcome import verb

if TYPE_CHECKING:
    from nas.finish.prediction import Prediction


@verb
def predict(
    model: Annotated[
        str, typer.Argument(help="Task model: a folder that nas finetune wrote, a Hugging Face one, a hub id.")
    ],
    file: Annotated[
        Path | None, typer.Argument(help="Texts, one a line; standard input by default. Pairs are separated by a tab.")
    ] = None,
    runtime: Annotated[str, typer.Option(help="torch, onnx or onnx-int8.")] = "torch",
    batch_size: Annotated[int, typer.Option(help="Lines at a time.")] = 32,
    seq_len: options.Cut = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Answer lines of text: a label with its probability, a number, or a tag for each word.

    Example: echo "A film to remember." | nas predict movies-tiny
    """
    from nas import api

    for one in api.predict(model, _lines(file), runtime=runtime, batch_size=batch_size, seq_len=seq_len):
        if as_json:
            print(json.dumps(one.to_dict(), ensure_ascii=False, allow_nan=False))
        else:
            print(_shown(one))


def _lines(file: Path | None) -> Iterator[str]:
    from nas.errors import InvalidInputError

    try:
        if file is None:
            if isinstance(sys.stdin, io.TextIOWrapper):  # by the locale it may let through what is not UTF-8
                sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")
            yield from sys.stdin
            return
        with file.open(encoding="utf-8-sig") as opened:
            yield from opened
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InvalidInputError(f"cannot read {file or 'standard input'}: {reason}") from error


def _shown(one: "Prediction") -> str:
    """The answer as a person reads it: fields separated by tabs, or words with their tags."""
    if one.words is not None and isinstance(one.label, list):
        return " ".join(f"{word}/{tag}" for word, tag in zip(one.words, one.label, strict=True))
    if isinstance(one.label, float):
        return f"{one.label:.4f}\t{one.line}"
    return f"{one.label}\t{one.probability:.4f}\t{one.line}"
