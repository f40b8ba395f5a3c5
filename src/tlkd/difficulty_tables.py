"""The tables of difficulties, controls and robustness as data frames; fractions in [0, 1], gains an arm minus TL."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from tlkd.conditions import Condition
from tlkd.contrasts import SAME_AS_TL, Group
from tlkd.difficulties import Course
from tlkd.findings import Findings
from tlkd.frames import Row, frame_of, judged, sd_of
from tlkd.series import in_words
from tlkd.statistics import Verdict

JUDGED = ("word gain low high covers method p_seed p_image p_seed_adjusted p_image_adjusted seeds images effect "
          "contrasts smallest_gain level too_small harmful seeds_needed images_needed "
          "seeds_needed_together images_needed_together")


def draw(found: Findings) -> dict[str, pd.DataFrame]:
    """The tables by the name of their file, those that the study has something for."""
    drawn = {}
    if found.difficulties is not None:
        drawn = {"difficulties": difficulties(found), "series": series(found)}
    if found.controls:
        drawn["controls"] = controls(found)
    if found.robustness is not None:
        drawn["robustness"] = robustness(found)
    return drawn


def difficulties(found: Findings) -> pd.DataFrame:
    """Every `tl_kd` arm under every condition that it and TL have finished runs of: both arms, the gain, the teacher.

    Under plain conditions the verdict is hypothesis 1's, under the others one of hypothesis 4's own family.
    """
    def rows() -> Iterator[Row]:
        for condition, tl, group, verdict in compared(found):
            taught = teacher_accuracy(found, group.arm.teacher, condition)
            yield {**numbers(condition), "condition": condition.name, "arm": group.arm.name,
                   **(judged(verdict) if verdict is not None else {"word": SAME_AS_TL}),
                   "tl_mean": _mean(found, tl), "tl_sd": sd_of(tl.metrics[found.study.verdict.metric]),
                   "mean": _mean(found, group), "sd": sd_of(group.metrics[found.study.verdict.metric]),
                   "tl_f1": float(tl.metrics["f1"].mean()), "f1": float(group.metrics["f1"].mean()),
                   "teacher_accuracy": taught}

    return frame_of("condition arm train_fraction label_noise corrupted difficulty tl_mean tl_sd mean sd tl_f1 f1 "
                    f"teacher_accuracy {JUDGED}", rows())


def numbers(condition: Condition) -> Row:
    """A condition's three numbers, and what it does in words."""
    noise, corruption = condition.label_noise, condition.corruption
    return {"train_fraction": condition.train_fraction, "label_noise": noise.fraction if noise is not None else 0.0,
            "corrupted": corruption.fraction if corruption is not None else 0.0, "difficulty": in_words(condition)}


def compared(found: Findings) -> Iterator[tuple[Condition, Group, Group, Verdict | None]]:
    """TL beside each `tl_kd` arm under each condition, with its verdict (None where the two are equal by construction).
    """
    tested = {(each.arm.name, each.condition): each for each in reversed(found.tested)}
    for condition in found.study.conditions:
        tl = found.group(found.tl.name, condition.name) if found.tl is not None else None
        for arm in found.study.arms:
            group = found.group(arm.name, condition.name)
            if tl is None or group is None or arm.kind != "tl_kd" or not set(tl.seeds) & set(group.seeds):
                continue
            gain = found.difficulties.gain(arm.name, condition.name) if found.difficulties is not None else None
            plain = tested.get((arm.name, condition.name))
            yield condition, tl, group, (gain.verdict if gain is not None else
                                         plain.verdict if plain is not None else None)


def _mean(found: Findings, group: Group) -> float:
    return float(group.metrics[found.study.verdict.metric].mean())


def teacher_accuracy(found: Findings, name: str | None, condition: Condition) -> float:
    """The mean test accuracy of the teacher that an arm learns from under a condition; nan where there is none."""
    if name is None:
        return float("nan")
    teacher = found.study.teachers[name]
    own = teacher.fit and teacher.trained_on == "condition" and not condition.plain
    where = condition.name if own else ""
    return next((float(each.metrics["accuracy"].mean()) for each in found.teachers
                 if (each.name, each.condition) == (name, where)), float("nan"))


def series(found: Findings) -> pd.DataFrame:
    """Hypothesis 4 on each arm and series: the verdict on the average gain, the trend, the peak.

    `trend_*`: the fitted change of the gain from the easiest place to the hardest. `peak_*`: the place of the largest
    gain, by its condition and number, and the test that an inner place exceeds both ends; `peak_shares`: the part of
    resamples that have their peak at each place.
    """
    courses = found.difficulties.courses if found.difficulties is not None else ()
    trend = "trend trend_change trend_low trend_high trend_p_seed trend_p_image trend_p_seed_adjusted " \
            "trend_p_image_adjusted trend_contrasts"
    peak = "peak peak_number peak_gain peak_low peak_high peak_shares peak_above_easiest peak_above_hardest peak_p " \
           "peak_p_adjusted peak_contrasts peak_inside"
    return frame_of(f"series title quantity arm places left_out common_seeds {JUDGED} why {trend} {peak}",
                    (_course(each) for each in courses))


def _course(each: Course) -> Row:
    row: Row = {"series": each.series.key, "title": each.series.label, "quantity": each.series.quantity,
                "arm": each.arm.name, "places": "; ".join(place.name for place in each.places),
                "left_out": "; ".join(each.left_out), "common_seeds": len(each.seeds), "why": each.why,
                **(judged(each.verdict) if each.verdict is not None else {}), "word": each.word}
    if each.trend is not None:
        one = each.trend.verdict
        row |= {"trend": each.trend.word, "trend_change": one.gain, "trend_low": one.interval.low,
                "trend_high": one.interval.high, "trend_contrasts": one.contrasts,
                **{f"trend_{name}": getattr(one, name)
                   for name in ("p_seed", "p_image", "p_seed_adjusted", "p_image_adjusted")}}
    if each.peak is not None:
        top = each.peak
        shares = "; ".join(f"{place.name} {share:.3f}" for place, share in zip(each.places, top.shares, strict=True))
        row |= {"peak": top.place.name, "peak_number": top.place.number, "peak_gain": top.gain,
                "peak_low": top.interval.low, "peak_high": top.interval.high, "peak_shares": shares,
                "peak_above_easiest": top.above_easiest, "peak_above_hardest": top.above_hardest, "peak_p": top.p,
                "peak_p_adjusted": top.p_adjusted, "peak_contrasts": top.contrasts, "peak_inside": top.inner}
    return row


def controls(found: Findings) -> pd.DataFrame:
    """Each control beside the arm that it is compared with: both gains, the part kept, the arm minus the control."""
    return frame_of("condition arm kind compared_with common_seeds kd_gain kd_low kd_high control_gain control_low "
                    f"control_high kept kept_low kept_high {JUDGED}", (
        {**judged(each.difference), "condition": each.condition, "arm": each.arm.name, "kind": each.arm.kind,
         "compared_with": each.kd.name, "common_seeds": len(each.seeds), "kd_gain": each.kd_gain,
         "kd_low": each.kd_interval.low, "kd_high": each.kd_interval.high, "control_gain": each.gain,
         "control_low": each.interval.low, "control_high": each.interval.high, "kept": each.kept,
         "kept_low": each.kept_low, "kept_high": each.kept_high} for each in found.controls))


def robustness(found: Findings) -> pd.DataFrame:
    """Accuracy and F1 by kind and degree, and (`degree` empty) the mean over degrees with the gain over TL."""
    def rows() -> Iterator[Row]:
        for curve in found.robustness.curves if found.robustness is not None else ():
            for place, (degree, words) in enumerate(zip(curve.degrees, curve.distortions, strict=True)):
                yield {"condition": curve.condition, "arm": curve.arm, "kind": curve.kind, "degree": degree,
                       "distortion": words, "seeds": len(curve.seeds), "mean": float(curve.accuracy[:, place].mean()),
                       "sd": sd_of(curve.accuracy[:, place]), "f1": float(curve.f1[:, place].mean())}
        for level in found.robustness.levels if found.robustness is not None else ():
            yield {"condition": level.condition, "arm": level.arm, "kind": level.kind, "distortion": "mean",
                   "seeds": len(level.accuracy), "mean": float(level.accuracy.mean()), "sd": sd_of(level.accuracy),
                   "gain": float(np.mean(level.gains)) if len(level.gains) else None, "low": level.low,
                   "high": level.high}

    return frame_of("condition arm kind degree distortion seeds mean sd f1 gain low high", rows())
