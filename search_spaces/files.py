"""Files that are whole or absent: written beside their place, flushed to disk, then renamed."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from search_spaces.errors import InvalidInputError


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a file so that a reader, or a crash at any moment, sees the old content or the new one.

    Raises:
        InvalidInputError: The place cannot be written (read-only, full, not a folder).
    """
    data = content.encode() if isinstance(content, str) else content
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a path beside ``path`` to write a file to; on success it is flushed and renamed to ``path``.

    Raises:
        InvalidInputError: The place cannot be written (read-only, full, not a folder).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside ``path`` to fill; on success it takes the place of ``path`` in one rename.

    Args:
        path: Where the folder shall be; must be absent or empty unless ``replace``.
        replace: Whether a folder that is already there gives way.

    Raises:
        InvalidInputError: The place is occupied or cannot be written.
    """
    if not replace and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InvalidInputError(f"{path} is already there and not empty; choose another folder or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        temporary.chmod(0o755)
        _swap(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    retired = temporary.with_suffix(".retired")
    path.rename(retired)
    temporary.rename(path)
    shutil.rmtree(retired, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(path: Path, error: OSError) -> InvalidInputError:
    return InvalidInputError(f"cannot write {path}: {error.strerror or error}; free space or choose another place")
