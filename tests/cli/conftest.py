"""The command line in-process: its exit code, its output, and a stand-in for the verbs it calls."""

import json
from dataclasses import dataclass

import pytest

from nas.cli.main import main


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def data(self):
        """The one JSON object on stdout; anything else there is a failure."""
        return json.loads(self.out)


@pytest.fixture
def nas(capfd, monkeypatch, tmp_path):
    """Runs ``nas ...`` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        capfd.readouterr()
        code = main([str(word) for word in argv])
        captured = capfd.readouterr()
        return Ended(code, captured.out, captured.err)

    return run
