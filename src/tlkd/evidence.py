"""What stands behind each hypothesis's verdict on an arm, in plain sentences."""

import numpy as np

from tlkd.contrasts import NOT_EXAMINED, Contrast
from tlkd.convergence import Convergence
from tlkd.findings import Findings
from tlkd.foreground import Compared, Foreground
from tlkd.layout import ENDPOINTS, Evidence
from tlkd.observations import Observation
from tlkd.wording import count, digits_for, ends, enough, gain, listed, number, p_value, percent


def hurts(each: Contrast) -> bool:
    """Whether an arm is surely worse than TL, by the same three demands that a supported gain must meet."""
    verdict = each.verdict
    return verdict.harmful and max(verdict.p_seed_adjusted, verdict.p_image_adjusted) < verdict.level


# --- hypothesis 1 -----------------------------------------------------------------------------------------------------


def better(found: Findings, each: Contrast) -> Evidence:
    """Hypothesis 1 on one arm: metrics, confusion and, where it was examined, attribution."""
    if each.same_as_tl:
        return _same(found, each)
    details = (_metrics_sentence(found, each), _needed_sentence(each), _confusion_sentence(each),
               _attribution_sentence(found, each))
    return Evidence(found.label(each), found.word(each), _better_sentence(found, each),
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
        seen = found.foreground(each)
        against = [text for text, holds in (
            ("the confusion does not agree", not each.confusions.agrees),
            ("attribution does not bear it out", seen is not None and seen.word != "supported")) if holds]
        but = (f", though surely by less than the {least} points that matter" if verdict.too_small else "") + (
            f", but {listed(against)}" if against else "")
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
    verdict = each.verdict
    return enough(verdict.needed, verdict.n_seeds, verdict.n_images, verdict.smallest_gain, "test image")


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


def _attribution_sentence(found: Findings, each: Contrast) -> str:
    seen = found.foreground(each)
    if seen is None:
        return (f"Attribution: not examined ({why_not_explained(found) or 'no seed is explained in both arms'}); "
                "metrics and confusion alone are counted.")
    if seen.everything is None:
        return f"Attribution: not counted. Hypothesis 2 is {seen.word}: {seen.why}."
    change = f"{gain(seen.everything.verdict.gain, 1)} points of foreground share"
    if not seen.counts:
        return f"Attribution: not counted. Hypothesis 2 is {seen.word} ({change}): {seen.why}."
    agrees = {"supported": "agrees", "refuted": "does not agree"}.get(seen.word, "does not show it")
    return f"Attribution: {agrees}. Hypothesis 2 is {seen.word} ({change})."


# --- hypothesis 2 -----------------------------------------------------------------------------------------------------


def why_not_explained(found: Findings) -> str:
    """Why nothing can be said of the foreground, empty where something can."""
    if found.explanations is None:
        return "explanation: null" if found.study.explanation is None else "no network is explained"
    return "" if found.explanations.n_images else "no masks: nothing says what the foreground is"


def attends(found: Findings, each: Contrast) -> Evidence:
    """Hypothesis 2 on one arm: the foreground share against TL's."""
    one = found.foreground(each)
    if each.same_as_tl:
        return _same(found, each)
    if one is None:
        return Evidence(found.label(each), NOT_EXAMINED, "Not examined: no seed is explained in both arms.", ())
    if one.everything is None:
        return Evidence(found.label(each), one.word, f"Nothing can be compared: {one.why}.", ())
    details = (_share_sentence(found, each, one.everything), f"{_capital(one.why)}." if one.why else "",
               _share_needed(one.everything), _certain_sentence(found, one), _right_sentence(each, one),
               _thesis_sentence(one))
    return Evidence(found.label(each), one.word, _attends_sentence(each, one.everything),
                    tuple(text for text in details if text))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _attends_sentence(each: Contrast, one: Compared) -> str:
    verdict = one.verdict
    size = number(100 * abs(verdict.gain), digits_for(verdict.interval.low, verdict.interval.high))
    least = number(100 * verdict.smallest_gain, 1)
    share = f"{each.label}'s foreground share"
    place = "level with" if float(size) == 0 else f"{size} points {'above' if verdict.gain > 0 else 'below'}"
    if verdict.word == "supported":
        but = f", though surely by less than the {least} points that matter" if verdict.too_small else ""
        return f"{each.label} attends more to the foreground: its foreground share is {place} {each.tl_label}'s{but}."
    if verdict.harmful and max(verdict.p_seed_adjusted, verdict.p_image_adjusted) < verdict.level:
        return f"{each.label} attends less to the foreground: its foreground share is {place} {each.tl_label}'s."
    if verdict.word == "refuted":
        return f"{share} is {place} {each.tl_label}'s; a gain of {least} points is ruled out."
    return f"{share} is {place} {each.tl_label}'s, and these runs cannot tell whether that is chance."


def _share_sentence(found: Findings, each: Contrast, one: Compared) -> str:
    verdict, around = one.verdict, one.verdict.interval
    digits = digits_for(around.low, around.high)
    explanation = found.study.explanation
    output = "" if explanation is None else f" of the true label's {explanation.output}"
    adjusted = f", Holm-adjusted over {verdict.contrasts} contrasts" if verdict.contrasts > 1 else ""
    tests = (f"over seeds {p_value(verdict.p_seed_adjusted)}, over images {p_value(verdict.p_image_adjusted)}"
             f"{adjusted}")
    spread = "one seed gives no interval" if np.isnan(around.low) else (
        f"{number(100 * (1 - verdict.level), 0)} % interval {ends(around.low, around.high, digits)}, which covers "
        f"{covered(around.covers)}")
    left_out = f"; {count(one.left_out, 'image')} without a share left out" if one.left_out else ""
    return (f"Of the positive attribution{output}, {percent(one.arm.mean, digits)} % lies on the object with "
            f"{each.label} and {percent(one.tl.mean, digits)} % with {each.tl_label}: "
            f"{gain(verdict.gain, digits)} points ({spread}; {tests}; {count(verdict.n_seeds, 'seed')}, "
            f"{count(one.n_images, 'image')} with a mask{left_out}). It rises on {one.by_image.rises} of "
            f"{one.by_image.n} images. The smallest gain that matters is set to "
            f"{number(100 * verdict.smallest_gain, 1)} points.")


def covered(chance: str) -> str:
    """What an interval of shares covers: the images are those with a mask, not the test split."""
    return chance.replace("test images", "images").replace("this one test set", "these images alone")


def _share_needed(one: Compared) -> str:
    verdict = one.verdict
    return enough(verdict.needed, verdict.n_seeds, verdict.n_images, verdict.smallest_gain, "masked image")


def _certain_sentence(found: Findings, one: Foreground) -> str:
    """What becomes of the verdict without the outlines that are marked uncertain."""
    doubtful = found.explanations.n_uncertain if found.explanations is not None else 0
    if not doubtful:
        return ""
    if one.certain is None:
        return "All masks are marked uncertain."
    holds = "the verdict stands" if one.robust else f"the verdict would be {one.certain.verdict.word}"
    return (f"Without the {count(doubtful, 'mask')} marked uncertain {holds}: "
            f"{gain(one.certain.verdict.gain, 1)} points on {count(one.certain.n_images, 'image')}.")


def _right_sentence(each: Contrast, one: Foreground) -> str:
    fewest, most = min(one.right.n_images), max(one.right.n_images)
    if most == 0:
        return "There is no image that both arms classify right in a seed."
    images = count(most, "image") if fewest == most else f"{fewest} to {most} images"
    return (f"On the images that both arms classify right ({images} a seed; described, not tested): "
            f"{percent(one.right.arm.mean, 1)} % with {each.label}, {percent(one.right.tl.mean, 1)} % with "
            f"{each.tl_label}, {gain(one.right.difference.mean, 1)} points.")


def _thesis_sentence(one: Foreground) -> str:
    """The thesis's own two questions, in raw sums."""
    asked = {each.question.quantity: each for each in one.observations if not each.question.within}
    if "fg_pos" not in asked or "fg_diff" not in asked:
        return ""

    def said(each: Observation) -> str:
        return f"{each.over_seeds.rises} of {each.over_seeds.n} images ({p_value(each.over_seeds.p)})"

    return (f"As the thesis asks it, in raw sums, which are on two scales: the foreground's pos rises on "
            f"{said(asked['fg_pos'])}, its diff on {said(asked['fg_diff'])}.")


# --- hypothesis 3 -----------------------------------------------------------------------------------------------------


def sooner(found: Findings, each: Contrast) -> Evidence:
    """Hypothesis 3 on one arm: epochs until an accuracy is reached."""
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
                  f"the observed spread, needs at least {count(speed.seeds_needed, 'seed')} (here {one.n_seeds}).")
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
