"""The model card of an export: what the network is, its data, how good and how fast it is, and what it is not for."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from tlkd import evaluation, wording
from tlkd.contrasts import arm_label
from tlkd.distortions import describe
from tlkd.evidence import better
from tlkd.findings import Findings
from tlkd.folder import Predictions, Run, teacher_fit
from tlkd.footprint import Latency, Size
from tlkd.layout import mean_sd
from tlkd.licences import Licence
from tlkd.onnx_file import Check
from tlkd.plain import Plain
from tlkd.specs import Network
from tlkd.standalone import INPUT, OUTPUT, Preparation
from tlkd.summary import cautions, headline
from tlkd.wording import count, listed, number, percent

Rows = list[tuple[str, str]]
SHOWN = 60  # class names in the card; config.json has them all
WEAKEST = 3


@dataclass(frozen=True)
class Weighed:
    """A network on the scales; `latencies` by engine, empty where nothing was timed."""

    name: str
    spec: Network
    size: Size
    onnx_bytes: int | None
    latencies: dict[str, Latency]


@dataclass(frozen=True, eq=False)
class Facts:
    """All that a card tells."""

    found: Findings
    run: Run
    plain: Plain
    ready: Preparation
    own: Predictions
    epochs: int
    student: Weighed
    teacher: Weighed | None
    licence: Licence
    teacher_licences: dict[str, Licence]  # of the teachers whose soft labels the student learnt from
    check: Check
    checked_on: str
    same_as_study: tuple[int, int] | None  # images with the winner that the study stored, of how many
    machine: str
    threads: int
    made_with: Rows


def write(facts: Facts) -> str:
    """The card as Markdown, with the front matter of the Hugging Face Hub."""
    environment = Environment(loader=PackageLoader("tlkd"), autoescape=False, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["md"] = escaped
    heads, rows = _footprint(facts)
    text = environment.get_template("card.md").render(
        identifier=_identifier(facts), plain=facts.plain, title=_title(facts), opening=_opening(facts),
        warnings=list(_warnings(facts)), onnx_input=INPUT, onnx_output=OUTPUT, table=_table,
        input_rows=_input(facts), classes=_classes(facts.ready.classes), data_rows=_data(facts),
        training_rows=_training(facts), test_images=number(len(facts.own.labels), 0),
        result_rows=list(_results(facts)), verdicts=list(_verdicts(facts)), footprint_heads=heads,
        footprint_rows=rows, measured=_measured(facts), intended=_intended(facts), limits=list(_limits(facts)),
        licences=list(_licences(facts)), checks=list(_checks(facts)), provenance_rows=facts.made_with)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def escaped(text: Any) -> str:
    """Text as Markdown shows it, sign for sign and on one line; `back-quoted` words are code."""
    parts = " ".join(str(text).split()).split("`")
    # A lone back-quote is a sign like any other; a bar in code would end a table's cell, and leave the rest as markup.
    if len(parts) % 2 == 0 or any(not part or set(part) & set("|<>&\\") for part in parts[1::2]):
        return _signs("`".join(parts))
    return "".join(f"`{part}`" if place % 2 else _signs(part) for place, part in enumerate(parts))


def _signs(text: str) -> str:
    text = re.sub(r"([\\`*_\[\]{}|~$^])", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _table(rows: Rows) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {escaped(name)} | {escaped(value)} |" for name, value in rows)])


# --- what it is -------------------------------------------------------------------------------------------------------


def _title(facts: Facts) -> str:
    under = "" if facts.run.condition.plain else f", {facts.run.condition.name}"
    return f"{facts.found.study.name}: {facts.plain.architecture}, {_arm(facts)}{under}, seed {facts.run.seed}"


def _arm(facts: Facts) -> str:
    return arm_label(facts.found.study, facts.run.arm)


def _opening(facts: Facts) -> str:
    arm, spec = facts.run.arm, facts.student.spec
    part = {"head": "whose new head was trained and nothing else", "all": "trained as a whole"}.get(
        spec.trainable, f"of which the head and the last {spec.trainable.removeprefix('last:')} units were trained")
    start = {"none": "from random weights"}.get(spec.weights, f"from {_weights(spec)}")
    how = {"tl": "on hard labels alone (transfer learning, TL)",
           "tl_kd": f"on hard labels and on the soft labels of the teacher {arm.teacher} (distillation, TL+KD)",
           "label_smoothing": f"on labels smoothed as much as those of the teacher {arm.teacher} (a control)",
           "tl_kd_shuffled": f"on hard labels and shuffled soft labels of the teacher {arm.teacher} (a control)",
           "self": "on hard labels and on the soft labels of a student like itself (a control)"}[arm.kind]
    return (f"A classifier of images into {count(len(facts.ready.classes), 'class')}: {facts.plain.architecture} of "
            f"{facts.plain.library} at {facts.ready.input_size} pixels, {part}, {start}, {how}. One student of a study "
            "made with tlkd, exported as it was tested.")


def _weights(spec: Network) -> str:
    if spec.weights == "imagenet":
        return "weights for ImageNet"
    return f"the weights {PurePath(spec.weights).name}"  # a path is nobody's business


def _classes(classes: Sequence[str]) -> str:
    names = [_signs(" ".join(each.split())) for each in classes[:SHOWN]]
    more = f", and {number(len(classes) - SHOWN, 0)} more, all of them in `config.json`" if len(classes) > SHOWN else ""
    return f"In the order of the outputs, counted from 0: {', '.join(names)}{more}."


def _input(facts: Facts) -> Rows:
    ready = facts.ready
    fit = {"crop": "the central square that the shorter side spans", "stretch": "stretched, its proportions given up",
           "pad": "all of it, centred on black"}[ready.fit]
    square = f"{ready.decoded_side} x {ready.decoded_side}"
    back = (f"then resized to {ready.input_size} x {ready.input_size}, bilinear with antialiasing, as numbers that are "
            "not rounded" if ready.decoded_side != ready.input_size else "not resized again")
    return [("Decoded", "8-bit RGB, turned upright by EXIF; transparency on white; 16 bits scaled to 8"),
            ("Laid onto a square", f"`{ready.fit}`: {fit}; {square} pixels, Pillow's bilinear, antialiased"),
            ("`model.onnx`", f"`{INPUT}`: uint8 [batch, {ready.decoded_side}, {ready.decoded_side}, 3], these squares, "
                             f"any number of them; gives `{OUTPUT}`: float32 [batch, {len(ready.classes)}]"),
            ("Inside `model.onnx`, outside `model.safetensors`",
             f"(pixel / 255 - mean) / sd with mean {_three(ready.mean)} and sd {_three(ready.sd)}, {back}"),
            ("`model.safetensors`", f"float32 [batch, 3, {ready.input_size}, {ready.input_size}]")]


def _three(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"


def _data(facts: Facts) -> Rows:
    card = facts.found.card
    counts = [f"{number(sum(each.values()), 0)} {split}" for split, each in card["counts"].items()
              if sum(each.values())]
    rows = [("Source", _source(str(card.get("source", facts.found.study.data.source)))),
            ("Images", f"{', '.join(counts)}; the test split was looked at once, after training"
             if facts.found.study.selection == "dev" else ", ".join(counts))]
    native = card.get("native_size")
    if native:
        rows.append(("Sizes", f"{_spread(native['width'])} wide, {_spread(native['height'])} high, in pixels"))
    rows.append(("Content", f"SHA-256 over pixels, labels and splits: `{card['content']}`"))
    return rows


def _source(source: str) -> str:
    """A source without the folders that it lies in."""
    kind, colon, rest = source.partition(":")
    return f"{kind}: {PurePath(rest).name}".replace("`", "'") if kind == "folder" else kind + colon + rest


def _spread(values: dict[str, float]) -> str:
    low, high = number(values["min"], 0), number(values["max"], 0)
    return low if low == high else f"{low} to {high} (median {number(values['median'], 0)})"


def _training(facts: Facts) -> Rows:
    study, arm, condition = facts.found.study, facts.run.arm, facts.run.condition
    training = study.training_of(arm, condition)
    rows = [("Arm", f"{_arm(facts)} (`{arm.name}`), seed {facts.run.seed}")]
    if arm.teacher is not None:
        teacher = study.teachers[arm.teacher]
        fitted = f"`{teacher.trainable}` trained" if teacher.fit else "taken as it is"
        rows.append(("Teacher", f"{arm.teacher}: {teacher.model} at {teacher.input_size} pixels, {fitted}, from "
                     f"{_weights(teacher)}"))
    if arm.soft_weight is not None:
        rows.append(("Loss", "(1 - w) x cross entropy + w x T² x KL(teacher at T || student at T), "
                     f"w = {arm.soft_weight:g}, T = {arm.temperature:g}"))
    if not condition.plain:
        rows.append(("Difficulty", f"{condition.name}: {_difficulty(facts)}"))
    rows += [("Epochs", f"{facts.epochs}, of at most {training.epochs}; reported: the {training.report_epoch}"),
             ("Optimiser", f"{training.optimiser}, learning rate {training.learning_rate:g}, {training.schedule}, "
              f"batches of {training.batch_size}, weight decay {training.weight_decay:g}"),
             ("Augmentation", ", ".join(study.data.augment) or "none"),
             ("Chosen on", f"the {study.selection} split")]
    return rows


def _difficulty(facts: Facts) -> str:
    condition, parts = facts.run.condition, []
    if condition.train_fraction != 1:
        parts.append(f"only {percent(condition.train_fraction, 1)} % of the training images")
    if condition.label_noise is not None:
        parts.append(f"wrong labels on {percent(condition.label_noise.fraction, 1)} % of what it was trained on")
    if condition.distortion is not None and condition.corruption is not None:
        parts.append(f"{describe(condition.distortion)} on {percent(condition.corruption.fraction, 1)} % of what it "
                     "was trained on")
    return listed(parts) or "another training"


# --- how good it is ---------------------------------------------------------------------------------------------------


def _results(facts: Facts) -> Iterator[tuple[str, ...]]:
    found, run = facts.found, facts.run
    own = evaluation.metrics(facts.own.labels, facts.own.logits)
    yield ("this file", str(run.seed), *_cells({name: np.array([value]) for name, value in own.items()}))
    group = found.group(run.arm.name, run.condition.name)
    if group is not None:
        yield (group.label, _counted(len(group.seeds)), *_cells(group.metrics))
    tl = found.tl
    beside = found.group(tl.name, run.condition.name) if tl is not None and tl.name != run.arm.name else None
    if beside is not None:
        yield (f"{beside.label}, without a teacher", _counted(len(beside.seeds)), *_cells(beside.metrics))
    taught = {(fit.name, fit.condition.name if fit.condition is not None else "")
              for fit in (teacher_fit(found.study, name, run.condition, run.seed) for name in _teachers(facts))}
    for each in found.teachers:
        if (each.name, each.condition) in taught:
            under = f", fitted under {each.condition}" if each.condition else ""
            yield (f"teacher {each.name}{under}", _counted(len(each.metrics["accuracy"])), *_cells(each.metrics))


def _counted(seeds: int) -> str:
    return f"n = {seeds}"


def _cells(metrics: Any) -> tuple[str, ...]:
    return tuple(mean_sd(metrics[name], nats=name == "log_loss")
                 for name in ("accuracy", "balanced_accuracy", "f1", "log_loss", "ece"))


def _teachers(facts: Facts) -> list[str]:
    """The teacher that the student learnt from, or those that it stands beside."""
    arm = facts.run.arm
    return [arm.teacher] if arm.teacher is not None else list(facts.found.study.used_teachers)


def _verdicts(facts: Facts) -> Iterator[dict[str, str]]:
    found, run = facts.found, facts.run
    own = next((each for each in found.contrasts if (each.arm.name, each.condition) == (
        run.arm.name, run.condition.name)), None)
    if own is not None:
        evidence = better(found, own)
        yield {"title": f"Verdict: {evidence.word}.", "text": evidence.sentence}
        interval = own.verdict.interval
        if math.isfinite(interval.low):
            yield {"title": "Interval:", "text": f"{wording.ends(interval.low, interval.high)} points "
                   f"({number(100 * (1 - own.verdict.level), 0)} %, over {count(own.verdict.n_seeds, 'seed')} and "
                   f"{count(own.verdict.n_images, 'test image')}; it covers {interval.covers}); supported means that "
                   "neither seeds nor test images explain the gain by chance."}
    else:
        where = "" if run.condition.name in found.base else f", under {listed(list(found.base))}"
        yield {"title": f"The study as a whole{where}:", "text": headline(found)}


# --- how fast and how large -------------------------------------------------------------------------------------------


def _footprint(facts: Facts) -> tuple[list[str], list[tuple[str, ...]]]:
    both = [facts.student, *([facts.teacher] if facts.teacher is not None else [])]
    heads = ["this student", *(f"teacher {each.name}" for each in both[1:])]
    rows = [("network", *(f"{each.spec.model.partition(':')[2]}, {each.spec.input_size} px" for each in both)),
            ("parameters", *(number(each.size.parameters, 0) for each in both)),
            ("weights", *(wording.size(each.size.bytes) for each in both)),
            ("multiply-adds for one image", *(_millions(each.size.macs) for each in both)),
            ("ONNX file", *(wording.NONE if each.onnx_bytes is None else wording.size(each.onnx_bytes)
                            for each in both))]
    for engine in dict.fromkeys(engine for each in both for engine in each.latencies):
        rows.append((f"{engine}, one image", *(_time(each.latencies.get(engine)) for each in both)))
    return heads, rows


def _millions(macs: int | None) -> str:
    return wording.NONE if macs is None else f"{number(macs / 1e6, 1 if macs < 1e9 else 0)} million"


def _time(one: Latency | None) -> str:
    if one is None:
        return wording.NONE
    low, middle, high = (1000 * value for value in (one.low, one.median, one.high))
    digits = wording.decimals([middle], 2)
    return f"{number(middle, digits)} ms ({number(low, digits)} to {number(high, digits)})"


def _measured(facts: Facts) -> str:
    timed = list(facts.student.latencies.values())
    if not timed:
        return "Nothing was timed."
    text = (f"Median of {count(timed[0].repeats, 'pass')} of one image, taken in turns, and between what 80 % of them "
            f"lie; {count(facts.threads, 'thread')} of {facts.machine}; decoding is not in it.")
    if facts.teacher is not None:
        text += " The teacher was timed with random weights, which take the same time."
    return text


# --- what to beware of ------------------------------------------------------------------------------------------------


def _intended(facts: Facts) -> str:
    return (f"Images like those of its data ({_source(facts.found.study.data.source)}), each of which shows one of the "
            f"{count(len(facts.ready.classes), 'class')} above: to sort them, or to study what distillation does. It "
            "was tested for nothing else.")


def _limits(facts: Facts) -> Iterator[str]:
    yield ("It always names one of its classes, also for an image that shows none of them; a probability says how sure "
           "it is among these classes, not that one of them is right.")
    rows = [row for row in evaluation.per_class(facts.own.labels, facts.own.logits) if row["support"]]
    weak = sorted(rows, key=lambda row: (row["recall"], row["class"]))[:WEAKEST]
    yield "Weakest classes on the test images, by recall: " + ", ".join(
        f"{_quoted(facts, row['class'])} {percent(row['recall'], 1)} % of {row['support']}" for row in weak) + "."
    matrix = evaluation.confusion(facts.own.labels, facts.own.logits)
    np.fill_diagonal(matrix, 0)
    if matrix.any():
        true, said = map(int, np.unravel_index(int(matrix.argmax()), matrix.shape))
        yield (f"Most frequent mistake: {_quoted(facts, said)} where it is {_quoted(facts, true)}, "
               f"{count(int(matrix[true, said]), 'time')}.")
    for each in cautions(facts.found):
        if each.grave:
            yield f"{each.title}: {each.text}"
    if not facts.run.condition.plain:
        yield (f"It was trained under a difficulty on purpose ({_difficulty(facts)}): a student for research, not the "
               "best that the data allow.")


def _quoted(facts: Facts, label: int) -> str:
    return "\N{LEFT DOUBLE QUOTATION MARK}" + facts.ready.classes[label].replace("`", "'") + (
        "\N{RIGHT DOUBLE QUOTATION MARK}")


def _warnings(facts: Facts) -> Iterator[dict[str, str]]:
    if facts.licence.warns:
        yield {"title": "not for commercial use", "text": f"The student started from weights under "
               f"{facts.licence.name} ({facts.licence.about}), and what is fine-tuned from them stays under it."}
    for name, licence in facts.teacher_licences.items():
        if licence.warns:
            yield {"title": "taught by weights that are not for commercial use", "text": f"The teacher {name} started "
                   f"from weights under {licence.name} ({licence.about}). Whether that binds a student which learnt "
                   "from its outputs is not settled: take advice before you use this commercially."}


def _licences(facts: Facts) -> Iterator[str]:
    yield f"Weights of the student: {facts.licence.name} ({facts.licence.about}). {_use(facts.licence)}"
    for name, licence in facts.teacher_licences.items():
        yield f"Weights of the teacher {name}: {licence.name} ({licence.about}). {_use(licence)}"
    yield "`predict.py` and `images.py`: Apache-2.0, a part of tlkd."
    yield "The training images have a licence of their own, which is not known here."


def _use(licence: Licence) -> str:
    return {"allowed": "Commercial use is allowed.", "forbidden": "Commercial use is forbidden.",
            "unknown": "Whether commercial use is allowed is not known here: look it up.",
            "free": "No other licence comes with them."}[licence.commercial]


def _identifier(facts: Facts) -> str:
    """The strictest licence that is involved, as the front matter calls it."""
    involved = [facts.licence, *facts.teacher_licences.values()]
    for use in ("forbidden", "unknown"):
        strict = next((each for each in involved if each.commercial == use), None)
        if strict is not None:
            return strict.identifier
    return facts.licence.identifier


def _checks(facts: Facts) -> Iterator[str]:
    check = facts.check
    yield (f"`model.onnx` in ONNX Runtime against PyTorch on {facts.checked_on}, in batches of "
           f"{listed([str(size) for size in check.batch_sizes])}: the same winner on {number(check.agreeing, 0)} of "
           f"{number(check.images, 0)}; the largest difference of a logit is {check.difference:.1e} (allowed: "
           f"{check.tolerance:.1e}).")
    yield (f"`model.safetensors` in plain {facts.plain.library} against the student as it was trained: equal logits, "
           "to 1e-5 of the largest.")
    if facts.same_as_study is not None:
        same, of = facts.same_as_study
        yield f"Against the predictions that the study stored: the same winner on {number(same, 0)} of {number(of, 0)}."
