import errno
import os
import subprocess
import sys

import pytest

from search_spaces import InvalidInputError
from search_spaces.files import atomic_folder, atomic_path, write_atomic


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_text_and_bytes_are_written_in_new_and_over_old_files(tmp_path):
    path = tmp_path / "deep" / "er" / "run.json"
    write_atomic(path, "grüße")
    assert path.read_text(encoding="utf-8") == "grüße"
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert names(path.parent) == ["run.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "run.json"
    write_atomic(path, "old")

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["run.json"]


def test_a_full_disk_leaves_the_old_file_and_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_atomic(path, "old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(
        InvalidInputError, match=r"cannot write .*run.json: No space left on device; free space or choose"
    ):
        write_atomic(path, "new")
    with pytest.raises(InvalidInputError, match="No space left on device"), atomic_folder(tmp_path / "model") as folder:
        (folder / "config.json").write_text("{}")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["run.json"]


@pytest.mark.parametrize("name", ["file/below", "n" * 300, "null\0byte"])
def test_a_place_that_cannot_be_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot write"):
        write_atomic(tmp_path / name, "text")
    with pytest.raises(InvalidInputError, match="cannot write"), atomic_folder(tmp_path / name):
        pytest.fail("a folder was made")
    assert names(tmp_path) == ["file"]


def test_a_file_does_not_land_on_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidInputError, match="Is a directory"):
        write_atomic(tmp_path / "folder", "text")
    assert names(tmp_path) == ["folder"]


KILLED = """
import os, sys
from pathlib import Path
from search_spaces.files import atomic_folder, atomic_path
path = Path(sys.argv[1])
if sys.argv[2] == "file":
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        os._exit(9)
with atomic_folder(path, replace=True) as temporary:
    (temporary / "half").write_text("half")
    os._exit(9)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_killed_writer_leaves_what_was_there(tmp_path, kind):
    path = tmp_path / "place"
    if kind == "file":
        write_atomic(path, "old")
    else:
        with atomic_folder(path) as folder:
            (folder / "old").write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), kind])
    assert done.returncode == 9
    assert (path if kind == "file" else path / "old").read_text() == "old"
    assert kind == "file" or names(path) == ["old"]


def fill(path, content, **options):
    with atomic_folder(path, **options) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "weights").write_text(content)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_takes_an_absent_or_empty_place(tmp_path, is_there):
    path = tmp_path / "model"
    if is_there:
        path.mkdir()
    fill(path, "new")
    assert (path / "sub" / "weights").read_text() == "new"
    assert names(tmp_path) == ["model"]


def test_an_occupied_place_gives_way_only_where_told(tmp_path):
    path, file = tmp_path / "model", tmp_path / "file"
    fill(path, "old")
    file.write_text("old")
    for place in (path, file):
        with pytest.raises(InvalidInputError, match=f"{place.name} is already there and not empty; choose another"):
            fill(place, "new")
    assert (path / "sub" / "weights").read_text() == file.read_text() == "old"
    for place in (path, file):
        fill(place, "new", replace=True)
        assert (place / "sub" / "weights").read_text() == "new"
    assert names(tmp_path) == ["file", "model"]


def test_a_place_filled_meanwhile_is_not_lost(tmp_path):
    path = tmp_path / "model"

    def fill_while_another_does():
        with atomic_folder(path) as folder:
            (folder / "ours").write_text("")
            path.mkdir()
            (path / "theirs").write_text("")

    with pytest.raises(InvalidInputError, match=r"cannot write .*not empty"):
        fill_while_another_does()
    assert names(path) == ["theirs"]
    assert names(tmp_path) == ["model"]


def test_a_failure_inside_leaves_the_old_folder_and_nothing_else(tmp_path):
    path = tmp_path / "model"
    fill(path, "old")

    def fill_half():
        with atomic_folder(path, replace=True) as folder:
            (folder / "half").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fill_half()
    assert (path / "sub" / "weights").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_links_stay_links(tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("model", "run.json"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    fill(tmp_path / "model", "new")
    write_atomic(tmp_path / "run.json", "{}")
    assert names(tmp_path / "disk") == ["model", "run.json"]
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "run.json").is_symlink()
