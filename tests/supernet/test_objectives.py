"""The training objectives: what each refuses, that each trains, and that scores are Hugging Face's own."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModel

from search_spaces.architecture import NARROW_FORMS, Architecture
from search_spaces.errors import InvalidInputError
from search_spaces.space import SearchSpace
from supernet.checkpoint import load_supernet
from supernet.data import Batch, Masking
from supernet.distil import Teaching, encoder_states
from supernet.evaluate import similarity_agreement
from supernet.inherit import initialise_from
from supernet.losses import attention_scores
from supernet.material import read_material
from supernet.model import Supernet, SupernetConfig
from supernet.objectives import OBJECTIVES, LossWeights, check_losses
from supernet.pooling import pooling_of, text_states
from supernet.start import check_training
from supernet.teacher import load_teacher
from supernet.train import make_reference, train
from supernet.trainer import TrainingConfig

KD_SPACE = SearchSpace("kd", (1, 2, 3), (32, 64), (64, 128), num_heads=(4,), head_size=(4, 8, 16))
SPACE = SearchSpace("tiny", (1, 2, 3), (32, 64), (64, 128), head_size=(16,))
NARROW = SPACE.with_narrowing()
CONFIG = TrainingConfig(steps=4, batch_size=8, seq_len=24, precision="fp32", learning_rate=2e-3)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def unsorted(teacher_dir):
    return load_teacher(str(teacher_dir))


def test_attention_scores_are_those_of_hugging_face(teacher_dir, unsorted, batch):
    """Before the softmax, by hooks on its own query and key; after it, by its own attentions."""
    ids, mask = batch
    model = AutoModel.from_pretrained(teacher_dir, attn_implementation="eager").eval()
    kept = {}
    attention = model.encoder.layer[-1].attention.self
    for name in ("query", "key"):
        getattr(attention, name).register_forward_hook(lambda _, inputs, output, name=name: kept.update({name: output}))
    with torch.no_grad():
        softmax = model(ids, attention_mask=mask, output_attentions=True).attentions[-1]
        ours = attention_scores(encoder_states(unsorted.encoder, Batch(ids, mask), layers=(2,), with_relations=True))
    query, key = (kept[name].view(3, 11, 4, 16).transpose(1, 2) for name in ("query", "key"))
    real = mask.bool()[:, None, :, None] & mask.bool()[:, None, None, :]
    theirs = query @ key.transpose(2, 3) / 16**0.5
    torch.testing.assert_close(ours[real.expand_as(ours)], theirs[real.expand_as(ours)], rtol=1e-5, atol=1e-5)
    hidden = ours.masked_fill(~mask.bool()[:, None, None, :], -1e9).softmax(-1)
    torch.testing.assert_close(hidden[real.expand_as(ours)], softmax[real.expand_as(ours)], rtol=1e-5, atol=1e-6)


def test_a_supernets_largest_subnet_has_the_teachers_scores(teacher, batch):
    space = SearchSpace("same", (3,), (64,), (128,), num_heads=(4,), head_size=(8, 16))
    supernet = Supernet(SupernetConfig(space, teacher.encoder.text, 64)).eval()
    initialise_from(supernet, teacher)
    ids, mask = batch
    states = supernet(space.largest(), ids, mask, with_relations=True)
    target = encoder_states(teacher.encoder, Batch(ids, mask), layers=(2,), with_relations=True)
    torch.testing.assert_close(attention_scores(states), attention_scores(target), rtol=1e-4, atol=1e-5)
    smaller = space.smallest()
    query, key, _ = supernet(smaller, ids, mask, with_relations=True).relations
    sliced = query @ key.transpose(2, 3) / 8**0.5
    torch.testing.assert_close(attention_scores(supernet(smaller, ids, mask, with_relations=True)), sliced)


@pytest.mark.parametrize(
    ("space", "objective", "strategy"),
    [
        (KD_SPACE, "kd", "uniform"),
        (KD_SPACE, "kd", "sandwich"),
        (KD_SPACE.with_narrowing(), "kd", "sandwich"),
        (NARROW, "distil", "sandwich"),
        (NARROW, "distil", "uniform"),
        (NARROW, "mlm", "sandwich"),
        (NARROW, "mlm", "uniform"),
    ],
)
def test_every_objective_trains_every_space(tmp_path, teacher_dir, corpus, space, objective, strategy):
    config = replace(CONFIG, losses=OBJECTIVES[objective], strategy=strategy, num_random=3)
    train(tmp_path / "s", space=space, corpora=[str(corpus)], config=config, teacher=str(teacher_dir))
    loaded = load_supernet(tmp_path / "s")
    assert loaded.training["steps"] == 4
    assert loaded.space == space
    curve = [json.loads(line) for line in (tmp_path / "s" / "training" / "curve.jsonl").read_text().splitlines()]
    assert all(sum(entry["losses"].values()) > 0 for entry in curve)


def test_narrow_subnets_learn_masked_tokens_from_scratch(tmp_path, tokenizer_dir, corpus):
    config = replace(CONFIG, steps=40, losses=OBJECTIVES["mlm"], mask_rate=0.3, learning_rate=3e-3)
    seen = []
    train(
        tmp_path / "s",
        space=NARROW,
        corpora=[str(corpus)],
        config=config,
        teacher=None,
        tokenizer=str(tokenizer_dir),
        on_status=seen.append,
    )
    for place in ("smallest", "middle", "largest"):
        assert seen[-1].held_out[place] < seen[0].held_out[place] - 0.3


def _gradients(supernet, teaching, architecture, batch):
    supernet.zero_grad()
    teaching.backward(supernet, None, Batch(*batch), [architecture], seed=1, scale=1.0)
    last = supernet.layer(2)
    return last.feed_forward.up.weight.grad.abs().sum().item()


@pytest.mark.parametrize("form", NARROW_FORMS)
@pytest.mark.parametrize("labels_first", [True, False])
def test_the_label_of_cls_is_what_reaches_its_narrow_state(batch, unsorted, labels_first, form):
    """With no other label in the texts, narrow layers learn from [CLS] or from nothing."""
    supernet = Supernet(SupernetConfig(NARROW, unsorted.encoder.text, 64, has_mlm_head=True))
    every = tuple(sorted(set(batch[0].flatten().tolist())))
    masking = Masking(4, every, 0.15, labels_first=labels_first)
    teaching = Teaching(supernet, None, OBJECTIVES["mlm"], masking=masking)
    narrow = Architecture.bert(3, 64, 128, 4, num_narrow_layers=2, narrow_form=form)
    assert (_gradients(supernet, teaching, narrow, batch) > 0) == labels_first


@pytest.mark.parametrize("form", NARROW_FORMS)
def test_narrow_masked_token_loss_is_the_full_one_where_nothing_is_narrow_yet(batch, unsorted, form):
    """A narrow encoder that is told all positions has the loss of gathered states: same labels, same order."""
    supernet = Supernet(SupernetConfig(NARROW, unsorted.encoder.text, 64, has_mlm_head=True)).eval()
    masking = Masking(4, (0, 2, 3), 0.3, labels_first=True)
    teaching = Teaching(supernet, None, OBJECTIVES["mlm"], masking=masking)
    narrow = Architecture.bert(3, 64, 128, 4, num_narrow_layers=1, narrow_form=form)
    lesson = teaching._prepare(supernet, None, Batch(*batch), seed=3)
    masked = lesson.batch
    states = supernet(narrow, masked.input_ids, masked.attention_mask, positions=torch.ones_like(masked.input_ids) > 0)
    expected = supernet.mlm_head(states.hidden[-1][lesson.chosen], supernet.embeddings.word.weight)
    ours = teaching._logits(supernet, narrow, teaching._run(supernet, narrow, lesson), lesson)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("space", "pooling"), [(SPACE, "mean"), (NARROW, "first")])
def test_what_stands_for_a_text_learns_what_quality_compares_it_with(batch, teacher, corpus, space, pooling):
    """A subnet whose last states were all that it is taught would agree with the reference wholly, and have no loss."""
    material = read_material([str(corpus)], teacher, teacher.tokenizer, seq_len=24, max_tokens=20_000)
    reference = make_reference(teacher.encoder, material.held_out, 64)
    supernet = Supernet(SupernetConfig(space, teacher.encoder.text, 64))
    teaching = Teaching(supernet, teacher.encoder, OBJECTIVES["distil"])
    taught = teaching.teacher_states(teacher.encoder, Batch(reference.input_ids, reference.attention_mask))
    states = text_states(taught.hidden[-1], reference.attention_mask, teaching.pooling)
    assert teaching.pooling == pooling == pooling_of(space)
    assert similarity_agreement(states, reference.teacher_pooled) == pytest.approx(1, abs=1e-6)
    lesson = teaching._prepare(supernet, teacher.encoder, Batch(*batch), seed=1)
    assert teaching._distillation(lesson.target, lesson).item() == pytest.approx(0, abs=1e-6)
    own = encoder_states(teacher.encoder, Batch(*batch), layers=teaching.layers)
    torch.testing.assert_close(lesson.target.hidden[-1][:, 1:], own.hidden[-1][:, 1:])
    assert (teaching._distillation(own, lesson).item() > 0.001) == (pooling == "first")


@pytest.mark.parametrize(
    ("weights", "space", "has_teacher", "message"),
    [
        (LossWeights(), SPACE, False, "every loss but mlm needs a teacher"),
        (LossWeights(mlm=1), SPACE, False, "every loss but mlm needs a teacher"),
        (OBJECTIVES["kd"], SPACE, True, "must have the teacher's 4 heads, but 'tiny' has 2, 4"),
        (OBJECTIVES["kd"], replace(KD_SPACE, num_heads=(2,)), True, "must have the teacher's 4 heads"),
        (LossWeights(0, 0, relation=1), NARROW, True, "narrow layers would learn from nothing"),
    ],
)
def test_losses_that_cannot_be_learned_by_are_refused(unsorted, weights, space, has_teacher, message):
    with pytest.raises(InvalidInputError, match=message):
        check_losses(weights, space, unsorted if has_teacher else None)


def test_a_teacher_without_a_head_is_refused_for_masked_tokens(unsorted):
    headless = replace(unsorted, mlm_head=None)
    with pytest.raises(InvalidInputError, match="has no masked-language head; leave the mlm loss out"):
        check_losses(OBJECTIVES["mlm"], SPACE, headless)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq_len": 65}, "seq_len must be at most 64"),
        ({"losses": OBJECTIVES["kd"]}, "heads"),
    ],
)
def test_refusals_come_before_the_corpus_is_read(tmp_path, teacher_dir, change, message):
    with pytest.raises(InvalidInputError, match=message):
        train(
            tmp_path / "s",
            space=SPACE,
            corpora=["nowhere.txt"],
            config=replace(CONFIG, **change),
            teacher=str(teacher_dir),
        )


def test_a_space_larger_than_the_teacher_is_refused_before_training(unsorted):
    with pytest.raises(InvalidInputError, match="largest num_layers must fit inside the teacher, got 4 and 3"):
        check_training(replace(SPACE, num_layers=(1, 4)), unsorted, unsorted.tokenizer, CONFIG)


def test_subnets_of_a_batch_add_up_the_gradients_that_each_gives_alone(batch, unsorted):
    """All of them share one sum of embedding rows, whose gradient reaches the tables once."""
    space = replace(SPACE, hidden_size=tuple(range(32, 65, 16)))
    supernet = Supernet(SupernetConfig(space, unsorted.encoder.text, 64, has_mlm_head=True))
    teaching = Teaching(supernet, None, OBJECTIVES["mlm"], in_place=False, masking=Masking(4, (0, 2, 3), 0.3))
    subnets = [space.smallest(), space.largest(), space.at(space.size // 2)]

    def gradients(groups):
        supernet.zero_grad()
        for group in groups:
            teaching.backward(supernet, None, Batch(*batch), group, seed=1, scale=0.5)
        return {name: p.grad.clone() for name, p in supernet.named_parameters() if p.grad is not None}

    alone = gradients([[subnet] for subnet in subnets])
    together = gradients([subnets])
    assert set(alone) == set(together)
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-4, atol=1e-6)


def test_a_sliced_embedding_predicts_with_its_own_columns(unsorted):
    space = replace(SPACE, hidden_size=tuple(range(16, 65, 2)), head_size=(2,))
    supernet = Supernet(SupernetConfig(space, unsorted.encoder.text, 64, has_mlm_head=True))
    head = supernet.mlm_head
    hidden = torch.randn(5, 20)
    inner = torch.nn.functional.gelu(hidden @ head.transform.weight[:20, :20].T + head.transform.bias[:20])
    normed = torch.nn.functional.layer_norm(inner, (20,), head.norm.weight[:20], head.norm.bias[:20], 1e-12)
    expected = normed @ supernet.embeddings.word.weight[:, :20].T + head.bias
    torch.testing.assert_close(head(hidden, supernet.embeddings.output_table(20)), expected)
