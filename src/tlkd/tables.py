"""The tables of a study as data frames: fractions in [0, 1], epochs counted from 1, differences an arm minus TL."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from tlkd.contrasts import METRICS, SAME_AS_TL, Contrast
from tlkd.findings import Findings
from tlkd.specs import Study

Row = dict[str, Any]


def draw(found: Findings) -> dict[str, pd.DataFrame]:
    """All tables by the name of their file; a table that this study has no rows for still has its columns."""
    return {"metrics": metrics(found), "improvements": improvements(found), "verdicts": verdicts(found),
            "gains": gains(found), "classes": classes(found), "per_class": per_class(found),
            "confusion": confusion(found), "curves": curves(found), "thresholds": thresholds(found),
            "epochs_to_threshold": epochs_to_threshold(found), "teachers": teachers(found),
            "agreement": agreement(found), "calibration": calibration(found), "data": data(found),
            "settings": settings(found.study), "cost": cost(found), "failures": failures(found)}


def metrics(found: Findings) -> pd.DataFrame:
    """Table 6.1: mean and sd (ddof = 1) of each metric over an arm's finished seeds."""
    return _frame("condition arm metric seeds mean sd", (
        {"condition": group.condition, "arm": group.arm.name, "metric": name, "seeds": len(group.seeds),
         "mean": float(group.metrics[name].mean()), "sd": _sd(group.metrics[name])}
        for group in found.groups for name in METRICS))


def improvements(found: Findings) -> pd.DataFrame:
    """Table 6.1's last column: the mean improvement of each metric over the seeds that both arms finished."""
    return _frame("condition arm metric seeds improvement", (
        {"condition": each.condition, "arm": each.arm.name, "metric": name, "seeds": len(each.seeds),
         "improvement": each.improvements[name]} for each in found.contrasts for name in METRICS))


def verdicts(found: Findings) -> pd.DataFrame:
    """The verdict on the primary endpoint for each contrast, with all that stands behind it."""
    columns = ("condition arm endpoint word gain low high covers method p_seed p_image p_seed_adjusted "
               "p_image_adjusted seeds images effect contrasts smallest_gain level too_small harmful seeds_needed "
               "images_needed classes_gaining classes_losing confusion_agrees hypothesis_1 hypothesis_3")
    return _frame(columns, (_verdict(found, each) for each in found.contrasts))


def _verdict(found: Findings, each: Contrast) -> Row:
    verdict, needed = each.verdict, each.verdict.needed
    same = ("gain", "p_seed", "p_image", "p_seed_adjusted", "p_image_adjusted", "effect", "contrasts",
            "smallest_gain", "level", "too_small", "harmful")
    return {**{name: getattr(verdict, name) for name in same}, "word": SAME_AS_TL if each.same_as_tl else verdict.word,
            **{name: getattr(verdict.interval, name) for name in ("low", "high", "covers", "method")},
            "condition": each.condition, "arm": each.arm.name, "endpoint": found.study.verdict.metric,
            "seeds": verdict.n_seeds, "images": verdict.n_images,
            "seeds_needed": needed.seeds if needed else None, "images_needed": needed.images if needed else None,
            "classes_gaining": each.confusions.gaining, "classes_losing": each.confusions.losing,
            "confusion_agrees": each.confusions.agrees, "hypothesis_1": each.word, "hypothesis_3": each.speed.word}


def gains(found: Findings) -> pd.DataFrame:
    """The primary endpoint of both arms for each seed, their difference, and McNemar's p (descriptive)."""
    name = found.study.verdict.metric
    return _frame("condition arm seed tl value gain mcnemar_p", (
        {"condition": each.condition, "arm": each.arm.name, "seed": seed, "gain": float(gain), "mcnemar_p": p,
         "tl": tl.value(name, seed), "value": group.value(name, seed)}
        for each, tl, group in found.pairs()
        for seed, gain, p in zip(each.seeds, each.gains, each.mcnemar, strict=True)))


def classes(found: Findings) -> pd.DataFrame:
    """Table 6.2: true positives of both arms and the error decrement of each class, sorted by the arm's recall.

    Counts are means over the seeds that both arms finished. `row` is class, mean (over classes) or pooled (sums, and
    the error decrement over the errors of all classes together).
    """
    def rows() -> Iterator[Row]:
        counts = ("support", "tl_true_positives", "tl_kd_true_positives", "difference")
        for each in found.contrasts:
            matrix, who = each.confusions, {"condition": each.condition, "arm": each.arm.name}
            for number in matrix.order:
                yield {**who, **matrix.rows[number], "row": "class", "class": found.classes[number]}
            for name, share, summed in (("mean", matrix.mean, np.mean), ("pooled", matrix.pooled, np.sum)):
                yield {**who, "row": name, "error_decrement": share,
                       **{column: float(summed([row[column] for row in matrix.rows])) for column in counts}}

    return _frame("condition arm row class support tl_true_positives tl_kd_true_positives difference "
                  "error_decrement", rows())


def per_class(found: Findings) -> pd.DataFrame:
    """Precision, recall and F1 of each class, means over an arm's finished seeds; 0 where one is undefined."""
    return _frame("condition arm class precision recall f1", (
        {"condition": group.condition, "arm": group.arm.name, "class": name,
         **{metric: float(values[:, number].mean()) for metric, values in group.per_class.items()}}
        for group in found.groups for number, name in enumerate(found.classes)))


def confusion(found: Findings) -> pd.DataFrame:
    """Mean counts over an arm's finished seeds, a row for each pair of true and predicted class."""
    return _frame("condition arm true predicted mean_count", (
        {"condition": group.condition, "arm": group.arm.name, "true": true, "predicted": predicted,
         "mean_count": float(counts[row, column])}
        for group in found.groups for counts in [group.confusions.mean(axis=0)]
        for row, true in enumerate(found.classes) for column, predicted in enumerate(found.classes)))


def curves(found: Findings) -> pd.DataFrame:
    """Figure 6.9: mean and sd (ddof = 1) over seeds of the accuracy after each epoch, over the epochs all runs have."""
    return _frame("condition arm split epoch seeds mean sd", (
        {"condition": group.condition, "arm": group.arm.name, "split": found.study.selection, "epoch": epoch + 1,
         "seeds": len(group.seeds), "mean": float(values.mean()), "sd": _sd(values)}
        for group in found.groups for epoch, values in enumerate(group.common_curves.T)))


def thresholds(found: Findings) -> pd.DataFrame:
    """How early each threshold is reached: medians by Kaplan-Meier, means within the `horizon` all runs trained."""
    same = ("threshold horizon tl_reached tl_kd_reached tl_median tl_kd_median tl_mean tl_kd_mean gain low high p_seed "
            "tl_kd_first tl_first ties p_first")
    return _frame(f"condition arm primary seeds {same}", (
        {"condition": each.condition, "arm": each.arm.name, "primary": one is each.speed.primary, "seeds": one.n_seeds,
         **{name: _finite(getattr(one, name)) for name in same.split()}}
        for each in found.contrasts for one in each.speed.thresholds))


def epochs_to_threshold(found: Findings) -> pd.DataFrame:
    """The first epoch at which each run reaches each threshold; empty where not within the epochs all trained."""
    return _frame("condition arm seed threshold tl_epoch tl_kd_epoch", (
        {"condition": each.condition, "arm": each.arm.name, "seed": seed, "threshold": one.threshold,
         "tl_epoch": _finite(tl), "tl_kd_epoch": _finite(kd)}
        for each in found.contrasts for one in each.speed.thresholds
        for seed, tl, kd in zip(each.seeds, one.tl_epochs, one.tl_kd_epochs, strict=True)))


def teachers(found: Findings) -> pd.DataFrame:
    """Each teacher's metrics on the test split, means where it is fitted per seed."""
    return _frame(f"teacher model fits parameters {' '.join(METRICS)} no_better_than_tl", (
        {"teacher": each.name, "model": each.spec.model, "fits": len(each.metrics["accuracy"]),
         "parameters": each.parameters, "no_better_than_tl": each.no_better,
         **{name: float(each.metrics[name].mean()) for name in METRICS}} for each in found.teachers))


def agreement(found: Findings) -> pd.DataFrame:
    """How close each arm's students are to each teacher on the test split: top-1 agreement, and KL in nats."""
    return _frame("condition arm teacher seeds top1_mean top1_sd kl_mean kl_sd", (
        {"condition": each.condition, "arm": each.arm, "teacher": each.teacher, "seeds": len(each.top1),
         "top1_mean": float(each.top1.mean()), "top1_sd": _sd(each.top1), "kl_mean": float(each.kl.mean()),
         "kl_sd": _sd(each.kl)} for each in found.agreements))


def calibration(found: Findings) -> pd.DataFrame:
    """Accuracy by confidence in 15 bins, all seeds' predictions together."""
    everyone = [(group.condition, group.arm.name, group.reliability) for group in found.groups]
    everyone += [("", f"teacher {each.name}", each.reliability) for each in found.teachers]
    return _frame("condition network bin_centre confidence accuracy count", (
        {"condition": condition, "network": name, "bin_centre": float(one.centre[number]),
         "confidence": float(one.confidence[number]), "accuracy": float(one.accuracy[number]),
         "count": int(one.count[number])}
        for condition, name, one in everyone for number in range(len(one.centre))))


def data(found: Findings) -> pd.DataFrame:
    """Samples of each class in each split."""
    counts = found.card.get("counts", {})
    return _frame("class train dev test", (
        {"class": name, **{split: counts.get(split, {}).get(name, 0) for split in ("train", "dev", "test")}}
        for name in found.classes))


def settings(study: Study) -> pd.DataFrame:
    """The resolved study, a row a key."""
    dumped = study.model_dump(mode="json", exclude={"footnotes"})
    dumped["arms"] = {arm["name"]: {key: value for key, value in arm.items() if key != "name" and value is not None}
                      for arm in dumped["arms"]}
    dumped["conditions"] = ", ".join(condition["name"] for condition in dumped["conditions"])
    return _frame("key value", ({"key": key, "value": value} for key, value in _flat("", dumped)))


def cost(found: Findings) -> pd.DataFrame:
    """What each stage and each arm's runs cost when they were made; an arm's seconds are summed over its runs."""
    def rows() -> Iterator[Row]:
        for stage in found.stages:
            yield {key: stage[key] for key in ("stage", "from_cache", "seconds", "bytes")}
        for group in found.groups:
            yield {"stage": f"runs of {group.arm.name}, {group.condition}", "runs": len(group.seeds),
                   "seconds": sum(group.seconds)}

    return _frame("stage from_cache runs seconds bytes", rows())


def failures(found: Findings) -> pd.DataFrame:
    """Teachers and runs that failed, and why; runs that were never finished."""
    rows = [{"run_id": f"teacher {name}", "reason": why} for name, why in found.teacher_failures.items()]
    rows += [{"run_id": name, "reason": why} for name, why in found.failures.items()]
    return _frame("run_id reason", [*rows, *({"run_id": name, "reason": "not finished"} for name in found.unfinished)])


def _frame(columns: str, rows: Any) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=columns.split())


def _sd(values: Any) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(f"{path}.{key}" if path else str(key), item)
    elif isinstance(value, list | tuple):
        yield path, ", ".join(str(item) for item in value) or "none"
    else:
        yield path, "none" if value in (None, {}) else str(value)
