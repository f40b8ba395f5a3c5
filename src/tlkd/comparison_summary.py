"""What several studies say side by side, in plain words: a headline, what may be claimed, and what to beware of."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tlkd import summary
from tlkd.comparison import ALIKE, LARGER, OTHER_IMAGES, SAME, SMALLER, Comparison, Entry, Member, Pair
from tlkd.evidence import hurts
from tlkd.summary import Caution
from tlkd.wording import count, gain, listed, number, p_value, percent

NAMED = 2  # studies; more are counted


@dataclass(frozen=True)
class Words:
    """The page in words: its headline, what stands beside it, what may be claimed, what to beware of."""

    headline: str
    differences: str
    claims: tuple[str, ...]
    sizes: tuple[str, ...]  # whether larger teachers have larger gains
    cautions: tuple[Caution, ...]


def summarise(found: Comparison) -> Words:
    """Put a comparison into words."""
    return Words(headline(found), _differences(found), tuple(_claims(found)), tuple(_sizes(found)),
                 tuple(_cautions(found)))


def plain(found: Comparison) -> str:
    """All of it as plain text: the headline, a line a study, a line a pair, the claims."""
    words = summarise(found)
    lines = [f"{each.label}: {said(each)}" for each in found.entries]
    lines += [f"{member.label}: {_no_gain(member)}" for member in found.members if not found.of(member)]
    lines += [f"{each.label}: {pair_said(each)}" for each in found.pairs]
    cautions = [f"{'!' if each.grave else '-'} {each.title}: {each.text}".replace("`", "") for each in words.cautions]
    return "\n".join([words.headline, words.differences, "", *lines, "", *words.sizes, *words.claims, "",
                      *cautions]).rstrip() + "\n"


def said(entry: Entry) -> str:
    """An entry in half a sentence: `inconclusive, +0.73 points (-0.08 to +1.55), 6 seeds`."""
    one = entry.contrast.verdict
    return (f"{entry.words[0]}, gain {gain(one.gain)} points{_around(one.interval.low, one.interval.high)}, "
            f"{count(one.n_seeds, 'seed')}; {entry.contrast.tl_label} {percent(float(entry.values(entry.tl).mean()))} "
            f"%, {entry.contrast.label} {percent(float(entry.values(entry.group).mean()))} %, teacher "
            f"{percent(entry.taught)} %")


def pair_said(pair: Pair) -> str:
    """A pair in half a sentence."""
    one = pair.verdict
    if pair.word == SAME:
        return pair.word
    return (f"{pair.word}, {gain(one.gain)} points{_around(one.interval.low, one.interval.high)}; over seeds "
            f"{p_value(one.p_seed_adjusted)}, over test images {p_value(one.p_image_adjusted)}, Holm-adjusted over "
            f"{count(one.contrasts, 'pair')}")


def _around(low: float, high: float) -> str:
    return f" ({gain(low)} to {gain(high)})" if math.isfinite(low) else ""


def _no_gain(member: Member) -> str:
    return f"no gain yet: {member.finished} of {count(member.found.planned, 'run')} finished"


# --- the headline -----------------------------------------------------------------------------------------------------


def headline(found: Comparison) -> str:
    """Where the teacher helps, where it hurts, and where nobody can tell."""
    if not found.entries:
        return "Nothing to compare yet: no study has finished runs of TL and TL+KD."
    several = len(found.entries) > len([each for each in found.members if found.of(each)])
    groups = {"helps": [each for each in found.entries if each.words[0] == "supported"],
              "hurts": [each for each in found.entries if hurts(each.contrast)]}
    rest = [each for each in found.entries if all(each not in some for some in groups.values())]
    refuted = [each for each in rest if each.contrast.verdict.word == "refuted"]
    unclear = [each for each in rest if each not in refuted]
    parts = [f"The teacher helps in {_names(groups['helps'], several)}" if groups["helps"]
             else f"In none of {_counted(len(found.entries), several)} does the teacher surely help"
             if len(found.entries) > 1
             else "The teacher does not surely help"]
    if groups["hurts"]:
        parts.append(f"it hurts in {_names(groups['hurts'], several)}")
    if refuted:
        parts.append(f"a gain that matters is ruled out in {_names(refuted, several)}")
    if unclear and len(unclear) == len(found.entries):
        return f"{parts[0]}: the runs cannot tell."
    if unclear:
        parts.append(f"in {_names(unclear, several)} the runs cannot tell")
    return f"{'; '.join(parts)}."


def _names(entries: Sequence[Entry], several: bool) -> str:
    if len(entries) <= NAMED:
        return listed([each.label for each in entries])
    return _counted(len(entries), several)


def _counted(entries: int, several: bool) -> str:
    return f"{number(entries, 0)} {'arms' if several else 'studies'}"


def _differences(found: Comparison) -> str:
    """What the paired tests say, in a sentence."""
    if not found.pairs:
        return "No two of these gains can be compared by a paired test: the intervals stand side by side."
    sure = [each for each in found.pairs if each.word in (LARGER, SMALLER)]
    if sure:
        told = [f"{one.label} gains {number(100 * abs(each.verdict.gain), 1)} points more than {other.label}"
                for each in sure[:4] for one, other in [_order(each)]]
        more = f"; and {count(len(sure) - 4, 'more pair')}" if len(sure) > 4 else ""
        return f"{'; '.join(told)}{more}."
    if all(each.word in (ALIKE, SAME) for each in found.pairs):
        return "The gains that can be compared are as good as equal."
    tested = len([each for each in found.pairs if each.word != SAME])
    return (f"Of {count(tested, 'pair')} of gains that can be compared, none surely differs." if tested > 1
            else "The two gains that can be compared do not surely differ.")


def _order(pair: Pair) -> tuple[Entry, Entry]:
    """The entry with the larger gain first."""
    return (pair.second, pair.first) if pair.word == LARGER else (pair.first, pair.second)


# --- what may be claimed ----------------------------------------------------------------------------------------------


def _claims(found: Comparison) -> Iterator[str]:
    sure = [each for each in found.entries if each.sure]
    if len(found.entries) > 1:
        lost = [each.label for each in sure if not each.stands]
        over = f"Holm over all {number(len(found.entries), 0)} contrasts"
        tail = ("here none is sure as it stands" if not sure else
                f"under {over} {listed(lost)} would be sure no more" if lost else
                f"under {over} too {listed([each.label for each in sure])} {'is' if len(sure) == 1 else 'are'} sure")
        yield ("Each verdict is its own study's, corrected over that study's arms alone. Read together they are more "
               f"tests, and more chances to be wrong: {tail}.")
    if found.pairs:
        yield from _pair_claims(found)
    if any(each.why == OTHER_IMAGES for each in found.unpaired):
        groups = [listed([each.label for each in group]) for group in found.data]
        between = (f"Between {groups[0]} on one side and {groups[1]} on the other" if len(groups) == 2
                   else f"Between these groups of studies ({'; '.join(groups)})")
        yield (f"{between} the images differ: no paired test is possible, and only intervals stand side by side. That "
               "a gain is larger here than there is then no finding, and whether two intervals overlap is no test.")
    others = [each for each in found.unpaired if each.why != OTHER_IMAGES]
    if others:
        shown = [f"{each.first.label} and {each.second.label} ({each.why})" for each in others[:4]]
        more = [f"{number(len(others) - 4, 0)} more"] if len(others) > 4 else []
        yield f"Not compared in pairs: {listed([*shown, *more])}."


def _pair_claims(found: Comparison) -> Iterator[str]:
    tested = [each for each in found.pairs if each.word != SAME]
    if not tested:
        return
    one = tested[0].verdict
    yield (f"Differences of gains are exploratory. Their tests are exact and Holm-adjusted over "
           f"{count(one.contrasts, 'pair')}, but which studies stand here could be chosen when their results were "
           "known, and no correction undoes that. To claim that one teacher helps more than another, make both arms of "
           "one new study, and say beforehand which.")
    yield ("A difference is one between two studies with all that differs in their specs (below), and between two "
           "fitted teachers, not between all teachers of their sizes.")
    seeds = max(len(each.seeds) for each in found.pairs)
    smallest = 2.0 ** (1 - seeds) * one.contrasts
    if smallest >= one.level:
        yield (f"With {count(seeds, 'common seed')} at most the smallest p over seeds that Holm over "
               f"{count(one.contrasts, 'pair')} can leave is {min(1.0, smallest):.2g}: no difference could be "
               "called sure, whatever its size.")


def _sizes(found: Comparison) -> Iterator[str]:
    """For studies with the same images and student: the gains from the smallest teacher to the largest."""
    for group in found.data:
        here = [each for each in found.entries if each.member in group and each.teacher is not None]
        kinds = dict.fromkeys((each.student, each.contrast.arm.name if len(found.of(each.member)) > 1 else "",
                               each.contrast.condition) for each in here)
        for student, arm, condition in kinds:
            alike = [each for each in here if each.student == student and each.contrast.condition == condition
                     and arm in ("", each.contrast.arm.name)]
            sentence = _in_order(alike)
            if sentence:
                where = f" ({arm})" if len(kinds) > 1 and arm else ""
                yield f"{sentence[0]}{where}{sentence[1]}"


def _in_order(entries: Sequence[Entry]) -> tuple[str, str] | None:
    """The beginning and the rest of the sentence, None where there are no teachers of two sizes."""
    ordered = sorted(entries, key=_size)
    if len({_size(each) for each in entries}) < 2:
        return None
    steps = [after.contrast.verdict.gain - before.contrast.verdict.gain
             for before, after in pairwise(ordered) if _size(after) > _size(before)]
    course = ("" if len(steps) < 2 else ": it rises with each step" if all(step > 0 for step in steps) else
              ": it falls with each step" if all(step < 0 for step in steps) else
              ": it neither rises nor falls throughout")
    told = [f"{gain(each.contrast.verdict.gain)} ({each.member.label}, {number(_size(each) / 1e6, 1)} million)"
            for each in ordered]
    return ("On the same images and with the same student",
            f", from the smallest teacher to the largest, the gain in points is {listed(told)}{course}. Described, "
            "not tested.")


def _size(entry: Entry) -> int:
    return entry.teacher.parameters if entry.teacher is not None else 0


# --- what to beware of ------------------------------------------------------------------------------------------------


def _cautions(found: Comparison) -> Iterator[Caution]:
    for member in found.members:
        for one in summary.cautions(member.found):
            if one.grave:
                yield Caution(True, f"{member.label}: {one.title[:1].lower()}{one.title[1:]}", one.text)
    yield from _rules(found)
    copies = [each for each in found.pairs if each.word == SAME]
    if copies:
        yield Caution(True, "The same students twice", f"{listed([each.label for each in copies[:3]])}: both studies "
                      "hold the same students, so they are one result and not two.")
    same_tl = [each for each in found.pairs if each.same_tl and each.word != SAME]
    if same_tl:
        names = list(dict.fromkeys(entry.member.label for each in same_tl for entry in (each.first, each.second)))
        yield Caution(False, "The same TL students", f"{listed(names)} share them, so that their gains rise and fall "
                      "together with TL's luck: they are not independent. A difference of two of these gains is free "
                      "of that: it is the difference between the two arms.")
    machines = {str(member.found.provenance.get("hardware", {}).get("processor")) for member in found.members}
    if len(machines) > 1:
        yield Caution(False, "Other machines", "the studies ran on different processors: seconds are not comparable.")
    yield Caution(False, "Seconds", "times are those of the making: what came from the cache shows what it cost when "
                  "it was made, perhaps beside other work.")


def _rules(found: Comparison) -> Iterator[Caution]:
    """Studies that are judged by different rules."""
    rules = {member.label: member.found.study.verdict for member in found.members}
    if len({rule.metric for rule in rules.values()}) > 1:
        told = listed([f"{label} ({rule.metric.replace('_', ' ')})" for label, rule in rules.items()])
        yield Caution(True, "Not one endpoint", f"the gains are in different metrics: {told}.")
    if len({member.found.study.selection for member in found.members}) > 1:
        chosen = [member.label for member in found.members if member.found.study.selection == "test"]
        yield Caution(True, "Not chosen alike", f"{listed(chosen)} looked at the test split while training "
                      "(`selection: test`), the others did not: their accuracies are not comparable.")
    for key, what in (("smallest_gain", "smallest gain that matters"), ("level", "level")):
        values = {label: getattr(rule, key) for label, rule in rules.items()}
        if len(set(values.values())) > 1:
            told = listed([f"{label} {value:g}" for label, value in values.items()])
            yield Caution(False, f"Not one {what}", f"{told}; differences of gains are judged by the smallest.")
