import json
import sqlite3

import pytest

from nas.errors import InvalidInputError
from nas.rundir import RunDir, fresh_path, versions


def test_create_then_open_gives_the_facts_back(tmp_path):
    RunDir.create(tmp_path / "a" / "run", facts={"seed": 3})
    facts = RunDir.open(tmp_path / "a" / "run").read()
    assert facts["seed"] == 3
    assert facts["versions"] == versions()
    assert facts["versions"]["python"]


def test_an_empty_folder_is_taken(tmp_path):
    assert RunDir.create(tmp_path).run_file.exists()


def test_an_occupied_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InvalidInputError, match="already there and not empty"):
        RunDir.create(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.txt"]


def test_a_folder_with_a_search_says_how_to_continue(tmp_path):
    RunDir.create(tmp_path / "run")
    with pytest.raises(InvalidInputError, match="--resume"):
        RunDir.create(tmp_path / "run")


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_the_way_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInputError, match="choose another"):
        RunDir.create(tmp_path / name)


def test_a_read_only_place_is_one_sentence(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(InvalidInputError, match=r"cannot write .*Permission denied; choose another --out"):
        RunDir.create(tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "broken"),
        (b'{"schema_version": 1', "broken"),
        (b"\xff\xfe", "broken"),
        (b"[" * 100_000, "broken"),
        (b"[]", "schema_version"),
        (b'{"schema_version": 2}', "schema_version"),
    ],
)
def test_a_broken_run_file_is_said(tmp_path, content, message):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InvalidInputError, match=message):
        RunDir.open(tmp_path)


def test_what_is_no_run_folder_is_said(tmp_path):
    with pytest.raises(InvalidInputError, match=r"not a run folder: it holds no run\.json"):
        RunDir.open(tmp_path / "nowhere")


def test_update_and_commands_keep_the_rest(tmp_path):
    run = RunDir.create(tmp_path / "run", facts={"seed": 1})
    run.update(fingerprint="x")
    run.add_command("nas search")
    run.add_command("nas front")
    facts = run.read()
    assert (facts["seed"], facts["fingerprint"]) == (1, "x")
    assert facts["commands"] == ["nas search", "nas front"]


def test_a_number_that_json_lacks_is_never_written(tmp_path):
    run = RunDir.create(tmp_path / "run")
    with pytest.raises(ValueError, match="JSON"):
        run.update(quality=float("nan"))
    json.loads(run.run_file.read_text())


def test_the_storage_url_opens_the_store_whatever_the_folder_is_called(tmp_path):
    sqlalchemy = pytest.importorskip("sqlalchemy")
    run = RunDir.create(tmp_path / "a run ? 100% #1")
    with sqlalchemy.create_engine(run.storage_url).connect() as connection:
        connection.execute(sqlalchemy.text("create table t (x int)"))
        connection.commit()
    assert run.store.exists()
    with sqlite3.connect(run.store) as connection:
        assert connection.execute("select name from sqlite_master").fetchall() == [("t",)]


def test_a_second_process_is_kept_out_and_the_lock_falls(tmp_path):
    run = RunDir.create(tmp_path / "run")
    with run.locked(), pytest.raises(InvalidInputError, match="another process"), run.locked():
        pass
    with run.locked():
        pass


def test_default_folders_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = RunDir.create().path
    second = RunDir.create().path
    assert first != second
    assert first.parent.name == second.parent.name == "runs"
    assert not fresh_path().exists()
