"""How a verb ends: an exit code, one or two lines on stderr where something went wrong, never a traceback for it."""

import functools
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpec

import typer

from nas.errors import EXIT_INTERRUPTED, NasError

Parameters = ParamSpec("Parameters")
EXIT_BROKEN_PIPE = 141  # what a shell reports of any program whose reader went away

EXIT_CODES = (
    "Exit codes: 0 done; 2 wrong usage or input; 3 no model meets the budget; 4 device not available; "
    "5 the measurement is too noisy to decide; 130 interrupted, the message says how to resume."
)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, with the sentence that says how to go on."""


@contextmanager
def resumable(how: str = "continue with the same command and --resume") -> Iterator[None]:
    """Tells, where a person interrupts the work within, how to go on."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        raise Interrupted(how) from interruption


def verb(function: Callable[Parameters, int | None]) -> Callable[Parameters, None]:
    """Makes a typer command of a function that returns its exit code, None being 0, and may raise expected errors."""

    @functools.wraps(function)
    def command(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        raise typer.Exit(_run(lambda: function(*args, **kwargs), as_json=bool(kwargs.get("as_json"))))

    return command


def print_json(data: dict[str, Any]) -> None:
    """Prints the one object that ``--json`` promises; a number that JSON lacks is an error of ours."""
    print(json.dumps(data, indent=2, allow_nan=False))


def print_scores(scores: Mapping[str, Mapping[str, float]]) -> None:
    """Prints figures by split, a line each."""
    for split, figures in scores.items():
        print(f"{split}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))


def command_line(context: typer.Context) -> str:
    """The whole command as it can be typed again."""
    return shlex.join(["nas", *(context.obj or ())])


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def say(message: str) -> None:
    """Says something that is no result: on stderr."""
    print(message, file=sys.stderr, flush=True)


def drop_output() -> int:
    """Points stdout nowhere after its reader went away, so that the interpreter's last flush stays silent."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return EXIT_BROKEN_PIPE


def _run(function: Callable[[], int | None], *, as_json: bool) -> int:
    try:
        code = function() or 0
        sys.stdout.flush()
    except NasError as error:
        say(f"nas: {error}")
        if as_json:
            print_json({"error": str(error), "exit_code": error.exit_code})
        return error.exit_code
    except KeyboardInterrupt as interruption:
        how = f"; {interruption}" if str(interruption) else ""
        say(f"nas: interrupted{how}")
        if as_json:
            print_json({"error": f"interrupted{how}", "exit_code": EXIT_INTERRUPTED})
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return drop_output()
    return code
