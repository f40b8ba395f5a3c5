"""A disk that fails at the n-th thing asked of it, for every n: what is left is whole, or is not taken for whole.

Here the calls of Python are made to fail, in the store alone; `proofs/faults.py` does it to whole studies, at the
kernel's door.
"""

import builtins
import errno
import io
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tlkd import store
from tlkd.errors import BadInput

SPEC, INPUTS = {"size": 3}, {"data": "d" * 20}
CONTENT = {"a.txt": b"first " * 100, "deep/b.bin": bytes(range(256))}
KINDS = {"ENOSPC": (errno.ENOSPC, "disk is full"), "EIO": (errno.EIO, "disk failed")}


class Faults:
    """Counts what is asked of the disk, and lets the n-th of it fail, a write after half of its bytes.

    A full disk fails no read: reads are counted where `reads` says so.
    """

    def __init__(self, fails_at: int, fail: Callable[[str], None], *, reads: bool = False) -> None:
        self.fails_at, self.fail, self.reads, self.seen = fails_at, fail, reads, []

    def count(self, what: str) -> bool:
        """Whether this one fails."""
        self.seen.append(what)
        return len(self.seen) == self.fails_at

    def wrapped(self, name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if self.count(name):
                self.fail(name)
            return do(*arguments, **named)
        return call

    def opened(self, opening: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            if self.count(f"open {mode}"):
                self.fail("open")
            stream = opening(file, mode, *rest, **named)
            return Stream(stream, self) if self.reads or set(mode) & set("wax+") else stream
        return call

    @contextmanager
    def at_work(self) -> Iterator["Faults"]:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("rename", "replace", "mkdir", "fsync", "posix_fallocate"):
                patch.setattr(os, name, self.wrapped(name, getattr(os, name)))
            opening = self.opened(io.open)
            patch.setattr(io, "open", opening)
            patch.setattr(builtins, "open", opening)
            yield self


class Stream:
    """An open file."""

    def __init__(self, stream: Any, faults: Faults) -> None:
        self.stream, self.faults = stream, faults

    def write(self, content: Any) -> Any:
        if self.faults.count("write"):
            self.stream.write(content[:len(content) // 2])
            self.stream.flush()
            self.faults.fail("write")
        return self.stream.write(content)

    def read(self, *size: int) -> Any:
        self._reads()
        return self.stream.read(*size)

    def readinto(self, buffer: Any) -> Any:
        self._reads()
        return self.stream.readinto(buffer)

    def _reads(self) -> None:
        if self.faults.reads and self.faults.count("read"):
            self.faults.fail("read")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()


def build(folder: Path) -> dict[str, Any]:
    for name, content in CONTENT.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    array = store.allocate(folder / "c.npy", (4, 5), "f4")
    array[:] = 7
    array.flush()
    return {"rows": 4}


def work(root: Path) -> None:
    """What a study does with its store: an artifact that is there, one to be made, one that is damaged, a text."""
    for size in (1, 2, 3):
        store.get(root, "things", 1, {"size": size}, INPUTS, build)
    store.replace_text(root / "text.txt", "the new text")


def lay(root: Path) -> None:
    store.get(root, "things", 1, {"size": 1}, INPUTS, build)
    damaged = store.get(root, "things", 1, {"size": 3}, INPUTS, build).path / "a.txt"
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    store.replace_text(root / "text.txt", "the old text")


def made(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*"))
            if path.is_file() and ".locks" not in path.parts}


def check(root: Path, whole: dict[str, bytes], first: os.stat_result) -> None:
    """Nothing half-made is taken for whole; then the same work goes through, and leaves what it should."""
    for path in (root / "things").glob("[!.]*"):
        assert store.find(path, path.name) is None or all(
            content == whole[name] for name, content in made(root).items() if path.name in name)
    assert (root / "text.txt").read_text() in ("the old text", "the new text")
    work(root)
    assert made(root) == whole
    again = (root / "things" / address(1) / "manifest.json").stat()
    assert (again.st_ino, again.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)


def address(size: int) -> str:
    return store.address("things", 1, {"size": size}, INPUTS)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut here: that a flush is asked for, and can fail, is all that counts."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory, where there is one: hundreds of renames on a busy disk take half a minute."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as path:
        yield Path(path)


@pytest.fixture
def laid(tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """The folder that each trial starts from, and what it holds when all has gone well."""
    lay(tmp_path / "laid")
    shutil.copytree(tmp_path / "laid", tmp_path / "whole")
    work(tmp_path / "whole")
    return tmp_path / "laid", made(tmp_path / "whole")


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_fails_in_the_store_one_line_says_so_and_nothing_is_lost(
        laid: tuple[Path, dict[str, bytes]], kind: str, tmp_path: Path) -> None:
    number, words = KINDS[kind]

    def fail(what: str) -> None:
        raise OSError(number, os.strerror(number))

    trial, fails_at, asked = tmp_path / "trial", 0, []
    while True:
        fails_at += 1
        shutil.copytree(laid[0], trial)
        first = (trial / "things" / address(1) / "manifest.json").stat()
        faults = Faults(fails_at, fail, reads=kind == "EIO")
        with faults.at_work():
            try:
                work(trial)
                failed = False
            except BadInput as error:
                failed = True
                assert words in str(error) and "\n" not in str(error)
        if len(faults.seen) < fails_at:  # nothing was left to fail
            assert not failed
            break
        asked.append(faults.seen[-1] if failed else f"borne: {faults.seen[fails_at - 1]}")
        assert not list(trial.glob("**/.*.tmp-*"))  # who lives tidies up
        check(trial, laid[1], first)
        shutil.rmtree(trial)
    assert len(asked) > 50
    assert {"write", "rename", "replace", "mkdir", "fsync", "posix_fallocate", "open wb", "open rb"} <= set(asked)
    assert ("read" in asked) == (kind == "EIO")


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_faults import Faults, work
os.fsync = lambda number: None
trial, fails_at = Path(sys.argv[2]), int(sys.argv[3])
while True:
    number = os.fork()
    if number == 0:
        with Faults(fails_at, lambda what: os._exit(9)).at_work():
            work(trial / str(fails_at))
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 0:
        break
    fails_at += 1
print(fails_at - 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_wherever_a_process_ends_in_the_store_the_next_one_goes_on(laid: tuple[Path, dict[str, bytes]],
                                                                   tmp_path: Path) -> None:
    most = 120
    for fails_at in range(1, most):
        shutil.copytree(laid[0], tmp_path / "trials" / str(fails_at))
    first = {fails_at: (tmp_path / "trials" / str(fails_at) / "things" / address(1) / "manifest.json").stat()
             for fails_at in range(1, most)}
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(Path(__file__).parent),
                            str(tmp_path / "trials"), "1"], capture_output=True, text=True, check=True)
    kills = int(ended.stdout)
    assert 50 < kills < most - 1
    for fails_at in range(1, kills + 1):
        check(tmp_path / "trials" / str(fails_at), laid[1], first[fails_at])
        assert not list((tmp_path / "trials" / str(fails_at)).glob("**/.*.tmp-*"))  # what the dead left is swept
