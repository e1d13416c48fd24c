"""The choices of one dimension of a search space: read from a file's entry, checked, and shown in an error text."""

import itertools
from typing import Any

from search_spaces.architecture import MAX_SIZE, MAX_SUBLAYERS
from search_spaces.errors import InvalidInputError, shown, unknown_name

AS_HIDDEN = 0
MAX_CHOICES = 4_096


def checked_choices(name: str, choices: object) -> tuple[int, ...]:
    """Sorts the choices, 0 ("as hidden") last, after checking each and their number.

    Raises:
        InvalidInputError: There are none, too many, one twice, or one is out of bounds.
    """
    if not isinstance(choices, tuple | list):
        raise InvalidInputError(f"{name} must be a tuple of choices, got {shown(choices)}")
    if not choices and name != "num_heads":
        raise InvalidInputError(f"{name} must have at least one choice")
    if len(choices) > MAX_CHOICES:
        raise InvalidInputError(f"{name} may have at most {MAX_CHOICES} choices, got {len(choices)}; use a larger step")
    least = AS_HIDDEN if name == "embedding_size" else 1
    most = MAX_SUBLAYERS // 2 if name == "num_layers" else MAX_SIZE
    for choice in choices:
        if not isinstance(choice, int) or isinstance(choice, bool) or not least <= choice <= most:
            raise InvalidInputError(
                f"{name} must be a whole number from {max(1, least)} to {most}, got {shown(choice)}"
            )
    if len(set(choices)) < len(choices):
        raise InvalidInputError(f"{name} lists a choice twice in {summary(tuple(choices))}; leave one out")
    return tuple(sorted(choices, key=lambda choice: choice or MAX_SIZE + 1))


def read_choices(name: str, entry: object) -> tuple[int, ...]:
    """Reads a dimension's entry in a file: a number, a list, a range, or its word ("derived", "hidden").

    Numbers are left for :func:`checked_choices` to check.

    Raises:
        InvalidInputError: A word is unknown, the list is empty, or the range is not one.
    """
    if name == "num_heads" and entry == "derived":
        return ()
    if isinstance(entry, dict):
        return _read_range(name, entry)
    words = {"hidden": AS_HIDDEN} if name == "embedding_size" else {}
    choices: list[Any] = []
    for choice in entry if isinstance(entry, list) else [entry]:
        if isinstance(choice, str):
            if choice not in words:
                raise _unknown_word(name, choice)
            choices.append(words[choice])
        elif words and choice == AS_HIDDEN:
            raise InvalidInputError(
                f'{name} must be at least 1, got {shown(choice)}; as wide as hidden_size is "hidden"'
            )
        else:
            choices.append(choice)
    if not choices:
        raise InvalidInputError(f"{name} must have at least one choice")
    return tuple(choices)


def _unknown_word(name: str, word: str) -> InvalidInputError:
    words = {"num_heads": ["derived"], "embedding_size": ["hidden"]}.get(name)
    if words is None:
        return InvalidInputError(f"{name} must be a number, a list of numbers or a range, got {shown(word)}")
    return unknown_name(f"word for {name}", word, words)


def _read_range(name: str, entry: dict[Any, Any]) -> tuple[int, ...]:
    for key in entry:
        if key not in (known := ("min", "max", "step")):
            raise unknown_name(f"key in the range of {name}", str(key), known)
    if "min" not in entry or "max" not in entry:
        raise InvalidInputError(f"the range of {name} must have min and max, got {shown(entry)}")
    first, last, step = entry["min"], entry["max"], entry.get("step", 1)
    for key, value in (("min", first), ("max", last), ("step", step)):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIZE:
            raise InvalidInputError(f"{key} of {name} must be a whole number from 1 to {MAX_SIZE}, got {shown(value)}")
    if first > last:
        raise InvalidInputError(f"min of {name} must be at most max, got {first} and {last}")
    left_over = (last - first) % step
    if left_over:
        nearest = f"{last - left_over} or {last - left_over + step}"
        raise InvalidInputError(f"max of {name} must be min plus whole steps of {step}, got {last}; nearest: {nearest}")
    return tuple(range(first, last + 1, step))


def summary(choices: tuple[int, ...]) -> str:
    """The choices as an error text shows them: a range where they are evenly spaced, else a list."""
    steps = {later - earlier for earlier, later in itertools.pairwise(choices)}
    if len(choices) > 3 and len(steps) == 1:
        return f"{choices[0]} to {choices[-1]} in steps of {steps.pop()}"
    words = [str(choice or '"hidden"') for choice in choices]
    return ", ".join(words if len(words) <= 12 else [*words[:6], "...", *words[-5:]])
