"""Files that are whole or absent: written beside their place, flushed to disk, then renamed."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from search_spaces.errors import InvalidInputError, shown


def expanded(path: str | Path) -> Path:
    """A path whose leading ``~`` or ``~user`` is that user's home folder.

    Raises:
        InvalidInputError: There is no such user, or no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InvalidInputError(f"no home folder is known for {shown(str(path))}; write the path out") from error


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
    path = _resolved(path)
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
    """Yields an empty folder beside ``path`` to fill; on success it is flushed and takes the place of ``path``.

    Where ``path`` is absent or empty this is one rename: a crash leaves all of the folder or nothing. A folder that
    gives way is first renamed aside (``.NAME.*.retired``), and comes back where the new one cannot take its place.

    Args:
        path: Where the folder shall be; must be absent or empty unless ``replace``.
        replace: Whether a folder that is already there gives way.

    Raises:
        InvalidInputError: The place is occupied or cannot be written.
    """
    path = _resolved(path)
    try:
        if not replace and _is_occupied(path):
            raise InvalidInputError(f"{path} is already there and not empty; choose another folder or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield temporary
        for entry in (*temporary.rglob("*"), temporary):
            if not entry.is_symlink():
                _flush(entry)
        temporary.chmod(0o755)
        _swap(temporary, path, replace=replace)
        _flush(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _resolved(path: Path) -> Path:
    """The place behind symbolic links, so that a link stays one and what it points to is renamed."""
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:  # a null byte
        raise _cannot_write(path, error) from error


def _is_occupied(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def _swap(temporary: Path, path: Path, *, replace: bool) -> None:
    if not replace or not _is_occupied(path):
        temporary.replace(path)  # lands on an empty folder too, and fails on one that was filled meanwhile
        return
    retired = temporary.with_suffix(".retired")
    path.rename(retired)
    try:
        temporary.rename(path)
    except OSError:
        retired.rename(path)
        raise
    if retired.is_dir():
        shutil.rmtree(retired, ignore_errors=True)
    else:
        retired.unlink()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(path: Path, error: OSError | ValueError) -> InvalidInputError:
    reason = getattr(error, "strerror", None) or error
    return InvalidInputError(f"cannot write {path}: {reason}; free space or choose another place")
