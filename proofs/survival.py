"""Put a small study into the situations that real machines bring, each time with the real `tlkd run` in processes.

Several runs at once in one folder; two studies that share a cache; a clock that is set back; a cache that may not be
written, or lies on another file system; a study that is stopped, moved and gone on with; folders of other versions; few
file descriptors, no home, no folder for temporary files, closed output, strange paths. Each situation says what had to
hold, and whether it did.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import common
from kills import NETWORKS, SCENES, everything, left_over, wait_for
from studies import command, differences
from tlkd import seals

STUDY: dict[str, Any] = {"name": "survivor", **NETWORKS, "data": SCENES, "training": {"epochs": 6}, "seeds": [0, 1]}
HOUR, DAY, YEAR = 3600, 86_400, 365 * 86_400
PATIENCE = 300  # seconds that a command may take on a machine that others use too

# Imported by every Python process that has its folder on PYTHONPATH. It counts trainings, a line each, and moves the
# clock by the seconds that stand in a file, which may change meanwhile.
SITECUSTOMIZE = '''
import datetime, importlib.abc, importlib.util, os, sys, time

def count(module):
    fit = module.fit
    def counted(*given, **named):
        checkpoint = next(each for each in [*given, *named.values()] if hasattr(each, "parent"))
        with open(os.environ["COUNTED"], "a") as file:
            file.write(str(checkpoint.parent) + "\\n")
        return fit(*given, **named)
    module.fit = counted

def moved():
    with open(os.environ["CLOCK"]) as file:
        return int(file.read() or 0)

class Moved(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(time.time(), tz)

def move(module):
    module.datetime = Moved  # for this module alone: compiled ones look into the class itself

class Loading(importlib.abc.MetaPathFinder):
    def __init__(self, name, change):
        self.name, self.change = name, change
    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def loaded(module):
            load(module)
            self.change(module)
        spec.loader.exec_module = loaded
        return spec

if "COUNTED" in os.environ:
    sys.meta_path.insert(0, Loading("tlkd.training", count))
if "CLOCK" in os.environ:
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + moved()
    time.time_ns = lambda: real_ns() + moved() * 10**9
    sys.meta_path.insert(0, Loading("tlkd.provenance", move))
'''


@dataclass
class Answer:
    """How a command ended."""

    code: int
    out: str
    error: str

    @property
    def one_line(self) -> bool:
        """Whether it refused as it should: exit code 2, and one line on stderr."""
        return self.code == 2 and len(self.error.strip().splitlines()) == 1 and "Traceback" not in self.error


@dataclass
class Ground:
    """Where the situations take place: a finished study and its cache, and what happened so far."""

    root: Path
    lines: list[list[str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.root / "site").mkdir()
        (self.root / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
        self.study = self.root / "study.yaml"
        self.study.write_text(yaml.safe_dump(STUDY))
        self.out, self.cache = self.root / "whole", self.root / "cache"

    def prepare(self) -> None:
        """Run the study in peace: what everything else is compared with."""
        answer = self.tlkd("run", self.study, "--out", self.out, "--jobs", "2")
        if answer.code:
            raise SystemExit(f"in peace: exit code {answer.code}: {answer.error}")
        self.whole = everything(self.out)

    def settings(self, cache: Path | None = None, **more: object) -> dict[str, str]:
        """The environment of a command."""
        path = os.pathsep.join([str(self.root / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**os.environ, "TLKD_CACHE": str(cache or self.cache), "PYTHONPATH": path,
                **{name: str(value) for name, value in more.items()}}

    def start(self, line: Sequence[object], settings: Mapping[str, str]) -> subprocess.Popen[str]:
        """Start a command line in a process group of its own."""
        return subprocess.Popen([str(word) for word in line], env=dict(settings), text=True, start_new_session=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                cwd=self.root, errors="replace")

    def end(self, process: subprocess.Popen[str]) -> Answer:
        """Wait for it."""
        try:
            out, error = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, error = process.communicate()
            return Answer(-1, out, f"{error}\nit did not end within {PATIENCE} s")
        return Answer(process.returncode, out, error)

    def tlkd(self, *words: object, before: Sequence[object] = (), cache: Path | None = None, **more: object) -> Answer:
        """A `tlkd` command to its end, behind `before`; further names are variables of its environment."""
        return self.end(self.start([*before, sys.executable, "-m", "tlkd", *words], self.settings(cache, **more)))

    def run(self, out: Path, *words: object, **more: Any) -> Answer:
        """`tlkd run` of the study."""
        return self.tlkd(*command(str(self.study), out, "--jobs", "2")[3:], *words, **more)

    def same(self, what: str, out: Path) -> None:
        """Hold a folder to the study that was run in peace."""
        other = everything(out)
        self.demand(what, not differences(self.whole, other), f"differs: {differences(self.whole, other)[:5]}")

    def demand(self, what: str, holds: bool, otherwise: str = "") -> None:
        """Note a promise that was broken."""
        if not holds:
            self.problems.append(" ".join(f"{what}: {otherwise}".split())[:1500])

    def went_well(self, what: str, answer: Answer) -> None:
        """Demand exit code 0 and no traceback."""
        self.demand(what, answer.code == 0 and "Traceback" not in answer.error,
                    f"exit code {answer.code}: {answer.error[-1000:]}")


# --- several at once --------------------------------------------------------------------------------------------------


def together(ground: Ground, count: int) -> str:
    """So many `tlkd run` of one study at once, in one folder and with one cache."""
    what, root = f"{count} at once", ground.root / f"together-{count}"
    settings = ground.settings(root / "cache", COUNTED=ground.root / f"trained-{count}")
    root.mkdir()
    answers = [ground.end(process) for process in
               [ground.start(command(str(ground.study), root / "out", "--jobs", "1"), settings) for _ in range(count)]]
    for answer in answers:
        ground.went_well(what, answer)
        ground.demand(what, "report.html" in answer.out, "one of them wrote no report")
    trained = Counter((ground.root / f"trained-{count}").read_text().split())
    ground.demand(what, set(trained.values()) == {1} and len(trained) == 5, f"trainings: {dict(trained)}")
    ground.demand(what, "</html>" in (root / "out" / "report.html").read_text(), "the report is cut off")
    ground.same(what, root / "out")
    ground.problems += [f"{what}: {line}" for line in left_over(root)]
    return f"all end with exit code 0; {sum(trained.values())} trainings of {len(trained)} networks; results are equal"


def neighbours(ground: Ground) -> str:
    """Two studies at once that share a cache, and in it a teacher and banks."""
    what, root = "two studies, one cache", ground.root / "neighbours"
    settings = ground.settings(root / "cache", COUNTED=ground.root / "trained-neighbours")
    root.mkdir()
    other = {**STUDY, "name": "other", "arms": [*NETWORKS["arms"], {"name": "hot", "kind": "tl_kd", "teacher": "lite1",
                                                                    "temperature": 4}]}
    (root / "other.yaml").write_text(yaml.safe_dump(other))
    for process in [ground.start(command(str(study), root / name, "--jobs", "1"), settings)
                    for study, name in ((ground.study, "first"), (root / "other.yaml", "second"))]:
        ground.went_well(what, ground.end(process))
    trained = Counter((ground.root / "trained-neighbours").read_text().split())
    ground.demand(what, set(trained.values()) == {1} and len(trained) == 4 + 6 + 1, f"trainings: {dict(trained)}")
    ground.same(what, root / "first")
    ground.problems += [f"{what}: {line}" for line in left_over(root)]
    return "both end with exit code 0; the teacher and each bank are made once"


# --- clocks -----------------------------------------------------------------------------------------------------------


def stopped_half_way(ground: Ground, out: Path, **more: Any) -> int:
    """Start the study and kill it when two runs are finished; how many there are."""
    process = ground.start(command(str(ground.study), out, "--jobs", "1"), ground.settings(**more))
    wait_for(lambda: process.poll() is not None or len(list(out.glob("runs/[!.]*"))) >= 2, PATIENCE)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    answer = ground.end(process)
    ground.demand(f"{out.name}: stopped half way", answer.code == -signal.SIGKILL, f"ended: {answer.error[-800:]}")
    return len(list(out.glob("runs/[!.]*")))


def future(root: Path, seconds: int) -> None:
    """Make all files below as old as if they had been written that much later: the clock was set back since."""
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            found = path.stat()
            os.utime(path, (found.st_atime + seconds, found.st_mtime + seconds))


def marks(out: Path) -> dict[str, tuple[int, int]]:
    """What tells whether a finished run was made again."""
    return {path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in out.glob("runs/[!.]*/manifest.json")}


def sensible(ground: Ground, what: str, out: Path, **more: Any) -> None:
    """Whether `status` and `watch` tell times that can be."""
    for name, words in (("status", ()), ("watch", ("--once",))):
        answer = ground.tlkd(name, out, *words, **more)
        ground.went_well(f"{what}: {name}", answer)
        absurd = re.findall(r"-\d+:|-\d+(?:\.\d+)? (?:s|days)|\d{2,}(?:\.\d)? days|\d{2,}:\d\d:\d\d", answer.out)
        ground.demand(f"{what}: {name}", not absurd, f"says {absurd}: {answer.out}")


def set_back(ground: Ground, seconds: int, name: str) -> str:
    """The clock goes back while the study is stopped, and again while it runs."""
    what, out, clock = f"clock set back by a {name}", ground.root / f"back-{name}", ground.root / f"clock-{name}"
    clock.write_text(str(seconds))
    stopped_half_way(ground, out, CLOCK=clock)
    future(out, seconds)
    sensible(ground, f"{what}, still ahead", out, CLOCK=clock)
    before = marks(out)
    clock.write_text("0")
    sensible(ground, f"{what}, stopped", out, CLOCK=clock)
    clock.write_text(str(seconds))
    process = ground.start(command(str(ground.study), out, "--jobs", "1"), ground.settings(CLOCK=clock))
    wait_for(lambda: process.poll() is not None or len(list(out.glob("runs/[!.]*"))) > len(before), PATIENCE)
    clock.write_text("0")
    sensible(ground, f"{what}, running", out, CLOCK=clock)
    ground.went_well(what, ground.end(process))
    sensible(ground, f"{what}, complete", out, CLOCK=clock)
    answer = ground.tlkd("watch", out, "--once", CLOCK=clock)
    ground.demand(what, "complete" in answer.out, f"watch does not call it complete: {answer.out[-400:]}")
    ground.demand(what, before.items() <= marks(out).items(), "a finished run was made again")
    ground.same(what, out)
    return "nothing is made again, nothing lost; status and watch tell no absurd times"


# --- caches -----------------------------------------------------------------------------------------------------------


def read_only(cache: Path) -> list[str]:
    """What makes a command see this folder read-only: a bind mount in a mount namespace of its own. Empty: not here."""
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    line = ["unshare", "-m", "sh", "-c", script, str(cache)]
    try:
        done = subprocess.run([*line, "touch", str(cache / "probe")], capture_output=True, text=True, check=False)
    except OSError:
        return []
    return line if "Read-only file system" in done.stderr else []


def read_only_cache(ground: Ground) -> str:
    """A cache that may only be read: complete it suffices, incomplete it is refused."""
    what, before = "read-only cache", read_only(ground.cache)
    if not before:
        return "skipped: no mount namespaces here (they take root, or a kernel that lets users have them)"
    ground.went_well(f"{what}, complete", ground.run(ground.root / "read-only", before=before))
    ground.same(f"{what}, complete", ground.root / "read-only")
    for name in ("status", "report", "verify"):
        ground.went_well(f"{what}: {name}", ground.tlkd(name, ground.root / "read-only", before=before))
    poor = ground.root / "poor-cache"
    shutil.copytree(ground.cache, poor)
    shutil.rmtree(poor / "features")
    answer = ground.run(ground.root / "refused", before=read_only(poor), cache=poor)
    ground.demand(f"{what}, incomplete", answer.one_line and "cannot be written" in answer.error,
                  f"exit code {answer.code}: {answer.error[-800:]}")
    return "a complete one suffices; an incomplete one is refused in one line"


def elsewhere(ground: Ground) -> str:
    """The cache on another file system than the study."""
    what, shared = "cache on another file system", Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == ground.root.stat().st_dev:
        return "skipped: /dev/shm is no other file system here"
    with tempfile.TemporaryDirectory(dir=shared) as cache:
        ground.went_well(what, ground.run(ground.root / "elsewhere", cache=Path(cache)))
        ground.same(what, ground.root / "elsewhere")
    return "results are equal"


# --- moved and old folders --------------------------------------------------------------------------------------------

MAY_NAME_PLACES = re.compile(r"study\.yaml|report\.html|logs/|failures/")  # the command as given, what went wrong


def moved(ground: Ground) -> str:
    """A study that was stopped half way, moved to a new place, and has no cache there."""
    what, first, second = "moved", ground.root / "before-the-move", ground.root / "a new" / "place"
    stopped_half_way(ground, first)
    before = marks(first)
    second.parent.mkdir()
    first.rename(second)
    empty = ground.root / "empty-cache"
    for words in (("status", second), ("watch", second, "--once")):
        ground.went_well(f"{what}: {words[0]}", ground.tlkd(*words, cache=empty))
    ground.went_well(f"{what}: run", ground.run(second, cache=empty))
    ground.demand(what, before.items() <= marks(second).items(), "a finished run was made again")
    ground.same(what, second)
    found = [str(path.relative_to(second)) for path in second.rglob("*") if path.is_file() and not path.is_symlink()
             and any(str(place).encode() in path.read_bytes() for place in (first, ground.root))]
    named = [name for name in found if not MAY_NAME_PLACES.search(name)]
    ground.demand(what, not named, f"absolute paths stand in {named}")
    third, none = ground.root / "copied", ground.root / "no-cache"
    shutil.copytree(second, third)
    second.rename(ground.root / "gone")
    run = sorted(third.glob("runs/tl-*"))[0]
    for name, line in {"report": ("report", third), "status": ("status", third), "verify": ("verify", third),
                       "watch": ("watch", third, "--once"), "compare": ("compare", third, ground.out, "--out",
                                                                        ground.root / "compared"),
                       "export": ("export", run, "--to", ground.root / "exported")}.items():
        ground.went_well(f"copied, no cache: {name}", ground.tlkd(*line, cache=none))
    ground.went_well("copied, no cache: run", ground.run(third, cache=none))
    ground.demand("copied, no cache", marks(third) == marks(third), "a finished run was made again")
    return "status, watch, run, report, verify, compare and export work; no path to the old place is needed"


def versions(ground: Ground) -> str:
    """Folders that an older or a newer tlkd wrote."""
    what, old, new = "versions", ground.root / "unversioned", ground.root / "newer"
    shutil.copytree(ground.out, old)
    text = (old / "study.yaml").read_text()
    ground.demand(what, text.startswith("schema: 1\n"), "study.yaml names no schema")
    (old / "study.yaml").write_text(text.removeprefix("schema: 1\n"))
    (old / seals.NAME).unlink()  # which older versions did not write
    before = marks(old)
    for line in (("status", old), ("report", old), ("verify", old), ("watch", old, "--once")):
        ground.went_well(f"without a schema: {line[0]}", ground.tlkd(*line))
    ground.went_well("without a schema: run", ground.run(old))
    ground.demand("without a schema", marks(old) == before, "a finished run was made again")
    shutil.copytree(ground.out, new)
    (new / "study.yaml").write_text(text.replace("schema: 1", "schema: 2\nfuture: {key: 1}"))
    seals.seal(new, seals.STUDY)
    run = sorted(new.glob("runs/tl-*"))[0]
    for line in (("status", new), ("report", new), ("verify", new), ("watch", new, "--once"),
                 ("compare", new, ground.out, "--out", ground.root / "never"), ("export", run, "--to", new / "never"),
                 ("run", new / "study.yaml", "--out", ground.root / "never"), ("run", ground.study, "--out", new)):
        answer = ground.tlkd(*line)
        ground.demand(f"a newer schema: {line[0]}", answer.one_line and "schema 2" in answer.error
                      and "reads schema 1" in answer.error, f"exit code {answer.code}: {answer.error[-500:]}")
    path = old / "runs" / run.name / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]  # of the manifest itself, which is then not looked for
    path.write_text(json.dumps({**manifest, "version": manifest["version"] + 90}))
    answer = ground.run(old)
    ground.demand("a newer run", answer.one_line and "a newer tlkd made this" in answer.error,
                  f"exit code {answer.code}: {answer.error[-500:]}")
    return "a folder without a schema is read and gone on with; newer ones are refused in one line by every command"


# --- poor surroundings ------------------------------------------------------------------------------------------------


def surroundings(ground: Ground) -> str:
    """Few file descriptors, nowhere for temporary files, no home, no language."""
    nowhere = "/dev/null/nowhere"
    limited = ["bash", "-c", 'ulimit -n 64; exec "$@"', "limited"]
    for name, more in {"64 file descriptors": {"before": limited}, "TMPDIR cannot be written": {"TMPDIR": nowhere},
                       "HOME is not there": {"HOME": nowhere, "XDG_CACHE_HOME": ""},
                       "locale C": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}}.items():
        out = ground.root / name.replace(" ", "-")
        ground.went_well(name, ground.run(out, **more))
        if out.is_dir():
            ground.same(name, out)
    homeless = ground.tlkd("run", ground.study, "--out", ground.root / "homeless",
                           before=["env", "-u", "TLKD_CACHE", "-u", "XDG_CACHE_HOME", f"HOME={nowhere}"])
    ground.demand("no home and no TLKD_CACHE", homeless.code == 2 and "Traceback" not in homeless.error
                  and "TLKD_CACHE" in homeless.error.splitlines()[-1],  # behind what matplotlib has to say of it
                  f"exit code {homeless.code}: {homeless.error[-600:]}")
    return "results are equal; without a home and without TLKD_CACHE one line says what to set"


def closed_output(ground: Ground) -> str:
    """Nobody listens: `| head -1`, and no stdout at all."""
    for name, script in {"| head -1": '"$@" | head -1; exit ${PIPESTATUS[0]}', "stdout is closed": '"$@" >&-'}.items():
        before = ["bash", "-c", script, "closed"]
        for words in (("status", ground.out), ("watch", ground.out, "--once"), ("studies", "quickstart")):
            answer = ground.tlkd(*words, before=before)
            ground.demand(f"{name}: {words[0]}", "Traceback" not in answer.error and "Exception" not in answer.error,
                          f"exit code {answer.code}: {answer.error[-500:]}")
        out = ground.root / f"closed-{len(script)}"
        answer = ground.run(out, before=before)
        ground.demand(f"{name}: run", "Traceback" not in answer.error and "Exception" not in answer.error,
                      f"exit code {answer.code}: {answer.error[-500:]}")
        ground.same(f"{name}: run", out)
    return "no traceback; the study is complete"


def strange_paths(ground: Ground) -> str:
    """Folders with names that few people give."""
    for name in ("with some spaces", "später-Übung-研究", "two\nlines", "a [b] {c} *", "%s 'quoted' \"twice\"", "-d"):
        root = ground.root / "strange" / name
        root.mkdir(parents=True)
        ground.went_well(repr(name), ground.run(root / "out", cache=root / "cache"))
        if (root / "out" / "results.csv").is_file():
            ground.same(repr(name), root / "out")
            ground.problems += [f"{name!r}: {line}" for line in left_over(root)]
    long = ground.root.joinpath(*["d" * 200] * 15)
    answer = ground.run(long / "out")
    ground.demand("3,000 letters", answer.code == 0, f"exit code {answer.code}: {answer.error[-300:]}")
    for words in (("run", ground.study, "--out", "x" * 5000), ("status", "x" * 5000), ("status", "x" * 300)):
        answer = ground.tlkd(*words)
        ground.demand(f"{len(str(words[-1]))} letters: {words[0]}", answer.one_line, answer.error[-300:])
    return "results are equal; what the system cannot name is refused in one line"


SITUATIONS: dict[str, Callable[[Ground], str]] = {
    "two `tlkd run` at once in one folder": lambda ground: together(ground, 2),
    "three at once": lambda ground: together(ground, 3),
    "two studies at once with one cache": neighbours,
    "the clock is set back by a day": lambda ground: set_back(ground, DAY, "day"),
    "the clock is set back by a year": lambda ground: set_back(ground, YEAR, "year"),
    "a cache that may only be read": read_only_cache,
    "a cache on another file system": elsewhere,
    "a folder that is stopped, moved and copied, without its cache": moved,
    "folders of older and newer versions": versions,
    "64 file descriptors, no TMPDIR, no HOME, locale C": surroundings,
    "nobody reads what it prints": closed_output,
    "paths with spaces, brackets, line breaks, 3,000 letters": strange_paths,
}
SHORT = ("two `tlkd run` at once in one folder",)


def main() -> int:
    """Go through all situations, and say what came of it."""
    parser = common.options(__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="situations with it in their name")
    options = parser.parse_args()
    chosen = {name: do for name, do in SITUATIONS.items() if (name in SHORT or not options.short)
              and (not options.only or any(word in name for word in options.only))}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        ground, rows = Ground(Path(scratch).resolve()), []
        ground.prepare()
        for name, do in chosen.items():
            before, began = len(ground.problems), time.perf_counter()
            said = do(ground)
            broken = ground.problems[before:]
            print(f"{time.strftime('%H:%M:%S')} {name}: {said} ({time.perf_counter() - began:.0f} s)", flush=True)
            print("".join(f"    {line}\n" for line in broken), end="", flush=True)
            rows.append([name, said if not broken else "; ".join(line[:200] for line in broken)])
    text = common.table(["situation", "what came of it"], rows)
    common.publish("survival", text, "python proofs/survival.py", options.write)
    for problem in ground.problems:
        print(problem)
    return 1 if ground.problems else 0


if __name__ == "__main__":
    sys.exit(main())
