"""What a tracker is told of a study, and what it must be able to do; MLflow and Weights & Biases are two of them.

A tracker is brought up to what the study's folder holds, again and again, and knows what it has logged already. So it
may come late, fail in between, or go on in another process.
"""

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from tlkd import store
from tlkd.underway import Curve

MEMORY = "tracking.json"


@dataclass(frozen=True)
class Subject:
    """The study itself: the parent of all trainings. `params` (flat) never change, `tags` may; seconds since 1970."""

    name: str
    folder: Path
    began: float
    params: Mapping[str, Any]
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Entry:
    """One training as it stands: a run, or a teacher's fit; `metrics` once it is done, `why` where it failed."""

    name: str
    kind: str  # run, teacher
    state: str  # running, done, failed
    address: str  # of what it makes, as far as it is known
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    curve: Curve
    metrics: Mapping[str, float]
    began: float
    ended: float
    why: str = ""


@dataclass(frozen=True)
class Ending:
    """How a start of the study ended, and what it leaves; `fingerprint` tells whether the results are new."""

    state: str  # done, failed, stopped
    ended: float
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    note: str
    fingerprint: str


class Tracker(Protocol):
    """Something that keeps and shows what was trained. Whatever it raises is told to the person in one line."""

    def open(self, subject: Subject) -> None:
        """Connect, and go on with what an earlier process has begun. May be called again after a failure."""
        ...

    def log(self, entry: Entry) -> None:
        """Log what is new of a training."""
        ...

    def close(self, ending: Ending) -> list[str]:
        """Log how it ended, what is still in training as stopped, figures, tables and report; say how to look at it."""
        ...


def lock(folder: Path, name: str, timeout: float) -> FileLock:
    """A lock among the processes that track the study in a folder, which waits so many seconds."""
    (folder / ".locks").mkdir(exist_ok=True)
    return FileLock(folder / ".locks" / f"{name}.lock", timeout=timeout)


class Memory:
    """What a tracker must know again in another process, in `tracking.json`: one mapping for each place it logs to."""

    def __init__(self, folder: Path, place: str) -> None:
        self._path, self._place = folder / MEMORY, place
        self._lock = lock(folder, MEMORY, 10)

    def read(self) -> dict[str, Any]:
        """All that is remembered of this place; empty where nothing is, or the file is damaged."""
        return dict(self._all().get(self._place, {}))

    def write(self, **values: Any) -> None:
        """Remember these values beside the others."""
        with self._lock:
            known = self._all()
            known[self._place] = {**known.get(self._place, {}), **values}
            store.write_json(self._path, known)

    def identity(self) -> str:
        """A name for this folder that no other has, made up once."""
        known = self.read().get("identity")
        if not isinstance(known, str):
            known = uuid.uuid4().hex[:12]
            self.write(identity=known)
        return known

    def _all(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._path.read_text()).items())
        except (OSError, ValueError, AttributeError):
            return {}


def masked(text: str) -> str:
    """A text without the passwords of the addresses in it."""
    return re.sub(r"(://[^/@:\s]*):[^@/\s]*@", r"\1:***@", text)
