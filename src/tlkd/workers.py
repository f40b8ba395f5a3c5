"""Worker processes on this machine: jobs carried out beside each other, where the death of a worker costs one job.

They are our own and not a library's pool. In pebble 5.2 a worker that leaves by `exit(0)` is never missed, so that its
job hangs; one that is killed between two jobs breaks the whole pool; and all workers share one locked pipe. Here each
has a pipe of its own, and a thread that waits.
"""

import faulthandler
import glob
import multiprocessing
import os
import pickle
import platform
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from tlkd import progress
from tlkd.engine import Job, Outcome, Work, draft_path, log_path, logged, unpickle
from tlkd.errors import BadInput

BEGUN = b"begun"  # a worker's first answer: the job is in its hands
LAST_WORDS = 5.0  # seconds that an idle worker has to end by itself


# --- seen from the driver ---------------------------------------------------------------------------------------------


class Local:
    """`jobs` worker processes on this machine, started when they are first needed.

    The death of a worker fails its job alone: the next job gets a fresh one. What a job prints is kept in `log_folder`
    if it fails. Each worker sees one of `devices`, in turn, as CUDA_VISIBLE_DEVICES; by default these are the GPUs that
    this process sees, where there are several. A script needs `if __name__ == "__main__":` around this only where the
    work, or something in the context, is defined in the script itself.
    """

    def __init__(self, work: Work, context: Any, jobs: int, log_folder: Path,
                 devices: Sequence[str] | None = None) -> None:
        self.slots = jobs
        _sweep(log_folder)
        names = list(_gpus() if devices is None else devices)
        packed = pickle.dumps(work), pickle.dumps(context)
        setting = _Setting(*packed, log_folder.absolute(), list(sys.path), os.getpid(),
                           progress.console().is_terminal, scripted=any(b"__main__" in each for each in packed))
        self._lock = threading.Lock()  # one process is started, or looked at, at a time
        self._closing = threading.Event()
        self._idle = [_Worker(setting, names[number % len(names)] if len(names) > 1 else None, self._lock,
                              self._closing) for number in reversed(range(jobs))]
        self._workers = list(self._idle)
        self._threads = ThreadPoolExecutor(jobs, thread_name_prefix="tlkd-worker")

    def submit(self, job: Job) -> Future[Outcome]:
        """Hand the job to the next free worker."""
        return self._threads.submit(self._do, job.name)

    def _do(self, job: str) -> Outcome:
        worker = self._idle.pop()  # there are as many as threads; the last one back has the warmest cache
        try:
            return worker.do(job)
        finally:
            self._idle.append(worker)

    def close(self, *, now: bool = False) -> None:
        """End all workers: when their jobs are over, or at once."""
        if now:
            with self._lock:
                self._closing.set()
                for worker in self._workers:
                    worker.kill()
        self._threads.shutdown(cancel_futures=now)
        with self._lock:
            for worker in self._workers:
                worker.dismiss()


def _sweep(folder: Path) -> None:
    """Remove the drafts that killed processes of this machine left; those of other machines may be alive."""
    for draft in folder.glob(f".*.{glob.escape(platform.node())}-*.log"):
        process = draft.stem.rpartition("-")[2]
        if process.isdigit():
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                draft.unlink(missing_ok=True)
            except PermissionError:
                pass


@dataclass(frozen=True)
class _Setting:
    """What a worker is told when it starts; work and context are unpickled only when it is quiet and has its GPU."""

    work: bytes
    context: bytes
    log_folder: Path
    path: list[str]
    driver: int
    bars: bool
    scripted: bool  # work or context are defined in the script that this process runs


@contextmanager
def _without_script(needed: bool) -> Iterator[None]:
    """Keep a process that starts meanwhile from running this process's own script again, unless the work is in there.

    multiprocessing has every child import the parent's main module, unless that is a package's `__main__`. A script
    that runs a study would run it again in each worker, where it is not behind `if __name__ == "__main__":`.
    """
    script = sys.modules["__main__"]
    before = getattr(script, "__spec__", None)
    if not needed:
        script.__spec__ = ModuleSpec("tlkd.__main__", None)
    try:
        yield
    finally:
        script.__spec__ = before


class _Worker:
    """One place for a worker process, as the driver sees it; all that touches the process itself holds the lock."""

    def __init__(self, setting: _Setting, device: str | None, lock: threading.Lock, closing: threading.Event) -> None:
        self._setting, self._device, self._lock, self._closing = setting, device, lock, closing
        self._process: SpawnProcess | None = None
        self._pipe: Connection[str, bytes]
        self._news: Connection[Any, bytes]
        self._rows = progress.Rows()

    def do(self, job: str) -> Outcome:
        """Have the process do a job, and wait; a process that dies is a failure of the job. Raises BadInput."""
        answer, began, fresh = None, False, False
        while answer is None:
            with self._lock:
                if self._closing.is_set():
                    return Outcome(job, failure="stopped")
                if self._process is None or not self._process.is_alive():
                    self._start()
                    fresh = True
            try:
                self._pipe.send(job)
                began = self._wait(job) == BEGUN
                answer = self._wait(job)
            except (EOFError, OSError):
                if began or fresh:
                    return self._bury(job)
                with self._lock:
                    self.dismiss()  # it was killed between two jobs and never saw this one
            finally:
                self._rows.clear()
        outcome: Outcome | BadInput = pickle.loads(answer)
        if isinstance(outcome, BadInput):
            raise outcome
        return replace(outcome, job=job)

    def _start(self) -> None:
        """Start a process; Ctrl-C reaches it too, and is kept from it until it ignores it."""
        self.dismiss()
        spawning = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawning.Pipe()
        self._news, speaker = spawning.Pipe(duplex=False)
        resource_tracker.ensure_running()  # by start() it would be started inside, and take the mask away
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process = spawning.Process(target=_serve, args=(theirs, speaker, self._setting, self._device), daemon=True,
                                       name="tlkd-worker")
            with _without_script(self._setting.scripted):
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
            speaker.close()
        self._process = process

    def _wait(self, job: str) -> bytes:
        """The process's next answer; what it tells meanwhile is shown. Raises EOFError or OSError where it died."""
        assert self._process is not None
        dead = False
        while not self._pipe.poll():
            if dead:
                raise EOFError
            ready = connection.wait([self._pipe, self._news, self._process.sentinel], timeout=1.0)
            self._hear(job)
            # A child of the dead process may hold its pipes open, so that nothing becomes ready. And what died may have
            # answered before.
            dead = self._process.sentinel in ready or not self._alive()
        answer = self._pipe.recv_bytes()
        self._hear(job)  # what it said before it answered
        return answer

    def _hear(self, job: str) -> None:
        with suppress(EOFError, OSError):
            while self._news.poll():
                self._rows.show(pickle.loads(self._news.recv_bytes()), job)

    def _alive(self) -> bool:
        with self._lock:
            return self._process is not None and self._process.is_alive()

    def _bury(self, job: str) -> Outcome:
        """The failure of a job whose process died, noted in its log."""
        with self._lock:
            assert self._process is not None
            self._process.kill()  # its pipe may be broken while it lives
            self._process.join()
            code, number = self._process.exitcode, self._process.pid
            self.dismiss()
        assert number is not None
        failure = f"its worker {_death(code)}"
        log = log_path(self._setting.log_folder, job)
        draft = draft_path(log, number)
        with suppress(OSError):
            if self._closing.is_set():  # we killed it: that is no failure
                draft.unlink()
                return Outcome(job, failure="stopped")
            log.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # it died before it came to its job
                draft.replace(log)
            with log.open("a") as file:
                file.write(f"{failure}\n")
        return Outcome(job, failure=failure)

    def kill(self) -> None:
        """End the process in the middle of its job."""
        if self._process is not None:
            self._process.kill()

    def dismiss(self) -> None:
        """End a process that has no job: it leaves when its pipe is closed."""
        if self._process is None:
            return
        self._pipe.close()
        self._process.join(LAST_WORDS)
        self._process.kill()
        self._process.join()
        self._news.close()
        self._process.close()
        self._process = None


def _death(code: int | None) -> str:
    """How a process with this exit code ended, in words."""
    if code is None or code >= 0:
        return f"ended with exit code {code} in the middle of its job"
    try:
        name = f" ({signal.Signals(-code).name})"
    except ValueError:
        name = ""
    why = ", as the kernel does where memory runs out" if -code == signal.SIGKILL else ""
    return f"was killed by signal {-code}{name}{why}"


def _gpus() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES would name each."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    if not Path("/dev/nvidiactl").exists():  # torch takes seconds to import
        return []
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


# --- seen from within -------------------------------------------------------------------------------------------------


def _serve(pipe: "Connection[bytes, str]", speaker: "Connection[bytes, Any]", setting: _Setting,
           device: str | None) -> None:
    """A worker's whole life: jobs until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what Ctrl-C means
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with, args=(setting.driver,), daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # killed, it has said all it printed
    faulthandler.enable()  # a segmentation fault says in the log where it happened
    sys.path.extend(folder for folder in setting.path if folder not in sys.path)
    os.set_blocking(speaker.fileno(), False)
    progress.relay(lambda news: _tell(speaker, news), bars=setting.bars)
    with suppress(EOFError, OSError):  # the driver closed the pipe, or is gone
        while True:
            job = pipe.recv()
            pipe.send_bytes(BEGUN)
            pipe.send_bytes(logged(_unpickled_work, setting, job, log_path(setting.log_folder, job)))


def _unpickled_work(setting: _Setting, job: str) -> Outcome:
    work, context = unpickle(setting.work, setting.context)
    return work(context, job)


def _tell(speaker: "Connection[bytes, Any]", news: progress.News) -> None:
    """Send news in one piece or not at all: a pipe that the driver does not empty must hold no worker up."""
    room = select.PIPE_BUF - 200  # what surrounds the text
    text = news.text.encode(errors="replace")[:room].decode(errors="ignore")
    with suppress(OSError):
        speaker.send_bytes(pickle.dumps(replace(news, text=text)))


def _end_with(driver: int) -> None:
    """End this process when its driver is gone; a driver that was killed cannot say so."""
    while os.getppid() == driver:
        time.sleep(0.5)
    os._exit(1)
