"""`--track`: MLflow or Weights & Biases beside a study, each in a process of its own that only the driver knows.

Workers know nothing of it, so it makes no difference how many there are, or where. A tracker never fails a run and
never holds the study up: its process is told to finish, is given a time in which it must show that it is alive, and is
killed after that.
"""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import tlkd
from tlkd import chronicle, mlflow_tracker, progress, wandb_tracker
from tlkd.errors import BadInput, missing, nearest
from tlkd.trackers import masked

PATIENCE = 60.0  # seconds without a sign of life, when nothing else is left to do, after which a tracker is given up
STOPPING = 10.0  # the same where the person wants to stop
TELL_AFTER = 3.0  # seconds of waiting for a tracker after which it is said what is waited for
ALLOWED = ("mlflow, mlflow:http://HOST:PORT, mlflow:sqlite:///PATH.db (or another database's address), wandb, "
           "wandb:offline, wandb:online")
DATABASES = r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://.+"


class Follower:
    """A tracker's process, as the driver sees it."""

    def __init__(self, name: str, where: str, folder: Path) -> None:
        self.name, self.where, self._folder = name, where, folder
        self.lines: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._heard = 0.0
        self._left = 0
        self._ended = self._failing = False

    def start(self) -> None:
        """Start the process; where that fails, say so and go on."""
        settings = mlflow_tracker if self.name == "mlflow" else wandb_tracker
        paths = [str(Path(tlkd.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**settings.DEFAULTS, "OMP_NUM_THREADS": "1", **os.environ, **settings.SETTINGS,
                       "PYTHONPATH": os.pathsep.join(paths)}
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "tlkd.chronicle", self.name, self.where, str(self._folder)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment,
                    start_new_session=True)  # Ctrl-C is the driver's
        except OSError as error:
            progress.say(f"{self.name}: cannot be started ({error.strerror}); the study goes on without it")
            return
        self._heard = time.monotonic()
        self._reader = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
        self._reader.start()

    @property
    def _log(self) -> Path:
        return self._folder / "logs" / f"{chronicle.slug(self.name, self.where)}.log"

    def _listen(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._heard = time.monotonic()
            with suppress(ValueError, AttributeError):
                said = json.loads(line)
                if "news" in said:
                    progress.say(said["news"])
                self._failing = bool(said.get("failing", self._failing))
                self._left = int(said.get("left", self._left))
                if "lines" in said:
                    self.lines, self._ended = list(said["lines"]), True

    def tell(self, order: str) -> None:
        """Tell the process how the study ended."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):  # it is gone
                self._process.stdin.write(f"{order}\n".encode())
                self._process.stdin.close()
            self._heard = time.monotonic()

    def wait(self, patience: float) -> None:
        """Wait until the process is over, as long as it shows that it is alive."""
        if self._process is None or self._reader is None:
            return
        began, said, patience = time.monotonic(), False, STOPPING if self._failing else patience
        while self._reader.is_alive():
            self._reader.join(0.1)
            now = time.monotonic()
            if now - self._heard > patience:
                self.kill()
                if not self._failing:
                    progress.say(f"{self.name}: has not answered for {patience:.0f} seconds and is left behind (its "
                                 f"log: {self._log}); the same command logs later what is missing")
                return
            if not said and not self._failing and now - began > TELL_AFTER and self._left:
                said = True
                progress.say(f"{self.name}: {self._left} trainings are still to be logged")
        self._process.wait()
        if not self._ended and not self._failing:
            progress.say(f"{self.name}: its process ended with exit code {self._process.returncode} (its log: "
                         f"{self._log}); the study went on without it")

    def kill(self) -> None:
        """End the process and all that it has started."""
        if self._process is not None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def check(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The trackers that the command line asks for: name, and where it logs to. BadInput for one that there is not."""
    return tuple(dict.fromkeys(map(_checked, names)))


def choose(checked: Sequence[tuple[str, str]], folder: Path) -> tuple[Follower, ...]:
    """A study's trackers, none of them started."""
    return tuple(Follower(name, where or f"sqlite:///{folder / 'mlflow.db'}", folder) for name, where in checked)


def _checked(option: str) -> tuple[str, str]:
    name, _, where = option.partition(":")
    if name == "mlflow" and option != "mlflow:":
        if where and not re.fullmatch(rf"https?://[^/\s]+.*|{DATABASES}", where):
            raise BadInput(f"--track: found {masked(option)!r}; allowed: {ALLOWED}")
    elif name == "wandb" and option in ("wandb", "wandb:offline", "wandb:online"):
        where = where or _wandb_mode()
    else:
        near = "" if name in chronicle.TRACKERS else nearest(name, list(chronicle.TRACKERS))
        raise BadInput(f"--track: found {masked(option)!r}{near}; allowed: {ALLOWED}")
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # a folder called `wandb`, as it makes them, is no package
        raise missing(f"--track {name}", name)
    return name, where


def _wandb_mode() -> str:
    mode = os.environ.get("WANDB_MODE") or "offline"
    if mode not in wandb_tracker.MODES:
        raise BadInput(f"WANDB_MODE: found {mode!r}; allowed: {', '.join(wandb_tracker.MODES)}")
    return mode


def start(followers: Sequence[Follower]) -> None:
    """Start all trackers: the study's folder is there."""
    for follower in followers:
        follower.start()


@contextmanager
def following(followers: Sequence[Follower]) -> Iterator[None]:
    """Around a study and its report: at the end its trackers finish, and are stopped where it was stopped."""
    try:
        yield
    except BaseException:
        end(followers, chronicle.STOP, STOPPING)
        raise
    end(followers, chronicle.FINISH, PATIENCE)


def end(followers: Sequence[Follower], order: str, patience: float) -> None:
    """Tell all trackers how it ended, and wait for each."""
    try:
        for follower in followers:
            follower.tell(order)
        for follower in followers:
            follower.wait(patience)
    except BaseException:  # Ctrl-C, while they were waited for
        for follower in followers:
            follower.kill()
        raise
