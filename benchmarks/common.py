"""What the benchmarks share: interleaved repeats in one process, and a row of RESULTS.md."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from tlkd import models, specs
from tlkd.batches import Pixels
from tlkd.views import View

CPU = torch.device("cpu")
IDENTITY_AND_FLIP = (View(), View(flip=True))


@dataclass(frozen=True)
class Row:
    """One benchmark: the ratios of its repeats (figures in `unit`, where it has one), and what is hoped for."""

    what: str
    ratios: list[float]
    goal: str
    note: str
    unit: str = ""

    def print(self) -> None:
        low, middle, high = min(self.ratios), statistics.median(self.ratios), max(self.ratios)
        print(f"{self.what}: median {middle:.3f} ({low:.3f} to {high:.3f}, {len(self.ratios)} repeats) {self.unit}, "
              f"goal {self.goal}. {self.note}")
        print("ROW " + json.dumps(asdict(self)), flush=True)


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(first: Callable[[], object], second: Callable[[], object], repeats: int = 9) -> list[float]:
    """Time of `second` over time of `first`, pair by pair, the order turned about each time, after one warm-up."""
    first(), second()
    ratios = []
    for repeat in range(repeats):
        if repeat % 2:
            b, a = seconds(second), seconds(first)
        else:
            a, b = seconds(first), seconds(second)
        ratios.append(b / a)
    return ratios


def network(name: str = "packaged:efficientnet_lite0", size: int = 96, trainable: str = "head") -> models.Network:
    return models.build(specs.Network(model=name, input_size=size, trainable=trainable), 10, 0)


def pixels(count: int, size: int, side: int = 32) -> Pixels:
    """CIFAR-sized images, decoded, ready for a network that wants them at `size`."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(count, side, side, 3), dtype=np.uint8)
    return Pixels(images, np.arange(count), np.arange(count, dtype=np.uint64), IDENTITY_AND_FLIP, size, 0,
                  (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), CPU)
