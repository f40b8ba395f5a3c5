"""What a study's steps will cost on this machine: a short measurement of the real code on real shapes.

Times are pairs `[2]` in seconds: what the processor spent in the fastest of some repetitions, which is what a machine
takes that nobody else uses, and what the clock showed in the slowest.
"""

import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tlkd import banks, evaluation, store
from tlkd.batches import Joined, Rows, Shuffled, Source, predict
from tlkd.conditions import Condition, Distortion
from tlkd.draws import Draw
from tlkd.losses import Loss, hard_loss, label_smoothing_loss, make_loss
from tlkd.models import Network
from tlkd.specs import Arm, Training, canonical
from tlkd.training import Fit, Task, fit, threads
from tlkd.views import View
from tlkd.workshop import Learner, Workshop, corrupted_views, is_banked, pixels, write_result

Seconds = NDArray[np.float64]

BUDGET = 0.3  # seconds that one repetition of what is slow aims at
STEPS = 50  # of a training whose features are banked
LARGEST = 8192  # samples that are stood in for by made-up features; what takes longer with their number is scaled
REPEATS = 3

NOTHING: Seconds = np.zeros(2)
CLEAN = Condition(name="clean")


@dataclass(frozen=True)
class FitCost:
    """What one training costs: a step of `size` samples, the look at the check split, and the rest of an epoch."""

    step: Seconds
    size: int
    whole: bool  # whether a part of a step costs as much as a step, as where features are banked
    check: Seconds
    rest: Seconds  # the checkpoint most of all

    def of(self, kept: int, epochs: int) -> Seconds:
        """The time of a training on so many samples."""
        steps = math.ceil(kept / self.size) if self.whole else kept / self.size
        return epochs * (steps * self.step + self.check + self.rest)


@dataclass(frozen=True)
class ResultCost:
    """What it costs to predict from banked features, to publish a result and to measure predictions; and its bytes."""

    seconds: Seconds
    metrics: Seconds
    size: int
    weights: int  # those of the bytes that are weights


class Gauge:
    """Measures what steps are made of, each thing once, when it is first asked for.

    `together` is how many threads are at work in all when the study runs; `scratch` is a folder on the cache's disk.
    The networks that it is given are trained by it: whoever wants their addresses takes them before.
    """

    def __init__(self, workshop: Workshop, together: int, scratch: Path) -> None:
        self.workshop, self.together, self.scratch = workshop, together, scratch
        self.seconds = 0.0
        self.growth = 0  # bytes that a live training's whole batch takes beyond what was measured
        self._known: dict[str, Any] = {}

    def _once(self, name: Sequence[Any], measure: Callable[[], Any]) -> Any:
        key = canonical(name)
        if key not in self._known:
            started = time.perf_counter()
            self._known[key] = measure()
            self.seconds += time.perf_counter() - started
        return self._known[key]

    def _pair(self, times: Sequence[Seconds]) -> Seconds:
        """The least and the most that repetitions took; on an accelerator the processor's time says nothing."""
        walls, used = np.array(times).T
        return np.array([walls.min() if self.workshop.device.type == "cuda" else min(walls.min(), used.min()),
                         walls.max()])

    # --- banks

    def bank_row(self, network: Network, distortion: Distortion | None = None) -> Seconds:
        """Thread-seconds of one row of a bank of what a whole network gives, by the code that fills banks."""
        row: Seconds = self._once(["bank", *_shape(network)], lambda: self._bank_row(network))
        return row if distortion is None else row + self.distortion_row(network, distortion)

    def _bank_row(self, network: Network) -> Seconds:
        network.eval()
        source, count = pixels(self.workshop, network, "train"), len(self.workshop.labels["train"])
        cuda = self.workshop.device.type == "cuda"
        together = 1 if cuda else self.together

        def took(size: int) -> Seconds:
            rows = min(size * together, count)
            array = np.empty((1, rows, network.width), np.float32)
            wall, used = _took(lambda: banks.write(array, source, network.features, f"measure {network.name}",
                                                   together, size))
            return np.array([wall * min(together, math.ceil(rows / size)), used]) / rows

        return self._pair(_settled(took, banks.BATCH["cuda" if cuda else "cpu"]))

    def distortion_row(self, network: Network, distortion: Distortion) -> Seconds:
        """What a distorted view of a sample takes, on one thread, beyond a clean one."""
        found: Seconds = self._once(["distortion", network.input_size, distortion.model_dump(mode="json")],
                                    lambda: self._distortion(network, distortion))
        return found

    def _distortion(self, network: Network, distortion: Distortion) -> Seconds:
        samples = np.arange(min(16, len(self.workshop.labels["train"])))
        which = np.zeros_like(samples)

        def took(views: tuple[View, ...], drawn: Distortion | None) -> list[Seconds]:
            source = pixels(self.workshop, network, "train", views, drawn)
            return [_took(lambda: source(which, samples).sum().item()) for _ in range(REPEATS)][1:]

        with threads(1):
            clean, distorted = took((View(),), None), took((View(variant=1),), distortion)
        return np.maximum(self._pair(distorted) - self._pair(clean), 0) / len(samples)

    # --- trainings

    def forward_row(self, network: Network, count: int) -> Seconds:
        """Seconds of one sample through a whole network in evaluation, by so many threads."""
        found: Seconds = self._once(["forward", count, *_shape(network)], lambda: self._forward_row(network, count))
        return found

    def _forward_row(self, network: Network, count: int) -> Seconds:
        network.eval()
        source, there = pixels(self.workshop, network, "train"), len(self.workshop.labels["train"])

        def took(size: int) -> Seconds:
            return _took(lambda: predict(network, source, min(size, there), size)) / min(size, there)

        with threads(count):
            return self._pair(_settled(took, 256))

    def head_row(self, network: Network, count: int) -> Seconds:
        """Seconds of one sample's banked features through a head in evaluation, by so many threads."""
        found: Seconds = self._once(["head", count, *_shape(network)], lambda: self._head_row(network, count))
        return found

    def _head_row(self, network: Network, count: int) -> Seconds:
        network.eval()
        rows = min(LARGEST, max(len(labels) for labels in self.workshop.labels.values()))
        features = self._rows(1, rows, network.width)
        with threads(count):
            times = [_took(lambda: predict(network.classify, features, rows)) for _ in range(REPEATS + 1)]
        return self._pair(times[1:]) / rows

    def fit(self, network: Network, training: Training, arm: Arm | None, condition: Condition, draw: Draw,
            teacher: Network | None = None) -> FitCost:
        """What a training costs, by the code that trains; `arm` None: a teacher's, `teacher`: a network run live."""
        distortion, found = condition.distortion, ["fit", *_shape(network), training.model_dump(mode="json")]
        if is_banked(self.workshop, network):
            kind = [network.dropout.p, "tl" if arm is None else arm.kind, distortion is not None]
            banked: FitCost = self._once([*found, *kind], lambda: self._banked_fit(
                network, training, arm, condition, draw))
            return banked
        cost: FitCost = self._once(found, lambda: self._live_fit(network, training, draw))
        more = NOTHING if teacher is None else self.forward_row(teacher, training.threads)
        if condition.corruption is not None and distortion is not None:
            more = more + condition.corruption.fraction * self.distortion_row(network, distortion)
        return replace(cost, step=cost.step + cost.size * more)

    def _banked_fit(self, network: Network, training: Training, arm: Arm | None, condition: Condition,
                    draw: Draw) -> FitCost:
        """The head's training on made-up features of the right shape; everything else is real."""
        draw = _first(draw, 16 * training.batch_size)
        views, variants = len(self.workshop.views), len(corrupted_views(self.workshop, condition))
        loss, soft = self._loss(arm, draw, views + variants)
        labels = self.workshop.labels[self.workshop.study.selection]
        task = Task(self._source(len(draw.samples), network.width, variants), draw, views, soft, "check",
                    self._rows(1, len(labels), network.width), labels[:LARGEST])
        steps = math.ceil(len(draw.samples) / training.batch_size)
        epochs = min(30, max(REPEATS + 1, math.ceil(STEPS / steps)))
        row = self.head_row(network, training.threads)
        took, rest = self._took(network, network.classify, loss, task, training, epochs)
        step = np.maximum(took - row[0] * len(labels[:LARGEST]), 0.1 * took) / steps
        return FitCost(step, training.batch_size, True, len(labels) * row, rest)

    def _live_fit(self, network: Network, training: Training, draw: Draw) -> FitCost:
        """Forward and backward of small batches of real images; what a whole batch takes follows from the samples."""
        row = self.forward_row(network, training.threads)
        size = _size(4 * row[0], training.batch_size)  # backward takes about twice as long as forward
        draw = replace(_first(draw, max(size, 2)), condition=CLEAN)
        source = pixels(self.workshop, network, "train")
        task = Task(source, draw, len(self.workshop.views), None, "check", source, draw.given[:2])
        before = resident()
        took, rest = self._took(network, network, hard_loss, task, training.model_copy(
            update={"batch_size": len(draw.samples)}), REPEATS)
        more = max(0, peak() - before) * (training.batch_size / len(draw.samples) - 1)
        self.growth = max(self.growth, int(more))
        check = len(self.workshop.labels[self.workshop.study.selection]) * row
        return FitCost(np.maximum(took - 2 * row[0], 0.1 * took), len(draw.samples), False, check, rest)

    def _took(self, network: Network, forward: Callable[[Tensor], Tensor], loss: Loss, task: Task, training: Training,
              epochs: int) -> tuple[Seconds, Seconds]:
        """Seconds of an epoch without its checkpoint, and of the checkpoint; the first epoch does not count."""
        training = training.model_copy(update={"epochs": epochs, "early_stopping": None, "learning_rate": 1e-6})
        checkpoint = self.scratch / "checkpoint.safetensors"
        marks: list[Seconds] = []
        done = fit(network, forward, loss, task, training, 0, self.workshop.device, checkpoint,
                   lambda _: marks.append(_clocks()))
        checkpoint.unlink(missing_ok=True)
        network.eval()
        walls, used = np.diff(np.array(marks), axis=0).sum(0)
        inside = np.array([each["seconds"] for each in done.history[1:]])
        share = min(1.0, used / walls)  # of the time, the processor's; more where there are several threads
        times = [np.array([part.mean(), part.mean() * share]) for part in np.array_split(inside, min(
            REPEATS, len(inside)))]
        rest = max(0.0, walls - inside.sum()) / len(inside)
        return self._pair(times), np.array([rest * share, rest])

    def _loss(self, arm: Arm | None, draw: Draw, views: int) -> tuple[Loss, Source | None]:
        """The loss of an arm, and made-up soft labels where its batches carry any."""
        if arm is None or arm.kind == "tl":
            return hard_loss, None
        if arm.kind == "label_smoothing":
            return label_smoothing_loss(0.1), None
        soft: Source = self._rows(views, len(draw.samples), len(self.workshop.dataset.classes))
        if arm.kind == "tl_kd_shuffled":
            soft = Shuffled(soft, draw.given, draw.keys, 0)
        return make_loss("tl_kd", arm.soft_weight, arm.temperature), soft

    def _source(self, count: int, width: int, variants: int) -> Source:
        views = len(self.workshop.views)
        clean = self._rows(views, count, width)
        return clean if not variants else Joined(clean, self._rows(variants, count, width), views)

    def _rows(self, views: int, count: int, width: int) -> Rows:
        """A made-up bank."""
        values = np.random.default_rng(0).random((views, max(1, min(count, LARGEST)), width), np.float32)
        return Rows(values, self.workshop.device)

    # --- results

    def result(self, network: Network, training: Training) -> ResultCost:
        """What a finished training leaves, by the code that predicts and publishes, on made-up features."""
        name = ["result", *_shape(network), sum(each.numel() for each in _trained(network)), training.threads]
        found: ResultCost = self._once(name, lambda: self._result(network, training, name))
        return found

    def _result(self, network: Network, training: Training, name: Sequence[Any]) -> ResultCost:
        count = len(self.workshop.labels["test"])
        rows = self._rows(1, count, network.width)
        # Past LARGEST the same features come again: the predictions are as many as they will be.
        learner = Learner(network, "student", {"test": lambda which, samples: rows(which, samples % LARGEST)},
                          network.classify)
        history = [{"epoch": epoch + 1, "learning_rate": 0.01 / (epoch + 1), "train_loss": 1 / (epoch + 3),
                    "check_loss": 1 / (epoch + 7), "check_accuracy": epoch / (epoch + 3), "seconds": 1 / (epoch + 9)}
                   for epoch in range(training.epochs)]

        def publish(number: int) -> Path:
            where = store.address("measured", 1, [name, number], {})
            return store.publish(self.scratch / where, where, {}, lambda folder: write_result(
                self.workshop, folder, learner, Fit(history), training, backbone="0" * 64)).path

        times = [_took(partial(publish, number)) for number in range(REPEATS)]
        final = publish(0)
        logits = np.random.default_rng(0).random((count, len(self.workshop.dataset.classes)), np.float32)
        metrics = [_took(lambda: evaluation.metrics(self.workshop.labels["test"], logits)) for _ in range(REPEATS)]
        return ResultCost(self._pair(times[1:]), self._pair(metrics[1:]), bytes_in(final),
                          (final / "model.safetensors").stat().st_size)


# --- what becomes of it -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """One step as the simulation sees it."""

    name: str
    needs: tuple[str, ...]
    threads: int
    seconds: float


def makespan(loads: Sequence[Load], slots: int, cores: float) -> float:
    """When the last of these steps ends: the first that may start goes first, `slots` at a time, on so many cores.

    Where the threads at work are more than the cores, all of them are slowed down alike.
    """
    waiting, over, clock = list(loads), set[str](), 0.0
    flight: dict[str, tuple[Load, float]] = {}
    there = {load.name for load in loads}
    while waiting or flight:
        ready = (load for load in waiting if all(need in over or need not in there for need in load.needs))
        for load in list(itertools.islice(ready, slots - len(flight))):
            waiting.remove(load)
            flight[load.name] = (load, load.seconds)
        if not flight:
            raise ValueError(f"{waiting[0].name!r} waits for something that never comes")
        pace = min(1.0, cores / sum(load.threads for load, _ in flight.values()))
        step = min(left for _, left in flight.values())
        clock += step / pace
        flight = {name: (load, left - step) for name, (load, left) in flight.items()}
        ended = [name for name, (_, left) in flight.items() if left <= 1e-12]
        over.update(ended)
        for name in ended:
            del flight[name]
    return clock


def resident() -> int:
    """Bytes of memory that this process holds now; its peak where the system does not tell."""
    try:
        import resource

        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ImportError, IndexError):
        return peak()


def peak() -> int:
    """The most bytes of memory that this process ever held; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def bytes_in(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _clocks() -> Seconds:
    """The clock on the wall, and what the processor has spent on this process, `[2]`."""
    return np.array([time.perf_counter(), time.process_time()])


def _took(do: Callable[[], Any]) -> Seconds:
    """What it takes on the wall and of the processor, `[2]`."""
    started = _clocks()
    do()
    return _clocks() - started


def _settled(took: Callable[[int], Seconds], most: int) -> list[Seconds]:
    """What one of many takes, in batches of a size that fits the budget; the first tries are slow, and do not count."""
    took(2)
    size = _size(float(took(2).min()), most)
    size = _size(float(took(size).min()), most)
    return [took(size) for _ in range(REPEATS - 1)]


def _size(row: float, most: int) -> int:
    """How many samples fit into the budget, two at least."""
    return int(min(max(BUDGET / max(row, 1e-9), 2), most))


def _first(draw: Draw, count: int) -> Draw:
    """The first samples of a draw alone, as if the split held no others."""
    numbers = np.arange(min(count, len(draw.samples)), dtype=np.int64)
    return replace(draw, samples=numbers, keys=draw.keys[:count], given=draw.given[:count])


def _shape(network: Network) -> list[Any]:
    """What of a network decides how long it takes."""
    return [network.name, network.input_size, len(network.live), len(_trained(network))]


def _trained(network: Network) -> list[Tensor]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
