"""Metrics of one network's predictions, from labels and raw logits; fractions in [0, 1], macro averages.

Everywhere, `labels` is `[sample]` of class numbers and `logits` is `[sample, class]`, raw. A function raises
`ValueError` where these do not fit each other, or where a logit is not finite.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def _checked(labels: ArrayLike, logits: ArrayLike) -> tuple[Ints, Floats]:
    numbers, values = np.asarray(labels), _finite(logits)
    if numbers.shape != values.shape[:1] or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"labels: expected whole numbers, one for each of {len(values)} samples; "
                         f"found {numbers.dtype} of shape {numbers.shape}")
    if numbers.min() < 0 or numbers.max() >= values.shape[1]:
        raise ValueError(f"labels: expected 0 to {values.shape[1] - 1}, found {numbers.min()} to {numbers.max()}")
    return numbers.astype(np.int64), values


def _finite(logits: ArrayLike) -> Floats:
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"logits: expected finite numbers [sample, class], found shape {values.shape}")
    return values


def _log_softmax(values: Floats) -> Floats:
    shifted = values - values.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float64)


def metrics(labels: ArrayLike, logits: ArrayLike) -> dict[str, float]:
    """Accuracy, balanced_accuracy, precision, recall, f1, log_loss (nats) and ece of one network on one split.

    Precision, recall and F1 are macro averages over the classes that occur in `labels`, so that two arms are averaged
    over the same classes whatever they predict (0 where a class is never predicted). With that, recall is balanced
    accuracy, and accuracy too on a balanced split. From counts, as scikit-learn has them, in a tenth of its time; the
    log loss is not cut off at the smallest probability that float64 holds. `ece`: 15 bins, see `reliability`.
    """
    return evaluate(labels, logits).metrics


@dataclass(frozen=True)
class Evaluated:
    """All that a report says of one network on one split: what takes the logits is done once."""

    metrics: dict[str, float]  # those of `metrics`
    correct: NDArray[np.bool_]  # [sample]
    confusion: Ints  # [class true, class predicted]
    per_class: dict[str, Floats]  # precision, recall, f1 -> [class], 0 where undefined
    reliability: "Reliability"


def evaluate(labels: ArrayLike, logits: ArrayLike) -> Evaluated:
    """Metrics, confusion, scores by class and reliability of one network on one split, in one pass."""
    numbers, values = _checked(labels, logits)
    counts, logs = _counts(numbers, values), _log_softmax(values)
    scores = dict(zip(("precision", "recall", "f1"), _scores(counts), strict=True))
    precision, recall, f1 = (each[counts.sum(axis=1) > 0].mean() for each in scores.values())
    loss, correct = -logs[np.arange(len(numbers)), numbers].mean(), values.argmax(axis=1) == numbers
    calibrated = _reliability(np.exp(logs.max(axis=1)), correct)
    return Evaluated({
        "accuracy": float(np.trace(counts) / len(numbers)), "balanced_accuracy": float(recall),
        "precision": float(precision), "recall": float(recall), "f1": float(f1), "log_loss": float(loss),
        "ece": calibrated.ece}, correct, counts, scores, calibrated)


def confusion(labels: ArrayLike, logits: ArrayLike) -> Ints:
    """Counts `[class true, class predicted]`."""
    return _counts(*_checked(labels, logits))


def _counts(numbers: Ints, values: Floats) -> Ints:
    classes = values.shape[1]
    return np.bincount(numbers * classes + values.argmax(axis=1), minlength=classes**2).reshape(classes, classes)


def _scores(counts: Ints) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 of each class, 0 where one is undefined."""
    hits, predicted, support = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
    pairs = ((hits, predicted), (hits, support), (2 * hits, predicted + support))
    precision, recall, f1 = (np.divide(top, bottom, out=np.zeros(len(counts)), where=bottom > 0)
                             for top, bottom in pairs)
    return precision, recall, f1


def per_class(labels: ArrayLike, logits: ArrayLike) -> list[dict[str, Any]]:
    """A row for each class, in order: class, precision, recall, f1 (0 where undefined) and support, a count."""
    counts = confusion(labels, logits)
    columns = (*_scores(counts), counts.sum(axis=1))
    return [{"class": number, "precision": float(precision), "recall": float(recall), "f1": float(f1),
             "support": int(support)}
            for number, (precision, recall, f1, support) in enumerate(zip(*columns, strict=True))]


@dataclass(frozen=True)
class Reliability:
    """Calibration by confidence, each `[bin]`: nan confidence and accuracy where a bin is empty."""

    centre: Floats
    confidence: Floats
    accuracy: Floats
    count: Ints

    @property
    def ece(self) -> float:
        """Expected calibration error: |accuracy - confidence| averaged over samples."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float(gaps @ self.count / self.count.sum())


def reliability(labels: ArrayLike, logits: ArrayLike, bins: int = 15) -> Reliability:
    """Mean confidence and accuracy in `bins` equal-width bins ((m - 1) / bins, m / bins] of the largest probability.

    Source: Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", 2017, section 2.
    """
    numbers, values = _checked(labels, logits)
    return _reliability(np.exp(_log_softmax(values).max(axis=1)), values.argmax(axis=1) == numbers, bins)


def _reliability(confidence: Floats, correct: NDArray[np.bool_], bins: int = 15) -> Reliability:
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    safe = np.where(count > 0, count, np.nan)
    return Reliability((np.arange(bins) + 0.5) / bins, np.bincount(place, confidence, bins) / safe,
                       np.bincount(place, correct, bins) / safe, count.astype(np.int64))


def pooled(parts: Sequence[Reliability]) -> Reliability:
    """The reliability of several networks' predictions together, from each one's."""
    counts = np.array([part.count for part in parts])
    count = counts.sum(axis=0)
    safe = np.where(count > 0, count, np.nan)
    confidence, accuracy = (np.nansum(counts * np.array(each), axis=0) / safe for each in (
        [part.confidence for part in parts], [part.accuracy for part in parts]))
    return Reliability(parts[0].centre, confidence, accuracy, count)


def agreement(student_logits: ArrayLike, teacher_logits: ArrayLike) -> dict[str, float]:
    """How close a student `[sample, class]` is to a teacher `[sample, class]`: top1, a fraction, and kl, in nats.

    `top1`: the same class first. `kl`: mean KL(teacher || student) at temperature 1. Raises `ValueError` where the
    shapes differ. Source: Stanton et al., "Does knowledge distillation really work?", 2021, section 3.
    """
    student, teacher = _finite(student_logits), _finite(teacher_logits)
    if student.shape != teacher.shape:
        raise ValueError(f"logits: the student's have shape {student.shape}, the teacher's {teacher.shape}")
    given, target = _log_softmax(student), _log_softmax(teacher)
    divergence = (np.exp(target) * (target - given)).sum(axis=1).mean()
    return {"top1": float(np.mean(student.argmax(axis=1) == teacher.argmax(axis=1))),
            "kl": max(0.0, float(divergence))}  # equal logits may leave -1e-17


def error_decrement(confusion_tl: ArrayLike, confusion_kd: ArrayLike) -> list[dict[str, Any]]:
    """The share of TL's errors in each class that TL+KD puts right: the thesis's table 6.2, a row for each class.

    From counts `[class true, class predicted]` of both arms: class, tl_true_positives, tl_kd_true_positives,
    difference, and error_decrement = difference / (samples of the class - tl_true_positives), a fraction: negative
    where TL+KD errs more, nan where TL makes no error. Raises `ValueError` unless both count the same samples.
    """
    tl, kd = np.asarray(confusion_tl), np.asarray(confusion_kd)
    if tl.ndim != 2 or tl.shape != kd.shape or not np.array_equal(tl.sum(axis=1), kd.sum(axis=1)):
        raise ValueError("confusions: expected [class, class] counts of the same samples in both arms")
    errors = tl.sum(axis=1) - np.diag(tl)
    difference = np.diag(kd) - np.diag(tl)
    share = np.divide(difference, errors, out=np.full(len(tl), np.nan), where=errors > 0)
    return [{"class": number, "tl_true_positives": tl[number, number].item(),
             "tl_kd_true_positives": kd[number, number].item(), "difference": difference[number].item(),
             "error_decrement": float(share[number])} for number in range(len(tl))]
