"""The choices of a search space's dimension: read from a file's entry, checked, and shown in an error text."""

import itertools
from typing import Any

from search_spaces.architecture import MAX_SIZE, MAX_SUBLAYERS, NARROW_FORMS
from search_spaces.errors import InvalidInputError, shown, unknown_name

AS_HIDDEN = 0
MAX_CHOICES = 4_096
#: The least choice of a dimension, and the largest; 1 and MAX_SIZE where it is not listed.
_BOUNDS = {
    "num_layers": (1, MAX_SUBLAYERS // 2),
    "num_narrow_layers": (0, MAX_SUBLAYERS // 2 - 1),
    "embedding_size": (AS_HIDDEN, MAX_SIZE),
}


def checked_choices(name: str, choices: object) -> tuple[int, ...]:
    """Sorts the choices by the size of what they make, after checking each and their number.

    Of embedding sizes 0 ("as hidden") comes last. Of numbers of narrow layers the most come first, as they compute
    least.

    Raises:
        InvalidInputError: There are none, too many, one twice, or one is out of bounds.
    """
    if not isinstance(choices, tuple | list):
        raise InvalidInputError(f"{name} must be a tuple of choices, got {shown(choices)}")
    if not choices and name != "num_heads":
        raise InvalidInputError(f"{name} must have at least one choice")
    if len(choices) > MAX_CHOICES:
        raise InvalidInputError(f"{name} may have at most {MAX_CHOICES} choices, got {len(choices)}; use a larger step")
    least, most = _BOUNDS.get(name, (1, MAX_SIZE))
    for choice in choices:
        if not isinstance(choice, int) or isinstance(choice, bool) or not least <= choice <= most:
            said = 1 if name == "embedding_size" else least
            raise InvalidInputError(f"{name} must be a whole number from {said} to {most}, got {shown(choice)}")
    if len(set(choices)) < len(choices):
        raise InvalidInputError(f"{name} lists a choice twice in {summary(tuple(choices), name)}; leave one out")
    if name == "num_narrow_layers":
        return tuple(sorted(choices, reverse=True))
    return tuple(sorted(choices, key=lambda choice: choice or MAX_SIZE + 1))


def checked_forms(forms: object) -> tuple[str, ...]:
    """The forms that narrow layers may have, the one with less work first.

    Raises:
        InvalidInputError: There is none, one is not known, or one is listed twice.
    """
    if not isinstance(forms, tuple | list) or not forms:
        raise InvalidInputError(f"narrow_form must be a list of {', '.join(NARROW_FORMS)}, got {shown(forms)}")
    for form in forms:
        if form not in NARROW_FORMS:
            raise unknown_name("narrow_form", str(form), NARROW_FORMS)
    if len(set(forms)) < len(forms):
        raise InvalidInputError(f"narrow_form lists a form twice in {', '.join(forms)}; leave one out")
    return tuple(form for form in NARROW_FORMS if form in forms)


def forms_for(forms: tuple[str, ...], num_narrow_layers: tuple[int, ...]) -> tuple[str, ...]:
    """The forms, or the first of all where so few layers are narrow that a form says nothing."""
    return forms if max(num_narrow_layers) > 1 else NARROW_FORMS[:1]


def check_narrow_layers(num_narrow_layers: tuple[int, ...], num_layers: tuple[int, ...]) -> None:
    """Checks numbers of narrow layers, the most first, against numbers of layers, the fewest first.

    Raises:
        InvalidInputError: At some depth none of them leaves a full layer, or one leaves none at any depth.
    """
    if num_narrow_layers[-1] >= num_layers[0]:
        raise InvalidInputError(
            "num_narrow_layers must list a choice that leaves a full layer at every depth, got at least "
            f"{num_narrow_layers[-1]} and {num_layers[0]} layers; add 0"
        )
    if num_narrow_layers[0] >= num_layers[-1]:
        raise InvalidInputError(
            f"num_narrow_layers must be at most {num_layers[-1] - 1}, one less than the most layers, "
            f"got {num_narrow_layers[0]}"
        )


def read_choices(name: str, entry: object) -> tuple[Any, ...]:
    """Reads a dimension's entry in a file: a number, a list, a range, or its word ("derived", "hidden").

    Numbers are left for :func:`checked_choices` to check, and the forms of narrow layers for :func:`checked_forms`.

    Raises:
        InvalidInputError: A word is unknown, the list is empty, or the range is not one.
    """
    if name == "num_heads" and entry == "derived":
        return ()
    if name == "narrow_form":
        return tuple(entry) if isinstance(entry, list) else (entry,)
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
    least = 0 if name == "num_narrow_layers" else 1
    for key, value, low in (("min", first, least), ("max", last, least), ("step", step, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= MAX_SIZE:
            raise InvalidInputError(
                f"{key} of {name} must be a whole number from {low} to {MAX_SIZE}, got {shown(value)}"
            )
    if first > last:
        raise InvalidInputError(f"min of {name} must be at most max, got {first} and {last}")
    left_over = (last - first) % step
    if left_over:
        nearest = f"{last - left_over} or {last - left_over + step}"
        raise InvalidInputError(f"max of {name} must be min plus whole steps of {step}, got {last}; nearest: {nearest}")
    return tuple(range(first, last + 1, step))


def summary(choices: tuple[int, ...], name: str = "") -> str:
    """The choices of a dimension as an error text shows them: a range where they are evenly spaced, else a list."""
    if name == "num_narrow_layers":
        choices = choices[::-1]
    steps = {later - earlier for earlier, later in itertools.pairwise(choices)}
    if len(choices) > 3 and len(steps) == 1:
        return f"{choices[0]} to {choices[-1]} in steps of {steps.pop()}"
    zero = "0" if name == "num_narrow_layers" else '"hidden"'
    words = [str(choice or zero) for choice in choices]
    return ", ".join(words if len(words) <= 12 else [*words[:6], "...", *words[-5:]])
