"""The root of every error this project raises on purpose.

    NasError                        exit code 1, never raised itself
    `-- InvalidInputError           exit code 2, also a ValueError: what came in breaks a stated law

The floors above derive further classes (see ``nas.errors``); the root sits on the lowest floor so that
``search_spaces``, ``supernet`` and ``analysis`` raise errors that the command line can turn into one sentence.
"""

import difflib
from collections.abc import Iterable


class NasError(Exception):
    """An expected failure: its text states the law, the fact and the way out."""

    exit_code = 1


class InvalidInputError(NasError, ValueError):
    """A value from outside (argument, file, checkpoint, corpus) breaks a stated law."""

    exit_code = 2


def shown(value: object) -> str:
    """The value as an error text shows it: its repr, cut to 80 characters so that no input can flood a terminal."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list nested thousands deep
        text = f"a {type(value).__name__} too large to print"
    return text if len(text) <= 80 else f"{text[:77]}..."


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InvalidInputError:
    """Builds the error for a name that is not known, with the nearest known name.

    Args:
        kind: What the name stands for, e.g. ``"preset"``.
        name: The name that was given.
        known: The names that exist.
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(name[:100], names, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return InvalidInputError(f"unknown {kind} {shown(name)}.{hint} Known: {', '.join(names)}.")
