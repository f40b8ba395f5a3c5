"""Make one call of the kernel fail in the middle of a study, start it again, and compare with an unbroken one.

    python proofs/faults.py [--faults 20] [--short]

strace lets the n-th write, rename, flush, mkdir, open, read or reservation of some thread fail (disk full, I/O error),
or kills the process there. n is drawn among the calls that a first, unbroken run made on the study's folder and cache:
so torch, safetensors, NumPy, pandas and file locks are hit as well. Stores into memory-mapped arrays are no calls;
their space is reserved beforehand, and that call is among those that fail.
"""

import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common import options, publish, table
from studies import command, contents, differences, marks, start, write_small

CALLS = ("openat", "write", "pwrite64", "read", "pread64", "rename", "mkdir", "fsync", "fallocate")
CHANGES = ("write", "pwrite64", "rename", "mkdir", "fsync", "fallocate")
WAYS = {"the disk is full": "error=ENOSPC", "an I/O error": "error=EIO", "the process is killed": "signal=SIGKILL"}
STRACE = ("strace", "-f", "-q", "-e", "signal=none", "-s", "0")
QUICKLY = ("--seccomp-bpf",)  # with which strace 6.1 injects errors, and no signals


@dataclass(frozen=True)
class Fault:
    """The n-th call of its kind, counted in the thread that makes it, and what becomes of it."""

    call: str
    number: int
    way: str

    @property
    def inject(self) -> tuple[str, ...]:
        """What strace is told."""
        quickly = QUICKLY if WAYS[self.way].startswith("error") else ()
        inject = f"inject={self.call}:{WAYS[self.way]}:when={self.number}"
        return (*quickly, "-y", "-e", f"trace={self.call}", "-e", inject)


def calls_of(trace: Path, places: list[str]) -> list[tuple[str, int]]:
    """The calls of a traced run on these folders: kind, and number within its thread."""
    counted: Counter[tuple[str, str]] = Counter()
    found = []
    for line in trace.read_text(errors="replace").splitlines():
        said = re.match(r"(\d+)\s+(\w+)\((.*)", line)
        if said:
            counted[said[1], said[2]] += 1
            if any(place in said[3] for place in places):
                found.append((said[2], counted[said[1], said[2]]))
    return found


def drawn(found: list[tuple[str, int]], count: int, draws: random.Random) -> list[Fault]:
    """Faults over all kinds of calls and all ways, as even as can be; a full disk fails no read."""
    by_call = {call: sorted({number for kind, number in found if kind == call}) for call in CALLS}
    pairs = [(call, way) for way in WAYS for call in CALLS if by_call[call]
             and (way != "the disk is full" or call in (*CHANGES, "openat"))]
    draws.shuffle(pairs)
    return [Fault(call, draws.choice(by_call[call]), way)
            for call, way in (pairs * (count // len(pairs) + 1))[:count]]


def said_plainly(code: int, error: str) -> list[str]:
    """What is wrong with how a run ended: it says in a line or a few what happened, without a traceback."""
    if code in (0, -9, 137):
        return []
    lines = [line for line in error.splitlines() if line.startswith("tlkd: ")]
    wrong = [] if code in (1, 2) else [f"exit code {code}"]
    wrong += ["a traceback"] if "Traceback" in error else []
    return wrong + ([] if lines else ["no line that says why"])


def tried(fault: Fault, study: str, scratch: Path, whole: dict[str, str]) -> tuple[str, list[str]] | None:
    """One broken run and the one after it: what happened, and what was wrong; None where no thread came so far."""
    out, cache, trace = scratch / "out", scratch / "cache", scratch / "trace"
    for each in (out, cache):
        shutil.rmtree(each, ignore_errors=True)
    line = command(study, out, "--jobs", "1")
    process = start(line, cache, (*STRACE, "-o", str(trace), *fault.inject), quiet=False)
    _, error = process.communicate()
    lines = trace.read_text(errors="replace").splitlines()
    hit = [each for each in lines if "INJECTED" in each or each.endswith("= ?")]
    if not hit:
        return None
    problems = said_plainly(process.returncode, error)
    before = marks(out)
    again = start([*line, "--retry-failed"], cache, quiet=False)
    _, second = again.communicate()
    problems += [f"the start after it: exit code {again.returncode}: {second[-300:]}"] if again.returncode else []
    now = marks(out)
    problems += [f"{name} was finished and was made again" for name, mark in before.items() if now.get(name) != mark]
    if not again.returncode:
        problems += [f"{name} differs" for name in differences(whole, contents(out))]
        checked = subprocess.run([sys.executable, "-m", "tlkd", "verify", str(out), "--sample", "0"],
                                 capture_output=True, text=True, check=False)
        problems += [f"tlkd verify: {checked.stdout[-300:]}{checked.stderr[-300:]}"] if checked.returncode else []
    shown = next((words for words in error.splitlines()[::-1] if words.startswith("tlkd: ")), "")
    what = f"{fault.call} {fault.number}, {fault.way}: {len(hit)} hit, exit code {process.returncode}, {len(before)} "
    return f"{what}runs done; {shown[:150]}", [f"{fault}: {each}" for each in problems]


def main() -> int:
    """Run once in peace, then once for every fault."""
    parser = options(__doc__)
    parser.add_argument("--faults", type=int, default=20)
    asked = parser.parse_args()
    count = 1 if asked.short else asked.faults
    if shutil.which("strace") is None or subprocess.run(
            ["strace", "-qq", "-e", "trace=none", "true"], capture_output=True, check=False).returncode:
        print("faults: skipped, since strace is not installed or may not trace here")
        return 0
    draws = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        study = write_small(scratch / "small.yaml", explained=False)
        trace, out, cache = scratch / "trace", scratch / "whole", scratch / "whole-cache"
        began = time.perf_counter()
        traced = (*STRACE, *QUICKLY, "-y", "-o", str(trace), "-e", f"trace={','.join(CALLS)}")
        code = start(command(study, out, "--jobs", "1"), cache, traced).wait()
        if code:
            print(f"in peace: exit code {code}")
            return 1
        found, whole = calls_of(trace, [str(out), str(cache)]), contents(out)
        print(f"in peace: {time.perf_counter() - began:.0f} s, {len(found)} calls on folder and cache", flush=True)
        problems, ways, calls = [], Counter[str](), Counter[str]()
        for fault in drawn(found, 2 * count, draws):  # threads share work anew each time: not every call comes again
            result = tried(fault, study, scratch, whole) if sum(ways.values()) < count else None
            if result is None:
                continue
            what, wrong = result
            print("\n".join([what, *wrong]), flush=True)
            problems += wrong
            ways[fault.way] += 1
            calls[fault.call] += 1
    rows = [[way, str(ways[way])] for way in WAYS]
    text = (f"{sum(ways.values())} faults in studies of 8 runs, one each, at calls drawn from the {len(found):,} that "
            "an unbroken run makes on the folder and the cache; faults made at: "
            f"{', '.join(f'{name} {number}' for name, number in sorted(calls.items()))}.\n\n"
            f"{table(['what happens at the call', 'faults'], rows)}\n\n"
            f"After each, the same command went on: {len(problems)} files that differ, runs made again, tracebacks or "
            "complaints of `tlkd verify`.")
    publish("faults", text, f"python proofs/faults.py --faults {count}", asked.write and not problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
