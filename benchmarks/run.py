"""Run every benchmark, each in a process of its own, and write RESULTS.md."""

import json
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from tlkd.provenance import git_commit, hardware, versions

HERE = Path(__file__).parent
SCRIPTS = ("bank_building", "training_step", "head_only", "whole_study")


def met(goal: str, value: float) -> str:
    relation, bound = goal.split()
    return "yes" if (value >= float(bound) if relation == ">=" else value <= float(bound)) else "no"


def main() -> None:
    rows = []
    for name in sys.argv[1:] or SCRIPTS:
        done = subprocess.run([sys.executable, f"{name}.py"], cwd=HERE, check=True, stdout=subprocess.PIPE, text=True)
        found = [line for line in done.stdout.splitlines() if line.startswith("ROW ")]
        rows += [(name, json.loads(line.removeprefix("ROW "))) for line in found]
        print(done.stdout, flush=True)
    if sys.argv[1:]:
        return  # a part is for looking at, not for the record
    machine, installed = hardware(torch.device("cpu")), versions()
    text = ["# Benchmarks", "",
            "Written by `make benchmarks`. Each figure is a ratio of times taken in one process, the two sides",
            "interleaved; medians, with the least and the greatest.", "",
            f"{datetime.now(UTC):%Y-%m-%d}, commit {git_commit()}, {machine['processor']}, {machine['cores']} cores, "
            f"{machine.get('memory_gib')} GiB, torch {installed['torch']}, Python {installed['python']}.", "",
            "| script | ratio | median | range | repeats | goal | met | setting |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for name, row in rows:
        ratios = row["ratios"]
        middle = statistics.median(ratios)
        text.append(f"| `{name}.py` | {row['what']} | {middle:.3f} | {min(ratios):.3f} to {max(ratios):.3f} | "
                    f"{len(ratios)} | {row['goal']} | {met(row['goal'], middle)} | {row['note']} |")
    (HERE / "RESULTS.md").write_text("\n".join(text) + "\n")
    print(f"written: {HERE / 'RESULTS.md'}")


if __name__ == "__main__":
    main()
