"""Fixtures that several tests share: threads held to the machine's cores, a cache of its own, small real images."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tlkd.errors import BadInput

# Set before torch is imported: the machine's cores, shared between pytest's workers.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, CORES // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))))
os.environ["COLUMNS"] = "120"

SHAPES = ("disc", "frame", "stripes")


def refused(call: Callable[[], object], *parts: str) -> str:
    """The one line with which a call is refused; all `parts` stand in it."""
    with pytest.raises(BadInput) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line, line
    return line


def draw_shape(kind: str, rng: np.random.Generator, side: int = 40) -> Image.Image:
    """A small picture of one kind of shape on a noisy ground: easy, but not trivial, to tell apart."""
    ground = rng.integers(0, 120, size=(side, side, 3), dtype=np.uint8)
    image = Image.fromarray(ground)
    draw = ImageDraw.Draw(image)
    colour = tuple(int(value) for value in rng.integers(100, 255, size=3))
    x, y = (int(value) for value in rng.integers(2, side // 3, size=2))
    size = int(rng.integers(side // 3, side // 2))
    if kind == "disc":
        draw.ellipse((x, y, x + size, y + size), fill=colour)
    elif kind == "frame":
        draw.rectangle((x, y, x + size, y + size), outline=colour, width=3)
    else:
        for offset in range(0, size, 6):
            draw.line((x, y + offset, x + size, y + offset), fill=colour, width=2)
    return image


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder, `train/` and `test/`, of three classes with 20 and 8 pictures each."""
    root = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(7)
    for split, count in (("train", 20), ("test", 8)):
        for kind in SHAPES:
            folder = root / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                draw_shape(kind, rng).save(folder / f"{number:03}.png")
    return root


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that no other test sees."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("TLKD_CACHE", str(cache))
    return cache
