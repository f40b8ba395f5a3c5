"""What a study found in plain words: a headline, one statement a hypothesis with its verdict, and what to beware of."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tlkd.contrasts import NOT_EXAMINED, Contrast, arm_label
from tlkd.difficulty_evidence import keeps
from tlkd.evidence import attends, better, hurts, sooner, why_not_explained
from tlkd.findings import Findings
from tlkd.folder import plan
from tlkd.layout import ENDPOINTS, Evidence
from tlkd.results import TeacherResult
from tlkd.specs import Arm
from tlkd.wording import count, digits_for, gain, listed, number, percent

CLAIMS = {
    1: "TL+KD classifies better than TL",
    2: "TL+KD attends more to the foreground",
    3: "TL+KD reaches a high accuracy in fewer epochs",
    4: "TL+KD keeps its gain under difficulties",
}
NO_VERDICT = "no verdict"
MANY = 4  # pieces of evidence; of more each is told in fewer words


@dataclass(frozen=True)
class Statement:
    """One hypothesis: where no arm has evidence, `word` says so and `note` why."""

    number: int
    claim: str
    evidence: tuple[Evidence, ...]
    word: str
    note: str


@dataclass(frozen=True)
class Caution:
    """Something to keep in mind; `grave` where it undoes what a reader would take the results for."""

    grave: bool
    title: str
    text: str


@dataclass(frozen=True)
class Summary:
    """The page's first part."""

    headline: str
    beside: tuple[str, ...]  # what must be read with the headline
    statements: tuple[Statement, ...]
    cautions: tuple[Caution, ...]


def summarise(found: Findings) -> Summary:
    """Put findings into words."""
    why = "" if found.contrasts else f"No verdict: {_why_no_contrast(found)}"
    absent = "Not examined in this study"
    unseen = why_not_explained(found)
    foreground = () if unseen else tuple(attends(found, each) for each in found.contrasts)
    return Summary(headline(found), tuple(_beside(found)), (
        Statement(1, CLAIMS[1], tuple(better(found, each) for each in found.contrasts), NO_VERDICT, why),
        Statement(2, CLAIMS[2], foreground, NOT_EXAMINED if unseen else NO_VERDICT,
                  f"{absent} ({unseen})." if unseen else why),
        Statement(3, CLAIMS[3], tuple(sooner(found, each) for each in found.contrasts), NO_VERDICT, why),
        _fourth(found, why),
    ), tuple(cautions(found)))


def _fourth(found: Findings, why: str) -> Statement:
    """Hypothesis 4: on each arm and series of conditions."""
    if not found.hard:
        return Statement(4, CLAIMS[4], (), NOT_EXAMINED,
                         "Not examined in this study. It asks for conditions other than clean.")
    courses = found.difficulties.courses if found.difficulties is not None else ()
    return Statement(4, CLAIMS[4], tuple(keeps(found, each, len(courses) > MANY) for each in courses), NO_VERDICT,
                     "" if courses else why or "No verdict: no arm of kind tl_kd is run under difficulties.")


def headline(found: Findings) -> str:
    """The answer in a sentence or two."""
    endpoint = ENDPOINTS[found.study.verdict.metric]
    if not found.tested:
        return f"Nothing to compare: {_why_no_contrast(found)}"
    if len(found.tested) == 1:
        text = _one_headline(found.tested[0], endpoint)
        if found.tested[0].word == "supported" and found.word(found.tested[0]) != "supported":
            text = f"{text.removesuffix('.')}, but attribution does not bear it out."
        if found.study.student.start != "tl":
            return text
        return f"{text.removeprefix('The teacher helps: ').removesuffix('.')}; but it trained twice as long."
    words: dict[str, list[str]] = {"supported": [], "harmful": [], "refuted": [], "inconclusive": []}
    for each in found.tested:
        words["harmful" if hurts(each) else each.verdict.word].append(found.label(each))
    tl = found.tested[0].tl_label
    least = f"{gain(found.study.verdict.smallest_gain, 1).lstrip('+')} points"
    parts = [f"{listed(names)}: {text}" for names, text in (
        (words["supported"], f"better than {tl} in {endpoint}."),
        (words["harmful"], f"worse than {tl}."),
        (words["refuted"], f"no gain of {least} over {tl}."),
        (words["inconclusive"], "these runs cannot tell.")) if names]
    return " ".join(parts)


def _beside(found: Findings) -> Iterator[str]:
    if found.hard and len(found.hard) == len(found.study.conditions):
        yield (f"The study has no condition without a difficulty: this is about {listed(_few(list(found.base)))}.")
    for each in found.teachers:
        if each.no_better and each.condition in ("", *found.base):
            yield f"{_weak(found, each)[0]}: {_weak(found, each)[1]}"


def _few(names: Sequence[str], most: int = 4) -> list[str]:
    """The first of many names, and how many more there are."""
    return list(names) if len(names) <= most + 1 else [*names[:most], f"{len(names) - most} more"]


def _weak(found: Findings, each: TeacherResult) -> tuple[str, str]:
    return (f"The teacher {each.name} is no better than the student alone",
            f"it has {percent(float(each.metrics['accuracy'].mean()), 1)} % test accuracy, where TL students reach "
            f"{percent(mean_tl_accuracy(found), 1)} % without it.")


def _one_headline(each: Contrast, endpoint: str) -> str:
    verdict = each.verdict
    digits = digits_for(verdict.interval.low, verdict.interval.high)
    size = number(100 * abs(verdict.gain), digits)
    least = number(100 * verdict.smallest_gain, 1)
    if verdict.word == "supported":
        but = f" \N{EN DASH} surely less than the {least} points that matter" if verdict.too_small else ""
        return f"The teacher helps: {each.label} is better than {each.tl_label} by {size} points of {endpoint}{but}."
    if hurts(each):
        return f"The teacher hurts: {each.label} is worse than {each.tl_label} by {size} points of {endpoint}."
    level = float(size) == 0
    place = "level with" if level else f"{size} points {'above' if verdict.gain > 0 else 'below'}"
    start = f"{each.label} comes out {place} {each.tl_label}"
    if verdict.word == "refuted":
        return f"The teacher does not help: {start}, and a gain of {least} points of {endpoint} is ruled out."
    doubt = (f"and a gain of {least} points is not ruled out" if level else
             "but not surely enough" if verdict.interval.low > 0 else "which chance could explain")
    return f"These runs cannot tell whether the teacher helps: {start}, {doubt}."


def _why_no_contrast(found: Findings) -> str:
    if found.tl is None:
        return "the study has no arm of kind tl to compare with."
    if len(found.study.arms) == 1:
        return f"{found.groups[0].label if found.groups else 'TL'} is the study's only arm."
    if not found.groups:
        return "no run has finished."
    if found.contrasts:
        same = listed([found.label(each) for each in found.contrasts])
        return f"with soft weight 0, {same} equals TL by construction."
    if found.teacher_failures:
        return (f"no seed has a finished run in both arms, since the teacher {listed(list(found.teacher_failures))} "
                "failed.")
    return "no seed has a finished run in both arms."


# --- what to beware of ------------------------------------------------------------------------------------------------


def cautions(found: Findings) -> Iterator[Caution]:
    """What a reader must know before believing the verdicts, gravest first."""
    study = found.study
    if study.selection == "test":
        yield Caution(True, "Chosen on the test split", (
            "schedules, early stopping and the reported epoch looked at the test split after each epoch, as the thesis "
            "did (`selection: test`). The accuracies are too high by an unknown amount, and no verdict here speaks of "
            "new images."))
    if study.student.start == "tl" and any(arm.kind != "tl" for arm in study.arms):
        yield Caution(True, "More than the loss differs", (
            "TL+KD starts from the finished TL student (`start: tl`), so its epochs come on top of TL's and it "
            "trains twice as long: hypothesis 1 compares more than the loss."))
    if found.teacher_failures:
        names, whys = list(found.teacher_failures), list(dict.fromkeys(found.teacher_failures.values()))
        shown = [*names[:3], f"{len(names) - 3} more"] if len(names) > 3 else names
        yield Caution(True, f"A teacher failed ({'; '.join(shown)})",
                      f"{'; '.join(whys[:3])}. The runs that learn from it were not made.")
    if found.failures or found.unfinished:
        bad = [f"{name} ({why})" for name, why in found.failures.items()]
        bad += [f"{name} (not finished)" for name in found.unfinished]
        shown = [*bad[:6], f"{len(bad) - 6} more"] if len(bad) > 6 else bad
        over = " Arms are compared over the seeds that both finished." if found.contrasts else ""
        verb = "is" if len(bad) == 1 else "are"
        yield Caution(True, f"{len(bad)} of {found.planned} runs {verb} missing", f"{'; '.join(shown)}.{over}")
    if found.robustness_failures:
        bad = [f"{name} ({why})" for name, why in found.robustness_failures.items()]
        yield Caution(True, "Robustness is missing", f"{'; '.join(_few(bad, 3))}.")
    yield from _training_cautions(found)
    yield from _knowledge_cautions(found)
    yield from _teacher_cautions(found)
    yield from _chance_cautions(found)
    yield from _data_cautions(found)
    yield from _explained_cautions(found)
    if study.student.batch_norm == "train":
        yield Caution(False, "Frozen layers moved", "batch normalisation kept updating its statistics in frozen layers "
                      "(`batch_norm: train`), so features changed at every step.")
    if study.training.report_epoch == "best" and study.selection == "dev":
        yield Caution(False, "Best epoch", "each run reports the epoch that was best on the dev split, not its last.")


def _training_cautions(found: Findings) -> Iterator[Caution]:
    """Trainings that are steered by clean images, or that differ between arms."""
    study = found.study
    looked = sorted({key for each in found.hard for arm in study.arms for training in [study.training_of(arm, each)]
                     for key, holds in (("early_stopping", training.early_stopping is not None),
                                        ("report_epoch: best", training.report_epoch == "best"),
                                        ("schedule: plateau", training.schedule == "plateau")) if holds})
    if study.selection == "test" and looked:
        by = listed([f"`{key}`" for key in looked])
        yield Caution(True, "Difficulties rescued by the test split", f"with {by} a run on few or wrong samples is "
                      "steered by the whole, clean test split: differences between difficulties are smaller than they "
                      "would be without.")
    keys = {arm.name: _own_keys(found, arm) for arm in study.arms}
    tuned = [f"{arm_label(study, arm)} ({', '.join(keys[arm.name])})" for arm in study.arms if keys[arm.name]]
    if tuned:
        yield Caution(False, "Arms differ in more than the loss", f"their training is set apart from "
                      f"{'TL' if found.tl is None else arm_label(study, found.tl)}'s: {listed(tuned)}, as "
                      "`tlkd tune` does it.")


def _knowledge_cautions(found: Findings) -> Iterator[Caution]:
    """Teachers that know more than the samples that their students learn from."""
    for name, teacher in found.study.used_teachers.items():
        taught = {run.condition.name for run in plan(found.study) if run.arm.teacher == name}
        hard = [each for each in found.hard if each.name in taught]
        blurred = [each.name for each in hard if each.distortion is not None]
        if hard and teacher.trained_on == "clean" and teacher.fit:
            yield Caution(False, f"The teacher {name} knows more than its students",
                          "it was fitted on the whole clean training set (`trained_on: clean`), so under "
                          f"{listed(_few([each.name for each in hard]))} it hands on knowledge that the student's own "
                          "samples do not hold.")
        if hard and not teacher.fit:
            yield Caution(False, f"The teacher {name} was taken as it is", "what it was trained on is not known here: "
                          f"under {listed(_few([each.name for each in hard]))} it may hand on knowledge of clean data.")
        if blurred and teacher.labels == "clean_view":
            yield Caution(False, f"The teacher {name} sees the clean images", "it labels the image as it is "
                          f"(`labels: clean_view`), while under {listed(_few(blurred))} the student sees it corrupted.")


def _own_keys(found: Findings, arm: Arm) -> list[str]:
    """The keys of an arm's training that differ from TL's under some condition."""
    study = found.study
    if found.tl is None:
        return sorted(arm.training or {})
    pairs = [(study.training_of(arm, each).model_dump(), study.training_of(found.tl, each).model_dump())
             for each in study.conditions]
    return [key for key in pairs[0][0] if any(own[key] != tl[key] for own, tl in pairs)]


def _teacher_cautions(found: Findings) -> Iterator[Caution]:
    for each in found.teachers:
        if each.no_better and each.condition in ("", *found.base):
            yield Caution(False, *_weak(found, each))
    weak: dict[str, list[str]] = {}
    for each in found.teachers:
        if each.no_better and each.condition not in ("", *found.base):
            weak.setdefault(each.name, []).append(each.condition)
    for name, where in weak.items():
        yield Caution(False, f"The teacher {name} is no better than the student under difficulties",
                      f"fitted under {listed(_few(where))}, it has no higher test accuracy than TL students there.")
    one = [name for name, teacher in found.study.used_teachers.items() if not teacher.per_seed]
    if one:
        own = [name for name in one if found.hard and found.study.teachers[name].trained_on == "condition"
               and found.study.teachers[name].fit]
        apart = f" Under difficulties {listed(own)} is fitted for each seed." if own else ""
        yield Caution(False, "One teacher for all seeds", f"the spread over seeds does not hold the chance that lies "
                      f"in fitting {listed(one)} (`per_seed: true` fits one a seed).{apart}")


def mean_tl_accuracy(found: Findings) -> float:
    """The mean test accuracy of the TL students, nan where there are none."""
    means = [group.metrics["accuracy"].mean() for group in found.base_groups
             if found.tl is not None and group.arm.name == found.tl.name]
    return float(max(means)) if means else float("nan")


def _chance_cautions(found: Findings) -> Iterator[Caution]:
    if not found.tested:
        return
    fewest = min(len(each.seeds) for each in found.tested)
    smallest = min(1.0, 2.0 ** (1 - fewest) * len(found.tested))
    family = f" ({len(found.tested)} contrasts, Holm)" if len(found.tested) > 1 else ""
    if smallest >= found.study.verdict.level:
        yield Caution(True, "Too few seeds to support anything", f"with {count(fewest, 'seed')} the smallest p that "
                      f"the test over seeds can give is {number(smallest, 3)}{family}, which is not below "
                      f"{found.study.verdict.level:g}.")
    elif fewest < 10:
        yield Caution(False, "Few seeds", f"with {count(fewest, 'seed')} the smallest p that the test over seeds can "
                      f"give is {number(smallest, 3)}{family}; the interval covers seeds only, not other test images.")


def _data_cautions(found: Findings) -> Iterator[Caution]:
    if not found.balanced:
        low, high = int(found.test_counts.min()), int(found.test_counts.max())
        which = ("accuracy leans towards the large ones" if found.study.verdict.metric == "accuracy"
                 else "the verdict weighs classes equally")
        yield Caution(False, "The test split is unbalanced",
                      f"classes have {number(low, 0)} to {number(high, 0)} test images: {which}.")
    skipped = found.card.get("skipped") or []
    if skipped:
        shown = "; ".join(f"{each['id']} ({each['reason']})" for each in skipped[:3])
        more = f"; and {len(skipped) - 3} more, listed below" if len(skipped) > 3 else ""
        yield Caution(False, f"{count(len(skipped), 'image')} left out", f"{shown}{more}.")


def _explained_cautions(found: Findings) -> Iterator[Caution]:
    if found.explanation_failures:
        bad = [f"{name} ({why})" for name, why in found.explanation_failures.items()]
        shown = "; ".join([*bad[:3], f"{len(bad) - 3} more"] if len(bad) > 3 else bad)
        yield Caution(True, "Explanations failed", f"{shown}. These networks, and any that were explained together "
                      "with them, are missing from hypothesis 2.")
    seen, explanations = found.overview, found.explanations
    if seen is None or explanations is None:
        return
    tests = int(found.test_counts.sum())
    if explanations.foregrounds and explanations.n_images:
        yield Caution(False, f"Explained on {count(explanations.n_images, 'image')}", "hypothesis 2 speaks of the test "
                      f"images that have a mask, {number(explanations.n_images, 0)} of {number(tests, 0)}.")
        yield Caution(False, "Two scales", explanations.warning)
    labels = {arm.name: arm_label(found.study, arm) for arm in found.study.arms}
    several = len(seen.shown) > 1
    names = {key: labels[key[0]] + (f", {key[1]}" if several else "") for key in seen.seeds}
    wrong = [f"{percent(share, 1)} % by {names[key]}" for key, share in seen.wrong.items() if share]
    if wrong:
        yield Caution(False, "Explained images that are classified wrong", f"{listed(wrong)}, on average over seeds. "
                      "They too are explained for their true label, which is not the class that was chosen.")
    fewer = [f"{names[key]}: {len(seeds)} of {len(group.seeds)}" for key, seeds in seen.seeds.items()
             for group in [found.group(*key)] if group is not None and len(seeds) < len(group.seeds)]
    if fewer:
        yield Caution(False, "Not all seeds are explained", f"{'; '.join(fewer)}. Hypothesis 2 has the fewer.")
    if math.isnan(seen.residual):
        yield Caution(False, "Not additive", "this explainer's values need not sum to the output, so that a share of "
                      "them is not a share of the output.")
    if seen.notes:
        shown = "; ".join(note.rstrip(".") for note in seen.notes[:3])
        more = f"; and {len(seen.notes) - 3} more, listed below" if len(seen.notes) > 3 else ""
        yield Caution(False, "The masks", f"{shown}{more}.")
