"""Banks: what a frozen network gives for every view of every sample, computed once and memory-mapped."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlkd import progress, store
from tlkd.batches import Pixels, Source, chunks
from tlkd.errors import BadInput

VERSION = 2
BATCH = {"cpu": 64, "cuda": 512}


@dataclass(frozen=True)
class Bank:
    """A published bank."""

    artifact: store.Artifact

    @cached_property
    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """`[view, sample, width]` of each split, memory-mapped: train in all views, dev and test in the identity.

        Raises `BadInput` where a file is none that `build` made, though its checksum is right.
        """
        return {path.stem: mapped(path) for path in sorted(self.artifact.path.glob("*.npy"))}


def mapped(path: Path) -> NDArray[np.float32]:
    """An array of a bank, memory-mapped. Raises `BadInput` where it is none."""
    try:
        # Copy-on-write rather than read-only, since torch warns of arrays that it could write to and must not.
        array: NDArray[np.float32] = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, OverflowError, EOFError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); remove its folder, and it is made anew") from None
    return array


def cached(cache: Path, kind: str, made_from: Mapping[str, Any], inputs: Mapping[str, str]) -> Bank | None:
    """The bank if it lies in the cache, whole."""
    where = store.address(kind, VERSION, dict(made_from), inputs)
    artifact = store.find(cache / kind / where, where)
    return None if artifact is None else Bank(artifact)


def build(cache: Path, kind: str, made_from: Mapping[str, Any], inputs: Mapping[str, str], width: int,
          sources: Mapping[str, tuple[Source, int, int]], forward: Callable[[Tensor], Tensor], what: str,
          threads: int = 0) -> Bank:
    """The bank of `forward` over `sources`, out of the cache or made now, by as many threads (0: as torch has).

    `sources` gives for each split (source, number of views, number of samples); `what` is the progress bar's text.
    Raw outputs are kept in float32: logits, not probabilities, so that the temperature stays free.
    """
    def fill(folder: Path) -> dict[str, Any]:
        started = time.perf_counter()
        for split, (source, views, count) in sources.items():
            array = store.allocate(folder / f"{split}.npy", (views, count, width), np.float32)
            write(array, source, forward, f"{what} ({split})", threads)
            array.flush()
        return {"splits": {split: [views, count, width] for split, (_, views, count) in sources.items()},
                "torch": torch.__version__,
                "seconds": round(time.perf_counter() - started, 3)}

    return Bank(store.get(cache, kind, VERSION, dict(made_from), inputs, fill))


def write(array: NDArray[np.float32], source: Source, forward: Callable[[Tensor], Tensor], what: str,
          threads: int = 0, batch: int = 0) -> None:
    """Fill a bank's array, `[view, sample, width]`, batch by batch (of `batch` samples; 0: as many as are quick).

    On the CPU each batch is computed by one thread and several batches at a time: so the last bits of a bank do not
    depend on the number of threads, nor on how many processes share the machine.
    """
    views, count, _ = array.shape
    cuda = isinstance(source, Pixels) and source.device.type == "cuda"
    size = batch or BATCH["cuda" if cuda else "cpu"]
    steps = [(view, samples) for view in range(views) for samples in chunks(count, size)]

    def fill(step: tuple[int, NDArray[np.int64]]) -> None:
        view, samples = step
        with torch.inference_mode():
            output = forward(source(np.full_like(samples, view), samples))
            array[view, samples[0]:samples[-1] + 1] = output.float().cpu().numpy()

    if cuda:
        for step in progress.track(steps, what, len(steps)):
            fill(step)
        return
    before = torch.get_num_threads()
    with ThreadPoolExecutor(threads or before, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for _ in progress.track(pool.map(fill, steps), what, len(steps)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(before)
