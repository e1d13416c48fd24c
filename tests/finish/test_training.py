import json

import pytest
import torch
from torch import nn

from nas.errors import InvalidInputError
from nas.finish.training import Hooks, LoopConfig, train, warm_up_and_decay
from supernet.examples import BatchOrder, Examples

CONFIG = LoopConfig(epochs=3, batch_size=8, learning_rate=0.05, fresh=("head",), metric="good")


def examples(count=50):
    rows = [[1 + (7 * index + place) % 9 for place in range(2 + index % 5)] for index in range(count)]
    return Examples(rows, [[0] * len(row) for row in rows], [sum(row) % 2 for row in rows], None, 0)


class Tiny(nn.Module):
    """Counts words; has dropout, a buffer and a part that begins at random."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.words, self.head, self.dropout = nn.Embedding(12, 6), nn.Linear(6, 2), nn.Dropout(0.5)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, batch):
        return self.head(self.dropout((self.words(batch.input_ids) * batch.attention_mask[..., None]).sum(1)))


def run(tmp_path, module, *, config=CONFIG, interrupt_at=None, resume=False, **arguments):
    data = examples()

    def loss(batch):
        return {"label": nn.functional.cross_entropy(module(batch), batch.labels)}

    def evaluate():
        whole = data.batch(range(len(data)))
        return {"good": -float(nn.functional.cross_entropy(module(whole), whole.labels))}

    def after_step(step):
        module.steps += 1
        if step == interrupt_at:
            raise KeyboardInterrupt

    arguments = {"evaluate": evaluate, "hooks": Hooks(after_step=after_step)} | arguments
    return train(
        module, data, loss, arguments.pop("evaluate"), config, tmp_path / "work", fingerprint={"run": 1},
        resume=resume, checkpoint_every_s=0, **arguments,
    )  # fmt: skip


@pytest.mark.parametrize("killed_after", [0, 4, 6, 13])
def test_a_run_that_was_killed_ends_with_the_same_weights(tmp_path, killed_after):
    whole, broken = Tiny(), Tiny()
    history = run(tmp_path / "a", whole)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", broken, interrupt_at=killed_after)
    again = Tiny()
    resumed = run(tmp_path / "b", again, resume=True)
    assert resumed.losses == history.losses
    assert (resumed.scores, resumed.best_step) == (history.scores, history.best_step)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_the_best_weights_are_left_and_early_stopping_ends_the_run(tmp_path):
    module, scores, seen = Tiny(), iter([0.1, 0.5, 0.4, 0.3, 0.9]), []

    def evaluate():
        seen.append(module.words.weight.clone())
        return {"good": next(scores)}

    config = LoopConfig(epochs=9, batch_size=8, learning_rate=0.05, metric="good", patience=2)
    history = run(tmp_path, module, config=config, evaluate=evaluate)
    assert history.stopped_early
    assert (len(seen), history.best_step, history.best["good"]) == (4, 14, 0.5)
    assert torch.equal(module.words.weight, seen[1])
    assert not module.training


def test_without_an_evaluation_the_last_weights_are_left(tmp_path):
    module, last = Tiny(), []
    hooks = Hooks(after_step=lambda step: last.append(module.words.weight.detach().clone()))
    history = run(tmp_path, module, evaluate=None, hooks=hooks)
    assert torch.equal(module.words.weight, last[-1])
    assert (len(last), history.best) == (21, {})


def test_hooks_see_every_step_and_steer_rate_and_choice(tmp_path):
    module, calls, rates = Tiny(), [], []
    hooks = Hooks(
        before_step=lambda step: calls.append(("before", step)),
        after_step=lambda step: calls.append(("after", step)),
        learning_rate=lambda step: rates.append(step) or 0.0,
        best_from=15,
    )
    before = module.words.weight.clone()
    scores = iter([0.9, 0.8, 0.1])
    history = run(tmp_path, module, hooks=hooks, evaluate=lambda: {"good": next(scores)})
    assert calls == [(place, step) for step in range(21) for place in ("before", "after")]
    assert rates == list(range(21))
    assert torch.equal(module.words.weight, before)  # a rate of 0 moves nothing
    assert history.best_step == 21


def test_every_epoch_sees_every_example_once_in_batches_of_like_length():
    data, order = examples(50), BatchOrder(examples(50), 8, seed=1)
    epochs = [[order[step].indices.tolist() for step in range(start, start + 7)] for start in (0, 7)]
    for epoch in epochs:
        assert sorted(index for batch in epoch for index in batch) == list(range(50))
        assert max(len({len(data.input_ids[index]) for index in batch}) for batch in epoch) <= 3
    assert epochs[0] != epochs[1]
    assert BatchOrder(examples(50), 8, seed=2)[0].indices.tolist() != epochs[0][0]


def test_the_rate_rises_and_falls_and_fresh_parts_learn_faster(tmp_path):
    shares = [warm_up_and_decay(step, 20, 0.25) for step in range(20)]
    assert max(shares) == shares[4] == 1
    assert shares == shares[:5] + sorted(shares[5:], reverse=True)
    assert 0 < shares[-1] < 0.1
    moved = {}
    for fresh in ((), ("head",)):
        module = Tiny()
        before = module.head.weight.detach().clone()
        once = LoopConfig(epochs=0.15, batch_size=8, learning_rate=1e-3, warmup=0, fresh=fresh, metric="good")
        run(tmp_path / str(fresh), module, config=once)
        moved[fresh] = float((module.head.weight.detach() - before).abs().max())
    assert moved["head",] == pytest.approx(5 * moved[()], rel=0.01)


def test_a_run_is_not_overwritten_and_not_mixed_with_another(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Tiny(), interrupt_at=9)
    with pytest.raises(InvalidInputError, match="unfinished run; repeat the command with --resume"):
        run(tmp_path, Tiny())
    with pytest.raises(InvalidInputError, match="started with another config"):
        run(tmp_path, Tiny(), config=LoopConfig(epochs=4, batch_size=8, metric="good"), resume=True)
    state = tmp_path / "work" / "checkpoint" / "state.json"
    state.write_text(json.dumps({"step": 3}))
    with pytest.raises(InvalidInputError, match="is damaged; remove"):
        run(tmp_path, Tiny(), resume=True)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    with pytest.raises(InvalidInputError, match="lower the learning rate"):
        train(Tiny(), examples(), lambda batch: {"label": torch.tensor(float("nan"))}, None, CONFIG, tmp_path,
              fingerprint={})  # fmt: skip


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 2}, {"warmup": 1}, {"patience": 0}, {"seed": -1}]
)
def test_the_numbers_have_bounds(wrong):
    with pytest.raises(InvalidInputError, match=f"{next(iter(wrong))} must be from"):
        LoopConfig(**wrong)
