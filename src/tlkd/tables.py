"""The tables of a study as data frames: fractions in [0, 1], epochs counted from 1, differences an arm minus TL."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from tlkd import regions
from tlkd.album import AGAIN, of_each_class
from tlkd.conditions import Condition
from tlkd.contrasts import METRICS, NOT_EXAMINED, SAME_AS_TL, Contrast, arm_label
from tlkd.distortions import describe
from tlkd.findings import Findings
from tlkd.folder import Run
from tlkd.foreground import Foreground
from tlkd.frames import Row, finite, frame_of, judged, sd_of
from tlkd.series import in_words
from tlkd.specs import Arm, Study

EVERY_PAIR = 100  # classes


def draw(found: Findings) -> dict[str, pd.DataFrame]:
    """All tables by the name of their file; a table that this study has no rows for still has its columns.

    Those of explanations are there where something was explained.
    """
    return {"metrics": metrics(found), "improvements": improvements(found), "verdicts": verdicts(found),
            "gains": gains(found), "classes": classes(found), "per_class": per_class(found),
            "confusion": confusion(found), "curves": curves(found), "thresholds": thresholds(found),
            "epochs_to_threshold": epochs_to_threshold(found), "teachers": teachers(found),
            "agreement": agreement(found), "calibration": calibration(found), "data": data(found),
            "settings": settings(found.study), "cost": cost(found), "failures": failures(found),
            **(_explained(found) if found.overview is not None else {})}


def _explained(found: Findings) -> dict[str, pd.DataFrame]:
    return {"foreground": foreground(found), "attention": attention(found), "observations": observations(found),
            "contributions": contributions(found, 0), "contributions_again": contributions(found, 1),
            "foreground_images": foreground_images(found), "regions": all_regions(found)}


def metrics(found: Findings) -> pd.DataFrame:
    """Table 6.1: mean and sd (ddof = 1) of each metric over an arm's finished seeds."""
    return frame_of("condition arm metric seeds mean sd", (
        {"condition": group.condition, "arm": group.arm.name, "metric": name, "seeds": len(group.seeds),
         "mean": float(group.metrics[name].mean()), "sd": sd_of(group.metrics[name])}
        for group in found.groups for name in METRICS))


def improvements(found: Findings) -> pd.DataFrame:
    """Table 6.1's last column: the mean improvement of each metric over the seeds that both arms finished."""
    return frame_of("condition arm metric seeds improvement", (
        {"condition": each.condition, "arm": each.arm.name, "metric": name, "seeds": len(each.seeds),
         "improvement": each.improvements[name]} for each in found.contrasts for name in METRICS))


def verdicts(found: Findings) -> pd.DataFrame:
    """The verdict on the primary endpoint for each contrast, with all that stands behind it."""
    columns = ("condition arm endpoint word gain low high covers method p_seed p_image p_seed_adjusted "
               "p_image_adjusted seeds images effect contrasts smallest_gain level too_small harmful seeds_needed "
               "images_needed seeds_needed_together images_needed_together classes_gaining classes_losing "
               "confusion_agrees hypothesis_1 hypothesis_2 hypothesis_3")
    return frame_of(columns, (_verdict(found, each) for each in found.contrasts))


def _verdict(found: Findings, each: Contrast) -> Row:
    attends = found.foreground(each)
    return {**judged(each.verdict), "word": SAME_AS_TL if each.same_as_tl else each.verdict.word,
            "condition": each.condition, "arm": each.arm.name, "endpoint": found.study.verdict.metric,
            "classes_gaining": each.confusions.gaining, "classes_losing": each.confusions.losing,
            "confusion_agrees": each.confusions.agrees, "hypothesis_1": found.word(each),
            "hypothesis_2": NOT_EXAMINED if attends is None else attends.word, "hypothesis_3": each.speed.word}


def gains(found: Findings) -> pd.DataFrame:
    """The primary endpoint of both arms for each seed, their difference, and McNemar's p (descriptive)."""
    name = found.study.verdict.metric
    return frame_of("condition arm seed tl value gain mcnemar_p", (
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

    return frame_of("condition arm row class support tl_true_positives tl_kd_true_positives difference "
                  "error_decrement", rows())


def per_class(found: Findings) -> pd.DataFrame:
    """Precision, recall and F1 of each class, means over an arm's finished seeds; 0 where one is undefined."""
    return frame_of("condition arm class precision recall f1", (
        {"condition": group.condition, "arm": group.arm.name, "class": name,
         **{metric: float(values[:, number].mean()) for metric, values in group.per_class.items()}}
        for group in found.groups for number, name in enumerate(found.classes)))


def confusion(found: Findings) -> pd.DataFrame:
    """Mean counts over an arm's finished seeds under a base condition, a row a pair of true and predicted class.

    Of more than `EVERY_PAIR` classes, pairs that never occur are left out: there would be a million rows for 1,000.
    """
    def rows() -> Iterator[Row]:
        for group in found.base_groups:
            counts = group.confusions.mean(axis=0)
            shown = np.ones_like(counts, bool) if len(counts) <= EVERY_PAIR else counts > 0
            for row, column in np.argwhere(shown).tolist():
                yield {"condition": group.condition, "arm": group.arm.name, "true": found.classes[row],
                       "predicted": found.classes[column], "mean_count": float(counts[row, column])}

    return frame_of("condition arm true predicted mean_count", rows())


def curves(found: Findings) -> pd.DataFrame:
    """Figure 6.9: mean and sd (ddof = 1) over seeds of the accuracy after each epoch, over the epochs all runs have."""
    return frame_of("condition arm split epoch seeds mean sd", (
        {"condition": group.condition, "arm": group.arm.name, "split": found.study.selection, "epoch": epoch + 1,
         "seeds": len(group.seeds), "mean": float(values.mean()), "sd": sd_of(values)}
        for group in found.groups for epoch, values in enumerate(group.common_curves.T)))


def thresholds(found: Findings) -> pd.DataFrame:
    """How early each threshold is reached: medians by Kaplan-Meier, means within the `horizon` all runs trained."""
    same = ("threshold horizon tl_reached tl_kd_reached tl_median tl_kd_median tl_mean tl_kd_mean gain low high p_seed "
            "tl_kd_first tl_first ties p_first")
    return frame_of(f"condition arm primary seeds {same}", (
        {"condition": each.condition, "arm": each.arm.name, "primary": one is each.speed.primary, "seeds": one.n_seeds,
         **{name: finite(getattr(one, name)) for name in same.split()}}
        for each in found.contrasts for one in each.speed.thresholds))


def epochs_to_threshold(found: Findings) -> pd.DataFrame:
    """The first epoch at which each run reaches each threshold; empty where not within the epochs all trained."""
    return frame_of("condition arm seed threshold tl_epoch tl_kd_epoch", (
        {"condition": each.condition, "arm": each.arm.name, "seed": seed, "threshold": one.threshold,
         "tl_epoch": finite(tl), "tl_kd_epoch": finite(kd)}
        for each in found.contrasts for one in each.speed.thresholds
        for seed, tl, kd in zip(each.seeds, one.tl_epochs, one.tl_kd_epochs, strict=True)))


def teachers(found: Findings) -> pd.DataFrame:
    """Each teacher's metrics on the test split, means over its fits; `condition`: what it was fitted under."""
    columns = f"teacher condition trained_on labels model fits parameters {' '.join(METRICS)} no_better_than_tl"
    return frame_of(columns, (
        {"teacher": each.name, "condition": each.condition, "model": each.spec.model,
         "trained_on": each.spec.trained_on, "labels": each.spec.labels,
         "fits": len(each.metrics["accuracy"]), "parameters": each.parameters, "no_better_than_tl": each.no_better,
         **{name: float(each.metrics[name].mean()) for name in METRICS}} for each in found.teachers))


def agreement(found: Findings) -> pd.DataFrame:
    """How close each arm's students are to each teacher on the test split: top-1 agreement, and KL in nats."""
    return frame_of("condition arm teacher seeds top1_mean top1_sd kl_mean kl_sd", (
        {"condition": each.condition, "arm": each.arm, "teacher": each.teacher, "seeds": len(each.top1),
         "top1_mean": float(each.top1.mean()), "top1_sd": sd_of(each.top1), "kl_mean": float(each.kl.mean()),
         "kl_sd": sd_of(each.kl)} for each in found.agreements))


def calibration(found: Findings) -> pd.DataFrame:
    """Accuracy by confidence in 15 bins, all seeds' predictions together."""
    everyone = [(group.condition, group.arm.name, group.reliability) for group in found.groups]
    everyone += [(each.condition, f"teacher {each.name}", each.reliability) for each in found.teachers]
    return frame_of("condition network bin_centre confidence accuracy count", (
        {"condition": condition, "network": name, "bin_centre": float(one.centre[number]),
         "confidence": float(one.confidence[number]), "accuracy": float(one.accuracy[number]),
         "count": int(one.count[number])}
        for condition, name, one in everyone for number in range(len(one.centre))))


def data(found: Findings) -> pd.DataFrame:
    """Samples of each class in each split."""
    counts = found.card.get("counts", {})
    return frame_of("class train dev test", (
        {"class": name, **{split: counts.get(split, {}).get(name, 0) for split in ("train", "dev", "test")}}
        for name in found.classes))


def settings(study: Study) -> pd.DataFrame:
    """The resolved study, a row a key."""
    dumped = study.model_dump(mode="json", exclude={"footnotes"})
    dumped["arms"] = {arm["name"]: {key: value for key, value in arm.items() if key != "name" and value is not None}
                      for arm in dumped["arms"]}
    dumped["robustness"] = [describe(each) for one in study.robustness for each in one.distortions]
    dumped["exclude"] = ["; ".join(f"{key} {', '.join(map(str, value))}" for key, value in each.items() if value)
                         for each in dumped["exclude"]]
    dumped["conditions"] = {each.name: _condition(study, each) for each in study.conditions}
    return frame_of("key value", ({"key": key, "value": value} for key, value in _flat("", dumped)))


def _condition(study: Study, condition: Condition) -> str:
    """What a condition does, and which arms and seeds are run under it where that is not all of them."""
    only = "; arms " + ", ".join(condition.arms) if condition.arms is not None else ""
    seeds = study.seeds_of(condition)
    return in_words(condition) + only + (f"; seeds {', '.join(map(str, seeds))}" if seeds != study.seeds else "")


def cost(found: Findings) -> pd.DataFrame:
    """What each stage and each arm's runs cost when they were made; an arm's seconds are summed over its runs."""
    def rows() -> Iterator[Row]:
        for stage in found.stages:
            yield {key: stage[key] for key in ("stage", "from_cache", "seconds", "bytes")}
        for group in found.groups:
            yield {"stage": f"runs of {group.arm.name}, {group.condition}", "runs": len(group.seeds),
                   "seconds": sum(group.seconds)}

    return frame_of("stage from_cache runs seconds bytes", rows())


def failures(found: Findings) -> pd.DataFrame:
    """Teachers, runs and explanations that failed, and why; runs that were never finished."""
    rows = [{"run_id": f"teacher {name}", "reason": why} for name, why in found.teacher_failures.items()]
    rows += [{"run_id": name, "reason": why} for name, why in found.failures.items()]
    rows += [{"run_id": name, "reason": "not finished"} for name in found.unfinished]
    rows += [{"run_id": f"explanation of {name}", "reason": why} for name, why in found.explanation_failures.items()]
    rows += [{"run_id": name, "reason": why} for name, why in found.robustness_failures.items()]
    return frame_of("run_id reason", rows)


# --- explanations -----------------------------------------------------------------------------------------------------


def foreground(found: Findings) -> pd.DataFrame:
    """Hypothesis 2: each arm's foreground share against TL's, on all images with a mask and on those that are sure.

    Shares are fractions, means over images and seeds; `word` is the verdict on the row's own images.
    """
    def rows() -> Iterator[Row]:
        for each in _foregrounds(found):
            for one in (each.everything, each.certain):
                if one is not None:
                    yield {**judged(one.verdict), "condition": each.condition, "arm": each.arm.name,
                           "on": one.images, "word": SAME_AS_TL if each.same_as_tl else one.verdict.word,
                           "left_out": one.left_out, "tl_mean": one.tl.mean, "tl_sd": one.tl.sd,
                           "mean": one.arm.mean, "sd": one.arm.sd, "images_rising": one.by_image.rises,
                           "wilcoxon_p": one.by_image.p, "effect_images": one.effect_images,
                           "hypothesis_2": each.word}

    return frame_of("condition arm on word tl_mean tl_sd mean sd gain low high covers method p_seed p_image "
                  "p_seed_adjusted p_image_adjusted wilcoxon_p seeds images left_out images_rising effect "
                  "effect_images contrasts smallest_gain level too_small harmful seeds_needed images_needed "
                  "seeds_needed_together images_needed_together hypothesis_2", rows())


def attention(found: Findings) -> pd.DataFrame:
    """Each network's shares over all images with a mask: mean and sd (ddof = 1) over seeds; area: the masks' own."""
    everyone = [*found.explanations.arms, *found.explanations.teachers] if found.explanations is not None else []
    rows: list[Row] = [
        {"condition": each.condition, "network": each.name if each.condition else f"teacher {each.name}",
         "metric": name, "seeds": len(share.by_seed), "mean": share.mean, "sd": share.sd}
        for each in everyone for name, share in each.metrics.items()]
    if found.explanations is not None and found.explanations.n_images:
        rows.append({"condition": "", "network": "masks", "metric": "area", "mean": mean_area(found)})
    return frame_of("condition network metric seeds mean sd", rows)


def mean_area(found: Findings) -> float:
    """The masks' mean share of the picture: the foreground share of an attribution that is spread evenly."""
    every = list(found.explanations.tables.values()) if found.explanations is not None else []
    return float(every[0]["area"].mean()) if every and len(every[0]) else math.nan


def observations(found: Findings) -> pd.DataFrame:
    """The thesis's observations: paired comparisons over images, of each seed and (`seed` empty) averaged over seeds.

    `p`: Wilcoxon's, two-sided; `p_seed`: sign-flip over the seeds' means, in the rows over seeds.
    """
    same = "n before after rises falls p method shift low high rank_biserial"

    def rows() -> Iterator[Row]:
        for each in _foregrounds(found):
            labels = (arm_label(found.study, found.tl), arm_label(found.study, each.arm)) if found.tl else ()
            for one in each.observations:
                who = {"condition": each.condition, "arm": each.arm.name, "observation": one.question.number,
                       "comparison": one.question.words(*labels), "two_scales": one.question.two_scales}
                for seed, pair in ((None, one.over_seeds), *zip(each.seeds, one.by_seed, strict=True)):
                    yield {**who, "seed": seed, **{name: getattr(pair, name) for name in same.split()},
                           "p_seed": one.p_seed if seed is None else None}

    return frame_of(f"condition arm observation comparison two_scales seed {same} p_seed", rows())


def contributions(found: Findings, place: int) -> pd.DataFrame:
    """Table 6.3 (`place` 0: the first image of each class that has a mask) or 6.4 (1: the second, of five classes).

    Of the networks that the pictures show. Its columns are the thesis's, so that `tlkd regions` reads the file.
    """
    names = [f"{side}_{sign}" for side in ("fg", "bg") for sign in ("pos", "neg", "diff")]
    letters = {"tl_fg_diff": "tl_fg_diff_A", "kd_fg_diff": "kd_fg_diff_B", "tl_bg_diff": "tl_bg_diff_C",
               "kd_bg_diff": "kd_bg_diff_D"}
    columns = [letters.get(f"{arm}_{name}", f"{arm}_{name}") for arm in ("tl", "kd") for name in names]
    frames = []
    for each in _foregrounds(found):
        seed = shown_seed(found, each)
        tl, kd = (regions_of(found, arm, each.condition, seed) for arm in (found.tl, each.arm))
        rows = of_each_class(tl["label"].to_numpy(np.int64), np.ones(len(tl), np.bool_), place)
        rows = rows[:AGAIN] if place else rows
        tl, kd = tl.iloc[rows].reset_index(drop=True), kd.iloc[rows].reset_index(drop=True)
        frame = pd.concat([tl[names], kd[names]], axis=1)
        frame.columns = pd.Index(columns)
        frames.append(pd.concat([tl[["class"]], frame, regions.ratios(tl, kd), tl[["sample_id"]].assign(
            tl_correct=tl["correct"], kd_correct=kd["correct"], seed=seed, condition=each.condition,
            arm=each.arm.name)], axis=1))
    heads = ["class", *columns, *regions.RATIOS, "sample_id", "tl_correct", "kd_correct", "seed", "condition", "arm"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=heads)


def foreground_images(found: Findings) -> pd.DataFrame:
    """Each image's foreground share with TL and with an arm, averaged over the seeds explained in both."""
    frames = [paired_shares(found, each).assign(condition=each.condition, arm=each.arm.name)
              for each in _foregrounds(found)]
    heads = ["condition", "arm", "sample_id", "class", "uncertain", "area", "tl", "share", "difference"]
    return pd.concat(frames, ignore_index=True)[heads] if frames else pd.DataFrame(columns=heads)


def paired_shares(found: Findings, each: Foreground) -> pd.DataFrame:
    """The rows of `foreground_images` for one arm; nan where a run has no share for an image."""
    tl, share = (np.mean([regions_of(found, arm, each.condition, seed)["positive_share"].to_numpy(np.float64)
                          for seed in each.seeds], axis=0) for arm in (found.tl, each.arm))
    frame = regions_of(found, each.arm, each.condition, each.seeds[0])
    return frame[["sample_id", "class", "label", "uncertain", "area"]].assign(tl=tl, share=share, difference=share - tl)


def all_regions(found: Findings) -> pd.DataFrame:
    """Every explained network's `regions.csv`, one below the other."""
    every = found.explanations.tables if found.explanations is not None else {}
    frames = [table.assign(network=who) for who, table in every.items()]
    heads = ["network", *regions.COLUMNS]
    return pd.concat(frames, ignore_index=True)[heads] if frames else pd.DataFrame(columns=heads)


def shown_seed(found: Findings, each: Foreground) -> int:
    """The seed whose networks stand in the thesis's tables: that of the pictures, where both arms have it."""
    shown = found.overview.shown.get(each.condition) if found.overview is not None else None
    return shown if shown is not None and shown in each.seeds else each.seeds[0]


def _foregrounds(found: Findings) -> tuple[Foreground, ...]:
    """The comparisons that have images."""
    if found.explanations is None or found.explanations.n_images == 0:
        return ()
    return found.explanations.foregrounds


def regions_of(found: Findings, arm: Arm | None, condition: str, seed: int) -> pd.DataFrame:
    """An explained run's regions, a row an image that has a mask."""
    assert arm is not None and found.explanations is not None
    which = next(each for each in found.study.conditions if each.name == condition)
    return found.explanations.tables[Run(arm, which, seed).run_id]


def _flat(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(f"{path}.{key}" if path else str(key), item)
    elif isinstance(value, list | tuple):
        yield path, ", ".join(str(item) for item in value) or "none"
    else:
        yield path, "none" if value in (None, {}) else str(value)
