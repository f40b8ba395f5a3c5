"""Kill `tlkd run` again and again, at random moments and in five ways, and hold what comes out to unbroken studies.

Five small studies, each with two workers: digits; conditions and controls; networks trained whole, which go on from
checkpoints; explanations; robustness. What is killed is drawn each time: all processes, the driver alone, one worker
alone (SIGKILL), or a signal that asks to stop (SIGTERM to the driver, SIGINT to all, as Ctrl-C does). A study that
finishes before its kills are used up is begun anew in another folder. What must hold:

- a worker's death costs its step and no more; workers end by themselves where their driver is gone;
- what was finished is never made again, no epoch of a checkpoint is trained twice;
- the end equals an unbroken study: weights, predictions, curves, attributions, tables;
- afterwards there is no process, no temporary file or folder, no unfinished work, and no lock that is held.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from filelock import FileLock, Timeout

import common
from studies import command, contents, differences
from tlkd.underway import checkpointed

NETWORKS = {"student": {"model": "packaged:efficientnet_lite0", "input_size": 32},
            "teachers": {"lite1": {"model": "packaged:efficientnet_lite1", "input_size": 32}},
            "arms": [{"name": "tl", "kind": "tl"}, {"name": "tl_kd", "kind": "tl_kd", "teacher": "lite1"}]}
SCENES = {"source": "shapes", "shapes": {"size": 32, "train_per_class": 10, "test_per_class": 4}, "dev_fraction": 0.2,
          "augment": []}
STUDIES: dict[str, dict[str, Any]] = {
    "digits": {**NETWORKS, "data": {"source": "mnist5k", "train_per_class": 40, "test_per_class": 20, "augment": []},
               "training": {"epochs": 30}, "seeds": [0, 1, 2, 3]},
    "difficulties": {**NETWORKS, "data": SCENES, "arms": [
        *NETWORKS["arms"], {"name": "smooth", "kind": "label_smoothing", "teacher": "lite1"},
        {"name": "own", "kind": "self"}], "conditions": [
            {"name": "clean"}, {"name": "half", "train_fraction": 0.5},
            {"name": "black", "corruption": {"kind": "center_black"}}], "training": {"epochs": 10}, "seeds": [0]},
    "whole networks": {**NETWORKS, "data": SCENES, "student": {**NETWORKS["student"], "trainable": "all"},
                       "training": {"epochs": 12, "batch_size": 16}, "seeds": [0]},
    "explanations": {**NETWORKS, "data": {**SCENES, "masks": "exact"}, "training": {"epochs": 10}, "seeds": [0],
                     "explanation": {"images": 1, "explainer": "grad_cam"}},
    "robustness": {**NETWORKS, "data": SCENES, "training": {"epochs": 10}, "seeds": [0, 1],
                   "robustness": [{"kind": "center_black", "sizes": [0.25, 0.5]}]},
}
KILLS = {"digits": 25, "difficulties": 25, "whole networks": 25, "explanations": 10, "robustness": 15}
WAYS = {"all processes": 4, "the driver alone": 2, "one worker": 2, "SIGTERM, the driver": 1, "Ctrl-C": 1}
KILLING = ("all processes", "the driver alone", "one worker")
BLIND, WRITING = 0.25, 0.35  # of the kills come at any time at all; at the moment when something is written
LONGEST = 0.25  # of the time that the study takes in peace: until a kill that comes at any time, at most
TO_LEAVE = 5.0  # seconds that workers have to notice that their driver is gone
TO_STOP = 60.0  # seconds that a study has to stop when it is asked to


@dataclass
class Kept:
    """What a study has finished, and what its checkpoints hold, as it was seen last: none of it may be made again."""

    finished: dict[str, tuple[int, int]] = field(default_factory=dict)
    epochs: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by run: the seconds of each epoch, as it has it

    def look(self, root: Path) -> list[str]:
        """Look again: what was made again since the last look, one line each."""
        now = {str(path.parent.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns)
               for path in root.glob("**/manifest.json") if ".tmp-" not in str(path)}
        again = [f"{name} was finished and was made again" for name, mark in self.finished.items()
                 if now.get(name) != mark]
        self.finished = now
        for path in (root / "out" / ".work").glob("*/*/checkpoint.safetensors"):
            seconds = tuple(str(row["seconds"]) for row in checkpointed(path).epochs)
            again += self._repeated(path.parent.parent.name, seconds)
            self.epochs[path.parent.parent.name] = seconds
        return again

    def look_at_end(self, out: Path) -> list[str]:
        """The runs whose history does not begin with the epochs that a checkpoint of theirs held."""
        again = []
        for name in self.epochs:
            history = pd.read_csv(out / "runs" / name / "history.csv", dtype=str)
            again += self._repeated(name, tuple(str(float(each)) for each in history["seconds"]))
        return again

    def _repeated(self, run: str, seconds: tuple[str, ...]) -> list[str]:
        """An epoch that was trained twice did not take the same time to the last digit."""
        before = self.epochs.get(run, ())
        return [] if seconds[:len(before)] == before else [f"{run}: an epoch of its checkpoint was trained again"]


@dataclass
class Score:
    """What has been done to a study, and what was wrong with what it did then."""

    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    rounds: int = 0
    resumed: int = 0  # trainings that went on from a checkpoint
    kept: int = 0  # artifacts that were there when something was killed
    compared: int = 0
    problems: list[str] = field(default_factory=list)


def start(study: Path, root: Path) -> subprocess.Popen[bytes]:
    """Start `tlkd run` into `root/out` with two workers, a cache and temporary files of its own below `root`."""
    (root / "tmp").mkdir(parents=True, exist_ok=True)
    settings = {**os.environ, "TLKD_CACHE": str(root / "cache"), "TMPDIR": str(root / "tmp")}
    with (root / "said").open("wb") as said:
        return subprocess.Popen(command(str(study), root / "out", "--jobs", "2"), env=settings, stdout=said,
                                stderr=said, start_new_session=True)


def processes(root: Path) -> list[int]:
    """The processes that a study under `root` has started: those that have its cache in their environment."""
    found, mark = [], f"TLKD_CACHE={root / 'cache'}\0".encode()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (path / "environ").read_bytes() and "\nState:\tZ" not in (path / "status").read_text():
                found.append(int(path.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def workers(process: subprocess.Popen[bytes], root: Path) -> list[int]:
    """The driver's workers."""
    found = []
    for number in processes(root):
        try:
            if b"spawn_main" in Path(f"/proc/{number}/cmdline").read_bytes() and number != process.pid:
                found.append(number)
        except OSError:
            continue
    return found


def everything(out: Path) -> dict[str, str]:
    """All that no clock decides: of runs, attributions, robustness, teachers, tables."""
    found = contents(out)
    for pattern in ("explanations/*/regions.csv", "robustness/*/robustness.csv", "teachers/*/predictions.npz",
                    "explanations/*/attributions.npz", "tables/*.csv"):
        for path in sorted(out.glob(pattern)):
            if "cost" not in path.name and "seconds" not in path.read_bytes().partition(b"\n")[0].decode("latin-1"):
                found[str(path.relative_to(out))] = path.read_bytes().hex()
    return found


def left_over(root: Path) -> list[str]:
    """What should not be there when a study is complete."""
    found = [f"process {number} is still there" for number in processes(root)]
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if name.startswith("tmp/torchinductor_") and path.is_dir() and not any(path.iterdir()):
            continue  # an empty folder that torch keeps for its user
        if ".tmp-" in name or name.startswith(("tmp/", "out/.work", "out/logs/.", "cache/teachers/.work/")):
            found.append(f"{name} was left behind")
        elif path.suffix == ".lock":
            try:
                with FileLock(path, timeout=0):
                    pass
            except Timeout:
                found.append(f"{name} is held")
    return found


def pulse(root: Path) -> set[tuple[str, int]]:
    """What lies in a study's folder and cache now: it changes when a checkpoint, an artifact or a draft comes."""
    found = set()
    for pattern in ("out/*/*", "out/.work/*/*/*", "cache/*/*"):
        for path in root.glob(pattern):
            try:
                found.add((str(path), path.lstat().st_ino))
            except OSError:
                continue
    return found


def wait_for(holds: Callable[[], bool], seconds: float) -> bool:
    """Whether this comes to hold within some seconds."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


class Hunt:
    """One study that is killed again and again."""

    def __init__(self, name: str, kills: int, scratch: Path, draws: random.Random, short: bool) -> None:
        self.name, self.kills, self.draws = name, kills, draws
        self.scratch, self.score = scratch / name.replace(" ", "-"), Score()
        self.study, self.longest = self.scratch / "study.yaml", 0.0
        self.scratch.mkdir()
        fewer = {"seeds": [0, 1]} if short else {}
        self.study.write_text(yaml.safe_dump({"name": "hunted", **STUDIES[name], **fewer}))

    @property
    def killed(self) -> int:
        """How many SIGKILLs there were: the signals that ask to stop come on top."""
        return sum(self.score.kills[way] for way in KILLING)

    def run(self) -> Score:
        """Hunt the study until the kills are used up, each time to its end; compare each end with an unbroken study."""
        peace = self.scratch / "peace"
        began, code = time.perf_counter(), start(self.study, peace).wait()
        self.longest = LONGEST * (time.perf_counter() - began)
        self.say(f"in peace: exit code {code}, {self.longest / LONGEST:.0f} s")
        if code != 0:
            self.score.problems.append(f"in peace: exit code {code}: {(peace / 'said').read_text()[-500:]}")
            return self.score
        whole = everything(peace / "out")
        self.score.problems += [f"in peace: {line}" for line in left_over(peace)]
        while self.killed < self.kills:
            root = self.scratch / f"round-{self.score.rounds}"
            self.score.rounds, known = self.score.rounds + 1, len(self.score.problems)
            self.one_round(root)
            if (root / "out" / "results.csv").is_file():
                other = everything(root / "out")
                self.score.problems += [f"{root.name}: {name} differs" for name in differences(whole, other)]
                self.score.compared += len(other)
            self.score.problems += [f"{root.name}: {line}" for line in left_over(root)]
            for line in self.score.problems[known:]:
                self.say(line)
            if not self.score.problems:
                subprocess.run(["rm", "-r", str(root)], check=True)
        return self.score

    def say(self, what: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {self.name}: {what}", flush=True)

    def one_round(self, root: Path) -> None:
        """Start, kill, and start again until the study has come to its end."""
        kept = Kept()
        root.mkdir()
        while True:
            process = start(self.study, root)
            self.score.starts += 1
            wounded = False
            while self.killed < self.kills and process.poll() is None:
                before = len(kept.epochs)
                way = self.strike(process, root)
                self.score.problems += [f"{root.name}: {line}" for line in kept.look(root)]
                self.score.resumed += len(kept.epochs) - before
                if way:
                    self.score.kept += len(kept.finished)
                    self.say(f"{way} at {len(kept.finished)} artifacts, {len(kept.epochs)} checkpoints so far")
                wounded = wounded or way == "one worker"
            code = process.wait()
            self.score.problems += [f"{root.name}: {line}" for line in kept.look(root)]
            if code == 0:
                self.score.problems += [f"{root.name}: {line}" for line in kept.look_at_end(root / "out")]
                self.say("complete")
                return
            said = (root / "said").read_text(errors="replace")
            if code == 1 and wounded and "its worker was killed by signal 9" in said:
                continue  # as it must: the step has failed, says so, and the next start takes it again
            if code > 0 and code != 130:
                self.score.problems.append(f"{root.name}: exit code {code}: {said[-600:]}")
                return

    def strike(self, process: subprocess.Popen[bytes], root: Path) -> str:
        """Wait for a random moment and kill; what was killed, or nothing where the study was faster."""
        way = self.draws.choices(list(WAYS), list(WAYS.values()))[0]
        moment = self.draws.random()
        if moment < BLIND:  # at any time at all, while Python is still importing too
            wait_for(lambda: process.poll() is not None, self.draws.uniform(0.3, self.longest))
        else:  # a while after it has begun to write, or at the moment when it does again
            first = pulse(root)
            wait_for(lambda: process.poll() is not None or pulse(root) != first, 120)
            wait_for(lambda: process.poll() is not None, self.draws.uniform(0, self.longest / 2))
            if moment > 1 - WRITING:
                second = pulse(root)
                wait_for(lambda: process.poll() is not None or pulse(root) != second, 20)
        if way == "one worker" and not wait_for(lambda: bool(workers(process, root)) or process.poll() is not None, 10):
            way = "all processes"
        if process.poll() is not None:
            return ""
        getattr(self, {"all processes": "_kill_all", "the driver alone": "_kill_driver", "one worker": "_kill_worker",
                       "SIGTERM, the driver": "_terminate", "Ctrl-C": "_interrupt"}[way])(process, root)
        self.score.kills[way] += 1
        return way

    def _kill_all(self, process: subprocess.Popen[bytes], root: Path) -> None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not wait_for(lambda: not processes(root), TO_LEAVE):
            self.score.problems.append(f"{root.name}: all were killed, and {len(processes(root))} processes live")

    def _kill_driver(self, process: subprocess.Popen[bytes], root: Path, number: int = signal.SIGKILL) -> None:
        process.send_signal(number)
        process.wait()
        if self.draws.random() < 0.5:
            return  # the next start meets workers that have not noticed yet
        if not wait_for(lambda: not processes(root), TO_LEAVE):
            self.score.problems.append(f"{root.name}: {TO_LEAVE:g} s after the driver's end {len(processes(root))} of "
                                       "its processes live")

    def _terminate(self, process: subprocess.Popen[bytes], root: Path) -> None:
        self._kill_driver(process, root, signal.SIGTERM)

    def _kill_worker(self, process: subprocess.Popen[bytes], root: Path) -> None:
        victims = workers(process, root)
        if victims:
            with suppress(ProcessLookupError):  # it may have ended by itself, in this very moment
                os.kill(self.draws.choice(victims), signal.SIGKILL)
            time.sleep(0.5)
            if process.poll() not in (None, 0, 1):
                self.score.problems.append(f"{root.name}: a worker was killed, and the driver ended with exit code "
                                           f"{process.returncode}")

    def _interrupt(self, process: subprocess.Popen[bytes], root: Path) -> None:
        os.killpg(process.pid, signal.SIGINT)
        try:
            code = process.wait(TO_STOP)
        except subprocess.TimeoutExpired:
            self.score.problems.append(f"{root.name}: Ctrl-C, and {TO_STOP:g} s later it still runs")
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return
        said = (root / "said").read_text(errors="replace")
        early = code == -signal.SIGINT  # before tlkd's own code has begun, Python ends the process by itself
        if not early and code != 0 and (code != 130 or "the same command goes on from here" not in said):
            self.score.problems.append(f"{root.name}: Ctrl-C: exit code {code}: {said[-600:]}")
        if not wait_for(lambda: not processes(root), TO_LEAVE):
            self.score.problems.append(f"{root.name}: {TO_LEAVE:g} s after Ctrl-C its processes live")


def main() -> int:
    """Hunt every study, and say what came of it."""
    parser = common.options(__doc__)
    parser.add_argument("--only", action="append", choices=list(STUDIES), help="this study alone; may be repeated")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="how many studies are hunted at once")
    parser.add_argument("--keep", type=Path, help="an empty folder to work in, which stays")
    options = parser.parse_args()
    chosen = options.only or (["digits"] if options.short else list(STUDIES))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch, \
            ThreadPoolExecutor(options.at_once) as pool:
        hunts = [Hunt(name, 3 if options.short else KILLS[name], options.keep or Path(scratch),
                      random.Random(f"{options.seed} {name}"), options.short) for name in chosen]
        scores = dict(zip(chosen, pool.map(Hunt.run, hunts), strict=True))
    problems = [f"{name}: {line}" for name, score in scores.items() for line in score.problems]
    header = ["study", *WAYS, "starts", "brought to its end", "finished artifacts it kept, summed over kills",
              "trainings that went on from a checkpoint", "files compared", "broken promises"]
    rows = [[name, *(str(score.kills[way]) for way in WAYS), str(score.starts), str(score.rounds),
             str(score.kept), str(score.resumed), str(score.compared), str(len(score.problems))]
            for name, score in scores.items()]
    kills = sum(score.kills[way] for score in scores.values() for way in KILLING)
    asked = sum(score.kills.total() for score in scores.values()) - kills
    text = (f"{kills} SIGKILLs, {asked} signals that ask to stop, {len(problems)} broken promises.\n\n"
            f"{common.table(header, rows)}")
    common.publish("kills", text, "python proofs/kills.py", options.write)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
