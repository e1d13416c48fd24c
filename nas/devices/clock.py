"""Starts the runner in a fresh process and hands its answers over, one event at a time.

Whatever ends the caller ends the runner: leaving the generator kills its process group, and a caller that is killed
itself closes the pipe that the runner watches.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from nas.errors import InconclusiveMeasurementError

RUNNER = Path(__file__).with_name("runner.py")
START_TIMEOUT_S = 120.0
MAX_LINE_BYTES = 64_000_000
#: What the runner's libraries must not do behind our back: start threads of their own.
QUIET_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Event = dict[str, Any]


def run_job(
    job: Mapping[str, Any], *, answer_timeout_s: float, command: tuple[str, ...] = (sys.executable, "-P", str(RUNNER))
) -> Iterator[Event]:
    """Runs one job and yields its ``result`` and ``failed`` events as they come.

    Args:
        job: What ``runner.py`` documents.
        answer_timeout_s: How long one answer may take.
        command: What starts the runner.

    Raises:
        InconclusiveMeasurementError: The runner did not start, was killed, answered with something else than events,
            failed as a whole, or was silent for too long; answers that came before it have been yielded.
    """
    with tempfile.TemporaryFile() as errors, _process(command, errors) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # its end is told below, with its exit status
            process.stdin.write(json.dumps({**job, "keep_open": True}).encode() + b"\n")
            process.stdin.flush()
        timeout_s = max(START_TIMEOUT_S, answer_timeout_s)
        for line in _lines(process.stdout, timeout_s):
            event = _parse(line)
            if event["event"] == "error":
                raise _failure(event["message"])
            if event["event"] == "done":
                return
            if event["event"] in ("result", "failed"):
                yield event
        raise _failure(_last_words(process, errors))


@contextlib.contextmanager
def _process(command: tuple[str, ...], errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, gone with all its children when the block is left."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            env={**os.environ, **QUIET_THREADS},
        )
    except OSError as error:
        raise _failure(f"cannot start {command[0]}: {error.strerror}") from error
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]  # both are pipes, see above


def _lines(stream: IO[bytes], timeout_s: float) -> Iterator[bytes]:
    """Whole lines as they come, until the end."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        pending, deadline = b"", time.monotonic() + timeout_s
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise _failure(f"no answer for {timeout_s:.0f} seconds")
            chunk = os.read(stream.fileno(), 1 << 16)
            if not chunk:
                return
            *lines, pending = (pending + chunk).split(b"\n")
            if len(pending) > MAX_LINE_BYTES:
                raise _failure(f"an answer of more than {MAX_LINE_BYTES} bytes")
            for line in lines:
                yield line
                deadline = time.monotonic() + timeout_s


def _parse(line: bytes) -> Event:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        raise _failure(f"an answer that is no event: {line[:80].decode(errors='replace')!r}")
    if event["event"] in ("error", "failed") and not isinstance(event.get("message"), str):
        raise _failure(f"an answer that is no event: {line[:80].decode(errors='replace')!r}")
    return event


def _last_words(process: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    code = process.wait()
    errors.seek(0, os.SEEK_END)
    errors.seek(max(0, errors.tell() - 4000))
    lines = errors.read().decode(errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    end = f"it was killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit status {code}"
    return f"{end}; its last words: {said}" if said else end


def _failure(reason: str) -> InconclusiveMeasurementError:
    return InconclusiveMeasurementError(
        f"the latency runner failed: {reason}. Check that this Python can import onnxruntime and that memory is free, "
        "then measure again; what was measured before is kept"
    )
