"""Small models on disk, and the command line in-process."""

import json

import pytest
import torch
from finish_cases import SMALL
from task_cases import TEXT, war_or_peace, write_rows

from nas.cli.main import main
from nas.export.export import export_model
from search_spaces.architecture import Architecture
from supernet.encoder import Encoder


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory, tokenizer_dir):
    """A small encoder with random weights, as ``nas export`` writes one."""
    return _exported(SMALL, tmp_path_factory.mktemp("encoders") / "small", tokenizer_dir)


@pytest.fixture(scope="session")
def narrow_dir(tmp_path_factory, tokenizer_dir):
    """One with a narrow layer."""
    narrow = Architecture.bert(2, 32, 64, 2, num_narrow_layers=1)
    return _exported(narrow, tmp_path_factory.mktemp("encoders") / "narrow", tokenizer_dir)


def _exported(architecture, folder, tokenizer_dir):
    torch.manual_seed(1)
    export_model(Encoder(architecture, TEXT).eval(), tokenizer_dir, folder)
    return folder


@pytest.fixture(scope="session")
def movies(tmp_path_factory, paragraphs):
    """A task of two classes that one word decides, with all three splits."""
    rows = war_or_peace(paragraphs, 280)
    splits = ["train"] * 200 + ["validation"] * 40 + ["test"] * 40
    path = tmp_path_factory.mktemp("tasks") / "movies.jsonl"
    return write_rows(path, [row | {"split": split} for row, split in zip(rows, splits, strict=True)])


@pytest.fixture
def command(capfd):
    """Runs ``nas ...``: exit code, stdout, stderr."""

    def run(*words):
        capfd.readouterr()
        code = main([str(word) for word in words])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def as_json(command):
    """Runs ``nas ... --json`` and reads what it prints."""

    def run(*words):
        code, out, err = command(*words, "--json", *([] if words[0] == "predict" else ["--quiet"]))
        assert code == 0, err
        return json.loads(out) if words[0] != "predict" else [json.loads(line) for line in out.splitlines()]

    return run
