"""The curves of a study's trainings, finished or under way, read from its folder alone and cheaply over and over.

A finished run has its `history.csv`; one in training has the checkpoint that is replaced after every epoch. A file is
read again only when it has changed, and one that goes away meanwhile is no error: the next look finds what took its
place.
"""

import csv
import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tlkd.folder import Run, StudyFolder, TeacherFit

Read = TypeVar("Read")
LONGEST_HEADER = 100 * 2**20  # bytes: safetensors' own limit


@dataclass(frozen=True)
class Curve:
    """A training epoch by epoch, as far as it has got; `ended` is when its last epoch was over, in seconds since 1970.

    Each epoch is a row of `history.csv`: epoch, learning_rate, train_loss, dev_loss, dev_accuracy, seconds.
    """

    epochs: tuple[Mapping[str, float], ...] = ()
    ended: float = 0.0
    address: str = ""  # of the run that is being made; a finished one's stands in its manifest

    def values(self, name: str) -> list[float]:
        """One column, without the epochs that lack it."""
        return [row[name] for row in self.epochs if name in row and math.isfinite(row[name])]

    def times(self) -> list[float]:
        """When each epoch was over, in seconds since 1970, as their own seconds tell."""
        times, time = [], self.ended
        for row in reversed(self.epochs):
            times.append(time)
            time -= row.get("seconds", 0.0)
        return times[::-1]

    @property
    def began(self) -> float:
        """When the first epoch began, in seconds since 1970."""
        return self.ended - sum(self.values("seconds"))


NOTHING = Curve()


class Files:
    """Small files read once, and again when they have changed; what cannot be read counts as not there."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int, int], Any]] = {}

    def read(self, path: Path, reader: Callable[[Path], Read]) -> Read | None:
        """What `reader` makes of the file; None where there is none, or none that is whole."""
        try:
            found = path.stat()
        except OSError:
            self._known.pop(path, None)
            return None
        state = (found.st_mtime_ns, found.st_size, found.st_ino)
        known = self._known.get(path)
        if known is None or known[0] != state:
            value = None
            with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error):
                value = reader(path)
            known = self._known[path] = (state, value)
        found_before: Read | None = known[1]
        return found_before


class Trainings:
    """The curves and results of a study's trainings, each file read when it has changed."""

    def __init__(self) -> None:
        self.files = Files()

    def of_run(self, folder: StudyFolder, run: Run) -> Curve:
        """A run's curve: whole where it is finished, so far where it is in training, empty before its first epoch."""
        finished = self._finished(folder.run_path(run))
        return finished if finished is not None else self.in_training(folder, run)

    def in_training(self, folder: StudyFolder, run: Run) -> Curve:
        """The curve of a run that is not finished, as its checkpoint has it."""
        with suppress(OSError):
            for path in sorted(folder.work_path(run).glob("*/checkpoint.safetensors")):
                curve = self.files.read(path, checkpointed)
                if curve is not None:
                    return curve
        return NOTHING

    def of_teacher(self, folder: StudyFolder, fit: TeacherFit) -> Curve:
        """A finished teacher's curve; while it is fitted, its checkpoint lies in the cache and not in the folder."""
        return self._finished(folder.teacher_path(fit)) or NOTHING

    def _finished(self, path: Path) -> Curve | None:
        return self.files.read(path / "history.csv", _history)

    def result(self, path: Path) -> Mapping[str, Any]:
        """The `result.json` in a finished run's or teacher's folder; empty where it cannot be read."""
        return self.files.read(path / "result.json", mapping) or {}

    def ended(self, path: Path) -> float:
        """When a run's or teacher's folder was finished, in seconds since 1970; 0 where it is not."""
        try:
            return (path / "result.json").stat().st_mtime
        except OSError:
            return 0.0


def checkpointed(path: Path) -> Curve:
    """The curve in a checkpoint, whose header alone is read. Raises ValueError and others where it is not whole."""
    with path.open("rb") as file:  # replaced meanwhile, what is open stays as it was
        ended = os.fstat(file.fileno()).st_mtime
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= LONGEST_HEADER:
            raise ValueError(f"{path}: no safetensors file")
        header = json.loads(file.read(length))
    rows = json.loads(header["__metadata__"]["rest"])["history"]
    return Curve(tuple(_numbers(row) for row in rows), ended, path.parent.name)


def mapping(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping. Raises ValueError and others where it does not."""
    return dict(json.loads(path.read_text()).items())


def _history(path: Path) -> Curve:
    with path.open(newline="") as file:
        return Curve(tuple(_numbers(row) for row in csv.DictReader(file)), path.stat().st_mtime)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if value not in ("", None)}
