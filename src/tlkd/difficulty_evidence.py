"""What stands behind hypothesis 4 and behind the controls, in plain sentences."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tlkd.contrasts import NOT_EXAMINED
from tlkd.controls import Control
from tlkd.difficulties import FALLS, RISES, Course, Peak
from tlkd.findings import Findings
from tlkd.layout import ENDPOINTS, Evidence
from tlkd.series import at, under
from tlkd.statistics import Interval, Verdict
from tlkd.wording import NONE, count, digits_for, ends, enough, gain, listed, number, p_value, percent

SEEN = 0.05  # of resamples: a place with fewer is not named


def keeps(found: Findings, each: Course, brief: bool = False) -> Evidence:
    """Hypothesis 4 on one arm and series; `brief` leaves trend and peak to their table, where there are many."""
    label = f"{each.label}, {each.series.label}"
    if each.verdict is None:
        return Evidence(label, NOT_EXAMINED, f"Not examined: {each.why}.", ())
    shape = () if brief else (_trend_sentence(each), _peak_sentence(each, each.peak))
    details = (_average_sentence(each, each.verdict), _needed_sentence(each.verdict), *shape, _missing_sentence(each))
    return Evidence(label, each.word, _sentence(found, each, each.verdict), tuple(text for text in details if text))


def _sentence(found: Findings, each: Course, verdict: Verdict) -> str:
    digits = digits_for(verdict.interval.low, verdict.interval.high)
    size, least = number(100 * abs(verdict.gain), digits), number(100 * verdict.smallest_gain, 1)
    place = "level with" if float(size) == 0 else f"{size} points {'above' if verdict.gain > 0 else 'below'}"
    harm = verdict.harmful and max(verdict.p_seed_adjusted, verdict.p_image_adjusted) < verdict.level
    doubt = {"refuted": "" if harm else f"; a gain of {least} points is ruled out",
             "inconclusive": ", and these runs cannot tell whether that is chance",
             "supported": f", though surely by less than the {least} points that matter" if verdict.too_small else ""}
    present = replace(each.series, places=each.places)
    average = "on average " if len(present.hard) > 1 else ""
    return (f"{under(present)}, {each.label} is {average}{place} {each.tl_label} in "
            f"{ENDPOINTS[found.study.verdict.metric]}{doubt[verdict.word]}.{_shape(each)}")


def _shape(each: Course) -> str:
    """Where the gain is largest, and what it is at both ends; as observed."""
    if each.peak is None:
        return ""
    first, last = each.places[0], each.places[-1]
    top, gains = each.peak.place, dict(zip([place.name for place in each.places], each.gains, strict=True))
    digits = digits_for(each.peak.interval.low, each.peak.interval.high)

    def said(place_gain: float) -> str:
        return gain(place_gain, digits)

    if top.name == first.name:
        return (f" Its gain is largest at {at(each.series, first)}, {said(gains[first.name])} points, and "
                f"{said(gains[last.name])} at {at(each.series, last)}.")
    rest = f", {said(gains[first.name])} at {at(each.series, first)}"
    rest += f" and {said(gains[last.name])} at {at(each.series, last)}" if top.name != last.name else ""
    return f" Its gain is largest at {at(each.series, top)}, {said(each.peak.gain)} points{rest}."


def _average_sentence(each: Course, verdict: Verdict) -> str:
    places = sum(not place.easy for place in each.places)
    over = f" on average over {count(places, 'place')}" if places > 1 else ""
    digits = digits_for(verdict.interval.low, verdict.interval.high)
    return (f"{gain(verdict.gain, digits)} points{over} ({_interval(verdict.interval, verdict.level, digits)}; "
            f"{_tests(verdict)}; {count(verdict.n_seeds, 'seed')}, {count(verdict.n_images, 'test image')}). The "
            f"smallest gain that matters is set to {number(100 * verdict.smallest_gain, 1)} points."
            f"{_too_few(verdict)}")


def _interval(around: Interval, level: float, digits: int) -> str:
    if math.isnan(around.low):
        return "one seed gives no interval"
    return f"{number(100 * (1 - level), 0)} % interval {ends(around.low, around.high, digits)}, which covers " \
           f"{around.covers}"


def _tests(verdict: Verdict) -> str:
    adjusted = f", Holm-adjusted over {verdict.contrasts} pairs of arm and series" if verdict.contrasts > 1 else ""
    return (f"over seeds {p_value(verdict.p_seed_adjusted)}, over test images {p_value(verdict.p_image_adjusted)}"
            f"{adjusted}")


def _too_few(verdict: Verdict) -> str:
    smallest = min(1.0, 2.0 ** (1 - verdict.n_seeds) * verdict.contrasts)
    if smallest < verdict.level:
        return ""
    return (f" With {count(verdict.n_seeds, 'seed')} p over seeds cannot fall below {number(smallest, 3)}: nothing can "
            "be supported.")


def _needed_sentence(verdict: Verdict) -> str:
    return enough(verdict.needed, verdict.n_seeds, verdict.n_images, verdict.smallest_gain, "test image")


def _trend_sentence(each: Course) -> str:
    if each.trend is None:
        return ""
    verdict, first, last = each.trend.verdict, each.places[0], each.places[-1]
    digits = digits_for(verdict.interval.low, verdict.interval.high)
    said = {RISES: "it rises with the difficulty", FALLS: "it falls with the difficulty"}
    return (f"Trend: from {at(each.series, first)} to {at(each.series, last)} the fitted gain changes by "
            f"{gain(verdict.gain, digits)} points ({_interval(verdict.interval, verdict.level, digits)}; "
            f"{_tests(verdict)}): {said.get(each.trend.word, 'no trend is shown')}.")


def _peak_sentence(each: Course, peak: Peak | None) -> str:
    if peak is None or not peak.tested:
        return ""
    digits = digits_for(peak.interval.low, peak.interval.high)
    there = [(one, place) for one, place in zip(peak.shares, each.places, strict=True) if one >= SEEN]
    resamples = listed([f"{percent(one, 0)} % have it at {at(each.series, place)}" for one, place in sorted(
        there, key=lambda pair: -pair[0])])
    adjusted = f", Holm-adjusted over {peak.contrasts}" if peak.contrasts > 1 else ""
    inside = (f"An inner place has a larger gain than both ends ({p_value(peak.p_adjusted)}{adjusted}): "
              f"{gain(peak.above_easiest, digits)} points against the easiest, {gain(peak.above_hardest, digits)} "
              "against the hardest" if peak.inner else
              f"That an inner place exceeds both ends is not shown ({p_value(peak.p_adjusted)}{adjusted})")
    return (f"Peak: at {at(each.series, peak.place)}, {gain(peak.gain, digits)} points "
            f"({ends(peak.interval.low, peak.interval.high, digits)}, which does not allow for the choice of the "
            f"place); of resamples, {resamples}. {inside}.")


def _missing_sentence(each: Course) -> str:
    parts = []
    if each.left_out:
        verb = "is" if len(each.left_out) == 1 else "are"
        parts.append(f"{listed(list(each.left_out))} {verb} left out: no seed has a finished run in both arms.")
    fewer = each.verdict is not None and each.trend is not None and len(each.seeds) != each.verdict.n_seeds
    if fewer:
        parts.append(f"Trend and peak are over the {count(len(each.seeds), 'seed')} that all places have.")
    return " ".join(parts)


# --- controls ---------------------------------------------------------------------------------------------------------

CONCLUSIONS = {
    "label_smoothing": ("softening alone does not give it", "softening alone gives as much",
                        "softening alone gives as much"),
    "tl_kd_shuffled": ("knowing which classes are alike matters", "knowing which classes are alike is not what helps",
                       "knowing which classes are alike matters"),
    "self": ("a bigger teacher gives more", "a teacher no bigger does as well", "being bigger matters"),
}
"""By kind of control: what follows where the arm is surely better than it, where surely not, and what is open else."""


def explained_by(controls: Sequence[Control]) -> Iterator[tuple[str, str]]:
    """For each condition that has controls its name, and a sentence on how much of the gain each keeps."""
    pairs = dict.fromkeys((each.condition, each.kd.name) for each in controls)
    for condition, kd in pairs:
        here = [each for each in controls if (each.condition, each.kd.name) == (condition, kd)]
        whole = not any(math.isnan(each.kept) for each in here)
        yield condition, _kept_sentence(here) if whole else _own_sentence(here)


def _kept_sentence(here: Sequence[Control]) -> str:
    kept = [f"{each.label} keeps {percent(each.kept, 0)} %{_span(each)}" for each in here]
    return f"Of {here[0].kd_label}'s gain of {number(100 * here[0].kd_gain, 1)} points, {listed(kept)}; {_so(here)}."


def _span(each: Control) -> str:
    if math.isnan(each.kept_low):
        return ""
    return f" ({percent(each.kept_low, 0)} to {percent(each.kept_high, 0)})"


def _own_sentence(here: Sequence[Control]) -> str:
    """Where the arm itself has no sure gain: what each control does."""
    done = [f"{each.label} {gain(each.gain, 1)} ({_points(each.interval)})" for each in here]
    return (f"{here[0].kd_label} has no sure gain ({gain(here[0].kd_gain, 1)} points, {_points(here[0].kd_interval)}) "
            f"that a control could keep a part of. Against {here[0].tl_label}: {listed(done)} points.")


def _points(around: Interval) -> str:
    return NONE if math.isnan(around.low) else ends(around.low, around.high, 1)


def _so(here: Sequence[Control]) -> str:
    """What follows for each thing that a control lacks."""
    sure = [CONCLUSIONS[each.arm.kind][each.difference.word == "refuted"] for each in here
            if each.difference.word != "inconclusive"]
    open_ = [CONCLUSIONS[each.arm.kind][2] for each in here if each.difference.word == "inconclusive"]
    sure, open_ = list(dict.fromkeys(sure)), list(dict.fromkeys(open_))
    verdict = here[0].difference
    too_few = 2.0 ** (1 - verdict.n_seeds) * verdict.contrasts >= verdict.level
    why = f" with {count(verdict.contrasts, 'test')} on {count(verdict.n_seeds, 'seed')}" if too_few else ""
    unknown = f"whether {' or '.join(open_)} cannot be told{why}" if open_ else ""
    return ", ".join(text for text in (f"so {listed(sure)}" if sure else "", unknown) if text)
