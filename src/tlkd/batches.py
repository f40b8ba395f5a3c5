"""Where a batch comes from: a bank's rows, an image set's views, or a network run live.

A source answers "sample s in view v" for whole batches; training cannot tell a banked one from a live one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlkd import corruptions, seeding
from tlkd import views as view_module
from tlkd.conditions import Distortion
from tlkd.views import View

Indices = NDArray[np.int64]
Source = Callable[[Indices, Indices], Tensor]
"""(numbers of views `[sample]`, numbers of samples in their split `[sample]`) -> a tensor `[sample, ...]`."""


class Rows:
    """Rows of a bank, `[view, sample, width]`, gathered onto a device."""

    RESIDENT = 2 * 2**30  # bytes: a bank up to this size is held on an accelerator whole

    def __init__(self, bank: NDArray[np.float32], device: torch.device) -> None:
        self.samples = bank.shape[1]
        self.device = device
        table = torch.from_numpy(bank).view(-1, bank.shape[2])
        self.table = table.to(device) if bank.nbytes <= self.RESIDENT else table

    def __call__(self, which: Indices, samples: Indices) -> Tensor:
        """Rows `[sample, width]`."""
        rows = torch.from_numpy(which * self.samples + samples).to(self.table.device)
        return self.table.index_select(0, rows).to(self.device, non_blocking=True)


@dataclass(frozen=True)
class Pixels:
    """Views of the images of one split, ready for one network."""

    images: NDArray[np.uint8]  # [image, side, side, 3], memory-mapped
    rows: Indices  # [sample]: where the split's samples stand in `images`
    keys: NDArray[np.uint64]  # [sample]
    views: tuple[View, ...]
    size: int
    data_seed: int
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    device: torch.device
    distortion: Distortion | None = None  # what a view's variant does

    def __call__(self, which: Indices, samples: Indices) -> Tensor:
        """Network input `[sample, 3, size, size]`."""
        images = torch.from_numpy(np.ascontiguousarray(self.images[self.rows[samples]])).to(self.device)
        keys = self.keys[samples]
        variants = np.array([view.variant for view in self.views], np.int64)[which]
        for variant, chosen, rows in self._distorted(variants):
            images[rows] = corruptions.on_images(chosen, images[rows], keys[variants == variant], variant,
                                                 self.data_seed)
        inputs = view_module.render(images, keys, self.views, which, self.size, self.data_seed, self.mean, self.sd)
        for variant, chosen, rows in self._distorted(variants):
            inputs[rows] = corruptions.on_input(chosen, inputs[rows], keys[variants == variant], variant,
                                                self.data_seed, self.mean, self.sd)
        return inputs

    def _distorted(self, variants: Indices) -> Iterator[tuple[int, Distortion, Tensor]]:
        """Each variant that is among those of a batch, and the rows `[row]` that have it."""
        if self.distortion is None:
            return
        for variant in np.unique(variants[variants > 0]).tolist():
            rows = np.flatnonzero(variants == variant)
            yield variant, self.distortion, torch.from_numpy(rows).to(self.device)


@dataclass(frozen=True)
class Joined:
    """Two sources as one: the first gives the views up to number `first`, the other those from there on."""

    clean: Source
    corrupted: Source
    first: int

    def __call__(self, which: Indices, samples: Indices) -> Tensor:
        """What the sources give, `[sample, ...]`."""
        later = which >= self.first
        if not later.any():
            return self.clean(which, samples)
        if later.all():
            return self.corrupted(which - self.first, samples)
        parts = self.clean(which[~later], samples[~later]), self.corrupted(which[later] - self.first, samples[later])
        order = torch.from_numpy(np.argsort(np.concatenate([np.flatnonzero(~later), np.flatnonzero(later)])))
        return torch.cat(parts).index_select(0, order.to(parts[0].device))


@dataclass(frozen=True)
class CleanView:
    """A source that is asked for the uncorrupted view of whatever is asked: what a teacher says of the clean image."""

    source: Source
    views: int

    def __call__(self, which: Indices, samples: Indices) -> Tensor:
        """What the source gives of the same geometry, `[sample, ...]`."""
        return self.source(which % self.views, samples)


@dataclass(frozen=True)
class Shuffled:
    """Soft labels whose classes, but for the label's own, change places: confidence kept, likeness of classes lost.

    Each sample has one order of the other classes, a function of its key and the seed, in all views and epochs.
    """

    source: Source
    labels: Indices  # [sample]
    keys: NDArray[np.uint64]  # [sample]
    seed: int

    def __call__(self, which: Indices, samples: Indices) -> Tensor:
        """Soft labels `[sample, class]`."""
        logits = self.source(which, samples)
        classes = logits.shape[1]
        places = np.argsort(seeding.uniforms(self.keys[samples], classes, "shuffled", self.seed), axis=1)
        own = self.labels[samples][:, None]
        others = places[places != own].reshape(len(samples), classes - 1)
        taken = np.empty_like(places)
        column = np.arange(classes)[None, :]
        taken[column != own] = others.ravel()
        taken[np.arange(len(samples)), own[:, 0]] = own[:, 0]
        return logits.gather(1, torch.from_numpy(taken).to(logits.device))


@dataclass(frozen=True)
class Live:
    """A frozen network run on each batch anew: what a bank saves."""

    forward: Callable[[Tensor], Tensor]
    pixels: Pixels

    def __call__(self, which: Indices, samples: Indices) -> Tensor:
        """What the network gives, `[sample, width]`."""
        with torch.no_grad():
            return self.forward(self.pixels(which, samples))


def chunks(count: int, size: int) -> Iterator[Indices]:
    """The numbers 0 to `count` in order, `size` at a time."""
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count), dtype=np.int64)


def predict(forward: Callable[[Tensor], Tensor], source: Source, count: int, batch_size: int = 256,
            view: int = 0) -> NDArray[np.float32]:
    """What `forward` gives for all samples of a split in one view, float32 `[sample, width]`."""
    with torch.inference_mode():
        outputs = [forward(source(np.full_like(samples, view), samples)).float().cpu()
                   for samples in chunks(count, batch_size)]
    return torch.cat(outputs).numpy()
