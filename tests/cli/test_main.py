import os
import signal
import subprocess
import sys

import pytest

from nas import api
from nas.errors import (
    DeviceNotAvailableError,
    InconclusiveMeasurementError,
    InfeasibleBudgetError,
    InvalidInputError,
)

VERBS = ("search", "front", "export", "measure", "devices", "train", "version")


def raising(error):
    def fail(*_args, **_kwargs):
        raise error

    return fail


@pytest.mark.parametrize("argv", [["--help"], *([verb, "--help"] for verb in VERBS)])
def test_help_tells_the_exit_codes(nas, argv):
    ended = nas(*argv)
    assert ended.code == 0
    said = " ".join(ended.out.split())
    for code in ("0 done", "2 wrong usage", "3 no model", "4 device", "5 the measurement", "130 interrupted"):
        assert code in said


def test_help_lists_every_verb(nas):
    said = nas("--help").out
    assert all(f"\n  {verb}" in said for verb in VERBS)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["serach"],
        ["search", "--latncy-ms", "10"],
        ["search", "--latency-ms", "ten"],
        ["search", "--latency-ms"],
        ["measure"],
        ["train", "--corpus", "x.txt"],
    ],
)
def test_wrong_usage_ends_with_2_and_says_so_on_stderr(nas, argv):
    ended = nas(*argv)
    assert ended.code == 2
    assert "Error: " in ended.err or "Usage: nas" in ended.out + ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("argv", "nearest"), [(["search", "--latncy-ms", "10"], "--latency-ms"), (["serach"], "search")]
)
def test_a_misspelt_word_is_answered_with_the_nearest(nas, argv, nearest):
    assert nearest in nas(*argv).err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInputError("no such thing; take another"), 2),
        (InfeasibleBudgetError("nothing fits"), 3),
        (DeviceNotAvailableError("no such device"), 4),
        (InconclusiveMeasurementError("too noisy"), 5),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_an_expected_error_is_one_sentence_and_its_code(nas, monkeypatch, error, code, as_json):
    monkeypatch.setattr(api, "devices", raising(error))
    ended = nas("devices", *(["--json"] if as_json else []))
    assert ended.code == code
    assert ended.err == f"nas: {error}\n"
    if as_json:
        assert ended.data == {"error": str(error), "exit_code": code}
    else:
        assert ended.out == ""


def test_an_error_of_ours_is_not_hidden(nas, monkeypatch):
    monkeypatch.setattr(api, "devices", raising(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError, match="ours"):
        nas("devices")


def test_ctrl_c_ends_with_130(nas, monkeypatch):
    monkeypatch.setattr(api, "devices", raising(KeyboardInterrupt()))
    ended = nas("devices", "--json")
    assert ended.code == 130
    assert ended.data["exit_code"] == 130
    assert ended.err == "nas: interrupted\n"


def test_sigterm_ends_as_ctrl_c_does_and_the_handler_is_put_back(nas, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(api, "devices", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert nas("devices").code == 130
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_reader_that_goes_away_costs_no_traceback():
    code = "import sys, nas.api, nas.cli.main as m; nas.api.devices = lambda: {str(i): 'x' * 99 for i in range(9999)};"
    with subprocess.Popen(
        [sys.executable, "-c", code + "sys.exit(m.main(['devices']))"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait(timeout=60) == 141
    assert said == ""


def test_version_names_the_libraries(nas):
    from nas import __version__

    ended = nas("version", "--json")
    assert ended.data["version"] == __version__
    assert {"python", "torch", "onnxruntime"} <= set(ended.data["versions"])
    assert ended.err == ""
    assert __version__ in nas("version").out


def test_devices_lists_this_machine(nas):
    assert nas("devices", "--json").data["devices"][0]["name"] == "cpu"
    listed = nas("devices")
    assert listed.out.startswith("cpu: ")
    assert "install this program there" in listed.err
