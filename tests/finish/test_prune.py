"""Pruning ends at the asked sparsity, on tasks and on text; a transfer keeps the pattern; a kill loses nothing."""

import json

import pytest
import torch
from finish_cases import SMALL, task_model
from sparse_cases import build_encoder, token_batch
from task_cases import CLASSES, war_or_peace, write_rows

from nas.errors import InvalidInputError
from nas.export.export import export_model
from nas.export.sparse_files import LOCK_FILE
from nas.finish.finetune import FinetuneConfig, finetune, unfinished
from nas.finish.model import load_model, load_task_model, save_task_model
from nas.finish.prune import PruneConfig, Pruner, Pruning
from nas.finish.sparsity import prunable, read_lock
from nas.finish.text_training import train_on_text
from nas.finish.training import LoopConfig


def prune_encoder(source, texts, out, config, *, steps=24, **options):
    loop = LoopConfig(steps=steps, batch_size=8, learning_rate=2e-4)
    return train_on_text(source, texts, out, Pruning(config), loop=loop, seq_len=16, **options)


@pytest.fixture(scope="module")
def dense_dir(tmp_path_factory, tokenizer_dir):
    """An exported encoder with random weights."""
    folder = tmp_path_factory.mktemp("dense") / "encoder"
    export_model(build_encoder(SMALL), tokenizer_dir, folder)
    return folder


@pytest.fixture(scope="module")
def sparse_dir(tmp_path_factory, dense_dir, corpus):
    """The same, 80 % sparse."""
    folder = tmp_path_factory.mktemp("sparse") / "encoder"
    prune_encoder(dense_dir, [str(corpus)], folder, PruneConfig(0.8), steps=30)
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory, paragraphs):
    return write_rows(tmp_path_factory.mktemp("task") / "task.jsonl", war_or_peace(paragraphs))


def zeros(folder):
    return {name: weight == 0 for name, weight in prunable(load_model(folder).encoder).items()}


def train(encoder, pruner, steps):
    """A plain loop around a pruner's hooks."""
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    for step in range(steps):
        optimizer.zero_grad()
        (encoder(**token_batch(seed=step)) - 0.5).square().mean().backward()
        optimizer.step()
        pruner.hooks.after_step(step)


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.9},
        {"sparsity": 0.7, "scope": "global"},
        {"pattern": "2:4"},
        {"sparsity": 0.5, "pattern": "4x1"},
        {"sparsity": 0.9, "criterion": "obert"},
        {"pattern": "2:4", "criterion": "obert"},
        {"sparsity": 0.6, "criterion": "obert", "scope": "global"},
    ],
    ids=str,
)
def test_the_sparsity_that_was_asked_for_is_reached_and_stays(options):
    encoder = build_encoder()
    config = PruneConfig(**options)
    pruner = Pruner(encoder, config, 40)
    train(encoder, pruner, 40)
    weights = prunable(encoder)
    total = sum(weight.numel() for weight in weights.values())
    gone = sum(int((weight == 0).sum()) for weight in weights.values())
    assert gone == pytest.approx(config.sparsity * total, abs=len(weights) * 4)
    assert gone == sum(int((~mask).sum()) for mask in pruner.lock.masks.values())
    if config.pattern == "2:4":
        assert all(((weight.view(-1, 4) != 0).sum(1) == 2).all() for weight in weights.values())


def test_a_weight_that_was_removed_may_come_back_until_four_fifths_of_the_run():
    encoder = build_encoder()
    pruner = Pruner(encoder, PruneConfig(0.5), 20)
    train(encoder, pruner, 12)  # the ramp is over
    name, weight = next(iter(prunable(encoder).items()))
    mask = pruner.lock.masks[name]
    place = tuple((~mask).nonzero()[0])
    assert weight[place] == 0
    with torch.no_grad():
        pruner.asleep(name)[place] = 9.0
    pruner.after_step(12)
    assert mask[place]
    assert weight[place] == 9
    assert int((~mask).sum()) == mask.numel() // 2
    frozen = mask.clone()
    with torch.no_grad():
        pruner.asleep(name).fill_(9.0)
    pruner.after_step(17)
    assert torch.equal(mask, frozen)


def test_few_steps_still_end_at_the_final_sparsity():
    encoder = build_encoder()
    pruner = Pruner(encoder, PruneConfig(0.9), 20)
    assert pruner.first_full_step == 10
    train(encoder, pruner, 10)
    assert pruner.lock.sparsity == pytest.approx(0.9, abs=1e-3)


def test_an_encoder_is_pruned_on_text_and_says_so(sparse_dir, dense_dir):
    loaded = load_model(sparse_dir)
    lock, facts = read_lock(sparse_dir, loaded.encoder)
    assert lock.sparsity == pytest.approx(0.8, abs=1e-2)
    assert facts.sparsity == 0.8
    dense = dict(load_model(dense_dir).encoder.named_parameters())
    assert all((weight != 0).all() for weight in dense.values())
    table = "embeddings.word.weight"
    assert torch.equal(dict(loaded.encoder.named_parameters())[table], dense[table])
    assert "explains, on held-out text" in (sparse_dir / "README.md").read_text()
    assert not unfinished(sparse_dir).exists()


def test_a_transfer_keeps_the_pattern_of_every_weight(sparse_dir, task, tmp_path):
    config = FinetuneConfig(LoopConfig(epochs=2, batch_size=16, learning_rate=1e-3))
    finetune(sparse_dir, task, tmp_path / "tuned", config=config)
    before, after = zeros(sparse_dir), zeros(tmp_path / "tuned")
    assert all(torch.equal(after[name], before[name]) for name in before)
    weights = [prunable(load_model(folder).encoder) for folder in (sparse_dir, tmp_path / "tuned")]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in before)
    assert read_lock(tmp_path / "tuned", load_model(tmp_path / "tuned").encoder) is not None
    assert json.loads((tmp_path / "tuned" / "finetune.json").read_text())["beside"] == {"lock": True}


def test_a_transfer_with_a_lock_of_another_pattern_is_refused(sparse_dir, task, tmp_path):
    import shutil

    shutil.copytree(sparse_dir, tmp_path / "broken")
    path = tmp_path / "broken" / LOCK_FILE
    data = json.loads(path.read_text())
    next(iter(data["matrices"].values()))["mask"] = "0" * 64
    path.write_text(json.dumps(data))
    with pytest.raises(InvalidInputError, match="does not match the model"):
        finetune(tmp_path / "broken", task, tmp_path / "tuned", config=FinetuneConfig())
    assert not (tmp_path / "tuned").exists()


@pytest.mark.slow
def test_a_task_model_is_pruned_on_its_task(task, tmp_path, tokenizer_dir):
    model = task_model(SMALL, CLASSES, tokenizer_dir)
    save_task_model(model, tmp_path / "dense")
    settings = FinetuneConfig(LoopConfig(epochs=2, batch_size=16, learning_rate=1e-3))
    finetune(tmp_path / "dense", task, tmp_path / "tuned", config=settings)
    config = PruneConfig(pattern="2:4")
    settings = FinetuneConfig(LoopConfig(steps=24, batch_size=16, learning_rate=1e-3))
    found = finetune(
        tmp_path / "tuned",
        task,
        tmp_path / "sparse",
        config=settings,
        teacher=tmp_path / "tuned",
        companion=Pruning(config),
    )
    loaded = load_task_model(tmp_path / "sparse")
    lock, facts = read_lock(tmp_path / "sparse", loaded.encoder)
    assert facts.pattern == "2:4"
    assert all((mask.view(-1, 4).sum(1) == 2).all() for mask in lock.masks.values())
    assert found.history.best_step >= 12


@pytest.mark.parametrize("stop", [7, pytest.param(18, marks=pytest.mark.slow)])
def test_a_run_that_was_killed_ends_with_the_same_weights(dense_dir, corpus, tmp_path, stop, monkeypatch):
    config = PruneConfig(0.8)
    prune_encoder(dense_dir, [str(corpus)], tmp_path / "whole", config)
    seen = []
    after_step = Pruner.after_step

    def dies(self, step):
        after_step(self, step)
        seen.append(step)
        if len(seen) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(Pruner, "after_step", dies)
    before = {path: path.read_bytes() for path in dense_dir.glob("*.safetensors")}
    with pytest.raises(KeyboardInterrupt):
        prune_encoder(dense_dir, [str(corpus)], tmp_path / "killed", config)
    assert not (tmp_path / "killed").exists()
    monkeypatch.setattr(Pruner, "after_step", after_step)
    with pytest.raises(InvalidInputError, match="--resume"):
        prune_encoder(dense_dir, [str(corpus)], tmp_path / "killed", config)
    prune_encoder(dense_dir, [str(corpus)], tmp_path / "killed", config, resume=True)
    one, other = (load_model(tmp_path / name).encoder.state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.slow
def test_a_model_with_a_masked_language_head_learns_tokens(teacher_dir, corpus, tmp_path):
    found = prune_encoder(teacher_dir, [str(corpus)], tmp_path / "out", PruneConfig(0.5), steps=20)
    assert set(found.history.losses[0]) == {"mlm", "kd"}
    lock, _ = read_lock(tmp_path / "out", load_model(tmp_path / "out").encoder)
    assert lock.sparsity == pytest.approx(0.5, abs=1e-2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sparsity": 0}, "above 0 and below 1"),
        ({"sparsity": 1}, "above 0 and below 1"),
        ({"sparsity": 1.5}, "above 0 and below 1"),
        ({"criterion": "gradient"}, "unknown criterion"),
        ({"pattern": "some"}, "pattern must be"),
        ({"scope": "both"}, "scope must be"),
    ],
)
def test_settings_that_break_a_law_are_refused(options, said):
    with pytest.raises(InvalidInputError, match=said):
        PruneConfig(**options)


def test_what_cannot_be_pruned_is_refused_before_any_work(dense_dir, sparse_dir, corpus, tokenizer_dir, tmp_path):
    out, texts = tmp_path / "out", [str(corpus)]
    with pytest.raises(InvalidInputError, match="sparse already"):
        prune_encoder(sparse_dir, texts, out, PruneConfig(0.9))
    with pytest.raises(InvalidInputError, match="at least 20 steps"):
        prune_encoder(dense_dir, texts, out, PruneConfig(0.9), steps=5)
    with pytest.raises(InvalidInputError, match="divide"):
        prune_encoder(dense_dir, texts, out, PruneConfig(pattern="5:7"))
    save_task_model(task_model(SMALL, CLASSES, tokenizer_dir), tmp_path / "task")
    with pytest.raises(InvalidInputError, match="give --task"):
        prune_encoder(tmp_path / "task", texts, out, PruneConfig())
    out.mkdir()
    (out / "mine").write_text("")
    with pytest.raises(InvalidInputError, match="not empty"):
        prune_encoder(dense_dir, texts, out, PruneConfig())
    assert [path.name for path in out.iterdir()] == ["mine"]
