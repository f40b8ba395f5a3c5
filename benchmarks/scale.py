"""Cost against size: bank building, head training, Deep SHAP and the report, by samples and by classes.

Each measurement is a process of its own. Time is the clock's; memory is what the process holds at its peak for itself
(anonymous, sampled) beyond what it held before; pages of memory-mapped banks, which the system takes back when it needs
them, are counted apart; disk is what the work leaves. A slope is that of a line through the points on two logarithmic
axes, with its standard error: 1 is linear, 0 is flat. Images are random, 32 pixels wide; the network is EfficientNet-
lite0 at 32 pixels. `--write` puts the table and the figure into docs/scale.md.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from common import CPU, Row, network
from planner_simulation import write

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "scale.png"
SIZE, WIDTH, EPOCHS, REFERENCES, TOGETHER, SEEDS = 32, 1280, 2, 2, 32, 3
SAMPLES, CLASSES = (1_000, 2_000, 5_000, 10_000, 50_000), (10, 100, 1_000)
STAGES = {"bank": "bank building", "head": "head training (TL+KD)", "shap": "Deep SHAP", "report": "report"}
BY_CLASSES = {"head": 5_000, "shap": 200, "report": 10_000}  # stage -> samples at which classes grow
MOST = {"shap": 5_000}  # samples that fit into the time of this benchmark

# What a slope should be. By samples all work in batches; the byte that a report keeps of each image and network is lost
# beside its figures. A bank and attributions are files of so much an image; a checkpoint and a report are not. By
# classes a head, its soft labels and a report's tables grow, and the confusions in a report are squares.
FLAT, LINEAR, LINEAR_AT_MOST, SQUARE_AT_MOST = "<= 0.1", "0.9 to 1.1", "<= 1.1", "<= 2.1"
EXPECTED = {"samples": {"bank": {"memory": FLAT, "disk": LINEAR}, "head": {"memory": FLAT, "disk": FLAT},
                        "shap": {"memory": FLAT, "disk": LINEAR}, "report": {"memory": FLAT, "disk": FLAT}},
            "classes": {"head": {"memory": LINEAR_AT_MOST, "disk": LINEAR_AT_MOST},
                        "shap": {"memory": LINEAR_AT_MOST, "disk": FLAT},
                        "report": {"memory": SQUARE_AT_MOST, "disk": LINEAR_AT_MOST}}}


@dataclass(frozen=True)
class Point:
    """What one piece of work took; bytes of memory for itself, of mapped pages, and of disk."""

    stage: str
    samples: int
    classes: int
    seconds: float
    memory: int
    mapped: int
    disk: int


# --- in a process of its own ------------------------------------------------------------------------------------------


def resident() -> tuple[int, int]:
    """Bytes of this process's own memory, and of mapped files."""
    text = Path("/proc/self/status").read_text()
    own, mapped, shared = (int(re.search(rf"{name}:\s+(\d+)", text)[1]) for name in ("RssAnon", "RssFile", "RssShmem"))
    return 1024 * own, 1024 * (mapped + shared)


@contextmanager
def watched() -> Iterator[list[int]]:
    """The most that is held meanwhile beyond what was held before: `[own, mapped]`."""
    before, most, over = resident(), [0, 0], threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            for place, now in enumerate(resident()):
                most[place] = max(most[place], now - before[place])

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield most
    finally:
        over.set()
        looking.join()


def measured(stage: str, samples: int, classes: int, root: Path) -> Point:
    """Prepare a stage's work, do it, and say what it took."""
    work = PREPARED[stage](samples, classes, root)
    before = used(root)
    with watched() as most:
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
    return Point(stage, samples, classes, seconds, *most, used(root) - before)


def used(root: Path) -> int:
    """Bytes in a folder."""
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def array(path: Path, shape: tuple[int, ...]) -> "np.memmap[tuple[int, ...], np.dtype[np.float32]]":
    """A bank's file of random numbers, mapped as banks are."""
    made = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    rows, random = made.reshape(-1, shape[-1]), np.random.default_rng(0)
    for start in range(0, len(rows), 4096):
        rows[start:start + 4096] = random.standard_normal(rows[start:start + 4096].shape, np.float32)
    made.flush()
    del made, rows
    return np.load(path, mmap_mode="c")


def pictures(path: Path, count: int) -> "np.memmap[tuple[int, ...], np.dtype[np.uint8]]":
    """Decoded images on the disk."""
    made = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, SIZE, SIZE, 3))
    for start in range(0, count, 4096):
        made[start:start + 4096] = np.random.default_rng(start).integers(
            0, 256, made[start:start + 4096].shape, np.uint8)
    made.flush()
    del made
    return np.load(path, mmap_mode="r")


def bank(samples: int, classes: int, root: Path) -> Callable[[], object]:
    """A backbone's features, banked by the code that banks them, checksums included."""
    from tlkd import banks
    from tlkd.batches import Pixels
    from tlkd.views import View

    net, rows = network(size=SIZE).eval(), np.arange(samples)
    source = Pixels(pictures(root / "images.npy", samples), rows, rows.astype(np.uint64), (View(),), SIZE, 0,
                    (0.5,) * 3, (0.25,) * 3, CPU)
    few = np.empty((1, 128, net.width), np.float32)
    banks.write(few, source, net.features, "warm up")
    return lambda: banks.build(root / "cache", "features", {}, {}, net.width, {"train": (source, 1, samples)},
                               net.features, "bank")


def head(samples: int, classes: int, root: Path) -> Callable[[], object]:
    """Two epochs of a head out of banks, with soft labels and checkpoints."""
    import torch

    from tlkd import models, specs
    from tlkd.batches import Rows
    from tlkd.draws import whole
    from tlkd.losses import make_loss
    from tlkd.training import Task, fit

    torch.set_num_threads(1)
    spec = specs.Network(model="packaged:efficientnet_lite0", input_size=SIZE, trainable="head")
    net = models.build(spec, classes, 0)
    features, soft = array(root / "bank.npy", (1, samples, WIDTH)), array(root / "soft.npy", (1, samples, classes))
    labels = np.arange(samples) % classes
    task = Task(Rows(features, CPU), whole(labels), 1, Rows(soft, CPU), "dev", Rows(features, CPU), labels[:10])
    training, loss = specs.Training(epochs=EPOCHS, batch_size=64), make_loss("tl_kd", 0.5, 4.0)
    return lambda: fit(net, net.classify, loss, task, training, 0, CPU, root / "checkpoint.safetensors")


def shap(samples: int, classes: int, root: Path) -> Callable[[], object]:
    """Attributions of so many images to their own class, 32 at a time, into a file as the explanation stage does it."""
    import torch

    from tlkd import models, specs
    from tlkd.attribution import deep_shap
    from tlkd.program import trace

    torch.set_num_threads(2)
    net = models.build(specs.Network(model="packaged:efficientnet_lite0", input_size=SIZE), classes, 0).eval()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    program, background = trace(net, (3, SIZE, SIZE)), torch.randn(REFERENCES, 3, SIZE, SIZE)

    def explain(count: int) -> None:
        kept = np.lib.format.open_memmap(root / "values.npy", mode="w+", dtype=np.float32, shape=(count, 3, SIZE, SIZE))
        for start in range(0, count, TOGETHER):
            images = torch.randn(min(TOGETHER, count - start), 3, SIZE, SIZE)
            found = deep_shap(net, images, background, 0, chunk_size=TOGETHER, program=program)
            kept[start:start + len(images)] = found.values.reshape(len(images), 3, SIZE, SIZE)

    explain(TOGETHER)
    (root / "values.npy").unlink()
    return lambda: explain(samples)


def report(samples: int, classes: int, root: Path) -> Callable[[], object]:
    """The report on two arms of three seeds, with so many test images."""
    from tlkd import evaluation, store
    from tlkd.folder import Predictions, StudyFolder, save_predictions
    from tlkd.reading import validate
    from tlkd.report import write as draw

    labels, names = np.arange(samples) % classes, [f"class {number:04}" for number in range(classes)]
    ids = np.array([f"test/{names[label]}/{number:07}.jpg" for number, label in enumerate(labels)])
    folder = StudyFolder(root / "study")
    folder.prepare(validate({
        "name": "scale", "data": {"source": "folder:x"}, "student": {"model": "packaged:efficientnet_lite0"},
        "teachers": {"big": {"model": "packaged:efficientnet_lite1", "fit": False}},
        "arms": [{"name": "tl", "kind": "tl"}, {"name": "kd", "kind": "tl_kd", "teacher": "big"}],
        "training": {"epochs": 2}, "seeds": list(range(SEEDS))}, "scale"), {"started": "2026-11-28"})
    counts = dict.fromkeys(names, samples // classes)
    store.write_json(folder.path / "data.json", {"source": "x", "classes": names, "content": "0" * 64,
                                                 "counts": {"train": {}, "test": counts}})

    def put(target: Path, seed: int) -> None:
        logits = np.random.default_rng(seed).standard_normal((samples, classes), np.float32)
        logits[np.arange(samples), labels] += 2 + np.log(classes / 10)
        save_predictions(target / "predictions.npz", Predictions(ids, labels, logits))
        (target / "history.csv").write_text("epoch,dev_accuracy\n1,0.4\n2,0.5\n")
        store.write_json(target / "result.json", {
            **{f"test_{name}": value for name, value in evaluation.metrics(labels, logits).items()},
            "epochs": 2, "best_epoch": 2, "seconds": 1.0, "parameters": 1})

    for number, run in enumerate(folder.runs()):
        store.publish(folder.run_path(run), "", {}, _maker(put, number))
    teacher = folder.path / "teachers" / "big"
    teacher.mkdir(parents=True)
    put(teacher, 99)
    return lambda: draw(folder.path)


def _maker(put: Callable[[Path, int], None], number: int) -> Callable[[Path], None]:
    return lambda target: put(target, number)


PREPARED: dict[str, Callable[[int, int, Path], Callable[[], object]]] = {
    "bank": bank, "head": head, "shap": shap, "report": report}


# --- all of them ------------------------------------------------------------------------------------------------------


def point(stage: str, samples: int, classes: int) -> Point:
    """One measurement in a new process."""
    done = subprocess.run([sys.executable, str(HERE / "scale.py"), "--one", stage, str(samples), str(classes)],
                          check=True, stdout=subprocess.PIPE, text=True)
    found = Point(**json.loads(done.stdout.splitlines()[-1]))
    print(f"{stage:7} {samples:6} samples {classes:5} classes: {found.seconds:8.2f} s, {found.memory / 2**20:7.0f} MiB "
          f"own, {found.mapped / 2**20:7.0f} MiB mapped, {found.disk / 2**20:7.1f} MiB on disk", flush=True)
    return found


def slope(across: list[int], values: list[float]) -> tuple[float, float]:
    """The slope on logarithmic axes, and its standard error (nan for two points)."""
    x, y = np.log(across), np.log(np.maximum(values, 1e-9))
    x, y = x - x.mean(), y - y.mean()
    found = float(x @ y / (x @ x))
    return found, float(np.sqrt(((y - found * x) ** 2).sum() / (len(x) - 2) / (x @ x))) if len(x) > 2 else float("nan")


def measures(points: list[Point]) -> dict[str, list[float]]:
    """Seconds, and bytes of own memory and of disk; what is below a MiB counts as one, lest noise have a slope."""
    return {"time": [each.seconds for each in points],
            **{name: [max(float(getattr(each, name)), 2.0**20) for each in points] for name in ("memory", "disk")}}


def rows(points: list[Point], by: str) -> list[Row]:
    """Three rows a stage: the slopes of its time, its own memory and its disk, each with what is expected."""
    found = []
    for stage, name in STAGES.items():
        here = [each for each in points if each.stage == stage]
        if len(here) < 2:
            continue
        across, first, last = [getattr(each, by) for each in here], here[0], here[-1]
        notes = {"time": f"{first.seconds:.2f} s to {last.seconds:.1f} s",
                 "memory": f"{first.memory / 2**20:.1f} MiB to {last.memory / 2**20:.1f} MiB; mapped "
                           f"{last.mapped / 2**20:.0f} MiB",
                 "disk": f"{first.disk / 2**20:.1f} MiB to {last.disk / 2**20:.1f} MiB"}
        for what, values in measures(here).items():
            found_slope, spread = slope(across, values)
            goal = LINEAR_AT_MOST if what == "time" else EXPECTED[by][stage][what]
            found.append(Row(f"slope of {name}'s {what} in {by}", [found_slope], goal,
                             f"{notes[what]}, at {across[0]:,} to {across[-1]:,} {by}; standard error {spread:.2f}"))
    return found


def page(samples: list[Point], classes: list[Point]) -> str:
    """The table of docs/scale.md."""
    lines = ["| stage | samples | classes | seconds | own memory, MiB | mapped, MiB | disk, MiB |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    lines += [f"| {STAGES[each.stage]} | {each.samples:,} | {each.classes:,} | {each.seconds:.2f} | "
              f"{each.memory / 2**20:,.0f} | {each.mapped / 2**20:,.0f} | {each.disk / 2**20:,.1f} |"
              for each in [*samples, *classes]]
    lines += ["", "![Time and memory against the number of samples](scale.png)", "",
              "| slope | time | own memory | disk |", "| --- | --- | --- | --- |"]
    for by, points in (("samples", samples), ("classes", classes)):
        for stage, name in STAGES.items():
            here = [each for each in points if each.stage == stage]
            if here:  # a bank has no classes
                found = [slope([getattr(each, by) for each in here], values) for values in measures(here).values()]
                cells = [f"{each:.2f} ± {spread:.2f}" for each, spread in found]
                lines.append(f"| {name}, by {by} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_picture(points: list[Point], path: Path) -> None:
    """Time and own memory against samples, both axes logarithmic."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for stage, shade, marker in zip(STAGES, ("#0072B2", "#D55E00", "#009E73", "#882255"), "osD^", strict=True):
        here = [each for each in points if each.stage == stage]
        across = [each.samples for each in here]
        text = f"{STAGES[stage]}, {slope(across, [each.seconds for each in here])[0]:.2f}"
        left.plot(across, [each.seconds for each in here], color=shade, marker=marker, markersize=5, label=text)
        right.plot(across, [max(each.memory / 2**20, 1) for each in here], color=shade, marker=marker, markersize=5)
    ends = np.array([1e3, 5e4])
    left.plot(ends, ends / 1e3 * min(each.seconds for each in points), color="#8a949e", linestyle=(0, (4, 3)),
              linewidth=1, label="slope 1")
    left.set(ylabel="seconds", title="Time (slopes in the legend)")
    right.set(ylabel="MiB", title="Memory for itself, at the peak")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="samples", xlim=(0.85 * SAMPLES[0], 1.2 * SAMPLES[-1]))
        axes.grid(color="#e6e9ec", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylim(top=15 * max(each.seconds for each in points))  # room for the legend
    left.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
    figure.savefig(path, dpi=140, metadata={"Software": None})


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--short", action="store_true", help="two small sizes, without Deep SHAP")
    given.add_argument("--write", action="store_true", help="put table and figure into docs/scale.md")
    given.add_argument("--one", nargs=3, metavar=("STAGE", "SAMPLES", "CLASSES"), help=argparse.SUPPRESS)
    given.add_argument("--stages", default=",".join(STAGES), metavar="A,B")
    chosen = given.parse_args()
    if chosen.one:
        with tempfile.TemporaryDirectory(prefix="scale-") as root:
            print(json.dumps(asdict(measured(chosen.one[0], *map(int, chosen.one[1:]), Path(root)))))
        return
    stages = [each for each in chosen.stages.split(",") if not (chosen.short and each == "shap")]  # traced for long
    sizes, classes = ((200, 400), (10,)) if chosen.short else (SAMPLES, CLASSES)
    by_samples = [point(stage, each, 10) for stage in stages for each in sizes if each <= MOST.get(stage, each)]
    by_classes = [] if chosen.short else [point(stage, BY_CLASSES[stage], each) for stage in stages
                                          if stage in BY_CLASSES for each in classes]
    for row in [*rows(by_samples, "samples"), *rows(by_classes, "classes")]:
        row.print()
    if chosen.write:
        draw_picture(by_samples, PICTURE)
        write("cost against size", page(by_samples, by_classes))


if __name__ == "__main__":
    main()
