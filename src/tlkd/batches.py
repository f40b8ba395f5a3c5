"""Where a batch comes from: a bank's rows, an image set's views, or a network run live.

A source answers "sample s in view v" for whole batches; training cannot tell a banked one from a live one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlkd import views as view_module
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

    def __call__(self, which: Indices, samples: Indices) -> Tensor:
        """Network input `[sample, 3, size, size]`."""
        images = torch.from_numpy(np.ascontiguousarray(self.images[self.rows[samples]]))
        return view_module.render(images.to(self.device), self.keys[samples], self.views, which, self.size,
                                  self.data_seed, self.mean, self.sd)


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


def predict(forward: Callable[[Tensor], Tensor], source: Source, count: int,
            batch_size: int = 256) -> NDArray[np.float32]:
    """What `forward` gives for all samples of a split in its first view, float32 `[sample, width]`."""
    with torch.inference_mode():
        outputs = [forward(source(np.zeros_like(samples), samples)).float().cpu()
                   for samples in chunks(count, batch_size)]
    return torch.cat(outputs).numpy()
