"""Kill `tlkd run` and its workers at random moments, again and again, and hold what comes out to an unbroken study.

    python proofs/kills.py STUDY [--set KEY=VALUE]... [--kills 20] [--longest 15] [--seed 0]

Every kill is SIGKILL, to the driver and to all its workers. Afterwards the study is let finish. It must equal one that
was never stopped, file by file but for what a clock decides, and no run that was finished may have been made again.
Exit code 0 where that holds, 1 with what differs where not.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

COMPARED = ("model.safetensors", "predictions.npz", "drawn.npz", "spec.json")


def start(options: argparse.Namespace, out: Path, cache: Path) -> subprocess.Popen[bytes]:
    """Start `tlkd run` in a process group of its own."""
    command = [sys.executable, "-m", "tlkd", "run", options.study, "--out", str(out), "--jobs", str(options.jobs)]
    for assignment in options.set:
        command += ["--set", assignment]
    return subprocess.Popen(command, env={**os.environ, "TLKD_CACHE": str(cache)}, start_new_session=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def marks(out: Path) -> dict[str, tuple[int, int]]:
    """What tells whether a finished run was made again: inode and time of its manifest."""
    return {path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in (out / "runs").glob("*/manifest.json")}


def contents(out: Path) -> dict[str, str]:
    """Checksums of what no clock decides."""
    found = {}
    for run in sorted((out / "runs").glob("[!.]*")):
        for name in COMPARED:
            if (run / name).is_file():
                found[f"{run.name}/{name}"] = hashlib.sha256((run / name).read_bytes()).hexdigest()
        history = pd.read_csv(run / "history.csv").drop(columns="seconds", errors="ignore")
        found[f"{run.name}/history.csv"] = history.to_csv(index=False)
    found["results.csv"] = pd.read_csv(out / "results.csv").drop(columns="seconds").to_csv(index=False)
    return found


def main() -> int:
    """Run the study twice, once in peace, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=15.0, help="seconds until a kill, at most")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draws = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole, broken = Path(scratch, "whole"), Path(scratch, "broken")
        began = time.perf_counter()
        code = start(options, whole, Path(scratch, "cache-whole")).wait()
        print(f"in peace: exit code {code}, {time.perf_counter() - began:.0f} s", flush=True)
        problems, seen, kills = [] if code == 0 else [f"in peace: exit code {code}"], {}, 0
        while True:
            process = start(options, broken, Path(scratch, "cache-broken"))
            try:
                code = process.wait(draws.uniform(0.5, options.longest) if kills < options.kills else None)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                code = None
            now = marks(broken)
            again = [name for name, mark in seen.items() if now.get(name) != mark]
            problems += [f"{name} was finished and was made again" for name in again]
            seen = now
            print(f"{'killed' if code is None else f'exit code {code}'}: {len(now)} runs finished", flush=True)
            if code is not None:
                problems += [] if code == 0 else [f"broken: exit code {code}"]
                break
        first, second = contents(whole), contents(broken)
        problems += [f"{name} differs" for name in {**first, **second} if first.get(name) != second.get(name)]
        for problem in problems:
            print(problem)
        print(f"{kills} kills, {len(first)} files compared, {len(problems)} problems")
        return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
