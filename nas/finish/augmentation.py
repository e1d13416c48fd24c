"""More text to learn a teacher's answers from: copies of the training texts in which words were exchanged.

A copy has no label of its own; what it means is what the teacher says of it. Tokens are exchanged rather than words, by
others drawn as often as they occur in the training texts (after Jiao et al., 2020, arXiv 1909.10351, who ask a masked
language model, which the teachers here need not have).
"""

from typing import Any

import numpy as np

from nas.errors import InvalidInputError
from supernet.examples import IGNORED, Examples

SHARE = 0.15
MAX_COPIES = 20


def augmented(examples: Examples, copies: int, tokenizer: Any, *, seed: int) -> Examples:
    """The examples, followed by exchanged copies of them without labels.

    Args:
        examples: The training split.
        copies: Copies of each text.
        tokenizer: Says which tokens are special and stay.
        seed: Of the exchanged places and tokens.

    Raises:
        InvalidInputError: More than ``MAX_COPIES`` copies are asked for.
    """
    if not 0 <= copies <= MAX_COPIES:
        raise InvalidInputError(f"augment must be from 0 to {MAX_COPIES} copies of each text, got {copies}")
    if copies == 0:
        return examples
    rng = np.random.default_rng([seed, copies])
    special = np.asarray(tokenizer.all_special_ids)
    tokens = np.concatenate([np.asarray(row) for row in examples.input_ids])
    pool = tokens[~np.isin(tokens, special)]
    ids = list(examples.input_ids)
    for _ in range(copies):
        ids += [_exchanged(np.asarray(row), pool, special, rng) for row in examples.input_ids]
    times = copies + 1
    return Examples(
        ids,
        examples.token_type_ids * times,
        [*examples.labels, *[_without(label) for label in examples.labels] * copies],
        None if examples.positions is None else examples.positions * times,
        examples.pad_token_id,
    )


def _exchanged(row: Any, pool: Any, special: Any, rng: np.random.Generator) -> list[int]:
    chosen = (rng.random(len(row)) < SHARE) & ~np.isin(row, special)
    changed: list[int] = (np.where(chosen, rng.choice(pool, len(row)), row) if len(pool) else row).tolist()
    return changed


def _without(label: Any) -> Any:
    """The label of a text whose label is not known."""
    if isinstance(label, list):
        return [IGNORED] * len(label)
    return float("nan") if isinstance(label, float) else IGNORED
