"""The grid of `cifar10-difficulties`: against the live thesis loop, against its own runs, 2 jobs against 1.

The live loop is what one writes first: DataLoader, PIL, both networks run on every batch of every epoch. It is measured
for two epochs of each arm on a fifth of the images, and extrapolated to the samples that the grid's runs see; its
teacher's own fine-tuning is left out, while the grid's is in. The grid starts with an empty cache: decoding, banks,
teacher, runs. The engine's part is what one worker process takes, its start included, beyond the steps' own time, with
the banks there; beside it stands all that is not training and predicting (the seconds in `results.csv`).
"""

import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
from torch import nn

from common import CPU, Row, network
from tlkd import study as pipeline
from tlkd.engine import Outcome
from tlkd.folder import StudyFolder, plan
from tlkd.reading import read_study
from tlkd.specs import Study
from tlkd.workers import Local
from whole_study import CLASSES, PART, SIZE, TRAIN, live_epoch, make_images

SEEDS, FEW, REPEATS = 3, 2, 2
ARMS = "[{name: tl, kind: tl}, {name: tl_kd, kind: tl_kd, teacher: lite2, soft_weight: 0.5, temperature: 4}]"


def grid(root: Path, seeds: range) -> Study:
    """The packaged grid on these images, without controls: the runs that the thesis trained."""
    return read_study("cifar10-difficulties", (
        f"data.source=folder:{root / 'images'}", f"arms={ARMS}", "exclude=[]", "robustness=[]",
        "teachers.lite2.trained_on=clean", f"seeds={list(seeds)}"))


def seen(study: Study, root: Path) -> dict[str, float]:
    """The number of samples that all runs of an arm see in all their epochs."""
    images, found = CLASSES * (TRAIN - TRAIN // 10), dict.fromkeys(("tl", "tl_kd"), 0.0)
    for run in plan(study):
        found[run.arm.name] += run.condition.train_fraction * images * study.training_of(run.arm, run.condition).epochs
    return found


def steps(study: Study, out: Path, jobs: int) -> float:
    """Seconds that all steps of a study take in worker processes, the workers' start included."""
    workshop = pipeline.open_workshop(pipeline.Context(study, out, Path(os.environ["TLKD_CACHE"]), "cpu"))
    context = pipeline.Context(study, out, workshop.cache, "cpu", 1, workshop.dataset.address)
    folder = StudyFolder(out)
    folder.prepare(study, {})
    started = time.perf_counter()
    pipeline.take_steps(context, folder, lambda _, given: Local(timed, given, jobs, out / "logs"))
    return time.perf_counter() - started


def timed(context: pipeline.Context, name: str) -> Outcome:
    """Take a step, and note how long that was."""
    started = time.perf_counter()
    outcome = pipeline.work(context, name)
    with (context.out / "took").open("a") as file:
        file.write(f"{time.perf_counter() - started}\n")
    return outcome


def of_engine(root: Path) -> None:
    """What the engine adds, and what a second job saves."""
    added, untrained, faster = [], [], []
    for repeat in range(REPEATS):
        seeds = range(FEW * repeat, FEW * (repeat + 1))
        one, two = (root / f"{word}{repeat}" for word in ("one", "two"))
        order = ((one, 1), (two, 2)) if repeat % 2 else ((two, 2), (one, 1))
        took = {jobs: steps(grid(root, seeds), out, jobs) for out, jobs in order}
        own = float(pd.read_csv(_collected(one))["seconds"].sum())
        of_steps = sum(map(float, (one / "took").read_text().split()))
        added.append(took[1] / of_steps)
        untrained.append(took[1] / own)
        faster.append(took[1] / took[2])
        print(f"repeat {repeat}: 1 job {took[1]:.1f} s, its steps {of_steps:.1f} s, their training {own:.1f} s, 2 jobs "
              f"{took[2]:.1f} s", file=sys.stderr)
    count = len(plan(grid(root, range(FEW))))
    note = f"{count} runs, banks and teacher there"
    Row("one worker, start to end / its steps' own time", added, "<= 1.05", note).print()
    Row("one worker, start to end / training and predicting", untrained, "<= 1.05", note).print()
    Row("1 job / 2 jobs", faster, ">= 1.0", f"{note}, 2 cores").print()


def _collected(out: Path) -> Path:
    pipeline.collect(StudyFolder(out))
    return out / "results.csv"


def of_live_loop(root: Path, live: Path) -> None:
    """The whole grid with an empty cache beside the extrapolated live loop."""
    student, teacher = network(size=SIZE), network("packaged:efficientnet_lite2", SIZE)
    study = grid(root, range(SEEDS))

    def epoch(with_teacher: nn.Module | None) -> float:
        return (live_epoch(live, student, with_teacher) + live_epoch(live, student, with_teacher)) / 2

    before = epoch(None), epoch(teacher)
    os.environ["TLKD_CACHE"] = str(root / "cache-whole")
    started = time.perf_counter()
    pipeline.run_study(study, root / "whole", CPU, executor=lambda work, given: Local(
        work, replace(given, threads=1), 2, root / "whole" / "logs"))
    took = time.perf_counter() - started
    after = epoch(None), epoch(teacher)
    part, samples = CLASSES * (TRAIN - TRAIN // 10) // PART, seen(study, root)
    lives = [(tl * samples["tl"] + kd * samples["tl_kd"]) / part for tl, kd in (before, after)]
    Row("live thesis loop (extrapolated) / whole grid", [live / took for live in lives], ">= 100",
        f"{len(plan(study))} runs on up to {CLASSES * (TRAIN - TRAIN // 10)} images, lite0 from lite2 at {SIZE} px, 2 "
        f"jobs; the grid took {took:.0f} s, the live loop would take {sum(lives) / len(lives) / 3600:.0f} h; live "
        "epochs measured before and after").print()


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_images(root / "images")
        live = root / "live"
        live.mkdir()
        (root / "images" / "part").rename(live / "part")
        os.environ["TLKD_CACHE"] = str(root / "cache")
        steps(grid(root, range(90, 91)), root / "warm", 2)  # decodes, banks, fits the teacher
        of_engine(root)
        of_live_loop(root, live)


if __name__ == "__main__":
    main()
