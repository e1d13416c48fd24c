"""Measures on another machine by ssh: the runner travels with every job, so nothing is installed there.

The connection is made by the system's OpenSSH with the user's own configuration, keys and known hosts, and ends with
the job: when this side ends it, or the connection is cut, the runner's standard input ends; when nothing arrives any
more, its heartbeats do. Either ends the runner.
"""

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nas.devices.clock import QUIET_THREADS, RUNNER, Event, Job, RunnerError, run_job
from nas.devices.session import RunJob, RunnerTarget
from nas.devices.target import RUNNER_RUNTIMES, Settings
from nas.devices.workload import OnnxWorkload
from nas.errors import DeviceNotAvailableError, InconclusiveMeasurementError, InvalidInputError, NasError
from search_spaces.errors import shown

#: How long the runner's source may travel, before there is a runner that notices a silent connection.
SOURCE_TIMEOUT_S = 60
#: What holds whatever the user's configuration says: no question is asked, no host key is taken on trust, a dead
#: connection is noticed, and the connection carries the runner and nothing else. Hosts that it leads through
#: (ProxyJump) are as the user configured them; the key of the last one vouches for the device.
OPTIONS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "NoHostAuthenticationForLocalhost=no",
    "VerifyHostKeyDNS=no",
    "UpdateHostKeys=no",
    "ConnectTimeout=15",
    "ConnectionAttempts=1",
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
    "RequestTTY=no",
    "RemoteCommand=none",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "Tunnel=no",
    "PermitLocalCommand=no",
    "ControlMaster=no",  # a master that stays would be an orphan; one that the user keeps open is used
    "ControlPersist=no",
    "LogLevel=ERROR",
)
SSH_FAILED = 255
NOT_EXECUTABLE, NOT_FOUND = 126, 127
MAX_TEXT = 255
#: What ssh says when it does not get through, the more telling sign first; the last one is in all.
UNREACHABLE = {
    "IDENTIFICATION HAS CHANGED": "the host key of {address} is not the one you know it by: it was installed anew, or "
    "another machine stands in for it; check the key with its owner, and where it is right remove the old one with "
    "ssh-keygen -R and connect once by hand with: ssh {by_hand}",
    "Host key verification failed": "the host key of {address} is not known here, and none is accepted silently; "
    "connect once by hand and check the key: ssh {by_hand}",
    "connect to host": "{address} cannot be reached ({said}); check that it is on, in reach, and runs an ssh server",
    "Permission denied": "{address} does not accept your key ({said}); add it with: ssh-copy-id {by_hand}",
    "Could not resolve": "{address} cannot be found ({said}); check the name, or add it to ~/.ssh/config",
    "": "ssh does not get through to {address} ({said}); try by hand: ssh {by_hand}",
}
#: What it says when a connection that stood breaks.
LOST = re.compile(r"client_loop:|Connection to \S+ closed by|not responding")

_ADDRESS = re.compile(r"(?:ssh://)?(?:(?P<user>.*)@)?(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{1,5}))?/?")
_HOST = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*")
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]*")
_PYTHON = re.compile(r"[A-Za-z0-9_./~][A-Za-z0-9_./~+-]*")


@dataclass(frozen=True, slots=True)
class SshAddress:
    """A machine that ssh reaches.

    Attributes:
        host: Name, address, or alias in the user's ssh configuration.
        user: Who to be there; None leaves it to ssh.
        port: Where the server listens; None leaves it to ssh.
        python: The Python there that has onnxruntime and numpy: a name on the path, or a path.
        config: An ssh configuration to use in place of the user's own.

    Raises:
        InvalidInputError: A part is not one, or could be taken for an option.
    """

    host: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"
    config: Path | None = None

    def __post_init__(self) -> None:
        for name, text, law in (
            ("host", self.host, _HOST),
            ("user", self.user, _USER),
            ("python", self.python, _PYTHON),
        ):
            if text is None and name == "user":
                continue
            if not isinstance(text, str) or len(text) > MAX_TEXT or not law.fullmatch(text):
                raise InvalidInputError(
                    f"the {name} of an ssh address must be 1 to {MAX_TEXT} plain letters, digits and signs, "
                    f"the first not a dash, got {shown(text)}"
                )
        if self.port is not None and (type(self.port) is not int or not 1 <= self.port <= 65535):
            raise InvalidInputError(f"the port of an ssh address must be from 1 to 65535, got {shown(self.port)}")

    @classmethod
    def parse(cls, text: str, *, python: str = "python3", config: Path | None = None) -> "SshAddress":
        """Reads ``ssh://user@host:port`` or ``user@host``; user and port may be left out, IPv6 goes in brackets.

        Raises:
            InvalidInputError: The text is no such address.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise InvalidInputError(f"an ssh address must be like ssh://user@host:22, got {shown(text)}")
        port = found["port"]
        return cls(found["host"].strip("[]"), found["user"], int(port) if port else None, python, config)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{f'{self.user}@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"

    @property
    def destination(self) -> tuple[str, ...]:
        """The machine in words that ssh and ssh-copy-id take: options, and last its name."""
        config = ("-F", str(self.config)) if self.config else ()
        port = ("-p", str(self.port)) if self.port else ()
        return (*config, *port, f"{self.user}@{self.host}" if self.user else self.host)

    def command(self, source_bytes: int) -> tuple[str, ...]:
        """What starts a Python there that first reads its program, of so many bytes, from standard input."""
        *options, destination = self.destination
        quiet = " ".join(f"{name}={value}" for name, value in QUIET_THREADS.items())
        # in single quotes, without any of those, an exclamation mark or a line end inside, every login shell reads it
        # alike; the current folder leaves the path, for a file there could be taken for a library
        program = (
            f"import signal,sys;signal.alarm({SOURCE_TIMEOUT_S});sys.path[:]=filter(None,sys.path);"
            f"source=sys.stdin.buffer.read({source_bytes});signal.alarm(0);"
            'exec(compile(source,"runner.py","exec"))'
        )
        settings = (part for option in OPTIONS for part in ("-o", option))
        return ("ssh", *settings, *options, "--", destination, f"exec env {quiet} {self.python} -c '{program}'")


def ssh_target(name: str, address: SshAddress, settings: Settings) -> RunnerTarget:
    """A machine that ssh reaches, as a target.

    Args:
        name: What latencies measured there are said to be of.
        address: How to reach it.
        settings: How models are run there.

    Raises:
        InvalidInputError: The runtime does not run there, or a core is not there.
        DeviceNotAvailableError: It cannot be reached, its host key is not known, the user's key is not accepted, or
            it lacks Python, a library or space.
        InconclusiveMeasurementError: The runner there failed.
    """
    check_runtime(settings)
    return RunnerTarget(name, settings, run=over_ssh(address), workload=OnnxWorkload())


def check_runtime(settings: Settings) -> None:
    """Refuses what only this program can run: over ssh travels the runner alone.

    Raises:
        InvalidInputError: The runtime is none of the runner's.
    """
    if settings.runtime not in RUNNER_RUNTIMES:
        raise InvalidInputError(
            f"ssh devices run {' or '.join(RUNNER_RUNTIMES)}, not {settings.runtime}; choose one of them, or install "
            "this program there"
        )


def over_ssh(address: SshAddress) -> RunJob:
    """Runs jobs on the machine; the result raises what :func:`ssh_target` does."""

    def run(job: Job) -> Iterator[Event]:
        if shutil.which("ssh") is None:
            raise DeviceNotAvailableError(f"{address} needs the program ssh: install the OpenSSH client here")
        source, is_ready = RUNNER.read_bytes(), False
        command = address.command(len(source))
        try:
            for event in run_job(job, command=command, preamble=source):
                is_ready = is_ready or event["event"] == "ready"
                yield event
        except RunnerError as error:
            raise _explained(error, address, job.header["runtime"], is_ready=is_ready) from error

    return run


def _explained(error: RunnerError, address: SshAddress, runtime: str, *, is_ready: bool) -> NasError:
    """What a failed job means to who asked for it, and the way out."""
    said, told, last = error.last_words, _plain(error.reason), _plain(error.last_words.rpartition("\n")[2])
    by_hand = shlex.join(address.destination)
    if error.status == SSH_FAILED and said and not is_ready and not LOST.search(said):
        sentence = next((text for sign, text in UNREACHABLE.items() if sign in said), UNREACHABLE[""])
        return DeviceNotAvailableError(sentence.format(address=address, by_hand=by_hand, said=last))
    if error.status in (NOT_FOUND, NOT_EXECUTABLE):
        return DeviceNotAvailableError(
            f"there is no Python called {address.python} on {address} ({last}); install one there, or name "
            "it by its path"
        )
    if error.kind in ("ModuleNotFoundError", "ImportError"):
        return DeviceNotAvailableError(
            f"the Python of {address} cannot time models ({told}); run there: "
            f"{address.python} -m pip install {runtime} numpy"
        )
    if error.kind == InvalidInputError.__name__:
        return InvalidInputError(f"{address}: {told.removeprefix(f'{error.kind}: ')}")
    if any(sign in f"{told} {said}" for sign in ("[Errno 28]", "[Errno 122]", "No usable temporary directory")):
        return DeviceNotAvailableError(
            f"the disk of {address} is full ({told}); free space in its temporary folder, or set TMPDIR there"
        )
    kept = "then measure again; what was measured before is kept"
    if error.kind == "garbage":
        return InconclusiveMeasurementError(
            f"{address} sent {told}. If a shell profile there prints, let it do so in interactive shells only, {kept}"
        )
    if error.status == SSH_FAILED:
        why = f" ({last})" if last else ""
        return InconclusiveMeasurementError(
            f"the connection to {address} was lost, or the runner there was killed{why}. Check its network and free "
            f"memory, {kept}"
        )
    return InconclusiveMeasurementError(
        f"the latency runner failed on {address}: {told}. Check that `ssh {by_hand} {address.python} -c "
        f"'\"import numpy, {runtime}\"'` works, {kept}"
    )


def _plain(text: str) -> str:
    """What another machine said, fit for a line on a terminal."""
    return "".join(char if char.isprintable() else " " for char in text.strip(" .\r\n"))[:MAX_TEXT]
