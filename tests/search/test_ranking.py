"""A supernet's order beside that of subnets trained alone: on a real, tiny supernet, cut and resumed."""

import json
import random
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
from pipeline_fakes import InterruptingProgress

from analysis.rank import agreements
from nas.errors import InvalidInputError
from nas.progress import SilentProgress
from nas.search.rank_request import RankRequest, choose_subnets
from nas.search.ranking import DATA, INHERITED, PAGE, PARAMETERS, rank, resume, verdict
from search_spaces.cost import encoder_parameters
from search_spaces.presets import load_space
from search_spaces.space import SearchSpace
from supernet.task_spec import TaskOptions
from supernet.train import train
from supernet.trainer import TrainingConfig

SPACE = SearchSpace("tiny", (1, 2, 3), (32, 64), (32, 64, 128), head_size=(16,))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, teacher_dir, corpus):
    torch.set_num_threads(1)
    config = TrainingConfig(steps=6, batch_size=8, seq_len=24, checkpoint_every=100)
    out = tmp_path_factory.mktemp("trained") / "supernet"
    return train(out, space=SPACE, corpora=[str(corpus)], config=config, teacher=str(teacher_dir))


@pytest.fixture(scope="module")
def request_(trained, teacher_dir, corpus):
    return RankRequest(
        supernet=trained,
        teacher=str(teacher_dir),
        corpora=(str(corpus),),
        num_subnets=5,
        steps=4,
        batch_size=8,
        seq_len=24,
    )


def ranked(asked, folder, progress=None):
    return rank(asked, folder, progress or SilentProgress(), command="nas rank ...")


@pytest.fixture(scope="module")
def whole(request_, tmp_path_factory):
    return ranked(request_, tmp_path_factory.mktemp("whole") / "r")


def test_every_subnet_is_scored_trained_and_compared(whole):
    result = whole
    assert len({row["key"] for row in result.rows}) == 5
    assert set(result.agreements) >= {INHERITED, PARAMETERS, "MACs"}
    for row in result.rows:
        assert {INHERITED, PARAMETERS, "MACs", "W-PCA", "W-PCA inherited", "truth", "seconds"} < set(row)
        assert -1 <= row["truth"] <= 1
        assert row["truth"] != row[INHERITED]
    columns = {name: [row[name] for row in result.rows] for name in (INHERITED, PARAMETERS)}
    expected = agreements(columns, [row["truth"] for row in result.rows], baseline=PARAMETERS, k=1)
    assert result.agreements[INHERITED] == expected[INHERITED]
    assert result.agreements[PARAMETERS].gain is None
    data = json.loads((whole.folder / DATA).read_text())
    assert data == json.loads(json.dumps(result.to_dict()))
    assert data["verdict"] in (whole.folder / PAGE).read_text().replace("&#x27;", "'")
    assert not list(whole.folder.glob("alone-*"))


def test_cut_anywhere_it_ends_the_same(request_, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ranked(request_, tmp_path / "cut", InterruptingProgress(4))
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "cut", InterruptingProgress(7), command="nas rank --resume cut")
    resumed = resume(tmp_path / "cut", SilentProgress(), command="nas rank --resume cut")
    names = [name for name in whole.rows[0] if name != "seconds"]
    assert [[row[name] for name in names] for row in resumed.rows] == [
        [row[name] for name in names] for row in whole.rows
    ]
    assert resume(tmp_path / "cut", SilentProgress(), command="again").rows == resumed.rows


def test_a_task_makes_accuracy_the_truth(trained, paragraphs, tmp_path):
    rng = random.Random(0)
    texts = [paragraph[:80] for paragraph in paragraphs[:60]]
    table = pd.DataFrame({"text": texts, "label": [rng.randrange(2) for _ in texts]})
    table.to_csv(tmp_path / "task.csv", index=False)
    asked = RankRequest(
        supernet=trained, task=str(tmp_path / "task.csv"), num_subnets=5, steps=6, batch_size=8, seq_len=16
    )
    result = ranked(asked, tmp_path / "r")
    rows = result.rows
    assert result.truth_name == "task accuracy after fine-tuning alone"
    assert len(rows) == 5
    for row in rows:
        assert 0 <= row["truth"] <= 1
        assert 0 <= row[INHERITED] <= 1
        assert "teacher agreement" in row


def test_numbers_in_a_column_that_is_named_are_ranked_by_too(trained, paragraphs, tmp_path):
    texts = [paragraph[:80] for paragraph in paragraphs[:60]]
    table = pd.DataFrame({"text": texts, "words": [len(text.split()) / 4 + 0.1 for text in texts]})
    table.to_csv(tmp_path / "task.csv", index=False)
    asked = RankRequest(
        supernet=trained,
        task=str(tmp_path / "task.csv"),
        task_options=TaskOptions(label="words"),
        num_subnets=5,
        steps=2,
        batch_size=8,
        seq_len=16,
    )
    assert RankRequest.from_dict(json.loads(json.dumps(asked.to_dict()))).task_options == asked.task_options
    result = ranked(asked, tmp_path / "r")
    assert (result.truth_name, len(result.rows)) == ("task pearson after fine-tuning alone", 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_options": TaskOptions(label="words")}, "a kind and columns are those of a task; add --task"),
        ({"teacher": None}, "give --teacher and --corpus, or --task"),
        ({"steps": None}, "either --steps or --minutes"),
        ({"minutes": 1.0}, "either --steps or --minutes"),
        ({"num_subnets": 2}, "num_subnets must be"),
        ({"num_subnets": 500}, "holds 18 architectures, 500 are asked for"),
        ({"band": (3.0, 2.0)}, "a band must rise"),
        ({"band": (50.0, 60.0)}, "only 0 architectures of 50 to 60 million"),
        ({"task": "t.csv"}, "leave --teacher, --corpus and --minutes out"),
        ({"lr": 0.0}, "lr must be"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(request_, tmp_path, changes, message):
    with pytest.raises(InvalidInputError, match=message):
        ranked(replace(request_, **changes), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_another_teacher_is_refused(request_, teacher_dir, tmp_path):
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(teacher_dir, other)
    weights = load_file(other / "model.safetensors")
    torch.manual_seed(1)
    save_file({name: torch.randn_like(tensor) * 0.2 for name, tensor in weights.items()}, other / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(InvalidInputError, match="not the one that the supernet learned from"):
        ranked(replace(request_, teacher=str(other)), tmp_path / "r")


def test_a_request_survives_its_folder(request_):
    for asked in (request_, replace(request_, band=(0.01, 0.1))):
        assert RankRequest.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked
    with pytest.raises(InvalidInputError, match="does not say what was to be ranked"):
        RankRequest.from_dict({"steps": 3})


def test_subnets_spread_over_sizes_or_lie_in_a_band():
    space = load_space("stock")
    chosen = choose_subnets(space, 15, None, 0)
    sizes = list(map(encoder_parameters, chosen))
    assert (chosen[0], chosen[-1]) == (space.smallest(), space.largest())
    assert sizes == sorted(sizes)
    assert len(set(chosen)) == 15
    assert chosen == choose_subnets(space, 15, None, 0) != choose_subnets(space, 15, None, 1)
    within = choose_subnets(space, 15, (1.2, 2.2), 0)
    assert len(set(within)) == 15
    assert all(1.2e6 <= encoder_parameters(shape) <= 2.2e6 for shape in within)


def spoken(ours, parameters, truths):
    return verdict(agreements({INHERITED: ours, PARAMETERS: parameters}, truths, baseline=PARAMETERS, k=2), len(truths))


def test_the_verdict_is_a_sentence_for_every_case(monkeypatch):
    monkeypatch.setattr("analysis.rank.NUM_RESAMPLES", 100)
    rng = random.Random(0)
    truths = [float(place) for place in range(20)]
    noise = [rng.random() for _ in truths]
    rough = [truth + 9 * rng.random() for truth in truths]
    assert spoken(truths, noise, truths).startswith("Yes, the supernet can be trusted")
    assert "more subnets" not in spoken(truths, noise, truths)
    assert spoken(noise, truths, truths).startswith("No: that the supernet ranks better than chance")
    assert spoken(rough, truths, truths).startswith("Not more than a proxy")
    nearly = [1.0, 0.0, 3.0, 2.0, 4.0, 5.0]
    assert spoken(nearly, nearly[::-1], truths[:6]).startswith("Probably, the supernet can be trusted")
    assert spoken([1.0] * 20, noise, truths).startswith("Nothing can be told")
