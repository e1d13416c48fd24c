"""``nas devices``: the list, what adds to it, and profiles that can be carried."""

import json
import os
import subprocess
import sys

import pytest

from nas import api
from nas.devices import gpu as gpu_module
from nas.devices import resolve as resolve_module
from nas.devices import ssh
from nas.devices.by_hand import COMMAND
from nas.devices.local import local_cpu
from nas.devices.profile import Profile
from nas.devices.registry import Registered, SshPlace
from nas.devices.registry import add as register
from nas.devices.runner import facts
from nas.errors import DeviceNotAvailableError

SPACE = "num_layers = [1, 2]\nhidden_size = 32\nintermediate_size = [32, 64]\nhead_size = 16\n"
QUICK = ("--space", "tiny.toml", "--samples", 4, "--seconds", 0.02, "--seq-len", 16)


@pytest.fixture(autouse=True)
def config(monkeypatch, tmp_path):
    monkeypatch.setenv("NAS_CONFIG", str(tmp_path / "config"))
    monkeypatch.setattr(gpu_module, "known_gpus", list)
    (tmp_path / "tiny.toml").write_text(SPACE)


@pytest.fixture
def fake(monkeypatch):
    """Makes a device of this machine that answers at once, the same for every shape."""

    def run(job):
        yield {"event": "ready", "facts": facts()}
        for entry in job.header["candidates"]:
            yield {
                "event": "result",
                "name": entry["name"],
                "samples_s": [0.002] * 30,
                "anchor_samples_s": [0.004] * 30,
                "num_rounds": 10,
                "pressure": {"busy_share": 0.0, "steal_share": 0.0, "waiting_share": 0.0},
                "throttled": [],
                "peak_memory_bytes": None,
                "energy_j": None,
            }

    monkeypatch.setattr(resolve_module, "local_cpu", lambda settings: local_cpu(settings, run=run))


def names(ended):
    return [device["name"] for device in ended.data["devices"]]


def test_the_list_is_the_default(nas):
    assert nas("devices", "--json").data == nas("devices", "list", "--json").data
    assert names(nas("devices", "--json")) == ["cpu"]
    assert set(nas("devices", "--json").data["devices"][0]) == {"name", "description"}
    assert nas("devices").out == nas("devices", "list").out
    assert "nas devices add NAME ssh://" in nas("devices").err


def test_a_device_comes_and_goes(nas):
    added = nas("devices", "add", "board", "ssh://pi@host", "--threads", 2, "--cpus", "2,3", "--json")
    assert added.data == {"name": "board", "description": "ssh://pi@host, threads 2, cpus 2,3"}
    nas("devices", "add", "node", "ray:auto", "--resource", "board")
    assert names(nas("devices", "--json")) == ["cpu", "board", "node"]
    assert "board: ssh://pi@host, threads 2, cpus 2,3\n" in nas("devices").out
    assert nas("devices", "remove", "board").code == 0
    assert nas("devices", "remove", "node", "--json").data == {"removed": "node"}
    assert names(nas("devices", "--json")) == ["cpu"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["add", "board"], "Missing argument"),
        (["add", "Board", "ssh://h"], "a device's name must be"),
        (["add", "cpu", "ssh://h"], "means a device of this machine"),
        (["add", "board", "host"], "an address must be ssh://"),
        (["add", "board", "ray:auto"], "chosen by one thing"),
        (["add", "board", "absent.json"], "cannot be used"),
        (["add", "board", "ssh://h", "--cpus", "x"], "--cpus must be"),
        (["add", "board", "ssh://h", "--runtime", "torch"], "ssh devices run onnxruntime or openvino, not torch"),
        (
            ["add", "gpu", "ray:auto", "--accelerator", "A100", "--runtime", "onnxruntime"],
            "name the node by a resource",
        ),
        (["add", "board", "ssh://h", "--precision", "fp2"], "precision must be"),
        (["remove", "board"], "no device 'board' to remove"),
        (["lsit"], "list"),
        (["--json", "list"], "write it behind the verb: nas devices list --json"),
        (["profile"], "say where the profile shall be written: --out FILE.json"),
        (["profile", "--out", "board"], "must end in .json"),
        (["profile", "--out", "a.json", "--samples", "0"], "samples must be"),
        (["profile", "--out", "a.json", "--space", "stok"], "Did you mean 'stock'"),
        (["profile", "--out", "a.json", "--runtime", "tensorrt"], "unknown runtime"),
        (["profile", "--out", "absent/../tiny.toml/a.json", *QUICK], "cannot write"),
        (["profile", "cpu", "--write-job", "d"], "leave out NAME, --out and --answers"),
        (["profile", "--write-job", "d", "--out", "a.json"], "leave out NAME"),
        (["profile", "--write-job", "d", "--runtime", "torch"], "the runner alone measures"),
        (["profile", "--answers", "x", "--out", "a.json", "--samples", "3"], "leave out --samples"),
        (["profile", "--answers", "x"], "--out FILE.json"),
        (["profile", "--answers", "x", "--out", "a.json"], "put the answers beside the job"),
    ],
)
def test_what_cannot_be_done_is_told(nas, fake, argv, message):
    ended = nas("devices", *argv)
    assert ended.code == 2
    assert message in " ".join(ended.err.split())
    assert "Traceback" not in ended.err


LONG = "a" * 300


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["devices", "probe", "~nosuchuser/x.json"], "no home folder is known for '~nosuchuser/x.json'"),
        (["devices", "add", "far", "~nosuchuser/x.json"], "no home folder is known"),
        (["devices", "probe", f"{LONG}.json"], "cannot read it: File name too long"),
        (["devices", "add", "far", f"{LONG}.json"], "cannot read it: File name too long"),
        (["devices", "profile", "--out", f"{LONG}.json", *QUICK], "File name too long; name a file that you may write"),
        (["measure", "model", "--device", f"{LONG}.json"], "cannot read it: File name too long"),
        (["measure", LONG], "File name too long; give a folder that you may read"),
        (["devices", "probe", "absent.json"], "No such file"),
        (["devices", "probe", "pipe.json"], "it is no regular file"),
        (["devices", "add", "far", "pipe.json"], "it is no regular file"),
        (["devices", "probe", "huge.json"], "a time must be a positive, finite number of seconds"),
    ],
)
def test_a_path_that_leads_nowhere_is_told(nas, fake, tmp_path, argv, message):
    os.mkfifo(tmp_path / "pipe.json")
    nas("devices", "profile", "--out", "far.json", *QUICK)
    data = json.loads((tmp_path / "far.json").read_text())
    data["predictor"]["anchor_reference_s"] = 10**400
    (tmp_path / "huge.json").write_text(json.dumps(data))
    ended = nas(*argv)
    assert ended.code == 2
    assert message in " ".join(ended.err.split())


def test_a_home_folder_of_nobody_is_told(nas, monkeypatch):
    monkeypatch.setenv("NAS_CONFIG", "~nosuchuser/x")
    ended = nas("devices", "list")
    assert ended.code == 2
    assert "no home folder is known for '~nosuchuser/x'; write the path out" in " ".join(ended.err.split())


def test_a_runtime_that_ssh_does_not_bring_along_is_told_before_anything_is_connected_to(nas, tmp_path):
    register("board", Registered(SshPlace("ssh://nowhere.invalid"), {"runtime": "torch-graphs"}))
    (tmp_path / "config.json").write_text("{}")
    for argv in (["devices", "probe", "board"], ["measure", tmp_path, "--device", "board"]):
        ended = nas(*argv)
        assert ended.code == 2
        assert "not torch-graphs; choose one of them, or install this program there" in ended.err


def test_a_list_that_was_broken_by_hand_is_told_with_file_and_field(nas, tmp_path):
    nas("devices", "add", "board", "ssh://host")
    path = tmp_path / "config" / "devices.toml"
    path.write_text(path.read_text().replace("address", "adress"))
    for argv in (
        ["devices"],
        ["devices", "probe", "board"],
        ["devices", "add", "b", "ssh://b"],
        ["devices", "remove", "board"],
    ):
        ended = nas(*argv)
        assert ended.code == 2
        assert f"{path}, device 'board': unknown field 'adress'. Did you mean 'address'" in ended.err


def test_probe_asks_the_device_and_says_4_where_it_is_not_there(nas, monkeypatch):
    probed = nas("devices", "probe", "cpu", "--json")
    assert probed.data["facts"]["num_cores"] >= 1
    assert probed.data["fingerprint"]
    assert nas("devices", "probe", "cpu").out.startswith(f"cpu: {probed.data['description']}\n")
    nas("devices", "add", "board", "ssh://host", "--threads", 2)
    asked = []

    def gone(name, address, settings):
        asked.append((name, str(address), settings.threads))
        raise DeviceNotAvailableError("host does not answer")

    monkeypatch.setattr(ssh, "ssh_target", gone)
    ended = nas("devices", "probe", "board", "--json")
    assert (ended.code, ended.data["exit_code"], asked) == (4, 4, [("board", "ssh://host", 2)])
    unknown = nas("devices", "probe", "baord")
    assert unknown.code == 4
    assert "Did you mean 'board'" in unknown.err


def test_a_profile_is_measured_carried_and_found_again(nas, tmp_path, fake):
    measured = nas("devices", "profile", "--out", "far.json", *QUICK, "--json")
    assert measured.code == 0, measured.err
    assert measured.data["num_samples"] == len(Profile.read(tmp_path / "far.json").samples) == 4
    assert "profiling cpu" in measured.err
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "far.json").rename(tmp_path / "elsewhere" / "far.json")
    assert nas("devices", "add", "far", "elsewhere/far.json").out.startswith("far: predicted from a profile of 20")
    for name in ("far", "elsewhere/far.json"):
        ended = nas("devices", "probe", name)
        assert ended.code == 4
        assert "predicts and cannot be asked" in ended.err
        assert nas("devices", "profile", name, "--out", "copy.json", *QUICK).code == 4
    assert not (tmp_path / "copy.json").exists()
    refused = nas("devices", "profile", "--out", "elsewhere/far.json", *QUICK[:-1], 32)
    assert refused.code == 2
    assert "name another file or remove it" in refused.err


def test_the_error_of_one_shape_is_not_known(nas, fake):
    question = ("--space", "tiny.toml", "--samples", 1, "--seconds", 0.02, "--seq-len", 16)
    measured = nas("devices", "profile", "--out", "one.json", *question, "--json").data
    assert (measured["num_samples"], measured["median_error"], measured["p95_error"]) == (1, None, None)
    told = nas("devices", "profile", "--out", "one.json", *question)
    assert "How far predictions are off is not known" in told.out
    assert "%" not in told.out
    assert nas("devices", "add", "far", "one.json").code == 0


def test_an_interrupted_profile_says_how_to_go_on_and_does(nas, monkeypatch, tmp_path, fake):
    write = Profile.to_json

    def interrupted(profile):
        if len(profile.samples) == 3:
            raise KeyboardInterrupt
        return write(profile)

    monkeypatch.setattr(Profile, "to_json", interrupted)
    ended = nas("devices", "profile", "--out", "far.json", *QUICK)
    assert ended.code == 130
    assert "go on with: nas devices profile --out far.json --space tiny.toml" in ended.err
    assert len(Profile.read(tmp_path / "far.json").samples) == 2
    monkeypatch.setattr(Profile, "to_json", write)
    ended = nas("devices", "profile", "--out", "far.json", *QUICK)
    assert ended.code == 0
    assert "interrupted after 2 shapes" in ended.err


def test_a_machine_that_is_not_connected_is_profiled_by_hand(nas, tmp_path):
    job = nas("devices", "profile", "--write-job", "carried", *QUICK, "--json").data
    assert job["num_shapes"] == 4
    assert job["run_there"] == f"cd carried && {COMMAND}"
    subprocess.run([sys.executable, *COMMAND.split()[1:]], cwd=tmp_path / "carried", check=True, timeout=120)
    words = job["then_here"].split()
    made = nas(*words[1:])
    assert made.code == 0, made.err
    assert made.out.startswith("board.json: 4 shapes on ")
    assert json.loads((tmp_path / "board.json").read_text())["predictor"]["conditions"]["device"] == "board"


def test_the_functions_are_those_of_the_command(tmp_path):
    assert api.add_device("board", "ssh://host") == "ssh://host"
    assert api.devices()["board"] == "ssh://host"
    assert api.probe_device("cpu").num_cores >= 1
    api.remove_device("board")
    assert list(api.devices()) == ["cpu"]
