"""Options that several verbs have, and options that hold several values."""

import math
from typing import Annotated

import typer

from nas.errors import InvalidInputError

MAX_VALUES = 8

Kind = Annotated[
    str | None, typer.Option(help="classification, regression or tagging, where the task's labels leave a doubt.")
]
Text = Annotated[str | None, typer.Option(help="Column of the text, or of the words.")]
TextPair = Annotated[str | None, typer.Option(help="Column of the second text of a pair.")]
Label = Annotated[str | None, typer.Option(help="Column of the labels.")]
Cut = Annotated[int | None, typer.Option(help="Cut longer texts to so many tokens.")]
Task = Annotated[str, typer.Option(help="Task: a file (csv, json, parquet), a folder with splits, or a hub id.")]
Corpus = Annotated[
    list[str],
    typer.Option(help="Text to learn from: a file (text, csv, json, parquet), folder or hub id; may be repeated."),
]

Steps = Annotated[int | None, typer.Option(help="Stop after so many optimiser steps.")]
Minutes = Annotated[float | None, typer.Option(help="Stop after so many minutes of training.")]
TextsAStep = Annotated[int, typer.Option(help="Texts a step.")]
TextsABatch = Annotated[int, typer.Option(help="Texts a batch.")]
Accumulate = Annotated[int, typer.Option(help="Batches a step.")]
MostTokens = Annotated[int, typer.Option(help="Most tokens a text.")]
LearningRate = Annotated[float, typer.Option(help="Peak learning rate.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
Seed = Annotated[int, typer.Option(help="Seed of every draw.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from an unfinished run.")]

SeqLens = Annotated[str, typer.Option(help="Tokens a text; several as 32,128.")]
BatchSizes = Annotated[str, typer.Option(help="Texts at a time; several as 1,8.")]
Threads = Annotated[int | None, typer.Option(help="Threads of the runtime; the device's own by default, else 1.")]
Cpus = Annotated[
    str | None, typer.Option(help="Cores to run on, such as 2,3; the device's own by default, else the idlest.")
]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    """Reads a comma list such as ``32,128``.

    Args:
        name: The option, for the error's sentence.
        text: What was given.

    Raises:
        InvalidInputError: Not one to eight different whole numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) <= 9 for part in parts):
        raise InvalidInputError(f"{name} must be a whole number or several with commas between, got {text[:60]!r}")
    values = tuple(map(int, parts))
    if len(values) > MAX_VALUES or len(set(values)) != len(values):
        raise InvalidInputError(f"{name} must be at most {MAX_VALUES} different numbers, got {text[:60]!r}")
    return values


def names(name: str, text: str) -> tuple[str, ...]:
    """Reads a comma list of different words such as ``tpe,random``.

    Args:
        name: The option, for the error's sentence.
        text: What was given.

    Raises:
        InvalidInputError: A word is empty, or there are too many.
    """
    values = tuple(part.strip() for part in text.split(","))
    if not all(values) or len(values) > MAX_VALUES:
        raise InvalidInputError(f"{name} must be 1 to {MAX_VALUES} names with commas between, got {text[:60]!r}")
    return values


def band_of(name: str, text: str) -> tuple[float, float]:
    """Reads two rising numbers such as ``1.2,2.2``.

    Args:
        name: The option, for the error's sentence.
        text: What was given.

    Raises:
        InvalidInputError: They are not two finite numbers.
    """
    try:
        low, high = map(float, text.split(","))
    except ValueError as error:
        raise InvalidInputError(f"{name} must be two numbers such as 1.2,2.2, got {text[:60]!r}") from error
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InvalidInputError(f"{name} must be two finite numbers such as 1.2,2.2, got {text[:60]!r}")
    return low, high
