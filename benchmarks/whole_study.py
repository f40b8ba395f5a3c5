"""The whole frozen study (2 arms x 10 seeds x 30 epochs, 5,000 images) against the live thesis loop.

The live loop is what one writes first: DataLoader, PIL, both networks run on every batch of every epoch. It is measured
for one epoch of each arm on a fifth of the images and extrapolated in proportion; its teacher's own fine-tuning is left
out, while the study's is in. Every repeat of the study starts with an empty cache. Its peak memory is printed too.
"""

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torchvision import datasets, transforms

from common import CPU, Row, network
from tlkd.reading import read_study
from tlkd.study import run_study

CLASSES, TRAIN, TEST, SIZE, SEEDS, EPOCHS, PART, REPEATS = 10, 556, 50, 96, 10, 30, 5, 7


def make_images(root: Path) -> None:
    """JPEGs of CIFAR-10's size and layout: 556 a class to train on, of which a tenth is dev, and a test split."""
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("test", TEST), ("part", (TRAIN - TRAIN // 10) // PART)):
        for label in range(CLASSES):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                ground = rng.integers(0, 255, size=(4, 4, 3), dtype=np.uint8)
                Image.fromarray(ground).resize((32, 32)).save(folder / f"{number}.jpg")


def live_epoch(root: Path, student: torch.nn.Module, teacher: torch.nn.Module | None) -> float:
    """Seconds of one live epoch over a part of the training images."""
    prepare = transforms.Compose([transforms.Resize(SIZE), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
                                  transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    loader = torch.utils.data.DataLoader(datasets.ImageFolder(root / "part", prepare), batch_size=64, shuffle=True)
    optimiser = torch.optim.SGD(student.head.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    student.train()
    started = time.perf_counter()
    for images, labels in loader:
        output = student(images)
        loss = functional.cross_entropy(output, labels)
        if teacher is not None:
            with torch.no_grad():
                soft_labels = (teacher(images) / 10).log_softmax(1)
            loss = 0.9 * loss + 10 * functional.kl_div((output / 10).log_softmax(1), soft_labels, reduction="batchmean",
                                                       log_target=True)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return time.perf_counter() - started


def main() -> None:
    ratios, studies, lives = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_images(root / "images")
        # The study reads train/ and test/ alone; the part is the live loop's.
        (root / "live").mkdir()
        (root / "images" / "part").rename(root / "live" / "part")
        study = read_study("cifar10", (f"data.source=folder:{root / 'images'}",))
        student, teacher = network(size=SIZE), network("packaged:efficientnet_lite2", SIZE)
        for repeat in range(REPEATS):
            os.environ["TLKD_CACHE"] = str(root / f"cache{repeat}")
            started = time.perf_counter()
            run_study(study, root / f"out{repeat}", CPU)
            studies.append(time.perf_counter() - started)
            one = live_epoch(root / "live", student, None) + live_epoch(root / "live", student, teacher)
            lives.append(one * PART * SEEDS * EPOCHS)
            ratios.append(lives[-1] / studies[-1])
            print(f"repeat {repeat}: study {studies[-1]:.1f} s, live loop {lives[-1]:.0f} s", file=sys.stderr)
    Row("live thesis loop (extrapolated) / whole frozen study", ratios, ">= 100",
        f"{CLASSES * (TRAIN - TRAIN // 10)} training images, lite0 from lite2 at {SIZE} px; the study took "
        f"{np.median(studies):.0f} s, the live loop would take {np.median(lives) / 3600:.1f} h; peak memory of the "
        f"process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB").print()


if __name__ == "__main__":
    main()
