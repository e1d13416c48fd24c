import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from chain_cases import CHAINS, random_chains

from search_spaces.architecture import Architecture
from search_spaces.chain_space import ChainSpace
from search_spaces.choices import AS_HIDDEN
from search_spaces.errors import InvalidInputError
from supernet.block_table import BlockTable
from supernet.chain_losses import boundary_loss, boundary_states, check_divides, path_losses
from supernet.chain_start import start_chains
from supernet.chain_supernet import ChainSupernet, ChainSupernetConfig
from supernet.chain_train import build_chains, start_training, train_chains
from supernet.chain_trainer import ChainTrainingConfig
from supernet.checkpoint import load_supernet
from supernet.data import Batch
from supernet.evaluate import TeacherAgreement, similarity_agreement
from supernet.extract import extract
from supernet.losses import pool
from supernet.material import load_start, read_material
from supernet.shrinking import Shrinking, draw_chain
from supernet.teacher import load_teacher
from supernet.trainer import TrainingConfig

SPACE = ChainSpace("tiny", 3, 2, (32, 64), embedding_size=(16, AS_HIDDEN), head_size=16, feed_forward_ratio=2)
CONFIG = ChainTrainingConfig(
    TrainingConfig(
        steps=10, batch_size=8, seq_len=24, precision="fp32", evaluate_every=5, checkpoint_every=3, learning_rate=2e-3
    ),
    joint_share=0.2,
    shrinking=Shrinking(num_bins=3, candidates=6, keep=2, score_texts=8),
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _train(out, teacher_dir, corpus, config=CONFIG, space=SPACE, **options):
    return train_chains(out, space=space, corpora=[str(corpus)], config=config, teacher=str(teacher_dir), **options)


def _curve(out):
    lines = (out / "training" / "curve.jsonl").read_text().splitlines()
    return [{key: json.loads(line)[key] for key in ("step", "losses", "held_out")} for line in lines]


def _as_teacher(space, hidden_size):
    """The chain of the teacher's form: attention and feed-forward in turn, embeddings as wide as it."""
    turns = ("attention", "feed_forward")
    blocks = tuple(space.block(hidden_size, turns) for _ in range(space.num_blocks))
    return Architecture(hidden_size, blocks)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, teacher_dir, corpus):
    torch.set_num_threads(1)
    return _train(tmp_path_factory.mktemp("run") / "supernet", teacher_dir, corpus)


@pytest.fixture
def started(teacher, corpus):
    from supernet.data import tokenise

    chunks, _ = tokenise([str(corpus)], teacher.tokenizer, seq_len=24)
    batches = [(batch.input_ids, batch.attention_mask) for batch in chunks.batches(16)[-2:]]
    torch.manual_seed(0)
    supernet = ChainSupernet(ChainSupernetConfig(SPACE, teacher.encoder.text, 64, 64))
    start_chains(supernet, teacher.encoder, batches)
    return supernet.eval(), Batch(*batches[0])


def test_a_chain_of_the_teachers_form_starts_as_the_teacher(started, teacher):
    supernet, batch = started
    with torch.no_grad():
        expected = teacher.encoder(batch.input_ids, batch.attention_mask)
        got = supernet(_as_teacher(SPACE, 64), batch.input_ids, batch.attention_mask).hidden[-1]
        targets = boundary_states(teacher.encoder, batch, 3)
        alone, assembled = (
            path_losses(supernet, _as_teacher(SPACE, 64), targets, batch, is_assembled=way) for way in (False, True)
        )
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert [float(loss) for loss in (*alone, *assembled)] == pytest.approx([0.0] * 8, abs=1e-6)


def test_the_start_brings_every_block_nearer_than_random_weights_do(started, teacher):
    supernet, batch = started
    torch.manual_seed(0)
    fresh = ChainSupernet(ChainSupernetConfig(SPACE, teacher.encoder.text, 64, 64)).eval()
    targets = boundary_states(teacher.encoder, batch, 3)
    rng = random.Random(0)
    with torch.no_grad():
        for _ in range(5):
            chain = draw_chain(SPACE, rng)
            ours, theirs = (path_losses(one, chain, targets, batch, handover=0) for one in (supernet, fresh))
            assert all(mine < other + 1e-6 for mine, other in zip(ours, theirs, strict=True))


def test_maps_are_fitted_on_enough_text_where_training_batches_are_small(teacher_dir, corpus):
    """A map of more units than it has seen tokens explains its own text and no other."""
    losses = []
    for batch_size in (1, 32):
        loaded, words = load_start(str(teacher_dir), None)
        material = read_material([str(corpus)], loaded, words, seq_len=24)
        config = replace(CONFIG, run=replace(CONFIG.run, batch_size=batch_size))
        trainer = start_training(build_chains(SPACE, loaded, seed=0, seq_len=24), material, config)
        losses.append({one.size: one.loss for one in trainer.block_table().embeddings})
    assert losses[0][32] < losses[0][16] < 1
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_blocks_learn_by_themselves(started, teacher):
    supernet, batch = started
    targets = boundary_states(teacher.encoder, batch, 3)
    losses = path_losses(supernet, _as_teacher(SPACE, 32), targets, batch)
    assert len(losses) == 4
    losses[2].backward()
    touched = {
        name.split(".")[1] for name, weight in supernet.blocks.named_parameters(prefix="b") if weight.grad is not None
    }
    assert touched == {"1"}
    assert all(weight.grad is None for weight in supernet.embeddings.parameters())
    supernet.zero_grad()
    path_losses(supernet, _as_teacher(SPACE, 32), targets, batch, is_assembled=True)[2].backward()
    touched = {
        name.split(".")[1] for name, weight in supernet.blocks.named_parameters(prefix="b") if weight.grad is not None
    }
    assert touched == {"0", "1"}


def test_the_teachers_own_states_have_no_loss_and_the_handover_counts_the_width_that_is_read():
    supernet = random_chains(CHAINS["factorised"])
    mask, target = torch.ones(2, 5, dtype=torch.long), torch.randn(2, 5, 48)
    with torch.no_grad():
        assert float(boundary_loss(supernet, 1, target, target, mask, handover=1.0)) == 0
        read = target @ supernet.boundary(1).input(16)[0].T + supernet.boundary(1).input(16)[1]
        plain = boundary_loss(supernet, 1, read, target, mask)
        assert float(boundary_loss(supernet, 1, read, target, mask, handover=1.0)) == pytest.approx(float(plain))
        assert float(boundary_loss(supernet, 1, read + 1, target, mask, handover=1.0)) > float(
            boundary_loss(supernet, 1, read + 1, target, mask)
        )


def test_boundary_states_are_the_teachers_at_the_end_of_each_block(teacher, batch):
    states = boundary_states(teacher.encoder, Batch(*batch), 3)
    assert len(states) == 4
    with torch.no_grad():
        torch.testing.assert_close(states[0], teacher.encoder.embeddings(batch[0]))
        torch.testing.assert_close(states[-1], teacher.encoder(*batch))


@pytest.mark.parametrize(("num_blocks", "text"), [(2, "1 or 3 blocks"), (4, "1 or 3 blocks")])
def test_a_teacher_whose_layers_do_not_divide_is_refused_before_training(
    tmp_path, teacher_dir, corpus, num_blocks, text
):
    space = replace(SPACE, num_blocks=num_blocks)
    with pytest.raises(InvalidInputError, match=f"got 3 layers and {num_blocks} blocks; choose a space of {text}"):
        _train(tmp_path / "s", teacher_dir, "no such corpus", space=space)
    assert not (tmp_path / "s").exists()
    check_divides(Architecture.bert(12, 64, 64, 4), replace(SPACE, num_blocks=4))


def test_training_leaves_a_whole_supernet_that_is_judged_and_extracted(trained, teacher_dir):
    loaded = load_supernet(trained)
    assert loaded.space == SPACE
    assert loaded.training["steps"] == 10
    assert set(_curve(trained)[4]["held_out"]) == {"blocks", "assembled"}
    assert set(_curve(trained)[0]["losses"]) == {"embedding", "block_1", "block_2", "block_3"}
    reference, chain = loaded.reference, _as_teacher(SPACE, 64)
    ids, mask = reference.input_ids, reference.attention_mask
    with torch.no_grad():
        expected = loaded.supernet(chain, ids, mask).hidden[-1]
        alone = extract(loaded.supernet, chain)(ids, mask)
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)
    agreement = similarity_agreement(pool(alone, mask), reference.teacher_pooled)
    assert TeacherAgreement(loaded)(chain) == pytest.approx(agreement, abs=1e-4)


def test_the_table_holds_the_candidates_that_were_kept(trained):
    table = BlockTable.load(trained, SPACE)
    assert [one.size for one in table.embeddings] == [16, 32, 64]
    assert len(table.blocks) == 3
    for block in table.blocks:
        assert 2 <= len(block) <= 3 * 2
        assert len({one.block for one in block}) == len(block)
        assert all(0 < one.loss < 10 for one in block)


def test_training_lowers_the_held_out_loss_of_blocks_and_of_assembled_chains(tmp_path, teacher_dir, corpus):
    seen = []
    space = replace(SPACE, operations=("attention", "feed_forward"), hidden_size=(32,))
    config = replace(CONFIG, run=replace(CONFIG.run, steps=200, evaluate_every=200), joint_share=0.5, shrinks=False)
    _train(tmp_path / "s", teacher_dir, corpus, config, space, on_status=seen.append)
    assert seen[-1].held_out["blocks"] < 0.9 * seen[0].held_out["blocks"]
    assert seen[-1].held_out["assembled"] < 0.95 * seen[0].held_out["assembled"]


@pytest.mark.parametrize("cut_at", [2, 5])
def test_a_run_cut_before_or_after_a_shrinking_walks_the_same_path(trained, tmp_path, teacher_dir, corpus, cut_at):
    class CutError(Exception):
        pass

    def cut(status):
        if status.step == cut_at:
            raise CutError

    out = tmp_path / "supernet"
    with pytest.raises(CutError):
        _train(out, teacher_dir, corpus, on_status=cut)
    _train(out, teacher_dir, corpus, resume=True)
    assert _curve(out) == _curve(trained)
    assert load_supernet(out).digest == load_supernet(trained).digest
    assert (out / "blocks.json").read_text() == (trained / "blocks.json").read_text()


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes(trained, tmp_path, teacher_dir, corpus):
    program = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[4])\n"
        "from test_chain_train import _train\n"
        "out = Path(sys.argv[1])\n"
        "_train(out, sys.argv[2], sys.argv[3], resume=(out / 'training' / 'latest').exists())\n"
    )
    out = tmp_path / "supernet"
    command = [sys.executable, "-c", program, str(out), str(teacher_dir), str(corpus), str(Path(__file__).parent)]
    for number in range(3):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        started = time.monotonic()
        while process.poll() is None and not (out / "training" / "curve.jsonl").exists():
            time.sleep(0.05)
            assert time.monotonic() - started < 200
        time.sleep(0.2 + 0.2 * number)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True)
    assert _curve(out) == _curve(trained)
    assert (out / "blocks.json").read_text() == (trained / "blocks.json").read_text()


def test_without_shrinking_the_table_holds_the_best_that_were_drawn(tmp_path, teacher_dir, corpus):
    out = _train(tmp_path / "s", teacher_dir, corpus, replace(CONFIG, shrinks=False, run=replace(CONFIG.run, steps=2)))
    table = BlockTable.load(out, SPACE)
    assert all(2 <= len(block) <= 3 * 2 for block in table.blocks)


def test_a_loss_that_is_not_finite_stops_the_run_with_the_last_checkpoint_kept(
    tmp_path, teacher_dir, corpus, monkeypatch
):
    calls = []

    def diverging(*arguments, **options):
        calls.append(path_losses(*arguments, **options))
        return [loss * (math.nan if len(calls) > 20 else 1) for loss in calls[-1]]

    monkeypatch.setattr("supernet.chain_trainer.path_losses", diverging)
    with pytest.raises(InvalidInputError, match="lower the learning rate"):
        _train(tmp_path / "s", teacher_dir, corpus)
    assert (tmp_path / "s" / "training" / "latest").exists()
    assert not (tmp_path / "s" / "supernet.json").exists()


def test_resuming_another_run_is_refused(trained, teacher_dir, corpus):
    with pytest.raises(InvalidInputError, match="another config"):
        _train(trained, teacher_dir, corpus, replace(CONFIG, handover=0.5), resume=True)


def test_a_folder_that_is_occupied_and_text_that_is_too_long_are_refused(tmp_path, teacher_dir, corpus):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InvalidInputError, match="not empty"):
        _train(tmp_path, teacher_dir, corpus)
    config = replace(CONFIG, run=replace(CONFIG.run, seq_len=65))
    with pytest.raises(InvalidInputError, match="seq_len must be at most 64"):
        _train(tmp_path / "s", teacher_dir, corpus, config)


@pytest.mark.parametrize(
    "change", [{"num_paths": 0}, {"handover": -1.0}, {"joint_share": math.nan}, {"joint_share": 2.0}]
)
def test_settings_out_of_bounds_are_refused(change):
    with pytest.raises(InvalidInputError, match=next(iter(change))):
        replace(CONFIG, **change)


def test_a_teacher_with_other_heads_gives_what_it_has(teacher_dir):
    teacher = load_teacher(str(teacher_dir)).encoder
    space = replace(SPACE, head_size=32)
    supernet = ChainSupernet(ChainSupernetConfig(space, teacher.text, 64, 64))
    before = supernet.operation(0, 0, 64, "attention").query.weight.clone()
    start_chains(supernet, teacher, [(torch.randint(5, 600, (2, 9)), torch.ones(2, 9, dtype=torch.long))])
    assert torch.equal(supernet.operation(0, 0, 64, "attention").query.weight, before), "heads of 16 do not make 32"
    theirs = teacher.block(0).sublayers[1].up.weight
    assert torch.equal(supernet.operation(0, 1, 32, "feed_forward").up.weight, theirs[:64, :32])
