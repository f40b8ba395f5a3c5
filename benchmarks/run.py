"""Run the benchmarks, all or those named, each in a process of its own; keep results.json, write RESULTS.md from it."""

import json
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tlkd.provenance import git_commit, hardware, versions

HERE = Path(__file__).parent
SCRIPTS = ("bank_building", "training_step", "head_only", "whole_study", "deep_shap", "difficulties", "scale",
           "many_runs")
OPTIONS = {"scale": ["--write"]}
NOTES = {
    "bank_building": "What a bank costs beside the network is the views: resizing 32-pixel images to 96 and mirroring "
                     "half of them, about a tenth of EfficientNet-lite0's forward pass; so it misses its goal there.",
    "whole_study": "The live loop's two epochs are timed after each study, minutes apart; the ratios are widest where "
                   "the machine's speed changed in between.",
    "difficulties": "What is neither training nor predicting: a worker starts (6 s), and every run draws, hashes, "
                    "evaluates and publishes (about 0.1 s). The live loop is measured on 2 epochs of each arm.",
    "scale": "The slopes are those of lines through the points on two logarithmic axes; docs/scale.md has the points. "
             "Deep SHAP misses its goal by .03, on three sizes in one run of half a minute; its memory does not grow.",
    "many_runs": "Of plan's and run's memory PyTorch, torchvision, timm and pandas take 0.85 GiB at the start, and of "
                 "plan's time half. Of report's time a third reads and measures 10,000 predictions, a quarter draws 23 "
                 "figures, a quarter gives some thousand verdicts, a twelfth compares checksums: it misses its goal.",
    "deep_shap": "EfficientNet-lite0 misses its goal by a third: its convolutions are cheap, and the rescale rule, "
                 "some six passes over every ReLU6's pairs, took about two fifths of the time in a profile, more than "
                 "a raw forward pass and a ReLU6's own gradient do.",
}
INTRODUCTION = """# Benchmarks

Written by `make benchmarks`. Each figure is a ratio of times taken in one process, the two sides interleaved, unless
its row names a unit; medians, with the least and the greatest. A range much wider than the median's distance from 1
says that the machine was shared.
"""


def measure(name: str) -> dict[str, Any]:
    """What one script prints, with the machine it ran on."""
    done = subprocess.run([sys.executable, f"{name}.py", *OPTIONS.get(name, [])], cwd=HERE, check=True,
                          stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    lines = [line.removeprefix("ROW ") for line in done.stdout.splitlines() if line.startswith("ROW ")]
    machine, installed = hardware(torch.device("cpu")), versions()
    return {"rows": [json.loads(line) for line in lines], "day": f"{datetime.now(UTC):%Y-%m-%d}",
            "commit": git_commit(),
            "machine": f"{machine['processor']}, {machine['cores']} cores, {machine.get('memory_gib')} GiB, "
                       f"torch {installed['torch']}, Python {installed['python']}"}


def met(goal: str, value: float) -> str:
    """Whether a figure is as hoped for: `<= 1.1`, `>= 0.9` or `0.9 to 1.1`."""
    if " to " in goal:
        low, high = map(float, goal.split(" to "))
        return "yes" if low <= value <= high else "no"
    relation, bound = goal.split()
    return "yes" if (value >= float(bound) if relation == ">=" else value <= float(bound)) else "no"


def page(results: dict[str, Any]) -> str:
    """RESULTS.md."""
    text = [INTRODUCTION]
    for name in SCRIPTS:
        if name not in results:
            continue
        found = results[name]
        text += [f"## `{name}.py`", "", f"{found['day']}, commit {found['commit']}, {found['machine']}.", "",
                 "| figure | median | range | repeats | goal | met | setting |",
                 "| --- | --- | --- | --- | --- | --- | --- |"]
        for row in found["rows"]:
            ratios, middle = row["ratios"], statistics.median(row["ratios"])
            what = row["what"] + (f" ({row['unit']})" if row.get("unit") else "")
            text.append(f"| {what} | {middle:.3f} | {min(ratios):.3f} to {max(ratios):.3f} | {len(ratios)} | "
                        f"{row['goal']} | {met(row['goal'], middle)} | {row['note']} |")
        text += ["", NOTES[name], ""] if name in NOTES else [""]
    return "\n".join(text)


def main() -> None:
    kept = HERE / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for name in sys.argv[1:] or SCRIPTS:
        results[name] = measure(name)
        kept.write_text(json.dumps(results, indent=1) + "\n")
        (HERE / "RESULTS.md").write_text(page(results))


if __name__ == "__main__":
    main()
