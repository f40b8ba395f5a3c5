"""What proofs do with whole studies: start them, see whether a run was made again, compare what they leave."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

COMPARED = ("model.safetensors", "predictions.npz", "drawn.npz", "spec.json")


def command(study: str, out: Path, *options: str, assignments: Sequence[str] = ()) -> list[str]:
    """The command line of a `tlkd run` into `out`."""
    return [sys.executable, "-m", "tlkd", "run", study, "--out", str(out), *options,
            *(word for assignment in assignments for word in ("--set", assignment))]


def start(line: Sequence[str], cache: Path, before: Sequence[str] = (), quiet: bool = True) -> subprocess.Popen[str]:
    """Start a command with this cache in a process group of its own, behind `before` (strace, say).

    With `quiet` nothing is kept of what it says; otherwise `communicate()` gives it.
    """
    to = subprocess.DEVNULL if quiet else subprocess.PIPE
    return subprocess.Popen([*before, *line], env={**os.environ, "TLKD_CACHE": str(cache)}, start_new_session=True,
                            stdout=to, stderr=to, text=True)


def marks(out: Path) -> dict[str, tuple[int, int]]:
    """What tells whether a finished run was made again: inode and time of its manifest, by run."""
    return {path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in (out / "runs").glob("[!.]*/manifest.json")}


def contents(out: Path) -> dict[str, str]:
    """Checksums, or the text, of what no clock decides; by file."""
    found = {}
    for run in sorted((out / "runs").glob("[!.]*")):
        for name in COMPARED:
            if (run / name).is_file():
                found[f"{run.name}/{name}"] = hashlib.sha256((run / name).read_bytes()).hexdigest()
        history = pd.read_csv(run / "history.csv").drop(columns="seconds", errors="ignore")
        found[f"{run.name}/history.csv"] = history.to_csv(index=False)
    found["results.csv"] = pd.read_csv(out / "results.csv").drop(columns="seconds").to_csv(index=False)
    return found


def differences(whole: dict[str, str], other: dict[str, str]) -> list[str]:
    """The files that differ between two studies' `contents`, or stand in one alone."""
    return [name for name in {**whole, **other} if whole.get(name) != other.get(name)]


SMALL = """name: small
data:
  source: shapes
  shapes: {size: 32, train_per_class: 10, test_per_class: 6}
  masks: exact
student: {model: packaged:efficientnet_lite0, input_size: 32}
teachers:
  lite1: {model: packaged:efficientnet_lite1, input_size: 40, training: {epochs: 3}}
arms:
  - {name: tl, kind: tl}
  - {name: kd, kind: tl_kd, teacher: lite1}
conditions:
  - {name: clean}
  - {name: noisy, label_noise: {fraction: 0.3}}
training: {epochs: 4, batch_size: 16}
robustness:
  - {kind: center_black, sizes: [0.5]}
seeds: [0, 1]
"""
"""A study of eight runs that takes seconds: banks, a teacher, two conditions, distorted test images."""


def write_small(path: Path, explained: bool = True) -> str:
    """Write the small study's file, with Deep SHAP of two networks unless that is left out; its name."""
    more = "explanation: {images: 1, seeds: 1, pictures: 1, background: {size: 4}}\n" if explained else ""
    path.write_text(SMALL + more)
    return str(path)
