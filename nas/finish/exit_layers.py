"""Where the exits of an architecture stand, and which architectures may have some.

A layer is a sub-layer that mixes positions (attention, a convolution) with what follows it up to the next one; an exit
stands behind each. Of BERT these are its layers; a chain of blocks of several widths has exits of several widths.
"""

from nas.errors import InvalidInputError
from search_spaces.architecture import Architecture, Attention, Block, SepConv
from search_spaces.steps import Step, steps
from supernet.task_spec import TaskSpec


def layers_of(architecture: Architecture) -> tuple[tuple[Step, ...], ...]:
    """The steps of each layer."""
    layers: list[list[Step]] = [[]]
    maps: list[Step] = []  # a change of width belongs to what follows it
    mixes = False
    for step in steps(architecture):
        if step.sublayer is None:
            maps.append(step)
            continue
        if isinstance(step.sublayer, Attention | SepConv):
            if mixes:
                layers.append([])
            mixes = True
        layers[-1] += [*maps, step]
        maps = []
    layers[-1] += maps
    return tuple(map(tuple, layers))


def prefix(architecture: Architecture, last: Step) -> Architecture:
    """The architecture that ends with a step, all positions kept."""
    place = -1 if last.sublayer is None else int(last.name.rpartition(".")[2])
    block = architecture.blocks[last.block]
    blocks = (*architecture.blocks[: last.block], Block(block.hidden_size, block.sublayers[: place + 1]))
    return Architecture(architecture.embedding_size, blocks)


def check_can_exit(architecture: Architecture, spec: TaskSpec | None = None) -> None:
    """Refuses models for which leaving early makes no sense; a task that is not known yet is not judged.

    Raises:
        InvalidInputError: The task is no classification, the model has narrow layers, or it has one layer.
    """
    if spec is not None and spec.kind != "classification":
        raise InvalidInputError(
            f"exits stop where the leading class is decided, which a {spec.kind} task does not have; give a "
            "classification"
        )
    if architecture.narrow_from is not None:
        raise InvalidInputError(
            f"exits make no sense on {architecture.key()}: its narrow layers update position 0 only, so the deep "
            "layers that an early exit would save cost next to nothing; give a model without narrow layers"
        )
    if len(layers_of(architecture)) < 2:
        raise InvalidInputError(
            f"{architecture.key()} has one layer, so there is nothing to leave out; give a deeper model"
        )
