"""The report's tables as readers see them: percentages, points, rounded; the CSV files hold the numbers as they are."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tlkd import regions, tables
from tlkd.contrasts import SAME_AS_TL, Contrast, Group, arm_label
from tlkd.findings import Findings
from tlkd.foreground import Foreground, Share
from tlkd.layout import LONGEST, SHOWN, Table, around, mean_sd, shortened
from tlkd.wording import MINUS, NONE, count, decimals, duration, gain, number, p_cell, percent, size

NAMES = {"accuracy": "accuracy (%)", "balanced_accuracy": "balanced accuracy (%)", "precision": "precision, macro (%)",
         "recall": "recall, macro (%)", "f1": "F1, macro (%)", "log_loss": "log loss (nats)",
         "ece": "expected calibration error (%)"}
BESIDE = ("accuracy", "f1", "log_loss", "ece")  # what a teacher and its students are shown side by side in
SHARES = {"positive_share": "foreground share (%)", "absolute_share": "share of |values| (%)",
          "density": "foreground share / area", "pointing": "pointing game (%)", "rank_accuracy": "rank accuracy (%)"}
EXPLAINERS = {"deep_shap": "Deep SHAP, tlkd's own", "deep_lift": "DeepLIFT", "grad_cam": "Grad-CAM",
              "integrated_gradients": "integrated gradients", "gradient_shap": "GradientSHAP"}
NEAR = 0.0251  # of the primary threshold: two whole percents either way


def metrics(found: Findings, groups: Sequence[Group]) -> Table:
    """Table 6.1: each arm's mean and sd over seeds, and each contrast's mean improvement."""
    contrasts = [each for each in found.contrasts if each.condition == groups[0].condition]
    heads = ["metric", *(f"{group.label}" for group in groups)]
    heads += ["improvement" if len(contrasts) == 1 else f"improvement, {each.label}" for each in contrasts]
    rows = []
    for name, shown in NAMES.items():
        nats = name == "log_loss"
        cells = [mean_sd(group.metrics[name], nats) for group in groups]
        cells += [number(each.improvements[name], 3, sign=True) if nats else gain(each.improvements[name])
                  for each in contrasts]
        rows.append((shown, *cells))
    sizes = {len(group.seeds) for group in groups}
    note = "Mean \N{PLUS-MINUS SIGN} standard deviation over seeds. For log loss and calibration error less is better."
    if found.balanced:
        note += (" The test split has equally many images of each class, so macro recall and balanced accuracy are "
                 "accuracy.")
    if len(sizes) > 1:
        note += " Arms differ in finished seeds: improvements are over the seeds that both finished."
    return Table("Metrics on the test split (the thesis's table 6.1)", tuple(heads), tuple(rows), "metrics.csv",
                 note=note)


def verdicts(found: Findings) -> Table:
    """Each contrast on the primary endpoint."""
    several = len(found.tested) > 1
    heads = ("arm", "verdict", "gain (points)", "interval", "p, seeds", "p, images",
             *(("Holm p, seeds", "Holm p, images") if several else ()), "d over seeds", "seeds", "test images")
    rows = []
    for each in found.contrasts:
        one = each.verdict
        if each.same_as_tl:
            rows.append((found.label(each), SAME_AS_TL, gain(one.gain), *[NONE] * (len(heads) - 5),
                         number(one.n_seeds, 0), number(one.n_images, 0)))
            continue
        rows.append((found.label(each), one.word, gain(one.gain), around(one.interval), p_cell(one.p_seed),
                     p_cell(one.p_image),
                     *((p_cell(one.p_seed_adjusted), p_cell(one.p_image_adjusted)) if several else ()),
                     number(one.effect), number(one.n_seeds, 0), number(one.n_images, 0)))
    one = found.contrasts[0].verdict
    note = (f"Interval: {one.interval.method}. Tests: exact sign-flip over seeds; permutation over test images of each "
            f"image's seed-averaged difference. d: mean over standard deviation of the seeds' gains.")
    name = found.study.verdict.metric.replace("_", " ")
    return Table(f"The verdict on the primary endpoint, {name}", heads, tuple(rows), "verdicts.csv", 2, note=note)


def gains(found: Findings, each: Contrast) -> Table:
    """Both arms for each seed."""
    frame = tables.gains(found)
    mine = frame[(frame.arm == each.arm.name) & (frame.condition == each.condition)]
    rows = tuple((str(row["seed"]), percent(row["tl"]), percent(row["value"]), gain(row["gain"]),
                  p_cell(row["mcnemar_p"])) for row in mine.to_dict("records"))
    return Table("Each seed", ("seed", f"{each.tl_label} (%)", f"{each.label} (%)", "gain (points)", "McNemar p"), rows,
                 "gains.csv", note="McNemar's test takes the two networks of one seed as given: it describes, and "
                                   "says nothing of other seeds.")


def classes(found: Findings, each: Contrast) -> Table:
    """Table 6.2: true positives and the error decrement of each class."""
    matrix = each.confusions
    rows = []
    for place in matrix.order:
        row = matrix.rows[place]
        rows.append((found.classes[place], number(row["support"], 0), number(row["tl_true_positives"], 1),
                     number(row["tl_kd_true_positives"], 1), number(row["difference"], 1, sign=True),
                     percent(row["error_decrement"])))
    sums = {key: sum(row[key] for row in matrix.rows)
            for key in ("support", "tl_true_positives", "tl_kd_true_positives", "difference")}
    for name, share, part in (("mean", matrix.mean, 1 / len(matrix.rows)), ("all errors pooled", matrix.pooled, 1.0)):
        images = sums["support"] * part
        rows.append((name, number(images, 0 if images == round(images) else 1),
                     number(sums["tl_true_positives"] * part, 1), number(sums["tl_kd_true_positives"] * part, 1),
                     number(sums["difference"] * part, 1, sign=True), percent(share)))
    heads = ("class", "test images", f"{each.tl_label}, true positives", f"{each.label}, true positives", "difference",
             "error decrement (%)")
    note = (f"Counts are means over {count(len(each.seeds), 'seed')} (the thesis took one run); sorted by recall of "
            f"{each.label}. Error decrement: the share of {each.tl_label}'s errors that {each.label} puts right; "
            "negative where it errs more.")
    return shortened("True positives and error decrement of each class (the thesis's table 6.2)", heads, rows,
                  file="classes.csv", totals=2, note=note)


def per_class(found: Findings, groups: Sequence[Group]) -> Table:
    """Precision, recall and F1 of each class for each arm but the controls, in the order of figure 6.1."""
    groups = [group for group in groups if not group.arm.control] or groups
    contrast = next((each for each in found.contrasts if each.condition == groups[0].condition), None)
    last = groups[-1]
    order = contrast.confusions.order if contrast is not None else [
        int(place) for place in np.argsort(-last.per_class["recall"].mean(axis=0), kind="stable")]
    rows = [(found.classes[place],
             *(percent(float(values[:, place].mean()), 1) for group in groups for values in group.per_class.values()))
            for place in order]
    heads = ("class", *(f"{group.label}, {name}" for group in groups for name in ("precision", "recall", "F1")))
    by = contrast.label if contrast is not None else last.label
    note = f"In percent, means over seeds; sorted by recall of {by}. 0 where one is undefined."
    return shortened("Precision, recall and F1 of each class", heads, rows, file="per_class.csv", totals=0, note=note,
                  longest=2 * SHOWN)


def thresholds(found: Findings, each: Contrast) -> Table:
    """How early thresholds are reached: multiples of 5 % that take more than an epoch, and those near the primary."""
    primary = each.speed.primary.threshold if each.speed.primary is not None else 2.0
    telling = [one for one in each.speed.thresholds if max(*one.tl_epochs, *one.tl_kd_epochs) > 1
               and (round(100 * one.threshold) % 5 == 0 or abs(one.threshold - primary) < NEAR)]
    rows = []
    for one in telling:
        mark = "primary" if one is each.speed.primary else ""
        shown = (f"{number(one.low, 1, sign=True)} to {number(one.high, 1, sign=True)}" if math.isfinite(one.low)
                 else NONE)
        rows.append((f"{percent(one.threshold, 0)} %", mark, f"{one.tl_reached} of {one.n_seeds}",
                     f"{one.tl_kd_reached} of {one.n_seeds}", _restricted(one.tl_mean, one.tl_reached, one.n_seeds),
                     _restricted(one.tl_kd_mean, one.tl_kd_reached, one.n_seeds),
                     number(one.tl_median, 1), number(one.tl_kd_median, 1), number(one.gain, 1, sign=True), shown,
                     p_cell(one.p_seed)))
    tl, kd = each.tl_label, each.label
    heads = ("threshold", "", f"{tl} reached", f"{kd} reached", f"{tl} mean", f"{kd} mean", f"{tl} median",
             f"{kd} median", "earlier by", "interval", "p, seeds")
    note = (f"Within the first {count(each.speed.horizon, 'epoch')} that all runs trained: one that does not reach "
            f"the threshold in them counts as {each.speed.horizon} in the mean, which is at least "
            "(\N{GREATER-THAN OR EQUAL TO}) what is shown. Medians are Kaplan-Meier's, over all epochs of each run. "
            "Only the primary threshold is tested; the p of the others describe.")
    note += " The CSV holds every whole percent that some run reaches."
    return Table("Epochs to each accuracy threshold", heads, tuple(rows), "thresholds.csv", 2, note=note)


def _restricted(mean: float, reached: int, runs: int) -> str:
    return number(mean, 1) if reached == runs else f"\N{GREATER-THAN OR EQUAL TO} {number(mean, 1)}"


def teachers(found: Findings, groups: Sequence[Group]) -> Table:
    """The teachers on the test split beside the arms' students."""
    shown = [each for each in found.teachers if each.condition in ("", groups[0].condition)]
    rows = [(f"teacher {each.name}", each.spec.model, number(each.parameters, 0) if each.parameters else NONE,
             *(mean_sd(each.metrics[name], name == "log_loss") for name in BESIDE))
            for each in shown]
    rows += [(f"student, {group.label}", found.study.student.model, NONE,
              *(mean_sd(group.metrics[name], name == "log_loss") for name in BESIDE)) for group in groups]
    if all(row[2] == NONE for row in rows):
        rows = [(*row[:2], *row[3:]) for row in rows]
        counted: tuple[str, ...] = ()
    else:
        counted = ("parameters",)
    heads = ("network", "model", *counted, *(NAMES[name] for name in BESIDE))
    return Table("Teacher and students on the test split", heads, tuple(rows), "teachers.csv", 2)


def agreement(found: Findings) -> Table:
    """How close each arm's students are to each teacher, under the base conditions."""
    frame = tables.agreement(found)
    frame = frame[frame["condition"].isin(found.base)]
    labels = {(each.arm, each.condition): each.label for each in found.agreements}
    several = len(found.base) > 1
    rows = tuple((labels[row["arm"], row["condition"]] + (f", {row['condition']}" if several else ""), row["teacher"],
                  percent(row["top1_mean"]), percent(row["top1_sd"]), number(row["kl_mean"], 4),
                  number(row["kl_sd"], 4)) for row in frame.to_dict("records"))
    return Table("Agreement with the teacher on the test split",
                 ("arm", "teacher", "same class first (%)", "sd", "KL from the teacher (nats)", "sd"), rows,
                 "agreement.csv", 2, note="KL(teacher || student) at temperature 1, mean over test images; "
                                          "an arm without a teacher is compared with each.")


def data(found: Findings) -> Table:
    """Samples of each class in each split."""
    frame = tables.data(found)
    splits = [split for split in ("train", "dev", "test") if frame[split].sum() > 0]
    rows = [(row["class"], *(number(row[split], 0) for split in splits)) for row in frame.to_dict("records")]
    rows.append(("all", *(number(float(frame[split].sum()), 0) for split in splits)))
    return shortened("Images of each class", ("class", *splits), rows, file="data.csv", totals=1, note="")


def data_facts(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rest of the data card, as pairs."""
    facts = [("source", str(card.get("source", NONE)))]
    for axis in ("height", "width"):
        spread = card.get("native_size", {}).get(axis)
        if spread:
            low, middle, high = (number(spread[key], 0) for key in ("min", "median", "max"))
            facts.append((f"native {axis}", f"{low} px" if low == high else f"{low} to {high} px, median {middle}"))
    if card.get("stored_side"):
        facts.append(("stored as", f"{card['stored_side']} px squares, fit: {card.get('fit', NONE)}"))
    converted = card.get("converted") or {}
    if converted:
        facts.append(("converted to RGB", ", ".join(f"{number(many, 0)} of mode {mode}"
                                                    for mode, many in converted.items())))
    if card.get("turned"):
        facts.append(("turned by EXIF", number(card["turned"], 0)))
    return facts + [("note", str(note)) for note in card.get("notes") or []]


def skipped(card: Mapping[str, Any]) -> Table | None:
    """The images that were left out, the first thirty."""
    left_out = card.get("skipped") or []
    rows = tuple((str(each["id"]), str(each["reason"])) for each in left_out[:LONGEST])
    note = f"{len(left_out) - LONGEST} more in data.json." if len(left_out) > LONGEST else ""
    return Table("Images left out", ("image", "reason"), rows, "", 2, note=note) if rows else None


def settings(found: Findings) -> Table:
    """The resolved study."""
    rows = tuple((row["key"], row["value"]) for row in tables.settings(found.study).to_dict("records"))
    return Table("The study, every default filled in", ("key", "value"), rows, "settings.csv", 2)


def cost(found: Findings) -> Table:
    """What each stage and each arm's runs cost; of many stages those that cost most."""
    frame = tables.cost(found)
    stages = frame[frame["runs"].isna()].sort_values("seconds", ascending=False, kind="stable")
    shown = stages if len(stages) <= LONGEST else stages.head(SHOWN)
    rows = [(row["stage"], "from the cache" if row["from_cache"] else "made here", duration(row["seconds"]),
             size(row["bytes"])) for row in (frame.loc[sorted(shown.index)].to_dict("records"))]
    if len(shown) < len(stages):
        rest = stages.iloc[len(shown):]
        rows.append((f"{len(rest)} other stages, in cost.csv", "", duration(rest["seconds"].sum()),
                     size(rest["bytes"].sum())))
    for arm in found.study.arms:
        own = [group for group in found.groups if group.arm.name == arm.name]
        if own:
            runs = count(sum(len(group.seeds) for group in own), "run")
            under = f" under {count(len(own), 'condition')}" if len(found.study.conditions) > 1 else ""
            rows.append((f"{arm_label(found.study, arm)}, {runs}{under}", "trained",
                         duration(sum(sum(group.seconds) for group in own)), NONE))
    return Table("Cost", ("stage", "", "time", "size"), tuple(rows), "cost.csv", 2,
                 note="A teacher's time includes its features where they were made for it.")


def failures(found: Findings) -> Table | None:
    """Teachers, runs and explanations that failed, and runs that were not finished."""
    rows = tuple((row["run_id"], row["reason"]) for row in tables.failures(found).to_dict("records"))
    return Table("What is missing", ("run", "reason"), rows, "failures.csv", 2) if rows else None


# --- explanations -----------------------------------------------------------------------------------------------------


def explanation_facts(found: Findings) -> list[tuple[str, str]]:
    """What was explained, and how, as pairs."""
    plan, seen = found.study.explanation, found.overview
    facts = []
    if plan is not None:
        size = plan.background.size
        whose = {"random": f"{size} training images drawn by data_seed", "black": "one black image",
                 "first": f"the first {size} training images that the first seed's training saw",
                 "mean": "the mean training image"}
        facts += [("explainer", EXPLAINERS.get(plan.explainer, plan.explainer)),
                  ("output", f"the {plan.output} of the true label, in every arm"),
                  ("background", whose[plan.background.kind]),
                  ("sign split", "each channel's value by its own sign (channel)" if plan.signs == "channel" else
                   "channels summed first, so that they may cancel (summed)")]
    if seen is None:
        return facts
    of_masks = f"{number(seen.masked, 0) if seen.masked else 'none'} with a mask" + (
        f", {number(seen.uncertain, 0)} of these marked uncertain" if seen.uncertain else "")
    facts.append(("images", f"{number(seen.images, 0)} test images, {of_masks}"))
    if found.study.data.masks is not None:
        facts.append(("masks", str(found.study.data.masks)))
    labels = {arm.name: arm_label(found.study, arm) for arm in found.study.arms}
    several = len(seen.shown) > 1
    explained = [f"{labels[arm]}{f', {condition}' if several else ''}: {count(len(seeds), 'seed')}"
                 for (arm, condition), seeds in seen.seeds.items()]
    facts.append(("networks", "; ".join([*explained, *(f"teacher {name}" for name in seen.teachers)])))
    if math.isfinite(seen.residual):
        facts.append(("additivity", f"values and mean background output miss an output by {seen.residual:.1e} of its "
                                    "range at most".replace("-", MINUS)))
    else:
        facts.append(("additivity", "none: this explainer's values need not sum to the output"))
    more = [f"{len(seen.notes) - LONGEST} more in explanations/masks.json"] if len(seen.notes) > LONGEST else []
    return facts + [("note", note) for note in [*seen.notes[:LONGEST], *more]]


def foreground(found: Findings, each: Foreground) -> Table:
    """Hypothesis 2 on one arm: with all masks, and without those marked uncertain."""
    rows = []
    for one in (each.everything, each.certain):
        if one is None:
            continue
        verdict = one.verdict
        rows.append((one.images.replace("the masks marked uncertain", "uncertain masks"),
                     SAME_AS_TL if each.same_as_tl else verdict.word, percent(one.tl.mean, 1),
                     percent(one.arm.mean, 1), gain(verdict.gain),
                     around(verdict.interval),
                     p_cell(verdict.p_seed_adjusted), p_cell(verdict.p_image_adjusted),
                     f"{one.by_image.rises} of {one.n_images}", number(verdict.effect), number(one.effect_images),
                     number(verdict.n_seeds, 0)))
    tl = arm_label(found.study, found.tl) if found.tl is not None else "TL"
    heads = ("on", "verdict", f"{tl} (%)", f"{arm_label(found.study, each.arm)} (%)", "difference (points)",
             "interval", "p, seeds", "p, images", "rises on", "d, seeds", "d, images", "seeds")
    note = ""
    if each.everything is not None:
        verdict = each.everything.verdict
        adjusted = f"; Holm-adjusted over {verdict.contrasts} contrasts" if verdict.contrasts > 1 else ""
        note = (f"Interval: {verdict.interval.method}. Tests: exact sign-flip over seeds; permutation over images of "
                f"each image's seed-averaged difference{adjusted}. d: mean over standard deviation.")
    if each.unpaired:
        note += f" Explained in one of the two arms only, and left out: {count(len(each.unpaired), 'seed')}."
    return Table("The foreground share of the positive attribution", heads, tuple(rows), "foreground.csv", 2, note=note,
                 dense=True)


def attention(found: Findings) -> Table:
    """All shares over all images with a mask: arms, teachers, and what an even spread would give."""
    explanations = found.explanations
    assert explanations is not None
    several = len({each.condition for each in explanations.arms}) > 1
    labels = {arm.name: arm_label(found.study, arm) for arm in found.study.arms}
    rows = []
    arms = sorted(explanations.arms, key=lambda each: list(labels).index(each.name))  # in the study's order
    for each in (*arms, *explanations.teachers):
        name = (labels[each.name] + (f", {each.condition}" if several else "") if each.condition
                else f"teacher {each.name}")
        cells = [_share(each.metrics[metric], metric == "density") for metric in SHARES]
        rows.append((name, str(len(each.seeds)) if each.seeds else NONE, *cells))
    area = tables.mean_area(found)
    rows.append(("spread evenly", NONE, *("1.00" if name == "density" else percent(area, 1) for name in SHARES)))
    note = (f"Means over {count(explanations.n_images, 'image')} \N{PLUS-MINUS SIGN} standard deviation over seeds. "
            "The last row is the masks' mean area: what an attribution would have that is spread evenly. Pointing: the "
            "largest value lies inside. Rank accuracy: of the K largest pixels, K the mask's pixels, the share that "
            "lies inside.")
    return Table("Where the attribution lies, over all images with a mask", ("network", "seeds", *SHARES.values()),
                 tuple(rows), "attention.csv", totals=1, note=note)


def _share(share: Share, ratio: bool) -> str:
    texts = (number(share.mean), number(share.sd)) if ratio else (percent(share.mean, 1), percent(share.sd, 1))
    return f"{texts[0]} \N{PLUS-MINUS SIGN} {texts[1]}" if math.isfinite(share.sd) else texts[0]


def observations(found: Findings, each: Foreground) -> Table:
    """The thesis's five observations, tested over images."""
    tl = arm_label(found.study, found.tl) if found.tl is not None else "TL"
    arm = arm_label(found.study, each.arm)
    several, level = len(each.seeds) > 1, found.study.verdict.level
    rows = []
    for one in each.observations:
        over, scale = one.over_seeds, 100 if one.question.quantity == "positive_share" else 1
        digits = decimals([scale * value for value in (over.before, over.after, over.low, over.high)])
        shift = number(scale * over.shift, digits, sign=True)
        if math.isfinite(over.low):
            low, high = (number(scale * end, digits, sign=True) for end in (over.low, over.high))
            shift += f" ({low} to {high})"
        unit = " (%)" if scale == 100 else ""
        below = sum(pair.p < level for pair in one.by_seed)
        rows.append((str(one.question.number or ""), one.question.words(tl, arm) + unit,
                     number(scale * over.before, digits), number(scale * over.after, digits),
                     f"{over.rises} of {over.n}", shift, number(over.rank_biserial, sign=True), p_cell(over.p),
                     *((f"{below} of {len(each.seeds)}", p_cell(one.p_seed)) if several else ())))
    heads = ("", "comparison", "before", "after", "rises",
             f"shift ({number(100 * (1 - level), 0)} % interval)", "rank-biserial", "p, images",
             *((f"seeds with p < {level:g}", "p, seeds") if several else ()))
    note = ("The number is that of the observation in section 6.2. Before and after: medians over images, each "
            "averaged over seeds; shift: Hodges-Lehmann estimate; p, images: two-sided paired Wilcoxon test; p, seeds: "
            "sign-flip of the seeds' means. Not corrected for their number: none of them is the verdict. Raw sums of "
            "two networks are on two scales.")
    return Table("The thesis's observations 1 to 5, tested", heads, tuple(rows), "observations.csv", 2, note=note,
                 dense=True)


def _marked(row: Mapping[Any, Any]) -> str:
    """A class with the marks of the arms that classify its image wrong."""
    return f"{row['class']}{'' if row['tl_correct'] else ' †'}{'' if row['kd_correct'] else ' ‡'}"


def contributions(found: Findings, each: Foreground, place: int) -> Table | None:
    """Tables 6.3 (`place` 0) and 6.4 (1): sums inside and outside of the mask for one image a class."""
    frame = tables.contributions(found, place)
    frame = frame[(frame["arm"] == each.arm.name) & (frame["condition"] == each.condition)]
    if frame.empty:
        return None
    sums = [name for name in frame.columns if name.startswith(("tl_fg", "tl_bg", "kd_fg", "kd_bg"))]
    digits = decimals(frame[sums].to_numpy(np.float64).ravel().tolist())
    rows = [(_marked(row), *(number(row[name], digits) for name in sums),
             *(number(row[name]) for name in regions.RATIOS)) for row in frame.to_dict("records")]
    tl = arm_label(found.study, found.tl) if found.tl is not None else "TL"
    arm, seed = arm_label(found.study, each.arm), tables.shown_seed(found, each)
    groups = (("", 1), *((f"{who}, {side}", 3) for who in (tl, arm) for side in ("foreground", "background")),
              ("change", 3))
    heads = ("class", *(f"{sign}{letter}" for letters in ("AC", "BD") for mark in letters
                        for sign, letter in (("pos", ""), ("neg", ""), ("diff", f" ({mark})"))),
             "A/B", "C/D", "(A/B) / (C/D)")
    which = ("The first image of each class that has a mask", "The second image with a mask of the first "
             f"{count(len(frame), 'class')}, in the data's order")[place]
    caption = ("Contributions of one image a class (the thesis's table 6.3)",
               "Contributions of further images (the thesis's table 6.4)")[place]
    return shortened(caption, heads, rows, file=("contributions.csv", "contributions_again.csv")[place], totals=0,
                  groups=groups, note=(
                      f"{which}, with the networks of seed {seed}. Sums of values above and below 0; diff = pos + neg. "
                      f"A/B < 1 where {arm}'s foreground diff is the larger, both being positive. Classified wrong by "
                      f"{tl}: †, by {arm}: ‡. tlkd regions reads the file."))
