import numpy as np
import pytest
from task_cases import CLASSES, NUMBER

from nas.errors import InvalidInputError
from supernet.task_metrics import are_entity_tags, choose_metric, confusion, entities, entity_scores, score
from supernet.task_spec import TaskSpec

sklearn_metrics = pytest.importorskip("sklearn.metrics")
BINARY = TaskSpec("classification", ("no", "yes"))
ENTITIES = TaskSpec("tagging", ("B-LOC", "B-PER", "I-LOC", "I-PER", "O"))
PLAIN = TaskSpec("tagging", ("ADJ", "NOUN", "VERB"))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("spec", "average"), [(BINARY, "binary"), (CLASSES, "macro")])
def test_classes_are_scored_as_scikit_learn_scores_them(spec, average, seed):
    rng = np.random.default_rng(seed)
    labels, answers = rng.integers(0, len(spec.labels), (2, 40))
    found = score(spec, answers.tolist(), labels.tolist())
    assert found["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, answers))
    assert found["f1"] == pytest.approx(sklearn_metrics.f1_score(labels, answers, average=average))
    assert found["mcc"] == pytest.approx(sklearn_metrics.matthews_corrcoef(labels, answers))
    counts = confusion(answers, labels, len(spec.labels))
    assert (counts == sklearn_metrics.confusion_matrix(labels, answers, labels=range(len(spec.labels)))).all()


def test_one_answer_for_all_scores_nothing_but_its_accuracy():
    assert score(BINARY, [0] * 4, [0, 0, 0, 1]) == {"accuracy": 0.75, "f1": 0.0, "mcc": 0.0}
    assert score(NUMBER, [2.0] * 3, [1.0, 2.0, 3.0])["pearson"] == 0


def test_numbers_are_scored_by_correlation_and_error():
    found = score(NUMBER, [1.0, 2.0, 3.0, 10.0], [2.0, 3.0, 4.0, 5.0])
    assert found["spearman"] == pytest.approx(1)
    assert found["pearson"] == pytest.approx(np.corrcoef([1, 2, 3, 10], [2, 3, 4, 5])[0, 1])
    assert found["rmse"] == pytest.approx(np.sqrt((1 + 1 + 1 + 25) / 4))
    assert found["mae"] == pytest.approx(2)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-PER I-PER O", [("PER", 1, 2)]),
        ("B-PER B-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        ("I-PER I-PER O I-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),  # I- that continues nothing begins an entity
        ("B-PER I-LOC", [("PER", 0, 0), ("LOC", 1, 1)]),
        ("B-PER E-PER S-PER I-PER", [("PER", 0, 1), ("PER", 2, 2), ("PER", 3, 3)]),
        ("E-PER E-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        ("O O", []),
        ("B-a-b I-a-b", [("a-b", 0, 1)]),
    ],
)
def test_entities_begin_and_end_as_in_the_conll_evaluation(tags, expected):
    assert list(entities(tags.split())) == expected


def test_an_entity_counts_when_its_span_and_its_kind_are_right():
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC", "I-LOC"]]
    found = [["B-PER", "I-PER", "O", "B-PER"], ["O", "B-LOC", "O"]]
    assert entity_scores(found, true) == pytest.approx(
        {"entity_f1": 1 / 3, "entity_precision": 1 / 3, "entity_recall": 1 / 3}
    )
    index = {label: place for place, label in enumerate(ENTITIES.labels)}
    as_classes = [[[index[tag] for tag in tags] for tags in side] for side in (found, true)]
    assert score(ENTITIES, *as_classes) == pytest.approx(
        {"entity_f1": 1 / 3, "entity_precision": 1 / 3, "entity_recall": 1 / 3, "token_accuracy": 5 / 7}
    )


def test_plain_tags_are_scored_word_by_word():
    assert not are_entity_tags(PLAIN.labels)
    assert score(PLAIN, [[0, 1], [2]], [[0, 1], [1]])["token_accuracy"] == pytest.approx(2 / 3)


def test_the_metric_is_the_tasks_own():
    assert [choose_metric(spec, None) for spec in (BINARY, NUMBER, ENTITIES, PLAIN)] == [
        "accuracy", "pearson", "entity_f1", "token_accuracy"
    ]  # fmt: skip
    with pytest.raises(InvalidInputError, match=r"unknown metric of a regression task 'f1'.*pearson, spearman"):
        choose_metric(NUMBER, "f1")
