"""A study of 10,000 runs: what `tlkd plan`, `status`, `report`, `run`, `watch` and `verify` take, in time and memory.

The runs are laid down and not trained: 200 conditions x 10 seeds x 5 arms on the digits that come with `quickstart`,
each published by the code that publishes real runs, with its manifest, weights, curves and predictions of 200 test
images; only its logits are planted. The teacher is fitted and the banks are built. Each command is then a process of
its own, and its peak memory is what the system counted. `--short`: 200 runs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import CPU, Row
from tlkd import stages, store
from tlkd.folder import Run, StudyFolder, plan
from tlkd.reading import validate
from tlkd.seeding import generator
from tlkd.specs import Study
from tlkd.study import Context, collect, open_workshop, run_study
from tlkd.training import Fit
from tlkd.workshop import Learner, Workshop, inputs_of, network_for, write_result

EPOCHS, SIZE = 10, 32
TEMPERATURES = (1, 4, 10)
MEMORY = "<= 1.0"
COMMANDS = {"status": "<= 5", "plan": "<= 5", "report": "<= 5", "run": "<= 60", "watch": "<= 10", "verify": "<= 60"}
"""What is asked of each command, in seconds: of the first three a few; what is hoped for from the others."""


def study_of(fractions: int, noises: int, seeds: int) -> Study:
    """A study of `fractions` x `noises` conditions, the plain one among them, x seeds x 5 arms."""
    grid = {"conditions.clean.train_fraction": [round(1 - 0.9 * step / fractions, 4) for step in range(fractions)],
            "conditions.clean.label_noise.fraction": [round(0.5 * step / noises, 4) for step in range(noises)]}
    arms: list[dict[str, Any]] = [{"name": "tl", "kind": "tl"}]
    arms += [{"name": f"kd{each}", "kind": "tl_kd", "teacher": "lite1", "soft_weight": 0.5, "temperature": each}
             for each in TEMPERATURES]
    arms += [{"name": "smooth", "kind": "label_smoothing", "teacher": "lite1", "temperature": 4}]
    data = {"source": "mnist5k", "train_per_class": 40, "test_per_class": 20, "augment": []}
    return validate({
        "name": "many-runs", "data": data, "student": {"model": "packaged:efficientnet_lite0", "input_size": SIZE},
        "teachers": {"lite1": {"model": "packaged:efficientnet_lite1", "input_size": SIZE, "trained_on": "clean",
                               "training": {"epochs": 1}}},
        "arms": arms, "conditions": [{"name": "clean", "label_noise": {"fraction": 0.0}}], "grid": grid,
        "training": {"epochs": EPOCHS}, "seeds": list(range(seeds))}, "many-runs")


# --- laying down ------------------------------------------------------------------------------------------------------


def lay_down(study: Study, out: Path, processes: int = 2) -> StudyFolder:
    """The folder that `tlkd run` would leave: the teacher by the pipeline, the runs by the code that publishes them."""
    folder = StudyFolder(out)
    if not (out / "study.yaml").is_file() or folder.study != study:  # otherwise it goes on with what lies there
        folder = _first_runs(study, out)
    folder.prepare(study, folder.provenance)
    shares = [(study, out, number, processes) for number in range(processes)]
    with get_context("spawn").Pool(processes) as pool:
        pool.starmap(_lay_some, shares, chunksize=1)
    collect(folder)
    return folder


def _first_runs(study: Study, out: Path) -> StudyFolder:
    """The teacher and the banks, by way of one seed of the first condition."""
    failed = run_study(study.model_copy(update={
        "seeds": study.seeds[:1], "exclude": (), "conditions": study.conditions[:1],
        "training": study.training.model_copy(update={"epochs": EPOCHS})}), out, CPU)
    if failed:
        raise SystemExit(f"the first runs failed: {failed}")
    return StudyFolder(out)


def _lay_some(study: Study, out: Path, number: int, of: int) -> None:
    """One process's part of the runs."""
    torch.set_num_threads(1)
    workshop = open_workshop(Context(study, out.absolute(), store.cache_folder().absolute(), "cpu"))
    folder, teachers = StudyFolder(out), dict[str, str]()
    for run in plan(study)[number::of]:
        if not folder.done(run):
            _publish(workshop, folder, run, teachers)


def _publish(workshop: Workshop, folder: StudyFolder, run: Run, teachers: dict[str, str]) -> None:
    """Publish one run as `stages.publish_run` does, with planted logits and curves in the training's place."""
    study, name = workshop.study, run.arm.teacher
    if name is not None and name not in teachers:
        teachers[name] = stages.teacher_labels(workshop, folder, run).address  # type: ignore[union-attr]
    key = stages.student_key(run.condition)
    network = network_for(workshop, study.student_of(run.condition), run.seed, key)
    recipe = stages.run_recipe(workshop, network, run, inputs_of(workshop, network),
                               None if name is None else teachers[name], None)
    training, drawn = study.training_of(run.arm, run.condition), workshop.draw(run.condition, run.seed)
    logits, history = planted(workshop, run)

    def source(which: Any, samples: Any) -> Tensor:
        return logits[samples]

    def make(target: Path) -> dict[str, Any]:
        store.write_json(target / "spec.json", {"run_id": run.run_id, **recipe.spec, "inputs": recipe.inputs,
                                                "data": study.data.model_dump(mode="json")})
        if not run.condition.plain:
            np.savez_compressed(target / "drawn.npz", **drawn.stored(EPOCHS))
        learner = Learner(network, "student", {"test": source}, lambda batch: batch)
        best = 1 + int(np.argmax([row["dev_accuracy"] for row in history]))
        return write_result(workshop, target, learner, Fit(history, best), training,
                            backbone=recipe.inputs["backbone"])

    store.publish(folder.run_path(run), recipe.address, asdict(recipe), make)


def planted(workshop: Workshop, run: Run) -> tuple[Tensor, list[dict[str, float]]]:
    """Logits `[test image, class]` and a history, worse with the difficulty; taught arms a little better."""
    labels, random = workshop.labels["test"], generator("planted", run.run_id)
    shared = generator("planted", run.condition.name, run.seed).normal(0, 1, (len(labels), 10))
    noise = run.condition.label_noise.fraction if run.condition.label_noise is not None else 0.0
    strength = 2.2 * run.condition.train_fraction ** 0.3 * (1 - noise) + (0.12 if run.arm.kind == "tl_kd" else 0.0)
    logits = shared + 0.4 * random.normal(0, 1, shared.shape)
    logits[np.arange(len(labels)), labels] += strength
    reached = float((logits.argmax(axis=1) == labels).mean())
    curve = np.clip(reached * (1 - 0.7 ** np.arange(1, EPOCHS + 1)) + random.normal(0, 0.01, EPOCHS), 0, 1)
    history = [{"epoch": epoch + 1, "learning_rate": 0.01, "train_loss": 1 / (epoch + 1), "dev_loss": 1 / (epoch + 1),
                "dev_accuracy": float(curve[epoch]), "seconds": 0.01} for epoch in range(EPOCHS)]
    return torch.from_numpy(logits.astype(np.float32)), history


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds, and GiB of memory at its peak."""

    seconds: float
    memory: float


def command(name: str, out: Path) -> list[str]:
    """The command line."""
    given = [str(out / "study.yaml"), "--out", str(out)] if name in ("plan", "run") else [str(out)]
    given += ["--sample", "0"] if name == "verify" else []  # these weights were never trained to what was predicted
    return [sys.executable, "-m", "tlkd", name, *given, *(["--once"] if name == "watch" else [])]


# A process inherits its parent's peak until it is another program, so a small one stands between.
BETWEEN = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
took = time.perf_counter() - started
print(json.dumps([done.returncode, took, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, done.stderr[-2000:]]))
"""


def cost(line: list[str]) -> Cost:
    """Run a command to its end; `SystemExit` with its last words where it fails."""
    said = subprocess.run([sys.executable, "-S", "-c", BETWEEN, *line], check=True, stdout=subprocess.PIPE, text=True)
    code, seconds, most, words = json.loads(said.stdout)
    if code:
        raise SystemExit(f"{' '.join(line)} ended with {code}: {words}")
    return Cost(seconds, most * (1 if sys.platform == "darwin" else 1024) / 2**30)


def size_of(folder: Path) -> tuple[int, int]:
    """The number of files in a folder, and their bytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def measure(out: Path, study: Study, repeats: int, names: list[str]) -> None:
    """Print a row of seconds and one of memory for each command."""
    runs = len(plan(study))
    files, size = size_of(out / "runs")
    about = (f"{runs:,} runs ({len(study.conditions)} conditions x {len(study.seeds)} seeds x {len(study.arms)} arms), "
             f"200 test images, 10 classes; {files:,} files, {size / 2**20:,.0f} MiB")
    cost(command("status", out))  # whatever is read for the first time
    for name in names:
        found = [cost(command(name, out)) for _ in range(repeats)]
        note, said = about, "verify --sample 0" if name == "verify" else name
        if name == "report":
            page = (out / "report.html").stat().st_size / 2**20
            note += f"; report.html {page:.1f} MiB, {len(list((out / 'figures').glob('*.png')))} figures"
        Row(f"`tlkd {said}`, {runs:,} runs: time", [each.seconds for each in found], COMMANDS[name], note, "s").print()
        Row(f"`tlkd {said}`, {runs:,} runs: peak memory", [each.memory for each in found], MEMORY, "", "GiB").print()


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--short", action="store_true", help="200 runs, once each")
    given.add_argument("--out", type=Path, help="keep the folder here, and go on with it where it is there")
    given.add_argument("--repeats", type=int, default=0)
    given.add_argument("--commands", default=",".join(COMMANDS), metavar="A,B")
    chosen = given.parse_args()
    study = study_of(2, 2, 10) if chosen.short else study_of(20, 10, 10)
    with tempfile.TemporaryDirectory(prefix="many-runs-") as scratch:
        root = chosen.out or Path(scratch)
        root.mkdir(parents=True, exist_ok=True)
        os.environ["TLKD_CACHE"] = str(root / "cache")
        started = time.perf_counter()
        lay_down(study, root / "study")
        print(f"laid down in {time.perf_counter() - started:.0f} s", flush=True)
        measure(root / "study", study, chosen.repeats or (1 if chosen.short else 3), chosen.commands.split(","))


if __name__ == "__main__":
    main()
