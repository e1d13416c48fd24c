"""The folder of one search: everything needed to read it, resume it and repeat it.

run.json      versions, seed, device fingerprint, the commands that worked on it, the request
study.db      the trials (Optuna's own tables in SQLite), the truth of the search
front.csv     the Pareto front as a table
report.html   the report; report-*.png beside it where a browser draws them
model/        the chosen model, exported and measured
"""

import contextlib
import datetime
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nas.errors import InvalidInputError
from search_spaces.files import write_atomic

SCHEMA_VERSION = 1
RUN_FILE = "run.json"
MAX_RUN_FILE_BYTES = 64 * 1024 * 1024
_REPORTED_VERSIONS = ("tiny-plm-nas", "torch", "transformers", "optuna", "ray", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True, slots=True)
class RunDir:
    """A run folder that exists and holds a ``run.json``."""

    path: Path

    @classmethod
    def create(cls, path: Path | None = None, *, facts: Mapping[str, Any] | None = None) -> "RunDir":
        """Makes a new run folder.

        Args:
            path: Where; by default ``runs/<time>`` below the current folder.
            facts: What ``run.json`` shall hold beside versions and time of creation.

        Raises:
            InvalidInputError: The folder is occupied, or cannot be written.
        """
        folder = fresh_path() if path is None else Path(path)
        try:
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise InvalidInputError(_occupied(folder))
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(
                f"cannot write {folder}: {error.strerror or error}; choose another --out"
            ) from error
        run = cls(folder)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        run._write({"schema_version": SCHEMA_VERSION, "created": now, "versions": versions(), **(facts or {})})
        return run

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """Opens a run folder that :meth:`create` made.

        Raises:
            InvalidInputError: There is none at ``path``, or its ``run.json`` is broken.
        """
        run = cls(Path(path))
        run.read()
        return run

    @property
    def run_file(self) -> Path:
        """The JSON file with the facts of the run."""
        return self.path / RUN_FILE

    @property
    def store(self) -> Path:
        """The SQLite file with the trials."""
        return self.path / "study.db"

    @property
    def storage_url(self) -> str:
        """The store as SQLAlchemy spells it, for Optuna and optuna-dashboard."""
        return f"sqlite:///{quote(str(self.store.resolve()), safe='/: ')}"

    @property
    def front_file(self) -> Path:
        """The Pareto front as CSV."""
        return self.path / "front.csv"

    @property
    def report_file(self) -> Path:
        """The self-contained report."""
        return self.path / "report.html"

    @property
    def model_dir(self) -> Path:
        """The folder of the chosen model's export."""
        return self.path / "model"

    def read(self) -> dict[str, Any]:
        """The facts in ``run.json``.

        Raises:
            InvalidInputError: The file is absent, not ours, or broken.
        """
        try:
            if self.run_file.stat().st_size > MAX_RUN_FILE_BYTES:
                raise InvalidInputError(f"{self.run_file} is larger than {MAX_RUN_FILE_BYTES} bytes: not a run's file")
            facts = json.loads(self.run_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InvalidInputError(f"{self.path} is not a run folder: it holds no {RUN_FILE}") from error
        except OSError as error:
            raise InvalidInputError(f"cannot read {self.run_file}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{self.run_file} is broken: {error}; start the search anew") from error
        if not isinstance(facts, dict) or facts.get("schema_version") != SCHEMA_VERSION:
            raise InvalidInputError(
                f"{self.run_file} must hold schema_version {SCHEMA_VERSION}; made by another version?"
            )
        return facts

    def update(self, **facts: Any) -> None:
        """Replaces facts in ``run.json``, atomically.

        Raises:
            InvalidInputError: The file is broken or cannot be written.
        """
        self._write({**self.read(), **facts})

    def add_command(self, command: str) -> None:
        """Appends to the run's ``commands``: what was done to it, in order.

        Raises:
            InvalidInputError: The file is broken or cannot be written.
        """
        commands = self.read().get("commands", [])
        self.update(commands=[*(commands if isinstance(commands, list) else []), command])

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process from working on the same run; the lock falls with the process that holds it.

        Raises:
            InvalidInputError: Another process works on the run.
        """
        try:
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InvalidInputError(f"cannot write {self.path}: {error.strerror or error}") from error
        try:
            _lock(handle, self.path)
            yield
        finally:
            os.close(handle)

    def _write(self, facts: Mapping[str, Any]) -> None:
        write_atomic(self.run_file, json.dumps(facts, indent=2, allow_nan=False) + "\n")


def fresh_path() -> Path:
    """A run folder that does not exist yet: ``runs/<time>`` below the current folder."""
    stamp = datetime.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    names = [stamp, *(f"{stamp}-{number}" for number in range(2, 100))]
    return next((Path("runs") / name for name in names if not (Path("runs") / name).exists()), Path("runs") / stamp)


def versions() -> dict[str, str]:
    """Versions of Python, this project and the libraries that make its numbers, those that are installed."""
    found = {"python": platform.python_version()}
    for name in _REPORTED_VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _lock(handle: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no such lock outside POSIX
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InvalidInputError(f"another process works on {path}; wait for it or stop it") from error


def _occupied(folder: Path) -> str:
    if (folder / RUN_FILE).exists():
        return f"{folder} holds a search already; continue it with --resume {folder} or choose another --out"
    return f"{folder} is already there and not empty; choose another --out"
