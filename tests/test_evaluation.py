import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import special
from sklearn import metrics as sklearn_metrics

from tlkd.evaluation import agreement, confusion, error_decrement, metrics, per_class, reliability

# The thesis's table 6.2: class, TL and TL+KD true positives, difference, error decrement in per cent.
TABLE_6_2 = [("automobile", 958, 982, 24, 57.14), ("ship", 977, 975, -2, -8.7), ("frog", 943, 975, 32, 56.14),
             ("airplane", 933, 972, 39, 58.21), ("horse", 916, 971, 55, 65.48), ("deer", 947, 967, 20, 37.74),
             ("truck", 948, 965, 17, 32.69), ("bird", 940, 946, 6, 10), ("dog", 857, 925, 68, 47.55),
             ("cat", 858, 912, 54, 38.03)]


@pytest.fixture
def sample():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 300)
    logits = random.normal(0, 1.5, (300, 4)).astype(np.float32)
    logits[np.arange(300), labels] += 1
    return labels, logits


def test_metrics_equal_scikit_learn(sample):
    labels, logits = sample
    found, predicted = metrics(labels, logits), logits.argmax(axis=1)
    theirs = {"accuracy": sklearn_metrics.accuracy_score(labels, predicted),
              "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, predicted),
              "precision": sklearn_metrics.precision_score(labels, predicted, average="macro"),
              "recall": sklearn_metrics.recall_score(labels, predicted, average="macro"),
              "f1": sklearn_metrics.f1_score(labels, predicted, average="macro"),
              "log_loss": sklearn_metrics.log_loss(labels, special.softmax(logits.astype(float), axis=1))}
    assert set(found) == {*theirs, "ece"}
    assert {key: found[key] for key in theirs} == pytest.approx(theirs)
    assert found["accuracy"] != pytest.approx(found["balanced_accuracy"], abs=1e-6)


def test_macro_recall_is_accuracy_on_a_balanced_split(sample):
    _, logits = sample
    found = metrics(np.arange(300) % 4, logits)
    assert found["recall"] == pytest.approx(found["accuracy"]) and found["recall"] == found["balanced_accuracy"]


def test_a_class_absent_from_the_labels_is_left_out_of_the_averages(sample):
    labels, logits = sample
    kept = labels != 3
    found, predicted = metrics(labels[kept], logits[kept]), logits[kept].argmax(axis=1)
    assert (predicted == 3).any()  # scikit-learn's own default would average over it
    assert found["recall"] == pytest.approx(np.mean([np.mean(predicted[labels[kept] == c] == c) for c in range(3)]))
    assert confusion(labels[kept], logits[kept]).shape == (4, 4)
    assert per_class(labels[kept], logits[kept])[3]["support"] == 0


def test_a_class_never_predicted_has_precision_zero():
    logits = np.array([[9.0, 0], [9, 0], [9, 0]], dtype=np.float32)
    assert metrics(np.array([0, 0, 1]), logits)["precision"] == pytest.approx((2 / 3 + 0) / 2)


def test_log_loss_keeps_what_float32_and_probabilities_lose():
    logits = np.array([[0, 200], [0, 1e4]], dtype=np.float32)
    assert metrics(np.array([0, 0]), logits)["log_loss"] == pytest.approx(5100)


def test_metrics_do_not_depend_on_a_shift_or_on_the_order(sample):
    labels, logits = sample
    order = np.random.default_rng(1).permutation(300)
    assert metrics(labels[order], logits[order].astype(float) + 50) == pytest.approx(metrics(labels, logits))


def test_confusion_has_the_true_class_in_its_rows(sample):
    labels, logits = sample
    counts = np.zeros((4, 4), dtype=int)
    for label, row in zip(labels, logits, strict=True):
        counts[label, row.argmax()] += 1
    found = confusion(labels, logits)
    assert (found == counts).all() and (counts != counts.T).any()
    rows = per_class(labels, logits)
    assert [row["support"] for row in rows] == counts.sum(axis=1).tolist()
    assert [row["recall"] for row in rows] == pytest.approx(np.diag(counts) / counts.sum(axis=1))
    assert [row["precision"] for row in rows] == pytest.approx(np.diag(counts) / counts.sum(axis=0))
    assert rows[1]["f1"] == pytest.approx(2 / (1 / rows[1]["precision"] + 1 / rows[1]["recall"]))


def literal_ece(labels, logits, bins):
    probabilities = special.softmax(logits.astype(float), axis=1)
    total = 0.0
    for m in range(1, bins + 1):
        inside = [i for i, row in enumerate(probabilities) if (m - 1) / bins < row.max() <= m / bins]
        if inside:
            right = np.mean([probabilities[i].argmax() == labels[i] for i in inside])
            total += len(inside) / len(labels) * abs(right - np.mean([probabilities[i].max() for i in inside]))
    return total


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_ece_equals_its_literal_twin(sample, bins):
    labels, logits = sample
    assert reliability(labels, logits, bins).ece == pytest.approx(literal_ece(labels, logits, bins))
    assert metrics(labels, logits)["ece"] == pytest.approx(literal_ece(labels, logits, 15))


def test_reliability_bins_are_right_closed_and_empty_ones_nan():
    found = reliability(np.array([0, 1]), np.array([[0.0, 0], [200, 0]]), bins=2)
    assert found.count.tolist() == [1, 1]  # a confidence of .5 exactly belongs to the first bin, 1 to the last
    assert found.centre.tolist() == [0.25, 0.75]
    assert found.confidence == pytest.approx([0.5, 1]) and found.accuracy.tolist() == [1, 0]
    assert found.ece == pytest.approx(0.75)
    assert math.isnan(reliability(np.array([0]), np.array([[5.0, 0]])).accuracy[0])


def test_agreement_is_kl_from_teacher_to_student(sample):
    _, student = sample
    teacher = np.random.default_rng(2).normal(0, 2, student.shape).astype(np.float32)
    p, q = (special.softmax(logits.astype(float), axis=1) for logits in (teacher, student))
    found = agreement(student, teacher)
    assert found["kl"] == pytest.approx(special.rel_entr(p, q).sum(axis=1).mean())
    assert found["kl"] != pytest.approx(special.rel_entr(q, p).sum(axis=1).mean(), rel=0.01)
    assert found["top1"] == np.mean(student.argmax(axis=1) == teacher.argmax(axis=1))
    assert agreement(student, student + 3) == {"top1": 1, "kl": pytest.approx(0, abs=1e-9)}
    assert agreement(np.array([[0.0, 1e4]]), np.array([[1e4, 0.0]])) == {"top1": 0, "kl": pytest.approx(1e4)}


def test_error_decrement_returns_the_theses_table():
    def counts(column):
        matrix = np.diag([row[column] for row in TABLE_6_2])
        return matrix + np.roll(np.diag(1000 - np.diag(matrix)), 1, axis=1)

    rows = error_decrement(counts(1), counts(2))
    assert [(row["tl_true_positives"], row["tl_kd_true_positives"], row["difference"]) for row in rows] == [
        row[1:4] for row in TABLE_6_2]
    assert [round(100 * row["error_decrement"], 2) for row in rows] == [row[4] for row in TABLE_6_2]
    assert 100 * np.mean([row["error_decrement"] for row in rows]) == pytest.approx(39.43, abs=0.01)


def test_no_errors_to_put_right_is_nan():
    perfect = np.array([[5, 0], [1, 4]])
    rows = error_decrement(perfect, np.array([[4, 1], [0, 5]]))
    assert math.isnan(rows[0]["error_decrement"]) and rows[0]["difference"] == -1
    assert rows[1]["error_decrement"] == 1


@pytest.mark.parametrize("call", [
    lambda: metrics([0, 1], np.zeros((3, 2))), lambda: metrics([0, 2], np.zeros((2, 2))),
    lambda: metrics([0.0, 1.0], np.zeros((2, 2))), lambda: metrics([0], [[math.nan, 0]]),
    lambda: metrics([], np.zeros((0, 2))), lambda: agreement(np.zeros((2, 2)), np.zeros((2, 3))),
    lambda: error_decrement(np.eye(2), 2 * np.eye(2)),
])
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError, match=r"logits|labels|confusions"):
        call()


def test_the_statistics_need_no_torch():
    code = "import sys, tlkd.evaluation, tlkd.statistics, tlkd.convergence; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
