"""How much does an epoch, or a setting, that was chosen on the test split flatter what is then reported on it?

    python proofs/selection.py [--short] [--pool FOLDER]

Heads are trained as `tlkd run` trains them, and every epoch's answers to every test image are kept. So the same
training can be reported at its last epoch, at the best on dev, and at the best on any n of the test images, and the
images that were left out say what the chosen epoch is worth. `--pool` keeps the answers for another call.

Exit code 1 where `report_epoch: best` does not take the epoch found here, where choosing on test flatters nothing, or
where choosing on dev does.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import DATA, options, points, publish, table
from tlkd import api, losses, seeding, stages, store
from tlkd.folder import StudyFolder, TeacherFit
from tlkd.reading import raw_study
from tlkd.specs import Arm, Training
from tlkd.study import Context, open_workshop
from tlkd.training import Fit, Task, fit
from tlkd.workshop import learner, network_for

ARCHIVE = DATA / "cifar10-jpeg.tar.gz"
THESIS = {"schedule": "plateau", "early_stopping": 10, "report_epoch": "best"}
Answers = NDArray[np.bool_]  # [seed, epoch, image]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """What is trained and how it is looked at."""

    data: str
    changes: dict[str, Any]
    seeds: int
    few: int  # seeds of settings, and of the thesis's own rule
    epochs: tuple[int, ...]
    most: int  # epochs of the thesis's own rule
    sizes: tuple[int, ...]  # of the test images that are chosen on
    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    draws: int


def plan(short: bool) -> Plan:
    """CIFAR-10 where it is, otherwise the quickstart's digits; a smaller study of digits with `--short`."""
    if short:
        small = {"data.train_per_class": 60, "data.test_per_class": 60, "student.input_size": 32,
                 "teachers.lite1.input_size": 32}
        return Plan("quickstart", small, 6, 3, (4, 12), 15, (50, 200), (0.1, 0.9), (2.0, 10.0), 100)
    if ARCHIVE.is_file():
        return Plan("cifar10", {"data.source": f"folder:{ARCHIVE}", "data.train_per_class": 500}, 30, 8, (10, 30), 200,
                    (100, 500, 2000, 5000), (0.1, 0.5, 0.9), (2.0, 4.0, 10.0), 200)
    return Plan("quickstart", {}, 30, 8, (10, 30), 200, (100, 500),
                (0.1, 0.5, 0.9), (2.0, 4.0, 10.0), 200)


class Bench:
    """The features and soft labels that all trainings share; `scratch` is a folder for what is not kept."""

    def __init__(self, chosen: Plan, scratch: Path) -> None:
        self.scratch = scratch
        raw = {key: value for key, value in raw_study(chosen.data).items() if key not in ("grid", "explanation")}
        self.study = api.load_study({**raw, "conditions": [{"name": "clean"}]}, chosen.changes)
        self.workshop = self._open({})
        self.network = network_for(self.workshop, self.study.student, 0, "student")
        self.learner = learner(self.workshop, self.network, "student")
        name = next(iter(self.study.used_teachers))
        # The teacher is not judged here: a few test images save most of its bank.
        beside = self._open({"data.test_per_class": 10})
        if [beside.dataset.ids[row] for row in beside.dataset.splits["train"]] != [
                self.workshop.dataset.ids[row] for row in self.workshop.dataset.splits["train"]]:
            raise SystemExit("the teacher would have other training images")
        artifact, teacher = stages.fitted_teacher(beside, StudyFolder(self._folder()), TeacherFit(name, None, None))
        self.soft_labels = stages.soft_labels(beside, teacher, artifact, f"teacher {name}", stages.CLEAN).source
        self.labels = {split: self.workshop.labels[split] for split in ("dev", "test")}

    def _open(self, changes: dict[str, Any]) -> Any:
        study = api.load_study(self.study, changes)
        return open_workshop(Context(study, self._folder(), store.cache_folder().absolute(), "cpu", 2))

    def _folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.scratch))

    def answers(self, arm: Arm, seed: int, training: Training, check: NDArray[np.int64] | None = None) -> tuple[
            Answers, Answers, Fit]:
        """Train a head; who is right at each epoch, `[epoch, image]` of dev and of test.

        The training looks at dev, or at the test images numbered in `check`.
        """
        import torch

        network = network_for(self.workshop, self.study.student, seed, "student")
        found: dict[str, list[Answers]] = {"dev": [], "test": []}

        def note(_: Fit) -> None:
            with torch.inference_mode():
                for split, each in found.items():
                    rows = self.learner.sources[split].table  # type: ignore[attr-defined]
                    each.append(network.classify(rows).argmax(1).numpy() == self.labels[split])

        split = "dev" if check is None else "test"
        source, labels = self.learner.sources[split], self.labels[split]
        inputs, labels = (source, labels) if check is None else (
            lambda which, samples: source(which, check[samples]), labels[check])
        drawn = self.workshop.draw(stages.CLEAN, seed)
        soft = None if arm.kind == "tl" else self.soft_labels
        task = Task(self.learner.sources["train"], drawn, len(self.workshop.views), soft, split, inputs, labels)
        result = fit(network, network.classify, losses.make_loss(arm.kind, arm.soft_weight, arm.temperature), task,
                     training, seed, self.workshop.device, None, note)
        return np.array(found["dev"]), np.array(found["test"]), result


def trained(chosen: Plan, keep: Path, scratch: Path) -> dict[str, Any]:
    """All trainings: answers by name, `dev` and `test` of each; what lies in the folder `keep` is taken from there."""
    bench, found = Bench(chosen, scratch), {}
    tl, kd = (next(arm for arm in bench.study.arms if arm.kind == kind) for kind in ("tl", "tl_kd"))

    def part(name: str, make: Callable[[], dict[str, Any]]) -> None:
        path = keep / f"{name.replace('/', '-')}.npz"
        if not path.is_file():
            np.savez_compressed(path, **make())
            print(f"{name}: trained", file=sys.stderr, flush=True)
        with np.load(path) as file:
            found.update({f"{name}/{key}": file[key] for key in file.files})

    def pool(arm: Arm, epochs: int, seeds: int) -> dict[str, Any]:
        training = bench.study.training.model_copy(update={"epochs": epochs})
        each = [bench.answers(arm, seed, training)[:2] for seed in range(seeds)]
        return dict(zip(("dev", "test"), map(np.array, zip(*each, strict=True)), strict=True))

    for arm, epochs in itertools.product((tl, kd), chosen.epochs):
        count = chosen.seeds if epochs == chosen.epochs[0] else chosen.few
        part(f"{arm.kind}/{epochs}", lambda arm=arm, epochs=epochs, count=count: pool(arm, epochs, count))
    for weight, temperature in itertools.product(chosen.weights, chosen.temperatures):
        arm = kd.model_copy(update={"soft_weight": weight, "temperature": temperature})
        part(f"grid/{weight}/{temperature}", lambda arm=arm: pool(arm, chosen.epochs[0], chosen.few))
    for arm in (tl, kd):
        part(f"thesis/{arm.kind}", lambda arm=arm: {"rows": own_rule_of(bench, chosen, arm)})
        part(f"best/{arm.kind}", lambda arm=arm: chosen_by_tlkd(bench, chosen, arm))
    return found


def chosen_by_tlkd(bench: Bench, chosen: Plan, arm: Arm) -> dict[str, Any]:
    """The epoch that `selection: test` with `report_epoch: best` takes for one seed, and who was right meanwhile."""
    training = bench.study.training.model_copy(update={"epochs": chosen.epochs[0], "report_epoch": "best"})
    _, own, result = bench.answers(arm, 0, training, np.arange(len(bench.labels["test"])))
    return {"epoch": np.array(result.best_epoch), "answers": own}


def own_rule_of(bench: Bench, chosen: Plan, arm: Arm) -> Floats:
    """The thesis's rule, `[seed, ...]`: accuracies on the half that is looked at and on the other; the same by dev.

    The last two columns are the epochs trained.
    """
    training, rows = bench.study.training.model_copy(update={**THESIS, "epochs": chosen.most}), []
    images = len(bench.labels["test"])
    for seed in range(chosen.few):
        order = seeding.generator("selection", "half", seed).permutation(images)
        half, rest = np.sort(order[:images // 2]), np.sort(order[images // 2:])
        _, on_half, chose = bench.answers(arm, seed, training, half)
        _, on_dev, other = bench.answers(arm, seed, training)
        one, two = on_half[chose.best_epoch - 1], on_dev[other.best_epoch - 1]
        rows.append([one[half].mean(), one[rest].mean(), two[half].mean(), two[rest].mean(), chose.epochs,
                     other.epochs])
    return np.array(rows)


def unlike_tlkd(pool: dict[str, Any], chosen: Plan) -> list[str]:
    """Where the epochs found here are not those that tlkd takes."""
    broken = []
    for kind in ("tl", "tl_kd"):
        answers, own = pool[f"{kind}/{chosen.epochs[0]}/test"][0], pool[f"best/{kind}/answers"]
        best, taken = 1 + int(answers.mean(1).argmax()), int(pool[f"best/{kind}/epoch"])
        if best != taken:
            broken.append(f"{kind}: report_epoch: best took epoch {taken}; the best on test is {best}")
        if not np.array_equal(answers, own):
            broken.append(f"{kind}: looking at test, not dev, changed the training itself")
    return broken


# --- what the answers say ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reported:
    """Accuracies `[seed, draw]` on the images reported on, and on those left out, by how an epoch is chosen."""

    shown: dict[str, Floats]  # last, dev, test
    untouched: dict[str, Floats]

    def rise(self, other: str = "last") -> Floats:
        """What choosing on test adds to the reported accuracy."""
        return self.shown["test"] - self.shown[other]

    def flattered(self, how: str = "test") -> Floats:
        """What of it the images left out do not see."""
        return (self.shown[how] - self.shown["last"]) - (self.untouched[how] - self.untouched["last"])


def subsets(images: int, size: int, draws: int, seed: int) -> NDArray[np.float32]:
    """Which images are reported on, `[image, draw]`."""
    rng = seeding.generator("selection", "subsets", size, seed)
    chosen = np.zeros((images, draws), np.float32)
    for column in range(draws):
        chosen[rng.choice(images, size, replace=False), column] = 1
    return chosen


def report(dev: Answers, test: Answers, chosen: NDArray[np.float32]) -> Reported:
    """Choose epochs, once by each rule."""
    seeds, epochs, images = test.shape
    size = int(chosen[:, 0].sum())
    hits = (test.reshape(-1, images).astype(np.float32) @ chosen).reshape(seeds, epochs, -1).astype(np.float64)
    shown = hits / size
    left = (test.sum(2)[..., None] - hits) / max(images - size, 1)
    places = {"last": np.full(shown[:, 0].shape, epochs - 1), "test": shown.argmax(1),
              "dev": np.broadcast_to(dev.mean(2).argmax(1)[:, None], shown[:, 0].shape)}
    taken = {how: np.take_along_axis(shown, place[:, None], 1)[:, 0] for how, place in places.items()}
    beside = {how: np.take_along_axis(left, place[:, None], 1)[:, 0] for how, place in places.items()}
    return Reported(taken, beside)


def interval(values: Floats, level: float = 0.05) -> tuple[float, float, float]:
    """The mean over seeds `[seed, ...]` with its t interval; what varies within a seed is averaged first."""
    from scipy.stats import t

    each = values.reshape(len(values), -1).mean(1)
    spread = each.std(ddof=1) / np.sqrt(len(each)) * t.ppf(1 - level / 2, len(each) - 1)
    return float(each.mean()), float(each.mean() - spread), float(each.mean() + spread)


def said(values: Floats) -> str:
    """A mean over seeds with its interval, in points."""
    mean, low, high = interval(values)
    return f"{100 * mean:.2f} ({100 * low:.2f} to {100 * high:.2f})"


def by_size(pool: dict[str, Any], chosen: Plan, seed: int) -> tuple[list[list[str]], list[str]]:
    """What choosing the epoch does, by epochs and test images; and the truths that are not found."""
    rows, broken = [], []
    images = pool[f"tl/{chosen.epochs[0]}/test"].shape[2]
    for epochs in chosen.epochs:
        for size in (*chosen.sizes, images):
            which = subsets(images, size, chosen.draws if size < images else 1, seed)
            tl, kd = (report(pool[f"{kind}/{epochs}/dev"], pool[f"{kind}/{epochs}/test"], which)
                      for kind in ("tl", "tl_kd"))
            left = size < images
            rows.append([str(epochs), f"{size:,}", said(tl.rise()), said(tl.flattered()) if left else "–",
                         said(kd.rise()), said(kd.flattered()) if left else "–", said(tl.rise("dev")),
                         said(kd.rise() - tl.rise())])
            for name, one in (("TL", tl), ("TL+KD", kd)) if left else ():
                if size == chosen.sizes[0] and interval(one.flattered())[1] <= 0:
                    broken.append(f"{name}, {epochs} epochs: choosing on {size} test images flattered nothing")
                if interval(one.flattered("dev"), 0.001)[1] > 0:
                    broken.append(f"{name}, {epochs} epochs, {size} images: choosing on dev flattered")
    return rows, broken


def better(pool: dict[str, Any], chosen: Plan, seed: int, seeds: int = 3) -> list[list[str]]:
    """How often the thesis's criterion, a larger mean over three seeds, calls an arm better, by test images."""
    rows, epochs = [], chosen.epochs[0]
    grid = [name.removesuffix("/test") for name in pool if name.startswith("grid/") and name.endswith("/test")]
    images, count = pool[f"tl/{epochs}/test"].shape[2], len(pool[f"{grid[0]}/test"])
    groups = chosen.seeds // seeds - 1  # arms that are TL under other names
    for size in (*chosen.sizes, images):
        which = subsets(images, size, chosen.draws if size < images else 1, seed)
        tl, kd, *settings = (report(pool[f"{name}/dev"], pool[f"{name}/test"], which)
                             for name in (f"tl/{epochs}", f"tl_kd/{epochs}", *grid))
        rng = seeding.generator("selection", "studies", size, seed)
        wins: dict[str, list[float]] = {}
        best_gaps, null_gaps = [], []
        for draw in range(2000):
            column = draw % which.shape[1]
            picked = rng.permutation(len(tl.shown["last"]))
            few, within = picked[:seeds], rng.permutation(count)[:seeds]
            for how in ("last", "dev", "test"):
                one, two = (each.shown[how][few, column].mean() for each in (tl, kd))
                wins.setdefault(how, []).append(_better(two, one))
            split = picked[:seeds * (groups + 1)].reshape(groups + 1, seeds)
            same = tl.shown["test"][split, column].mean(1)
            wins.setdefault("one", []).append(_better(same[1], same[0]))
            wins.setdefault("many", []).append(_better(same[1:].max(), same[0]))
            tuned = np.array([each.shown["test"][within, column].mean() for each in settings])
            top = int(tuned.argmax())
            best_gaps.append(tuned[top] - settings[top].untouched["test"][within, column].mean())
            null_gaps.append(same[1:].max() - same[0])
        mean = {how: f"{100 * np.mean(each):.0f} %" for how, each in wins.items()}
        gap = f"{points(float(np.mean(best_gaps)))}" if size < images else "–"
        rows.append([f"{size:,}", mean["last"], mean["dev"], mean["test"], mean["one"],
                     f"{mean['many']}, {points(float(np.mean(null_gaps)))}", gap])
    return rows


def _better(one: float, other: float) -> float:
    return 0.5 if one == other else float(one > other)


def own_rule(pool: dict[str, Any]) -> list[list[str]]:
    """The thesis's own rule: plateau, early stopping and best epoch on the half that is reported."""
    rows = []
    both = {kind: pool[f"thesis/{kind}/rows"] for kind in ("tl", "tl_kd")}
    flattered = {kind: (each[:, 0] - each[:, 2]) - (each[:, 1] - each[:, 3]) for kind, each in both.items()}
    for kind, name in (("tl", "TL"), ("tl_kd", "TL+KD")):
        each = both[kind]
        rows.append([name, f"{100 * each[:, 0].mean():.2f}", f"{100 * each[:, 2].mean():.2f}",
                     said(each[:, 0] - each[:, 2]), said(flattered[kind]), f"{each[:, 4].mean():.0f}",
                     f"{each[:, 5].mean():.0f}"])
    gain = (both["tl_kd"] - both["tl"])
    rows.append(["gain", f"{100 * gain[:, 0].mean():.2f}", f"{100 * gain[:, 2].mean():.2f}",
                 said(gain[:, 0] - gain[:, 2]), said(flattered["tl_kd"] - flattered["tl"]), "", ""])
    return rows


def text_of(pool: dict[str, Any], chosen: Plan, rows: Sequence[list[str]], seed: int) -> str:
    """The block of the page."""
    what = "CIFAR-10, 500 training images a class, lite0 from lite2 at 96 pixels" if chosen.data == "cifar10" else (
        "handwritten digits, lite0 from lite1" if not chosen.changes.get("data.train_per_class") else "a few digits")
    images, third = pool[f"tl/{chosen.epochs[0]}/test"].shape[2], chosen.seeds // 3 - 1
    header = ["epochs", "test images", "TL rises by", "of it flattery", "TL+KD rises by", "of it flattery",
              "TL rises over dev's choice by", "the gain changes by"]
    wins = ["test images", "last epoch", "best on dev", "best on test", "TL against TL, best on test",
            f"the best of {third} arms that are all TL, and its lead in points", "flattery of the best of "
            f"{len(chosen.weights) * len(chosen.temperatures)} settings (points)"]
    own = ["", "best on test (%)", "best on dev (%)", "difference (points)", "of it flattery", "epochs trained",
           "with dev"]
    return "\n\n".join([
        f"Frozen backbones, {what}; {chosen.seeds} seeds ({chosen.few} of {chosen.epochs[1]} epochs and "
        f"of settings), {images:,} test images. In points, with 95 % "
        "intervals over seeds, given these images: other images would spread them further. "
        "*Rises*: the accuracy reported at the epoch that is best on these test "
        "images, less that of the last "
        "epoch. *Flattery*: the part of the rise that the other test images do not see.",
        table(header, list(rows)),
        f"The thesis's own rule (`schedule: plateau`, `early_stopping: 10`, `report_epoch: best`, at most "
        f"{chosen.most} epochs; {chosen.few} seeds), looking at one half of the test images, which is "
        "then reported, or at dev:",
        table(own, own_rule(pool)),
        f"How often three seeds with a larger mean accuracy are called better (the thesis's criterion), "
        f"{chosen.epochs[0]} epochs, 2,000 studies a cell; the first three columns are TL+KD against TL:",
        table(wins, better(pool, chosen, seed))])


def main() -> int:
    """Train, or take what `--pool` holds, and say what choosing does."""
    parser = options(__doc__)
    parser.add_argument("--pool", type=Path, help="a folder that keeps the answers of all trainings")
    given: argparse.Namespace = parser.parse_args()
    chosen = plan(given.short)
    with tempfile.TemporaryDirectory() as scratch:
        keep = given.pool or Path(scratch)
        keep.mkdir(parents=True, exist_ok=True)
        pool = trained(chosen, keep, Path(scratch))
    rows, broken = by_size(pool, chosen, given.seed)
    publish("selection", text_of(pool, chosen, rows, given.seed), "python proofs/selection.py", given.write)
    broken += unlike_tlkd(pool, chosen)
    for each in broken:
        print(f"BROKEN: {each}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
