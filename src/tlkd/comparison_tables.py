"""Tables over several studies as data frames: fractions in [0, 1], seconds, differences the second minus the first."""

from collections.abc import Iterator

import pandas as pd

from tlkd import spec_differences
from tlkd.comparison import Comparison, Entry, Member, shared_series
from tlkd.frames import Row, frame_of, judged, sd_of

JUDGED = ("word gain low high covers method p_seed p_image p_seed_adjusted p_image_adjusted seeds images effect "
          "contrasts smallest_gain level too_small harmful seeds_needed images_needed "
          "seeds_needed_together images_needed_together")


def draw(found: Comparison) -> dict[str, pd.DataFrame]:
    """The tables by the name of their file."""
    drawn = {"comparison": comparison(found), "tables/settings": settings(found)}
    if found.pairs or found.unpaired:
        drawn["tables/differences"] = differences(found)
    if shared_series(found):
        drawn["tables/series"] = series(found)
    return drawn


def comparison(found: Comparison) -> pd.DataFrame:
    """A row for each arm of each study against TL; a study without any has a row all the same.

    `p_*_adjusted` are Holm's over the study's own contrasts, `p_*_all` over those of all studies together, and `stands`
    says whether what was surely better or worse is so still. Seconds are summed over the arm's runs.
    """
    return frame_of(
        "study folder name data content student student_parameters arm condition teacher teacher_model "
        "teacher_parameters teacher_accuracy endpoint tl_mean tl_sd mean sd "
        f"{JUDGED} p_seed_all p_image_all stands hypothesis_1 hypothesis_2 hypothesis_3 hypothesis_4 foreground_tl "
        "foreground foreground_gain foreground_low foreground_high threshold tl_epochs epochs epochs_earlier "
        "tl_seconds seconds stage_seconds runs_finished runs_planned",
        (row for member in found.members for row in _rows(found, member)))


def _rows(found: Comparison, member: Member) -> Iterator[Row]:
    study = member.found.study
    own = {"study": member.label, "folder": str(member.path), "name": study.name, "data": study.data.source,
           "content": member.content, "student": study.student.model, "endpoint": study.verdict.metric,
           "student_parameters": member.parameters, "stage_seconds": member.stage_seconds,
           "runs_finished": member.finished, "runs_planned": member.found.planned}
    entries = found.of(member)
    yield from ({**own, **_row(each)} for each in entries)
    if not entries:
        yield own


def _row(each: Entry) -> Row:
    one, attention, speed = each.contrast, each.attention, each.contrast.speed.primary
    before, after = (each.values(group) for group in (each.tl, each.group))
    row: Row = {**judged(one.verdict), "arm": one.arm.name, "condition": one.condition, "tl_mean": float(before.mean()),
                "tl_sd": sd_of(before), "mean": float(after.mean()), "sd": sd_of(after), "p_seed_all": each.p_seed_all,
                "p_image_all": each.p_image_all, "stands": each.stands, "tl_seconds": sum(each.tl.seconds),
                "seconds": sum(each.group.seconds),
                "hypothesis_4": "; ".join(f"{course.series.label}: {course.word}" for course in each.courses),
                **{f"hypothesis_{number}": word for number, word in enumerate(each.words, 1)}}
    if each.teacher is not None:
        row |= {"teacher": each.teacher.name, "teacher_model": each.teacher.spec.model,
                "teacher_parameters": each.teacher.parameters,
                "teacher_accuracy": each.taught}
    if attention is not None:
        ends = attention.verdict.interval
        row |= {"foreground_tl": attention.tl.mean, "foreground": attention.arm.mean,
                "foreground_gain": attention.verdict.gain, "foreground_low": ends.low, "foreground_high": ends.high}
    if speed is not None:
        row |= {"threshold": speed.threshold, "tl_epochs": speed.tl_mean, "epochs": speed.tl_kd_mean,
                "epochs_earlier": speed.gain}
    return row


def differences(found: Comparison) -> pd.DataFrame:
    """A row a pair of studies: the difference of their gains with its tests, or why there is none."""
    def rows() -> Iterator[Row]:
        for each in found.pairs:
            yield {**judged(each.verdict), "word": each.word, "first": each.first.member.label,
                   "second": each.second.member.label, "first_arm": each.first.contrast.arm.name,
                   "second_arm": each.second.contrast.arm.name, "condition": each.second.contrast.condition,
                   "first_gain": each.first.contrast.verdict.gain, "second_gain": each.second.contrast.verdict.gain,
                   "same_tl": each.same_tl}
        for one in found.unpaired:
            yield {"word": "no paired test", "why": one.why, "first": one.first.label, "second": one.second.label}

    judgements = JUDGED.replace("gain", "difference", 1).replace(" too_small harmful", "")
    frame = frame_of(f"first second first_arm second_arm condition first_gain second_gain same_tl why {JUDGED}", rows())
    return frame.rename(columns={"gain": "difference"})[
        f"first second first_arm second_arm condition first_gain second_gain same_tl why {judgements}".split()]


def series(found: Comparison) -> pd.DataFrame:
    """The gain of each entry at each place of the series that several studies have."""
    return frame_of(f"series study arm condition number {JUDGED}", (
        {**judged(verdict), "series": line.series.label, "study": line.entry.member.label,
         "arm": line.entry.contrast.arm.name, "condition": place.name, "number": place.number}
        for lines in shared_series(found).values() for line in lines for place, verdict in line.places))


def settings(found: Comparison) -> pd.DataFrame:
    """Every key of every study, a row a key and study; `differs`: two studies have it otherwise."""
    return frame_of("key study value differs", (
        {"key": each.key, "study": member.label, "value": value, "differs": each.differs}
        for each in spec_differences.compare([member.found.study for member in found.members])
        for member, value in zip(found.members, each.values, strict=True)))
