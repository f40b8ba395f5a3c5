"""Jobs in the order that their needs allow, whoever carries them out: this process, `workers` or `ray_engine`.

It knows nothing of studies: a job is a name, and one function that can be imported does them all.
"""

import ctypes
import hashlib
import os
import pickle
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Protocol

from tlkd import progress
from tlkd.errors import BadInput, RunFailed, memory_trouble
from tlkd.store import guard_disk

BACK_OFF = 0.5  # seconds until a job that another process was busy with is tried again


@dataclass(frozen=True)
class Job:
    """A piece of work: the jobs named in `needs` are over before it starts, whether or not they went well."""

    name: str
    needs: tuple[str, ...] = ()
    threads: int = 1


@dataclass(frozen=True)
class Outcome:
    """How a job ended: a small value that can be pickled, or one line of failure; `busy`: another process is at it."""

    job: str
    value: Any = None
    failure: str = ""
    busy: bool = False


Work = Callable[[Any, str], Outcome]
"""Does the job of this name. Importable by name; what it is given, the context, is small and can be pickled."""


class Executor(Protocol):
    """Where jobs are done: `slots` of them at once."""

    slots: int

    def submit(self, job: Job) -> Future[Outcome]:
        """Start a job; the future raises what `Work` may raise, which is BadInput alone."""
        ...

    def close(self, *, now: bool = False) -> None:
        """Let go of the workers: after the jobs in flight, or `now`, in the middle of them."""
        ...


def run_all(jobs: Sequence[Job], executor: Executor, on_outcome: Callable[[Outcome], None]) -> None:
    """Do all jobs, the first of those that may start first, and report each when it is over.

    Other processes may work in the same folder: a job that one of them is busy with goes behind the others and is tried
    again. The executor is left open, unless this ends by an exception: BadInput out of a job or KeyboardInterrupt stops
    what is in flight and is raised again. Raises ValueError for a name given twice, and for unknown or cyclic needs.
    """
    _check(jobs)
    waiting, over = list(jobs), set[str]()
    flight: dict[Future[Outcome], Job] = {}
    resting: dict[str, float] = {}
    try:
        with progress.bar("jobs", len(jobs)) as advance:
            while waiting or flight:
                now = time.monotonic()
                ready = [job for job in waiting if over.issuperset(job.needs) and resting.get(job.name, now) <= now]
                for job in ready[:executor.slots - len(flight)]:
                    waiting.remove(job)
                    flight[executor.submit(job)] = job
                until = min((resting[job.name] for job in waiting if resting.get(job.name, now) > now), default=None)
                pause = None if until is None else max(0.0, until - time.monotonic())
                if not flight:
                    time.sleep(pause or 0.0)
                done, _ = wait(flight, pause, FIRST_COMPLETED)
                for future in [future for future in flight if future in done]:
                    job = flight.pop(future)
                    outcome = _outcome(job, future)
                    if outcome.busy:
                        resting[job.name] = time.monotonic() + BACK_OFF
                        waiting.append(job)
                    else:
                        over.add(job.name)
                        on_outcome(outcome)
                        advance()
    except BaseException:
        executor.close(now=True)
        raise


def _check(jobs: Sequence[Job]) -> None:
    """Raise ValueError unless the jobs can be put in an order."""
    graph: dict[str, tuple[str, ...]] = {}
    for job in jobs:
        if job.name in graph:
            raise ValueError(f"two jobs are called {job.name!r}")
        graph[job.name] = job.needs
    for job in jobs:
        for need in job.needs:
            if need not in graph:
                raise ValueError(f"{job.name!r} needs {need!r}, and no job is called so")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise ValueError(f"these jobs need each other: {', '.join(map(repr, error.args[1]))}") from None


def _outcome(job: Job, future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except BadInput:
        raise
    except Exception as error:  # of the executor itself: a cluster that lost this job for good, say
        return Outcome(job.name, failure=failure_line(error))


# --- one job ----------------------------------------------------------------------------------------------------------


def failure_line(error: BaseException) -> str:
    """What went wrong, on one line."""
    short = memory_trouble(error)
    if short is not None:
        return short
    said = " ".join(str(error).split())
    return said if isinstance(error, RunFailed) else f"{type(error).__name__}: {said}" if said else type(error).__name__


def attempt(work: Work, context: Any, job: str) -> tuple[Outcome, str]:
    """Do one job in this process: how it ended, and the traceback where it raised. Raises BadInput."""
    try:
        return work(context, job), ""
    except (Exception, SystemExit) as error:
        if isinstance(error, BadInput) and memory_trouble(error) is None:
            raise  # a full disk, say: nothing after this would fare better
        return Outcome(job, failure=failure_line(error)), traceback.format_exc()


def logged(work: Work, context: Any, job: str, log: Path) -> bytes:
    """Do one job as a worker does: the pickled Outcome or BadInput; what it printed becomes `log` if it failed."""
    draft = draft_path(log, os.getpid())  # a driver beside ours, busy with this job, may be writing the same log
    try:
        with captured(draft):
            outcome, trace = attempt(work, context, job)
            try:
                answer = pickle.dumps(outcome)
            except Exception as error:
                outcome = Outcome(job, failure=f"its value cannot be sent to the driver: {failure_line(error)}")
                answer, trace = pickle.dumps(outcome), traceback.format_exc()
            with suppress(OSError):  # the disk may be full
                sys.stderr.write(trace)
        with suppress(OSError):
            if outcome.failure:
                draft.replace(log)
            elif not outcome.busy:
                log.unlink()  # of an earlier start
        return answer
    except BadInput as error:
        return pickle.dumps(BadInput(str(error)))
    finally:
        with suppress(OSError):
            draft.unlink()


def log_path(folder: Path, job: str) -> Path:
    """Where the log of a failed job lies: the job's name, as far as it makes a file's name."""
    slug = re.sub(r"[^\w.=-]+", "-", job).strip("-.")[:120]
    if slug != job.replace(" ", "-"):  # a name that lost something to the slug must not meet another's
        slug += "-" + hashlib.sha256(job.encode()).hexdigest()[:8]
    return folder / f"{slug}.log"


def draft_path(log: Path, process: int) -> Path:
    """Where a process of this machine writes the log of the job that it is doing."""
    return log.with_name(f".{log.stem}.{platform.node()}-{process}.log")


@contextmanager
def captured(path: Path) -> Iterator[None]:
    """All that this process prints meanwhile, native libraries included, goes into the file `path`."""
    with guard_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    _flush()
    streams = [(number, os.dup(number)) for number in (1, 2)]
    for number, _ in streams:
        os.dup2(log, number)
    os.close(log)
    try:
        yield
    finally:
        _flush()
        for number, before in streams:
            os.dup2(before, number)
            os.close(before)


def _flush() -> None:
    """Empty the buffers of Python and of C, so that every line lands in the file that is open now."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # a full disk, a closed stream, none at all
            stream.flush()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)


@cache
def unpickle(work: bytes, context: bytes) -> tuple[Work, Any]:
    """The same objects for every job of this process: what is built from them may be kept by them."""
    return pickle.loads(work), pickle.loads(context)


# --- in this process --------------------------------------------------------------------------------------------------


class Inline:
    """One job at a time in this process; with a log folder, a failed job leaves its traceback there."""

    def __init__(self, work: Work, context: Any, log_folder: Path | None = None) -> None:
        self.slots = 1
        self._work, self._context, self._logs = work, context, log_folder

    def submit(self, job: Job) -> Future[Outcome]:
        """Do the job at once."""
        future: Future[Outcome] = Future()
        try:
            outcome, trace = attempt(self._work, self._context, job.name)
        except BadInput as error:
            future.set_exception(error)
            return future
        if self._logs is not None:
            log = log_path(self._logs, job.name)
            if not outcome.busy:
                log.unlink(missing_ok=True)
            if outcome.failure:
                with guard_disk(self._logs):
                    self._logs.mkdir(parents=True, exist_ok=True)
                    log.write_text(trace or f"{outcome.failure}\n")
        future.set_result(outcome)
        return future

    def close(self, *, now: bool = False) -> None:
        """There is nothing to let go of."""
