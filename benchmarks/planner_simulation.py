"""ImageNet on a cluster, simulated: the real graph of steps, with durations from measured rates, on k workers.

The study is real (`study.steps` lists what a run would do, and what waits for what); its data are a description: so
many images and classes, none decoded. Each step's seconds follow from shapes and from rates: those measured on one core
unless the command line gives others. `estimate.makespan`, with which `tlkd plan` reckons, plays the steps through: the
first that may start goes first, each worker one at a time. Writes its table into docs/scale.md with `--write`.
"""

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from common import CPU as TORCH_CPU
from common import network, pixels
from common import seconds as time_of
from tlkd import banks, models, specs, store
from tlkd.batches import Rows
from tlkd.draws import whole
from tlkd.estimate import Load, makespan
from tlkd.folder import plan
from tlkd.losses import make_loss
from tlkd.reading import validate
from tlkd.specs import Study
from tlkd.study import Step, steps
from tlkd.training import Task, fit

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
WORKERS = (1, 4, 8, 16, 32)


@dataclass(frozen=True)
class Rates:
    """What a worker does in a second, and what the disks do; sizes are of the networks' features."""

    name: str
    images: Mapping[str, float]  # network -> images a second through its whole backbone, views made and written
    head: float  # samples x features x classes a second of a head's training, 1e9
    read: float  # bytes a second that a checksum or a pass over a bank takes
    width: int = 1280


@dataclass(frozen=True)
class Data:
    """A data set as far as a plan needs it."""

    train: int
    dev: int
    test: int
    classes: int
    views: int


IMAGENET = Data(1_153_050, 128_117, 50_000, 1000, 2)


def measured() -> Rates:
    """The rates of one core of this machine, by the code that banks, trains and checks: about half a minute."""
    torch.set_num_threads(1)
    images = {}
    for who, name, side in (("student", "lite0", 224), ("teacher", "lite2", 260)):
        net, source = network(f"packaged:efficientnet_{name}", side).eval(), pixels(64, side, side)
        fill = partial(banks.write, np.empty((1, 64, net.width), np.float32), source, net.features, who, 1, 16)
        images[who] = 64 / min(time_of(fill) for _ in range(3))
    count, width, classes, epochs = 4096, 1280, 1000, 2
    net = models.build(specs.Network(model="packaged:efficientnet_lite0", input_size=32), classes, 0)
    random, labels = np.random.default_rng(0), np.arange(count) % classes
    features, soft = (Rows(random.random((1, count, each), np.float32), TORCH_CPU) for each in (width, classes))
    task = Task(features, whole(labels), 1, soft, "dev", features, labels[:1])
    took = time_of(lambda: fit(net, net.classify, make_loss("tl_kd", 0.5, 4.0), task,
                               specs.Training(epochs=epochs, batch_size=1024), 0, TORCH_CPU))
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(2**28))
        file.flush()
        read = 2**28 / time_of(lambda: store.checksum(Path(file.name)))
    return Rates("one core", images, 1e-9 * count * epochs * width * classes / took, read, width)


def study_of(seeds: int) -> Study:
    """TL against TL+KD and label smoothing with frozen backbones, under two conditions."""
    return validate({
        "name": "imagenet", "data": {"source": "folder:imagenet", "augment": ["hflip"]},
        "student": {"model": "packaged:efficientnet_lite0", "input_size": 224},
        "teachers": {"lite2": {"model": "packaged:efficientnet_lite2", "input_size": 260, "trained_on": "clean"}},
        "arms": [{"name": "tl", "kind": "tl"},
                 {"name": "tl_kd", "kind": "tl_kd", "teacher": "lite2", "soft_weight": 0.5, "temperature": 4}],
        "conditions": [{"name": "clean"}, {"name": "tenth", "train_fraction": 0.1},
                       {"name": "noisy", "label_noise": {"fraction": 0.2}}],
        "training": {"epochs": 10, "batch_size": 1024}, "seeds": list(range(seeds))}, "imagenet")


def rows(data: Data) -> int:
    """Rows of a bank: the training split in all views, dev and test in the identity."""
    return data.views * data.train + data.dev + data.test


def seconds(step: Step, study: Study, data: Data, rates: Rates) -> float:
    """What a step takes on one worker, by the measured rates."""
    if step.kind == "features":
        who = "teacher" if "teacher" in step.name else "student"
        return rows(data) / rates.images[who] + 4 * rows(data) * rates.width / rates.read
    work = 1e-9 * rates.width * data.classes / rates.head  # of one sample through a head, forward and back
    if step.kind == "teacher":
        epochs = study.teachers[step.name.split()[1]].training.epochs
        banked = rows(data) * work / 3  # its logits: forward alone
        return epochs * (data.train + data.dev / 3) * work + banked + 4 * rows(data) * data.classes / rates.read
    run = next(run for run in plan(study) if step.name == f"run {run.run_id}")
    training = study.training_of(run.arm, run.condition)
    kept = data.train * run.condition.train_fraction
    opened = 4 * rows(data) * (rates.width + (data.classes if run.arm.teacher else 0)) / rates.read  # its checksums
    return training.epochs * (kept + data.dev / 3) * work + data.test * work / 3 + opened / len(study.seeds)


@dataclass(frozen=True)
class Played:
    """How a study went on so many workers; `critical` is the longest chain of steps that wait for each other."""

    workers: int
    hours: float
    used: float
    critical: float


def play(study: Study, data: Data, rates: Rates, workers: int) -> Played:
    """Let the planner's simulation play all steps of a study on so many workers of one core (or GPU) each."""
    known = {step.name: step for step in steps(study)}
    took = {name: seconds(step, study, data, rates) for name, step in known.items()}
    loads = [Load(name, tuple(need for need in step.needs if need in known), 1, took[name])
             for name, step in known.items()]
    end = makespan(loads, workers, float(workers))
    ends: dict[str, float] = {}
    for load in loads:  # in the order of the plan, in which needs come first
        ends[load.name] = took[load.name] + max((ends[need] for need in load.needs), default=0.0)
    return Played(workers, end / 3600, sum(took.values()) / (end * workers), max(ends.values()) / 3600)


def sharded(rates: Rates, shards: int) -> Rates:
    """The same where a bank is built by so many workers, each its part: tlkd does not do this yet."""
    return replace(rates, images={name: rate * shards for name, rate in rates.images.items()})


def size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            return f"{number:.3g} {unit}"
        number /= 1000
    raise AssertionError


def table(study: Study, data: Data, rates: Rates) -> str:
    """The table of docs/scale.md."""
    lines = [f"| workers ({rates.name} each) | hours | busy | longest chain, hours |", "| --- | --- | --- | --- |"]
    lines += [f"| {each.workers} | {each.hours:,.1f} | {100 * each.used:.0f} % | {each.critical:,.1f} |"
              for each in (play(study, data, rates, workers) for workers in WORKERS)]
    spread = [play(study, data, sharded(rates, workers), workers) for workers in WORKERS]
    lines += ["", "With each bank built by all workers at once (not there today):", "",
              "| workers | hours | longest chain, hours |", "| --- | --- | --- |",
              *(f"| {each.workers} | {each.hours:,.1f} | {each.critical:,.1f} |" for each in spread)]
    features, logits = 4 * rows(data) * rates.width, 4 * rows(data) * data.classes
    total = play(study, data, rates, 1).hours
    return "\n".join([
        f"{len(plan(study))} runs ({len(study.arms)} arms x {len(study.conditions)} conditions x {len(study.seeds)} "
        f"seeds), {data.train:,} training images in {data.views} views, {data.classes:,} classes. "
        f"{total:,.0f} {rates.name}-hours in all. Images decoded once: "
        f"{size(3 * 260**2 * (data.train + data.dev + data.test))}; features of student and teacher: {size(features)} "
        f"each; the teacher's logits: {size(logits)}; predictions: {size(4 * data.test * data.classes)} a run.",
        "", *lines])


def write(name: str, text: str) -> None:
    """Put a text between its marks in docs/scale.md."""
    start, end, page = f"<!-- {name} -->", f"<!-- end of {name} -->", PAGE.read_text()
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(end)
    if not rest or not after:
        raise SystemExit(f"{PAGE}: has no place for {name}")
    PAGE.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}")


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--write", action="store_true", help="put the table into docs/scale.md")
    given.add_argument("--student", type=float, metavar="RATE",
                       help="images a second through the student's backbone, one worker (all four, or measured here)")
    given.add_argument("--teacher", type=float, metavar="RATE")
    given.add_argument("--head", type=float, metavar="RATE",
                       help="1e9 samples x features x classes a second of a head's training")
    given.add_argument("--read", type=float, default=1e9, metavar="RATE", help="bytes a second of a checksum")
    given.add_argument("--name", default="one GPU")
    chosen = given.parse_args()
    rates = (Rates(chosen.name, {"student": chosen.student, "teacher": chosen.teacher}, chosen.head, chosen.read)
             if chosen.student and chosen.teacher and chosen.head else measured())
    text = (f"Rates of {rates.name}: {rates.images['student']:.0f} images a second through the student's backbone, "
            f"{rates.images['teacher']:.0f} through the teacher's; {rates.head:.1f}e9 samples x features x classes a "
            f"second of a head's training; {rates.read / 1e9:.2f} GB a second of a checksum.\n\n"
            + table(study_of(10), IMAGENET, rates))
    print(text)
    if chosen.write:
        write("planner simulation", text)


if __name__ == "__main__":
    main()
