"""Small studies to export from, of networks of timm and of torchvision, and a way to write ONNX once a network."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import SHAPES, draw_shape
from tlkd import findings, footprint, onnx_file
from tlkd.folder import StudyFolder
from tlkd.reading import validate
from tlkd.standalone import Preparation
from tlkd.study import run_study

FOUND: dict[Path, findings.Findings] = {}
CPU = torch.device("cpu")
CLASSES = ("*bold* | [disc](x)", "<b>frame_1", "stripes `code`")  # in the order of their names
STUDENTS = {"timm": {"model": "timm:test_resnet", "weights": "none", "input_size": 48, "trainable": "head"},
            "torchvision": {"model": "torchvision:resnet18", "weights": "none", "input_size": 32, "trainable": "all"}}


@contextmanager
def settled(root: Path) -> Iterator[Path]:
    """A folder with images, a cache of its own and hastened exports, while it lasts; gives the images."""
    (root / "onnx").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        settle(patch, root)
        yield draw_images(root / "images")


def settle(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Use the cache and the translated networks of this folder."""
    monkeypatch.setenv("TLKD_CACHE", str(root / "cache"))
    hasten(monkeypatch, root / "onnx")


def draw_images(root: Path, train: int = 8, test: int = 6) -> Path:
    """An image folder whose classes have names full of Markdown; images are 40 by 44 pixels."""
    random = np.random.default_rng(3)
    for split, count in (("train", train), ("test", test)):
        for name, kind in zip(CLASSES, SHAPES, strict=True):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                draw_shape(kind, random).resize((44, 40)).save(root / split / name / f"{number:03}.png")
    return root


def run(library: str, source: Path, out: Path) -> StudyFolder:
    """A finished study of one student of this library and a teacher: of timm two arms, also under a difficulty."""
    raw: dict[str, Any] = {
        "name": f"small-{library}", "data": {"source": f"folder:{source}", "dev_fraction": 0.25},
        "student": STUDENTS[library],
        "teachers": {"vit": {"model": "timm:test_vit", "weights": "none", "input_size": 64, "trainable": "head"}},
        "arms": [{"name": "tl", "kind": "tl"}, {"name": "kd", "kind": "tl_kd", "teacher": "vit"}],
        "training": {"epochs": 1 if library == "timm" else 12, "batch_size": 9}, "seeds": [0, 1]}
    if library == "torchvision":
        raw |= {"arms": raw["arms"][1:], "seeds": [1]}
    if library == "timm":
        raw["conditions"] = [{"name": "clean"}, {"name": "small", "student": {"input_size": 32}, "seeds": [0],
                                                 "label_noise": {"fraction": 0.25}}]
    assert run_study(validate(raw, "small"), out, CPU) == {}
    return StudyFolder(out)


def hasten(monkeypatch: pytest.MonkeyPatch, kept: Path) -> None:
    """Translate each network, and test each study's hypotheses, once; time networks for a second."""
    test = findings.find

    def find(folder: StudyFolder) -> findings.Findings:
        if folder.path not in FOUND:
            FOUND[folder.path] = test(folder)
        return FOUND[folder.path]

    monkeypatch.setattr(findings, "find", find)
    monkeypatch.setattr(footprint, "BUDGET", 1.0)
    real: Callable[..., None] = onnx_file.write

    def write(network: torch.nn.Module, ready: Preparation, path: Path, name: str) -> None:
        weights = sum(float(each.double().abs().sum()) for each in network.state_dict().values())
        file = kept / f"{hash((weights, ready))}.onnx"
        if not file.is_file():
            real(network, ready, file, name)
        shutil.copy(file, path)

    monkeypatch.setattr(onnx_file, "write", write)
