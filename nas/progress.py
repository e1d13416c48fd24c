"""How long work tells a person what it is doing: always on stderr, live only where stderr is a terminal."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

Fact = str | int | float


class Progress(Protocol):
    """What long work calls. Phases follow each other; starting one ends the one before."""

    def start(self, phase: str, total: int | None = None) -> None:
        """Begins a phase of ``total`` steps, or of unknown length."""

    def update(self, done: int, **facts: Fact) -> None:
        """Says how many steps are done, and facts worth seeing such as the best so far."""

    def finish(self, message: str = "") -> None:
        """Ends the phase; harmless where none runs."""

    def note(self, message: str) -> None:
        """Says one sentence that stays on the screen."""


class SilentProgress:
    """Says nothing."""

    def start(self, phase: str, total: int | None = None) -> None: ...

    def update(self, done: int, **facts: Fact) -> None: ...

    def finish(self, message: str = "") -> None: ...

    def note(self, message: str) -> None: ...


class LineProgress:
    """One ``key=value`` line at the start of a phase, now and then while it lasts, and at its end.

    Args:
        stream: Where lines go; stderr as it is at the time of the call by default.
        every_s: Seconds between two lines of one phase.
        clock: Seconds of a clock that never runs backwards.
    """

    def __init__(
        self, stream: TextIO | None = None, *, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._every_s = every_s
        self._clock = clock
        self._phase: str | None = None
        self._total: int | None = None
        self._started_s = self._said_s = 0.0
        self._done, self._first_done = 0, -1
        self._facts: dict[str, Fact] = {}

    def start(self, phase: str, total: int | None = None) -> None:
        """Begins a phase and says so."""
        self.finish()
        self._phase, self._total = phase, total
        self._started_s = self._said_s = self._clock()
        self._done, self._first_done, self._facts = 0, -1, {}
        self._say(phase=phase, **({} if total is None else {"total": total}))

    def update(self, done: int, **facts: Fact) -> None:
        """Says where the phase is, when the last line is old enough."""
        if self._phase is None:
            return
        if self._first_done < 0:  # a resumed phase does not begin at 0; what came before cost no time now
            self._first_done = max(0, done - 1)
        self._done = done
        self._facts.update(facts)
        now_s = self._clock()
        if now_s - self._said_s >= self._every_s:
            self._said_s = now_s
            self._say(phase=self._phase, **self._state(now_s), **self._facts)

    def finish(self, message: str = "") -> None:
        """Says that the phase ended, and how long it took."""
        if self._phase is None:
            return
        phase, self._phase = self._phase, None
        ending: dict[str, Fact] = {"message": message} if message else {}
        done: dict[str, Fact] = {} if self._first_done < 0 else {"done": self._done}
        took_s = round(self._clock() - self._started_s, 1)
        self._say(phase=phase, **done, took_s=took_s, **self._facts, **ending)

    def note(self, message: str) -> None:
        """Says one sentence."""
        self._say(note=message)

    def _state(self, now_s: float) -> dict[str, Fact]:
        state: dict[str, Fact] = {"done": self._done if self._total is None else f"{self._done}/{self._total}"}
        steps = self._done - self._first_done
        if self._total is not None and steps > 0:
            left_s = (now_s - self._started_s) / steps * max(0, self._total - self._done)
            state["left_s"] = round(left_s)
        return state

    def _say(self, **facts: Fact) -> None:
        stream = sys.stderr if self._stream is None else self._stream
        print(" ".join(f"{key}={_word(value)}" for key, value in facts.items()), file=stream, flush=True)


class TerminalProgress:
    """A live bar with the best so far and the time left.

    It is redrawn by the calls themselves, a few times a second at most, and never by a thread of its own: while a
    model is being timed on this machine nothing else of ours should run.

    Args:
        stream: The terminal; stderr by default.
        clock: Seconds of a clock that never runs backwards.
    """

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console

        self._console = Console(file=sys.stderr if stream is None else stream, highlight=False)
        self._clock = clock
        self._live: RichProgress | None = None
        self._task: TaskID | None = None
        self._drawn_s = -1.0
        self._started_s = 0.0
        self._phase = ""

    def start(self, phase: str, total: int | None = None) -> None:
        """Begins a phase with a fresh bar."""
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self.finish()
        self._phase, self._started_s, self._drawn_s = phase, self._clock(), -1.0
        self._live = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
            console=self._console,
            auto_refresh=False,
            transient=True,
        )
        self._live.start()
        self._task = self._live.add_task(phase, total=total, facts="")
        self._live.refresh()

    def update(self, done: int, **facts: Fact) -> None:
        """Moves the bar."""
        if self._live is None or self._task is None:
            return
        if facts:
            self._live.update(self._task, facts="  ".join(f"{key} {_short(value)}" for key, value in facts.items()))
        self._live.update(self._task, completed=done)
        now_s = self._clock()
        if now_s - self._drawn_s >= 0.2:
            self._drawn_s = now_s
            self._live.refresh()

    def finish(self, message: str = "") -> None:
        """Takes the bar away and leaves one line in its place."""
        if self._live is None:
            return
        self._live.stop()
        self._live, self._task = None, None
        took_s = self._clock() - self._started_s
        ending = f": {message}" if message else ""
        self._console.print(f"{self._phase}{ending} ({took_s:.1f} s)", markup=False)

    def note(self, message: str) -> None:
        """Prints one sentence above the bar."""
        (self._live.console if self._live is not None else self._console).print(message, markup=False)


@contextlib.contextmanager
def ended(progress: Progress | None) -> Iterator[Progress]:
    """Yields a progress, silent where none was given, whose last phase ends with the block, however that is left."""
    said = progress or SilentProgress()
    try:
        yield said
    finally:
        said.finish()


def choose_progress(*, quiet: bool = False) -> Progress:
    """A live bar where stderr is a terminal, lines where it is not, silence where silence was asked for."""
    if quiet:
        return SilentProgress()
    is_terminal = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    return TerminalProgress() if is_terminal else LineProgress()


def _short(value: Fact) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _word(value: Fact) -> str:
    text = _short(value)
    return text if text and not any(sign.isspace() or sign in "\"='\\" for sign in text) else json.dumps(text)
