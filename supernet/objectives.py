"""What a training is after: which losses count, and whether a space and a teacher allow them."""

from dataclasses import asdict, dataclass
from typing import Literal

from search_spaces.choices import summary
from search_spaces.errors import InvalidInputError
from search_spaces.space import SearchSpace
from supernet.teacher import Teacher

Objective = Literal["distil", "mlm", "kd"]


@dataclass(frozen=True)
class LossWeights:
    """How much each loss counts; 0 leaves it out.

    Attributes:
        hidden: Hidden states, all kept layers and the last one, as a share of their variance.
        pooled: Pooled sentences.
        relation: q-q, k-k and v-v relations of the last layer.
        attention: Attention scores of the last layer, head by head; plain mean square (AutoTinyBERT).
        output: The last hidden states; plain mean square (AutoTinyBERT).
        mlm: Masked tokens.
    """

    hidden: float = 1.0
    pooled: float = 1.0
    relation: float = 0.0
    attention: float = 0.0
    output: float = 0.0
    mlm: float = 0.0

    def __post_init__(self) -> None:
        values = tuple(asdict(self).values())
        if not all(0 <= value <= 1e6 for value in values) or not any(values):
            raise InvalidInputError(f"loss weights must be from 0 to 1e6 and not all 0, got {values}")

    @property
    def distils(self) -> bool:
        """Whether something is learned from a teacher."""
        return any((self.hidden, self.pooled, self.relation, self.attention, self.output))

    @property
    def needs_relations(self) -> bool:
        """Whether a loss reads q, k and v of the last layer."""
        return bool(self.relation or self.attention)


OBJECTIVES: dict[Objective, LossWeights] = {
    "distil": LossWeights(),
    "mlm": LossWeights(hidden=0, pooled=0, mlm=1),
    "kd": LossWeights(hidden=0, pooled=0, attention=1, output=1),
}


def check_losses(weights: LossWeights, space: SearchSpace, teacher: Teacher | None) -> None:
    """Refuses losses that a space cannot learn by, or for which the teacher lacks something.

    Raises:
        InvalidInputError: There is no teacher to distil from, it has no masked-language head, its heads are not those
            of the space, or narrow layers would learn from nothing.
    """
    if teacher is None and weights.distils:
        raise InvalidInputError(
            "every loss but mlm needs a teacher: give one (--teacher DIR_OR_ID), or train on masked tokens alone "
            "(--objective mlm)"
        )
    if weights.mlm and teacher is not None and teacher.mlm_head is None:
        raise InvalidInputError(
            f"teacher {teacher.name!r} has no masked-language head; leave the mlm loss out, or start afresh without "
            "a teacher (--tokenizer DIR_OR_ID)"
        )
    if any(space.num_narrow_layers) and not any((weights.hidden, weights.output, weights.pooled, weights.mlm)):
        raise InvalidInputError(
            "the relation and attention losses need every position, so narrow layers would learn from nothing; give "
            "hidden, output, pooled or mlm a weight too, or train without narrow layers"
        )
    if weights.attention and teacher is not None:
        _check_heads(space, teacher)


def _check_heads(space: SearchSpace, teacher: Teacher) -> None:
    layers = teacher.encoder.architecture.uniform
    assert layers is not None
    wanted = layers.attention.num_heads
    derived = {hidden_size // head_size for hidden_size in space.hidden_size for head_size in space.head_size}
    found = sorted(space.num_heads or derived)
    if found != [wanted]:
        raise InvalidInputError(
            f"the attention loss compares head with head, so every architecture must have the teacher's {wanted} "
            f"heads, but {space.name!r} has {summary(tuple(found))}; use a space with num_heads = {wanted} such as "
            "autotinybert-kd for 12, or --objective distil"
        )
