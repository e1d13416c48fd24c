"""Models with exits: where exits stand, that stopping is exact in any company, and how exits are taught."""

import numpy as np
import pytest
import torch
from exit_cases import EXIT_SHAPES, SPEC, TEXT, exit_model, padded_batch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from nas.errors import InvalidInputError
from nas.finish.exit_curves import Answers, Point, area, chosen, dact_points
from nas.finish.exit_layers import layers_of
from nas.finish.exit_model import ExitModel, TorchLayers
from nas.finish.exit_training import answers_of, dact_loss, dact_mixture, joint_loss, teach_exits, with_exits
from nas.finish.exits import run
from nas.finish.halting import Confidence, Dact, Patience, replay
from nas.finish.heads import new_head
from nas.finish.model import TaskModel
from nas.finish.training import LoopConfig
from search_spaces.architecture import Architecture, Attention, Block, FeedForward, SepConv
from supernet.encoder import Encoder
from supernet.examples import Examples
from supernet.task import Task
from supernet.task_spec import TaskSpec

POLICIES = {
    "margin": Dact("margin"),
    "paper": Dact("paper"),
    "patience": Patience(1),
    "confidence": Confidence(0.55, (1.0,) * 4),
}


def names(architecture):
    return [[step.name for step in layer] for layer in layers_of(architecture)]


def test_an_exit_stands_behind_every_layer_of_bert():
    assert names(Architecture.bert(2, 48, 80, 4)) == [
        ["blocks.0.sublayers.0", "blocks.0.sublayers.1"],
        ["blocks.0.sublayers.2", "blocks.0.sublayers.3"],
    ]


def test_a_layer_of_a_chain_begins_where_positions_are_mixed_and_takes_the_change_of_width_along():
    chain = Architecture(
        24, (Block(32, (FeedForward(40), SepConv(3))), Block(20, (Attention(2, 8), FeedForward(24), FeedForward(8))))
    )
    assert names(chain) == [
        ["blocks.0.sublayers.0", "blocks.0.sublayers.1"],
        ["blocks.1.map", "blocks.1.sublayers.0", "blocks.1.sublayers.1", "blocks.1.sublayers.2"],
    ]


@pytest.mark.parametrize("shape", EXIT_SHAPES)
def test_every_step_is_in_one_layer(shape):
    model = exit_model(shape)
    assert [step for layer in model.layers for step in layer] == list(model.encoder.steps)


@pytest.mark.parametrize(
    ("architecture", "spec", "reason"),
    [
        (Architecture.bert(4, 48, 80, 4, num_narrow_layers=2), SPEC, "position 0 only"),
        (Architecture.bert(1, 48, 80, 4), SPEC, "one layer"),
        (Architecture(48, (Block(48, (FeedForward(40), FeedForward(40))),)), SPEC, "one layer"),
        (Architecture.bert(4, 48, 80, 4), TaskSpec("regression", ()), "regression"),
        (Architecture.bert(4, 48, 80, 4), TaskSpec("tagging", ("N", "V")), "tagging"),
    ],
)
def test_exits_are_refused_where_they_make_no_sense(architecture, spec, reason):
    with pytest.raises(InvalidInputError, match=reason):
        ExitModel(Encoder(architecture, TEXT), spec)


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("shape", EXIT_SHAPES)
def test_the_last_exit_is_the_task_model(shape, pooling):
    torch.manual_seed(1)
    encoder = Encoder(EXIT_SHAPES[shape], TEXT)
    task_model = TaskModel(encoder, new_head(SPEC, encoder, seed=3, pooling=pooling), None).eval()
    batch = {name: torch.from_numpy(array) for name, array in padded_batch(5, 20).items()}
    with torch.no_grad():
        logits, gates = with_exits(task_model, has_gates=False, seed=0).eval()(**batch)
        torch.testing.assert_close(logits[-1], task_model(**batch))
    assert gates is None


@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_that_finished_inputs_leave_answers_as_each_input_alone_and_as_a_replay(policy):
    model, batch = exit_model("bert", seed=2), padded_batch(40, 24)
    layers, policy = CountingLayers(model), POLICIES[policy]
    with torch.no_grad():
        logits, gates = model(**{name: torch.from_numpy(array) for name, array in batch.items()})
    expected, exits = replay(policy, logits.numpy(), gates.numpy())
    together, passed = run(layers, batch, policy)
    np.testing.assert_allclose(together, expected, atol=1e-5)
    np.testing.assert_array_equal(passed, exits)
    assert len(set(passed.tolist())) > 1, "the case is too easy"
    assert layers.rows == [int((passed > place).sum()) for place in range(4)][: len(layers.rows)]
    for row in range(0, 40, 7):
        length = int(batch["attention_mask"][row].sum())
        alone, layers_alone = run(layers, {name: array[[row], :length] for name, array in batch.items()}, policy)
        np.testing.assert_allclose(alone[0], together[row], atol=1e-5)
        assert layers_alone[0] == passed[row]


class CountingLayers(TorchLayers):
    """Remembers how many rows each layer of a run computed."""

    def __init__(self, model):
        super().__init__(model)
        self.rows = []

    def advance(self, place, hidden, batch):
        self.rows.append(len(batch["input_ids"]))
        return super().advance(place, hidden, batch)


@pytest.mark.parametrize("rule", ["margin", "paper"])
@pytest.mark.parametrize("shape", EXIT_SHAPES)
def test_under_an_exact_rule_every_input_keeps_its_class(shape, rule):
    layers, batch = TorchLayers(exit_model(shape, seed=4)), padded_batch(60, 16, seed=1)
    whole, all_of_them = run(layers, batch, Dact(rule), halts=False)
    stopped, passed = run(layers, batch, Dact(rule))
    np.testing.assert_array_equal(stopped.argmax(1), whole.argmax(1))
    assert (all_of_them == layers.num_exits).all()
    assert passed.mean() < layers.num_exits, "the case never stops"


def test_the_mixture_that_is_learnt_is_the_one_that_answers():
    generator = torch.Generator().manual_seed(5)
    logits, gates = torch.randn(4, 6, 3, generator=generator), torch.randn(3, 6, generator=generator)
    answer, rests = dact_mixture(logits, gates)
    expected, _ = replay(Dact(), logits.numpy(), gates.numpy(), halts=False)
    np.testing.assert_allclose(answer.numpy(), expected, atol=1e-6)
    torch.testing.assert_close(rests[-1], gates.sigmoid().prod(0))


def test_the_loss_takes_the_logarithm_of_a_probability_and_the_price_of_what_is_open():
    logits = torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]]])
    gates, label = torch.tensor([[0.0]]), torch.tensor([0])
    y = 1 / (1 + np.exp(-2.0))
    parts = dact_loss(logits, gates, label, tau=0.1)
    assert parts["label"].item() == pytest.approx(-np.log(0.5 * y + 0.5 * (1 - y)), rel=1e-6)
    assert parts["layers"].item() == pytest.approx(0.1 * 0.5)
    sure = dact_loss(torch.tensor([[[200.0, 0.0]], [[200.0, 0.0]]]), gates, torch.tensor([1]), tau=0.1)
    assert torch.isfinite(sure["label"])


def test_joint_training_weighs_exits_by_their_place():
    logits, labels = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0])
    one, two, three = (F.cross_entropy(own, labels) for own in logits)
    assert joint_loss(logits, labels)["label"].item() == pytest.approx(((one + 2 * two + 3 * three) / 6).item())


def easy_task(num_texts, seed):
    """The label is the class of the second token; every third text says it only between two others' words."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, num_texts)
    ids = [[2, 10 + int(label), *rng.integers(20, 40, int(rng.integers(2, 8))).tolist(), 3] for label in labels]
    return Examples(ids, [[0] * len(row) for row in ids], labels.tolist(), None, 0)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A task that one layer can do, and what exits make of it at two prices."""
    torch.manual_seed(0)
    encoder = Encoder(Architecture.bert(3, 32, 48, 2), TEXT)
    for parameter in encoder.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, 0.15)
    model = TaskModel(encoder, new_head(SPEC, encoder, seed=0), None)
    task = Task("easy", SPEC, easy_task(480, 0), easy_task(120, 1), None)
    config = LoopConfig(epochs=3, batch_size=16, learning_rate=3e-3, fresh_factor=2.0, precision="fp32")
    folder = tmp_path_factory.mktemp("taught")
    prices = (0.001, 0.2, None)
    return {tau: teach_exits(model, task, tau, config, folder / str(tau), early="first")[0] for tau in prices}, task


def test_a_price_on_layers_saves_layers_and_keeps_the_answers(taught):
    models, task = taught
    found = {tau: answers_of(model, task.validation) for tau, model in models.items()}
    cheap, dear = (dact_points(found[tau], tau)[0] for tau in (0.2, 0.001))
    assert cheap.accuracy > 0.95
    assert cheap.layers < dear.layers
    assert cheap.layers < 2
    assert cheap.agreement == dear.agreement == 1
    assert (found[None].logits.argmax(2) == found[None].labels).mean(1).min() > 0.95


def test_answers_come_in_the_order_of_the_split(taught):
    models, task = taught
    found = answers_of(models[None], task.validation)
    batch = task.validation.batch([7])
    with torch.no_grad():
        np.testing.assert_allclose(found.logits[:, 7], models[None](**batch.inputs)[0][:, 0], atol=1e-5)
    assert found.labels.tolist() == list(task.validation.labels)


def test_a_curve_counts_layers_accuracy_and_area():
    logits = np.zeros((2, 4, 2), dtype=np.float32)
    logits[:, :, 1] = [[4, 4, -4, -4], [4, -4, -4, 4]]  # classes 1 1 0 0, then 1 0 0 1
    answers = Answers(logits, np.array([[-9, -9, -9, 9]], dtype=np.float32), np.array([1, 1, 0, 1]))
    margin = dact_points(answers, 0.1)[0]
    assert margin.exits == (3, 1)
    assert margin.layers == 1.25
    assert margin.accuracy == margin.accuracy_whole == 1
    assert area([margin], 2, 0.75) == pytest.approx(1, abs=0.03)
    half = Point("dact", "", 1.0, 0.5, 0.5, 1.0, (4, 0))
    assert chosen([margin, half], 0.4) == half
    assert chosen([margin, half], 0.6) == margin
    assert Point.from_dict(margin.to_dict()) == margin
