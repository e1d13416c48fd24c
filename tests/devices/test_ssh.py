"""Another machine by ssh: a real OpenSSH server, a real runner behind it, and every way in which that can break."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ssh_server import MISSING, SSHD, Relay, SshServer, free_port, is_alive, wait_until

from nas.devices import clock, ssh
from nas.devices.clock import Job
from nas.devices.runner import FOLDER_PREFIX, MAX_TOGETHER
from nas.devices.ssh import SshAddress, over_ssh, ssh_target
from nas.devices.target import Settings, Shape
from nas.errors import DeviceNotAvailableError, InconclusiveMeasurementError, InvalidInputError
from search_spaces.architecture import Architecture, TextSpec

needs_server = [pytest.mark.ssh, pytest.mark.skipif(SSHD is None, reason=MISSING)]
needs_emulation = [
    *needs_server,
    pytest.mark.slow,
    pytest.mark.skipif("NAS_AARCH64" not in os.environ, reason="needs a folder made by tests/devices/aarch64.sh"),
]
ROOT = Path(clock.__file__).parents[2]
SETTINGS = Settings(seq_len=16)
HEADER = {"protocol": 2, "runtime": "onnxruntime", "device": "cpu", "precision": "fp32", "threads": 1, "cpus": None}
HEADER |= {"batch_size": 1, "seq_len": 16, "seconds_each": 0.05, "anchor": "anchor", "anchor_burst": None, "fill": {}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = SshServer(tmp_path_factory.mktemp("board"))
    yield server
    server.close()


@pytest.fixture
def relay(server):
    relay = Relay(server.port)
    yield relay
    relay.close()


@pytest.fixture
def board(server):
    """Makes an address of the server: ``board(python=..., **of client_config)``."""

    def make(python=sys.executable, **config):
        return SshAddress("board", python=python, config=server.client_config(**config))

    return make


def probe():
    return Job({**HEADER, "candidates": []})


def job(models, **changes):
    """A job over files that travel whole."""
    candidates = [{"name": name, "file": name, "burst": None, "memory": False} for name in models]
    return Job({**HEADER, "candidates": candidates, **changes}, {"anchor": models["small"], **models})


def run(address, work):
    return list(over_ssh(address)(work))


def python_there(folder, *lines):
    """A program that stands in for Python on the board."""
    path = folder / "python-there"
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    path.chmod(0o755)
    return str(path)


def left_behind(folder):
    return [path.name for path in Path(folder).glob(f"{FOLDER_PREFIX}*")]


# --- addresses


@given(
    host=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,60}|[0-9a-f]{1,4}(:[0-9a-f]{1,4}){7}|::1", fullmatch=True),
    user=st.none() | st.from_regex(r"[a-z_][a-z0-9_.-]{0,30}", fullmatch=True),
    port=st.none() | st.integers(1, 65535),
)
def test_an_address_survives_its_text(host, user, port):
    address = SshAddress(host, user, port)
    assert SshAddress.parse(str(address)) == address


def test_an_address_may_be_short():
    assert SshAddress.parse("board") == SshAddress("board")
    assert SshAddress.parse("pi@board") == SshAddress("board", "pi")
    assert SshAddress.parse("ssh://me@corp.example@board:2222/") == SshAddress("board", "me@corp.example", 2222)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ssh://",
        "ssh://-oProxyCommand=id",
        "-oProxyCommand=id",
        "ssh://-l@board",
        "ssh://pi:secret@board",
        "ssh://@board",
        "ssh://board:0",
        "ssh://board:65536",
        "ssh://board:many",
        "ssh://board/home",
        "ssh://bo ard",
        "ssh://board;id",
        "ssh://board\nid",
        "ssh://$(id)",
        "http://board",
        "ssh://" + "b" * 300,
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(InvalidInputError, match="ssh address"):
        SshAddress.parse(text)


@pytest.mark.parametrize("python", ["", "-c", "python3 -S", "python3;id", "$(id)", "it's", "python\n3"])
def test_what_is_no_python_is_refused(python):
    with pytest.raises(InvalidInputError, match="python of an ssh address"):
        SshAddress("board", python=python)


def test_without_ssh_the_way_out_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceNotAvailableError, match="install the OpenSSH client"):
        run(SshAddress("board"), probe())


class TestBoard:
    pytestmark = needs_server

    def test_shapes_are_timed_there_and_little_travels(self, board, relay):
        shapes = [Architecture.bert(2, 128, 512, 2), Architecture.bert(12, 192, 768, 3)]
        target = ssh_target("board", board(port=relay.port), Settings())
        before = relay.sent
        found = target.measure(
            {shape.key(): Shape(shape, TextSpec()) for shape in shapes}, seconds_each=0.05, attempts=1
        )
        assert list(found) == [shape.key() for shape in shapes]
        assert found[shapes[0].key()].p50_s < found[shapes[1].key()].p50_s
        assert target.conditions.device == "board"
        assert (relay.sent - before) / len(shapes) <= 100_000  # runner, anchor and encryption included

    def test_a_model_travels_whole(self, board, tiny_models):
        events = run(board(), job(tiny_models))
        assert [event["event"] for event in events] == ["ready", "result", "result"]
        assert events[0]["facts"]["num_cores"] == len(os.sched_getaffinity(0))

    def test_a_library_in_the_home_folder_is_not_taken(self, board, tmp_path):
        (tmp_path / "numpy.py").write_text("raise RuntimeError('not me')")
        there = python_there(tmp_path, f'cd {tmp_path} && exec {sys.executable} "$@"')
        assert run(board(there), probe())[0]["event"] == "ready"

    def test_nothing_is_left_there(self, board, server, tiny_models, tmp_path):
        there = python_there(tmp_path, f'TMPDIR={tmp_path} exec {sys.executable} "$@"')
        events = over_ssh(board(there))(job(tiny_models, seconds_each=600))
        assert next(events)["event"] == "ready"
        runners = server.runners()
        assert runners
        assert left_behind(tmp_path)
        events.close()
        assert wait_until(lambda: not any(map(is_alive, runners)))
        assert wait_until(lambda: not left_behind(tmp_path))


class TestRefused:
    """What keeps a job from starting: exit code 4, one sentence, the way out."""

    pytestmark = needs_server

    def refused(self, address, match, work=None):
        with pytest.raises(DeviceNotAvailableError, match=match) as caught:
            run(address, work or probe())
        assert caught.value.exit_code == 4
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_host_down(self, board):
        self.refused(board(port=free_port()), r"cannot be reached \(.*Connection refused\)")

    def test_host_without_address(self, server):
        config = server.folder / "nowhere"
        config.write_text("Host board\n  HostName nowhere.invalid\n")
        self.refused(SshAddress("board", config=config), "cannot be found")

    def test_no_ssh_server(self, board):
        relay = Relay(free_port())  # takes connections and ends them
        self.refused(board(port=relay.port), "does not get through")
        relay.close()

    def test_wrong_key(self, board):
        self.refused(board(key="foreign_key"), "add it with: ssh-copy-id -F .* board")

    def test_unknown_host_key_though_the_configuration_would_take_it(self, board, server):
        told = self.refused(board(host_key=None), "none is accepted silently")
        known_hosts = list(server.folder.glob("known_hosts-*-None-*"))
        assert [path.read_text() for path in known_hosts] == [""]
        assert "ssh -F" in told

    def test_changed_host_key(self, board):
        self.refused(board(host_key="foreign_key"), "another machine stands in for it")

    def test_no_python(self, board):
        self.refused(board("/nowhere/python3"), "no Python called /nowhere/python3")
        self.refused(board("nopython3"), "no Python called nopython3")
        self.refused(board("/etc/passwd"), "no Python called /etc/passwd")

    def test_no_onnxruntime(self, board, tmp_path):
        there = python_there(tmp_path, f'exec {sys.executable} -S "$@"')
        self.refused(board(there), "No module named 'onnxruntime'.* -m pip install onnxruntime numpy")

    def test_a_core_that_is_not_there(self, board, tiny_models):
        with pytest.raises(InvalidInputError, match=r"^ssh://board: cpus must be among those offered .*got \[1023\]$"):
            run(board(), job(tiny_models, cpus=[1023]))

    def test_disk_full(self, board, tmp_path, tiny_models):
        disk = tmp_path / "disk"
        disk.mkdir()
        inner = f'mount -t tmpfs -o size=16k none {disk} && TMPDIR={disk} exec {sys.executable} "$@"'
        if subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(disk)], capture_output=True
        ).returncode:
            pytest.skip("needs a user namespace, to mount a small disk in")
        there = python_there(tmp_path, f"exec unshare -rm sh -c '{inner}' sh \"$@\"")
        self.refused(board(there), r"disk of ssh://board is full \(.*No space left", job(tiny_models))


class TestBroken:
    """What breaks in the middle: exit code 5, what was answered before is kept, no process is left."""

    pytestmark = needs_server

    def broken(self, events, match):
        with pytest.raises(InconclusiveMeasurementError, match=match) as caught:
            list(events)
        assert caught.value.exit_code == 5
        assert "is kept" in str(caught.value)
        assert "\n" not in str(caught.value)

    def started(self, address, models):
        """A job in its second, endless measurement."""
        events = over_ssh(address)(job(models, seconds_each=600))
        assert next(events)["event"] == "ready"
        return events

    def test_a_profile_that_prints(self, tmp_path):
        noisy = SshServer(tmp_path, force_command='echo "Welcome to the board"; exec sh -c "$SSH_ORIGINAL_COMMAND"')
        try:
            address = SshAddress("board", python=sys.executable, config=noisy.client_config())
            self.broken(over_ssh(address)(probe()), "'Welcome to the board'.*shell profile")
        finally:
            noisy.close()

    def test_runner_killed(self, board, server, tiny_models):
        events = self.started(board(), tiny_models)
        for pid in server.runners():
            os.kill(pid, signal.SIGKILL)
        self.broken(events, "connection to ssh://board was lost, or the runner there was killed")

    def test_an_old_python(self, board, tmp_path):
        there = python_there(tmp_path, "echo 'SyntaxError: invalid syntax' >&2", "exit 1")
        self.broken(over_ssh(board(there))(probe()), r"SyntaxError.*import numpy, onnxruntime")

    def test_connection_cut(self, board, server, tiny_models):
        events = self.started(board(), tiny_models)
        runners = server.runners()
        assert runners
        for pid in server.sessions():
            os.kill(pid, signal.SIGKILL)
        self.broken(events, "connection to ssh://board was lost")
        assert wait_until(lambda: not any(map(is_alive, runners)))

    def test_a_measurement_that_was_cut_goes_on_where_it_stopped(self, board, relay, tiny_models, monkeypatch):
        asked, answered = [], []

        def take(name, latency):
            answered.append(name)
            if len(answered) == 1:
                relay.cut()

        start = ssh.run_job
        monkeypatch.setattr(
            ssh, "run_job", lambda job, **how: asked.append(len(job.header["candidates"])) or start(job, **how)
        )
        target = ssh_target("board", board(port=relay.port), SETTINGS)
        monkeypatch.setattr(target, "_is_open", lambda sittings: not sittings)
        models = {f"small {number}": tiny_models["small"] for number in range(MAX_TOGETHER)}
        found = target.measure({**models, "large": tiny_models["large"]}, seconds_each=0.05, on_result=take)
        assert set(found) == {*models, "large"}
        assert asked[:2] == [0, len(models) + 1]  # the probe, and all of them, so many of which are answered together
        assert 1 <= asked[2] <= len(models)  # what was missing
        assert sorted(answered) == sorted(found)

    @pytest.mark.slow
    @pytest.mark.parametrize("at", ["measuring", "sending"])
    def test_a_network_that_swallows_everything(self, board, server, relay, tiny_models, monkeypatch, tmp_path, at):
        monkeypatch.setattr(clock, "HEARTBEAT_S", 0.3)
        monkeypatch.setattr(clock, "SILENCE_S", 2.0)
        options = [option.replace("Interval=10", "Interval=1") for option in ssh.OPTIONS]
        monkeypatch.setattr(ssh, "OPTIONS", options)
        models = dict(tiny_models)
        if at == "sending":
            (tmp_path / "endless").write_bytes(bytes(20_000_000))
            models["endless"] = tmp_path / "endless"
            relay.stops_after = 1_000_000
        events = over_ssh(board(port=relay.port))(job(models, seconds_each=600))
        if at == "measuring":
            assert next(events)["event"] == "ready"
            relay.flows.clear()
            runners = server.runners()
            assert runners
        self.broken(events, "connection to ssh://board was lost")
        assert wait_until(lambda: not server.runners())


class TestSender:
    """Whatever becomes of the sending process, neither its ssh nor the runner there stays."""

    pytestmark = needs_server

    @pytest.mark.parametrize("deed", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
    def test_no_runner_outlives_it(self, board, server, tiny_models, tmp_path, deed):
        address = board()
        work = job(tiny_models, seconds_each=600)
        files = {name: str(path) for name, path in work.files.items()}
        code = textwrap.dedent(f"""
            from pathlib import Path
            from nas.devices import clock
            from nas.devices.clock import Job
            from nas.devices.ssh import SshAddress, over_ssh
            clock.HEARTBEAT_S, clock.SILENCE_S = 0.3, 2.0
            address = SshAddress("board", python={address.python!r}, config=Path({str(address.config)!r}))
            files = {{name: Path(path) for name, path in {files!r}.items()}}
            for event in over_ssh(address)(Job({work.header!r}, files)):
                print(event["event"], flush=True)
        """)
        sender = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        try:
            assert sender.stdout.readline() == "ready\n"
            runners, sessions = server.runners(), server.sessions()
            assert runners
            sender.send_signal(deed)
            assert wait_until(lambda: not any(map(is_alive, runners)))
            assert wait_until(lambda: not any(map(is_alive, sessions)))
        finally:
            sender.kill()
            sender.wait()
            sender.stdout.close()


class TestForeignBoard:
    """An aarch64 system by emulation: nothing that travels is for one architecture only."""

    pytestmark = needs_emulation

    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    def test_aarch64(self, board, precision):
        there = board(f"{os.environ['NAS_AARCH64']}/python3")
        target = ssh_target("foreign board", there, Settings(seq_len=16, precision=precision))
        assert target.fingerprint.machine == "aarch64"
        shapes = [Architecture.bert(1, 64, 128, 2), Architecture.bert(4, 128, 512, 2)]
        models = {shape.key(): Shape(shape, TextSpec()) for shape in shapes}
        found = target.measure(models, seconds_each=0.1, attempts=1)
        assert found[shapes[0].key()].p50_s < found[shapes[1].key()].p50_s
