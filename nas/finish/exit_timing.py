"""How long single texts take in models that stop, beside one that does not: one thread, batch 1, taken in turn.

Each text is run through every model in random order, again and again. Each run follows one of the same model and text
that is not counted, so that every model finds its own weights in the caches. The clock is the thread's own, as in
:mod:`nas.devices.runner`: what the scheduler gives to others in between does not count. A text keeps its own length.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.finish.exits import Batch
from nas.progress import Progress

REPEATS = 5
NUM_TEXTS = 60


@dataclass(frozen=True, slots=True)
class Timing:
    """The times of one model over some texts, each text's being the median of its runs.

    Attributes:
        median_s: Over the texts.
        mean_s: Likewise.
        worst_s: Of the text that takes longest.
        ratio: Median over the texts of this model's time by the reference's.
        ratio_low: The first quartile of that.
        ratio_high: The third.
        num_texts: How many texts.
    """

    median_s: float
    mean_s: float
    worst_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    num_texts: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return asdict(self)


def time_texts(
    models: Mapping[str, Callable[[Batch], object]],
    texts: Sequence[Batch],
    *,
    seed: int = 0,
    repeats: int = REPEATS,
    progress: Progress,
) -> dict[str, Timing]:
    """Times models text by text.

    Args:
        models: What runs one text, by name, on the calling thread; the first is the reference.
        texts: Batches of one text.
        seed: Of the order.
        repeats: How often each text is timed in each model.
        progress: What is told about it.
    """
    times_s = times_of(models, texts, seed=seed, repeats=repeats, progress=progress)
    medians = {name: np.median(taken, axis=0) for name, taken in times_s.items()}
    return {name: _timing(taken, medians[next(iter(models))]) for name, taken in medians.items()}


def times_of(
    models: Mapping[str, Callable[[Batch], object]],
    texts: Sequence[Batch],
    *,
    seed: int = 0,
    repeats: int = REPEATS,
    progress: Progress,
) -> dict[str, NDArray[np.float64]]:
    """Every time in seconds, by model: (repeats, texts); the arguments are those of :func:`time_texts`."""
    rng = np.random.default_rng(seed)
    names = list(models)
    times_s = {name: np.empty((repeats, len(texts))) for name in names}
    progress.start("time texts", repeats)
    for repeat in range(repeats):
        for place in rng.permutation(len(texts)):
            for name in rng.permutation(names):
                models[name](texts[place])
                start = time.thread_time()
                models[name](texts[place])
                times_s[name][repeat, place] = time.thread_time() - start
        progress.update(repeat + 1)
    progress.finish()
    return times_s


def _timing(taken_s: NDArray[np.float64], reference_s: NDArray[np.float64]) -> Timing:
    low, middle, high = map(float, np.quantile(taken_s / reference_s, (0.25, 0.5, 0.75)))
    median_s, mean_s, worst_s = float(np.median(taken_s)), float(taken_s.mean()), float(taken_s.max())
    return Timing(median_s, mean_s, worst_s, middle, low, high, len(taken_s))
