"""What a study found in plain words: a headline, one statement a hypothesis with its verdict, and what to beware of."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tlkd.contrasts import NOT_EXAMINED, Contrast
from tlkd.convergence import Convergence
from tlkd.findings import Findings, TeacherResult
from tlkd.wording import count, digits_for, ends, gain, listed, number, p_value, percent

CLAIMS = {
    1: "TL+KD classifies better than TL",
    2: "TL+KD attends more to the foreground",
    3: "TL+KD reaches a high accuracy in fewer epochs",
    4: "TL+KD keeps its gain under difficulties",
}
NO_VERDICT = "no verdict"
ENDPOINTS = {"accuracy": "test accuracy", "balanced_accuracy": "balanced test accuracy"}


@dataclass(frozen=True)
class Evidence:
    """The verdict on one arm: its word, one plain sentence, and what stands behind it, a paragraph each."""

    label: str
    word: str
    sentence: str
    details: tuple[str, ...]


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
    absent = "Not examined in this study."
    return Summary(headline(found), tuple(_beside(found)), (
        Statement(1, CLAIMS[1], tuple(_better(found, each) for each in found.contrasts), NO_VERDICT, why),
        Statement(2, CLAIMS[2], (), NOT_EXAMINED, f"{absent} It is a question about attributions."),
        Statement(3, CLAIMS[3], tuple(_sooner(found, each) for each in found.contrasts), NO_VERDICT, why),
        Statement(4, CLAIMS[4], (), NOT_EXAMINED, f"{absent} It asks for conditions other than clean."),
    ), tuple(cautions(found)))


def headline(found: Findings) -> str:
    """The answer in a sentence or two."""
    endpoint = ENDPOINTS[found.study.verdict.metric]
    if not found.tested:
        return f"Nothing to compare: {_why_no_contrast(found)}"
    if len(found.tested) == 1:
        text = _one_headline(found.tested[0], endpoint)
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


def hurts(each: Contrast) -> bool:
    """Whether an arm is surely worse than TL, by the same three demands that a supported gain must meet."""
    verdict = each.verdict
    return verdict.harmful and max(verdict.p_seed_adjusted, verdict.p_image_adjusted) < verdict.level


def _beside(found: Findings) -> Iterator[str]:
    for each in found.teachers:
        if each.no_better:
            yield f"{_weak(found, each)[0]}: {_weak(found, each)[1]}"


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


# --- hypothesis 1 -----------------------------------------------------------------------------------------------------


def _better(found: Findings, each: Contrast) -> Evidence:
    if each.same_as_tl:
        return _same(found, each)
    details = (_metrics_sentence(found, each), _needed_sentence(each), _confusion_sentence(each),
               "Attribution: not examined; it comes with explanations.")
    return Evidence(found.label(each), each.word, _better_sentence(found, each),
                    tuple(text for text in details if text))


def _same(found: Findings, each: Contrast) -> Evidence:
    return Evidence(found.label(each), NOT_EXAMINED, f"With soft weight 0, {each.label} is equal to {each.tl_label} by "
                    "construction: there is nothing to test.", ())


def _better_sentence(found: Findings, each: Contrast) -> str:
    verdict, endpoint = each.verdict, ENDPOINTS[found.study.verdict.metric]
    size = number(100 * abs(verdict.gain), digits_for(verdict.interval.low, verdict.interval.high))
    least = number(100 * verdict.smallest_gain, 1)
    place = "level with" if float(size) == 0 else f"{size} points {'above' if verdict.gain > 0 else 'below'}"
    if verdict.word == "supported":
        but = (f", though surely by less than the {least} points that matter" if verdict.too_small else "") + (
            "" if each.confusions.agrees else ", but the confusion does not agree")
        return f"{each.label} is better than {each.tl_label} by {size} points of {endpoint}{but}."
    if hurts(each):
        return f"{each.label} is worse than {each.tl_label} by {size} points of {endpoint}."
    if verdict.word == "refuted":
        return f"{each.label} is {place} {each.tl_label} in {endpoint}; a gain of {least} points is ruled out."
    return f"{each.label} is {place} {each.tl_label} in {endpoint}, and these runs cannot tell whether that is chance."


def _metrics_sentence(found: Findings, each: Contrast) -> str:
    verdict, around = each.verdict, each.verdict.interval
    digits = digits_for(around.low, around.high)
    tl = found.group(found.tl.name, each.condition) if found.tl is not None else None
    against = f" against {each.tl_label}'s {percent(_level(found, each), digits)} %" if tl is not None else ""
    start = f"Metrics: {verdict.word}. {gain(verdict.gain, digits)} points of {ENDPOINTS[found.study.verdict.metric]}" \
            f"{against}"
    sizes = f"{count(verdict.n_seeds, 'seed')}, {count(verdict.n_images, 'test image')}"
    adjusted = f", Holm-adjusted over {verdict.contrasts} contrasts" if verdict.contrasts > 1 else ""
    tests = (f"over seeds {p_value(verdict.p_seed_adjusted)}, over test images {p_value(verdict.p_image_adjusted)}"
             f"{adjusted}")
    if np.isnan(around.low):
        return f"{start} ({sizes}; one seed gives no interval; {tests})."
    return (f"{start} ({number(100 * (1 - verdict.level), 0)} % interval "
            f"{ends(around.low, around.high, digits)}, which covers {around.covers}; {tests}; {sizes}). "
            f"The smallest gain that matters is set to {number(100 * verdict.smallest_gain, 1)} points.")


def _level(found: Findings, each: Contrast) -> float:
    group = found.group(found.tl.name, each.condition) if found.tl is not None else None
    if group is None:
        return float("nan")
    rows = [group.seeds.index(seed) for seed in each.seeds]
    return float(group.metrics[found.study.verdict.metric][rows].mean())


def _needed_sentence(each: Contrast) -> str:
    verdict, needed = each.verdict, each.verdict.needed
    if needed is None:
        return ""
    least = f"To show a gain of {number(100 * verdict.smallest_gain, 1)} points with 80 % power"
    if needed.seeds is None or needed.images is None:
        return f"{least}, more than one seed is needed before it can be said how many."
    text = (f"{least}, judged by the observed spread, needs about {count(needed.seeds, 'seed')} (here "
            f"{number(verdict.n_seeds, 0)}) and about {count(needed.images, 'test image')} (here "
            f"{number(verdict.n_images, 0)}).")
    if needed.seeds <= verdict.n_seeds and needed.images <= verdict.n_images:
        text += " There are enough of both: the gain itself lies too near to the border to be called."
    return text


def _confusion_sentence(each: Contrast) -> str:
    matrix = each.confusions
    even = len(matrix.rows) - matrix.gaining - matrix.losing
    stay = f", {even} {'stays' if even == 1 else 'stay'} level" if even else ""
    change = "fall" if matrix.fewer_errors > 0 else "rise" if matrix.fewer_errors < 0 else "stay as they are"
    amount = f" by {number(abs(matrix.fewer_errors), 1)} on average over seeds" if matrix.fewer_errors else ""
    return (f"Confusion: {'agrees' if matrix.agrees else 'does not agree'} that {each.label} is better. "
            f"{count(matrix.gaining, 'class').capitalize()} gain{'s' if matrix.gaining == 1 else ''} true positives, "
            f"{number(matrix.losing, 0) if matrix.losing else 'none'} lose{'' if matrix.losing > 1 else 's'}{stay}; "
            f"the errors off the diagonal {change}{amount}.")


# --- hypothesis 3 -----------------------------------------------------------------------------------------------------


def _sooner(found: Findings, each: Contrast) -> Evidence:
    speed, one = each.speed, each.speed.primary
    label = found.label(each)
    if each.same_as_tl:
        return _same(found, each)
    if speed.why:
        return Evidence(label, NOT_EXAMINED, f"Not examined: {speed.why}.", ())
    if one is None:
        return Evidence(label, speed.word, f"No accuracy threshold was reached by half of {each.tl_label}'s runs, so "
                                           "there is no epoch to compare.", ())
    crossing = crossing_sentence(each)
    tests = p_value(speed.p_adjusted) + (
        f", Holm-adjusted over {speed.contrasts} contrasts" if speed.contrasts > 1 else "")
    spread = "one seed gives no interval" if np.isnan(one.low) else (
        f"{number(100 * (1 - found.study.verdict.level), 0)} % interval {number(one.low, 1, sign=True)} to "
        f"{number(one.high, 1, sign=True)}, which covers {one.covers}")
    lead = count(found.study.verdict.smallest_epochs, "epoch")
    verdicts = {"supported": "", "refuted": f"; a lead of {lead} is ruled out",
                "inconclusive": "; these runs cannot tell whether that is chance"}
    apart = f"{_apart(one)} than" if one.gain else "as early as"
    sentence = (f"Within the first {count(one.horizon, 'epoch')}, which all runs trained, {each.label} reaches "
                f"{percent(one.threshold, 0)} % accuracy on the {found.study.selection} split {apart} "
                f"{each.tl_label}{verdicts[speed.word]}.")
    split = found.study.selection
    images = sum(found.card["counts"].get(split, {}).values())
    first = (f"{each.label} takes {number(one.tl_kd_mean, 1)} epochs on average and {each.tl_label} "
             f"{number(one.tl_mean, 1)} ({spread}; over seeds {tests}; {count(one.n_seeds, 'seed')}). The curves were "
             f"measured on {count(images, f'{split} image')}: the verdict covers the chance over seeds only, and none "
             "over these images.")
    reached = (f"{one.tl_kd_reached} of {one.n_seeds} runs reach it with {each.label}, {one.tl_reached} of "
               f"{one.n_seeds} with {each.tl_label}; one that does not within these epochs counts as "
               f"{count(one.horizon, 'epoch')}. It "
               f"is the highest threshold that at least half of {each.tl_label}'s runs reach. {crossing}")
    needed = ""
    if speed.word == "inconclusive" and speed.seeds_needed is not None:
        needed = (f"To show a lead of {count(found.study.verdict.smallest_epochs, 'epoch')} with 80 % power, judged by "
                  f"the observed spread, needs about {count(speed.seeds_needed, 'seed')} (here {one.n_seeds}).")
    return Evidence(label, speed.word, sentence, tuple(text for text in (first, reached, needed) if text))


def _apart(one: Convergence) -> str:
    return f"{number(abs(one.gain), 1)} epochs {'earlier' if one.gain > 0 else 'later'}"


def crossing_sentence(each: Contrast) -> str:
    """Where the mean curves cross."""
    if not each.speed.crossings:
        return "The mean curves do not cross."
    epochs = [str(epoch) for epoch in each.speed.crossings]
    if len(epochs) > 5:
        return f"The mean curves cross {len(epochs)} times, first at epoch {epochs[0]}: they run close together."
    return f"The mean curves cross at epoch{'s' if len(epochs) > 1 else ''} {listed(epochs)}."


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
    yield from _teacher_cautions(found)
    yield from _chance_cautions(found)
    yield from _data_cautions(found)
    if study.student.batch_norm == "train":
        yield Caution(False, "Frozen layers moved", "batch normalisation kept updating its statistics in frozen layers "
                      "(`batch_norm: train`), so features changed at every step.")
    if study.training.report_epoch == "best" and study.selection == "dev":
        yield Caution(False, "Best epoch", "each run reports the epoch that was best on the dev split, not its last.")


def _teacher_cautions(found: Findings) -> Iterator[Caution]:
    for each in found.teachers:
        if each.no_better:
            yield Caution(False, *_weak(found, each))
    one = [name for name, teacher in found.study.used_teachers.items() if not teacher.per_seed]
    if one:
        yield Caution(False, "One teacher for all seeds", f"the spread over seeds does not hold the chance that lies "
                      f"in fitting {listed(one)} itself (`per_seed: true` fits one a seed).")


def mean_tl_accuracy(found: Findings) -> float:
    """The mean test accuracy of the TL students, nan where there are none."""
    means = [group.metrics["accuracy"].mean() for group in found.groups
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
