"""Runs one job of the runner in a process of its own and hands its answers over, one event at a time.

Whatever ends the caller ends the runner: leaving the generator closes its standard input and kills its process group,
a caller that is killed closes the pipe that the runner watches, and one that hangs or is cut off stops sending the
heartbeats that the runner waits for. The process may be the runner itself or what leads to it, such as ssh.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from nas.devices import runner
from nas.errors import InconclusiveMeasurementError

RUNNER = Path(runner.__file__)
LOCAL_COMMAND = (sys.executable, "-P", str(RUNNER))
START_TIMEOUT_S = 120.0
#: How long an answer may take beside what the runner may make of the time that was asked for.
ANSWER_TIMEOUT_S = 600.0
MAX_LINE_BYTES = 64_000_000
#: How often the sender shows that it is there, and after how much silence the runner ends.
HEARTBEAT_S, SILENCE_S = 5.0, 30.0
#: How long a runner may take to clean up when it is told to end.
GRACE_S = 2.0
#: What the runner's libraries must not do behind our back: start threads of their own.
QUIET_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Event = dict[str, Any]


class RunnerError(InconclusiveMeasurementError):
    """The runner did not do its job.

    Args:
        reason: Why, in a few words.
        kind: The type of the runner's own error where it told one, such as ``ModuleNotFoundError``.
        status: The exit status of the process that ended before it was done; negative for a signal.
        last_words: The end of what it said on standard error.
    """

    def __init__(self, reason: str, *, kind: str = "", status: int | None = None, last_words: str = "") -> None:
        super().__init__(
            f"the latency runner failed: {reason}. Check that this Python can import onnxruntime and that memory is "
            "free, then measure again; what was measured before is kept"
        )
        self.reason, self.kind, self.status, self.last_words = reason, kind, status, last_words


@dataclass(frozen=True)
class Job:
    """What a runner is asked to do.

    Attributes:
        header: The job's line as ``runner.py`` documents it, without ``files`` and ``heartbeat_s``.
        files: Name and content, or the file that holds it.
    """

    header: Mapping[str, Any]
    files: Mapping[str, bytes | Path] = field(default_factory=dict)

    def chunks(self, *, heartbeat_s: float | None) -> Iterator[bytes]:
        """The job as the runner reads it, piece by piece."""
        packed = {
            name: content if isinstance(content, Path) else zlib.compress(content)
            for name, content in self.files.items()
        }
        files = [
            {
                "name": name,
                "size": content.stat().st_size if isinstance(content, Path) else len(content),
                "deflated": isinstance(content, bytes),
            }
            for name, content in packed.items()
        ]
        yield json.dumps({**self.header, "files": files, "heartbeat_s": heartbeat_s}).encode() + b"\n"
        for content in packed.values():
            if isinstance(content, bytes):
                yield content
                continue
            with content.open("rb") as file:
                while chunk := file.read(runner.CHUNK_BYTES):
                    yield chunk


def run_job(
    job: Job,
    *,
    answer_timeout_s: float | None = None,
    command: tuple[str, ...] = LOCAL_COMMAND,
    preamble: bytes = b"",
) -> Iterator[Event]:
    """Runs one job and yields its ``ready``, ``result`` and ``failed`` events as they come.

    Args:
        job: What to do.
        answer_timeout_s: How long one answer may take; by default as long as a busy machine may make it, and more.
        command: What starts the runner.
        preamble: What that command reads before the job.

    Raises:
        RunnerError: The runner did not start, was killed, answered with something else than events, failed as a
            whole, or was silent for too long; answers that came before it have been yielded.
    """
    if answer_timeout_s is None:
        answer_timeout_s = ANSWER_TIMEOUT_S + runner.MAX_STRETCH * float(job.header["seconds_each"])
    with tempfile.TemporaryFile() as errors, _process(command, errors) as process:
        assert process.stdout is not None
        timeout_s = max(START_TIMEOUT_S, answer_timeout_s)
        with _sending(process, [preamble], job.chunks(heartbeat_s=SILENCE_S)):
            for line in _lines(process.stdout, timeout_s):
                event = _parse(line)
                if event["event"] == "error":
                    raise RunnerError(event["message"], kind=str(event.get("kind", "")))
                if event["event"] == "done":
                    return
                if event["event"] in ("ready", "result", "failed"):
                    yield event
            raise _ended(process, errors)


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
        raise RunnerError(f"cannot start {command[0]}: {error.strerror}", kind=type(error).__name__) from error
    try:
        yield process
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr]  # a pipe, see above
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with contextlib.suppress(OSError):
            process.stdout.close()  # type: ignore[union-attr]


@contextlib.contextmanager
def _sending(process: subprocess.Popen[bytes], *parts: Iterable[bytes]) -> Iterator[None]:
    """Sends the parts beside the block, then a sign of life now and then until the block is left."""
    assert process.stdin is not None
    stream, is_over = process.stdin, threading.Event()

    def send() -> None:
        with contextlib.suppress(OSError, ValueError):  # its end is told with its exit status
            for part in parts:
                for chunk in part:
                    stream.write(chunk)
            stream.flush()
            while not is_over.wait(HEARTBEAT_S):
                stream.write(b"\n")
                stream.flush()

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        yield
    finally:
        is_over.set()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if sender.is_alive():
                sender.join(GRACE_S)
            if sender.is_alive():  # still writing to what does not read
                os.killpg(process.pid, signal.SIGKILL)
        sender.join()


def _lines(stream: IO[bytes], timeout_s: float) -> Iterator[bytes]:
    """Whole lines as they come, until the end."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        pending, deadline = b"", time.monotonic() + timeout_s
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise RunnerError(f"no answer for {timeout_s:.0f} seconds")
            chunk = os.read(stream.fileno(), 1 << 16)
            if not chunk:
                return
            *lines, pending = (pending + chunk).split(b"\n")
            if len(pending) > MAX_LINE_BYTES:
                raise RunnerError(f"an answer of more than {MAX_LINE_BYTES} bytes")
            for line in lines:
                yield line
                deadline = time.monotonic() + timeout_s


def _parse(line: bytes) -> Event:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        raise RunnerError(f"an answer that is no event: {line[:80].decode(errors='replace')!r}", kind="garbage")
    if event["event"] in ("error", "failed") and not isinstance(event.get("message"), str):
        raise RunnerError(f"an answer that is no event: {line[:80].decode(errors='replace')!r}", kind="garbage")
    return event


def _ended(process: subprocess.Popen[bytes], errors: IO[bytes]) -> RunnerError:
    """What a process that ended before it was done leaves to say."""
    with contextlib.suppress(OSError):
        process.stdin.close()  # type: ignore[union-attr]
    code = process.wait()
    errors.seek(0, os.SEEK_END)
    errors.seek(max(0, errors.tell() - 4000))
    said = errors.read().decode(errors="replace").strip()
    last = next((line.strip() for line in reversed(said.split("\n")) if line.strip()), "")
    end = f"it was killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit status {code}"
    return RunnerError(f"{end}; its last words: {last}" if last else end, status=code, last_words=said)
