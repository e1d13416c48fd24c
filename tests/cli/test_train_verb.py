from pathlib import Path
from types import SimpleNamespace

import pytest

from supernet import train as train_module
from supernet.trainer import TrainingStatus


@pytest.fixture
def trained(monkeypatch):
    """Stands in for the training; holds what it was called with."""
    calls = []

    def train(out, **options):
        calls.append({"out": out, **options})
        options["on_note"]("reading the corpus")
        options["on_status"](TrainingStatus(1, 0.5, 60.0, 2.0, {}))
        options["on_status"](TrainingStatus(2, 1.0, 0.0, 1.5, {"largest": 0.25}))
        return out

    monkeypatch.setattr(train_module, "train", train)
    return calls


def test_options_reach_the_training(nas, trained):
    ended = nas(
        *(
            "train",
            "--corpus",
            "a.txt",
            "--corpus",
            "b.csv",
            "--teacher",
            "t",
            "--out",
            "s",
            "--steps",
            2,
            "--lr",
            0.01,
        ),
        *("--batch-size", 4, "--seq-len", 16, "--accumulate", 2, "--strategy", "uniform", "--precision", "fp32"),
        *("--loss", "hidden=2", "--loss", "relation", "--seed", 7, "--json"),
    )
    assert ended.code == 0
    assert ended.data == {"supernet": "s"}
    (call,) = trained
    assert call["out"] == Path("s")
    assert call["corpora"] == ["a.txt", "b.csv"]
    assert (call["teacher"], call["resume"], call["space"].name) == ("t", False, "stock")
    config = call["config"]
    assert (config.steps, config.minutes, config.learning_rate, config.batch_size) == (2, None, 0.01, 4)
    assert (config.seq_len, config.accumulate, config.strategy, config.precision, config.seed) == (
        16,
        2,
        "uniform",
        "fp32",
        7,
    )
    assert (config.losses.hidden, config.losses.relation, config.losses.pooled) == (2, 1, 0)


def test_what_a_recipe_chooses_reaches_the_training(nas, trained):
    nas(
        *("train", "--corpus", "a", "--teacher", "t", "--out", "s", "--steps", 9, "--objective", "kd"),
        *("--num-random", 3, "--no-in-place", "--no-sort", "--layers", "first", "--narrow", "--mask-rate", 0.4),
        *("--no-narrow-cls", "--partitions", 3),
    )
    (call,) = trained
    config = call["config"]
    assert (config.strategy, config.num_random, config.in_place, config.is_sorted) == ("uniform", 3, False, False)
    assert (config.mask_rate, config.narrow_cls, config.partitions) == (0.4, False, 3)
    assert (config.losses.attention, config.losses.output, config.losses.hidden) == (1, 1, 0)
    assert call["layer_selection"] == "first"
    assert call["space"].has_narrowing


@pytest.mark.parametrize(
    ("options", "strategy", "mlm"),
    [
        (["--teacher", "t"], "sandwich", 0),
        (["--teacher", "t", "--objective", "mlm"], "sandwich", 1),
        (["--tokenizer", "t"], "sandwich", 1),
        (["--teacher", "t", "--space", "autotinybert-mlm"], "uniform", 0),
        (["--teacher", "t", "--space", "autotinybert-mlm", "--strategy", "sandwich"], "sandwich", 0),
    ],
)
def test_a_recipe_follows_from_teacher_and_space(nas, trained, options, strategy, mlm):
    nas("train", "--corpus", "a", "--out", "s", "--steps", 9, *options)
    assert (trained[0]["config"].strategy, trained[0]["config"].losses.mlm) == (strategy, mlm)


def test_progress_goes_to_stderr_and_the_next_command_is_said(nas, trained):
    ended = nas("train", "--corpus", "a", "--teacher", "t", "--out", "s", "--minutes", 1)
    assert "reading the corpus" in ended.err
    assert "phase=train" in ended.err
    assert "held_out_largest=0.25" in ended.err
    assert "Next: nas search --latency-ms 10 --supernet s" in ended.err
    assert ended.out == "The supernet is in s.\n"


def test_quiet_says_only_the_result(nas, trained):
    assert "phase" not in nas("train", "--corpus", "a", "--teacher", "t", "--out", "s", "--steps", 1, "--quiet").err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --steps or --minutes"),
        (["--steps", 1, "--minutes", 1], "give either --steps or --minutes"),
        (["--steps", 0], "steps must be"),
        (["--minutes", "nan"], "minutes must be"),
        (["--steps", 1, "--lr", 2], "lr must be"),
        (["--steps", 1, "--strategy", "sandwhich"], "strategy must be one of"),
        (["--steps", 1, "--precision", "fp8"], "precision must be"),
        (["--steps", 1, "--loss", "hiden=1"], "Did you mean 'hidden'"),
        (["--steps", 1, "--loss", "hidden=x"], "--loss must be NAME=WEIGHT"),
        (["--steps", 1, "--loss", "hidden=-1"], "loss weights must be"),
        (["--steps", 1, "--space", "stok"], "stock"),
        (["--steps", 1, "--objective", "mml"], "Did you mean 'mlm'"),
        (["--steps", 1, "--objective", "kd", "--loss", "hidden=1"], "either an objective or losses"),
        (["--steps", 1, "--layers", "frist"], "Did you mean 'first'"),
        (["--steps", 1, "--mask-rate", 1], "mask_rate must be"),
        (["--steps", 1, "--partitions", 0], "partitions must be"),
        (["--steps", 1, "--strategy", "uniform", "--num-random", 0], "needs num_random"),
        (["--steps", 1, "--space", "nas-bert", "--narrow"], "narrow is for spaces of uniform encoders"),
        (["--steps", 1, "--space", "nas-bert", "--partitions", 2], "partitions is for spaces of uniform encoders"),
        (["--steps", 1, "--space", "nas-bert", "--candidates", 0], "candidates of the shrinking must be from 1"),
        (["--steps", 1, "--no-shrink"], "are for spaces of chains, and 'stock' is not one"),
        (["--steps", 1, "--candidates", 5], "are for spaces of chains, and 'stock' is not one"),
        (["--steps", 1, "--space", "nas-bert", "--layers", "first"], "layers is for spaces of uniform encoders"),
        (["--steps", 1, "--space", "nas-bert", "--no-sort"], "no-sort is for spaces of uniform encoders"),
        (["--steps", 1, "--space", "nas-bert", "--mask-rate", 0.5], "mask-rate is for spaces of uniform encoders"),
        (["--steps", 1, "--tokenizer", "t"], "a teacher brings its own tokenizer"),
    ],
)
def test_bad_input_is_one_sentence(nas, trained, options, message):
    ended = nas("train", "--corpus", "a", "--teacher", "t", "--out", "s", *options)
    assert ended.code == 2
    assert message in ended.err
    assert len(ended.err.splitlines()) <= 2
    assert trained == []


def test_ctrl_c_says_how_to_resume(nas, monkeypatch):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "train", interrupt)
    ended = nas("train", "--corpus", "a", "--teacher", "t", "--out", "s", "--steps", 1)
    assert ended.code == 130
    assert ended.err == "nas: interrupted; continue with the same command and --resume\n"


def test_options_of_chains_reach_their_training(nas, monkeypatch):
    calls = []

    def train(out, **options):
        calls.append(options)
        return out

    monkeypatch.setattr("supernet.chain_train.train_chains", train)
    given = ("train", "--corpus", "a.txt", "--teacher", "t", "--out", "s", "--steps", 2, "--space", "nas-bert-small")
    assert nas(*given).code == 0
    assert nas(*given, "--no-shrink", "--candidates", 7, "--num-random", 3, "--seed", 5).code == 0
    first, second = (call["config"] for call in calls)
    assert (first.shrinks, first.shrinking.candidates, first.shrinking.keep, first.num_paths) == (True, 40, 10, 2)
    assert (second.shrinks, second.shrinking.candidates, second.shrinking.keep, second.num_paths) == (False, 7, 7, 3)
    assert second.run.seed == 5
    assert (calls[0]["space"].name, calls[0]["teacher"]) == ("nas-bert-small", "t")
    ended = nas(*given[:3], "--tokenizer", "t", *given[5:])
    assert "learn block by block from a teacher; give one" in ended.err


def test_chains_are_trained_by_what_operations_cost_on_a_device(nas, monkeypatch):
    asked = []

    class Table:
        description = "37 operations"

        def latency_of(self, space):
            return lambda operation, hidden_size: len(operation) * hidden_size

    def measured(target, space, text, **options):
        asked.append((target, space.name, text))
        return Table()

    def train(out, **options):
        asked.append(options["latency"]("conv3", 128))
        return out

    monkeypatch.setattr("nas.devices.resolve.live", lambda name, settings: f"{name} at {settings.seq_len}")
    monkeypatch.setattr("nas.devices.operation_table.load_or_measure_table", measured)
    teacher = SimpleNamespace(encoder=SimpleNamespace(text="what it reads"))
    monkeypatch.setattr("supernet.material.load_start", lambda teacher_name, tokenizer: (teacher, None))
    monkeypatch.setattr("supernet.chain_train.train_chains", train)
    given = ("train", "--corpus", "a.txt", "--teacher", "t", "--out", "s", "--steps", 2, "--latency-on", "board")
    ended = nas(*given, "--space", "nas-bert")
    assert (ended.code, asked) == (0, [("board at 128", "nas-bert", "what it reads"), 5 * 128])
    assert "37 operations" in ended.err
    ended = nas(*given, "--space", "stock")
    assert ended.code == 2
    assert "by latency are for spaces of chains" in ended.err
