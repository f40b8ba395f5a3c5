"""A study on a real Ray cluster of two nodes: the same results as here, whatever dies, shared storage or none."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from ray_cluster import ENVIRONMENT, two_nodes

pytestmark = pytest.mark.slow  # real processes that start, die and start again

HERE = Path(__file__).parent
ARMS = [{"name": "tl", "kind": "tl"}, {"name": "kd", "kind": "tl_kd", "teacher": "lite1"},
        {"name": "own", "kind": "self"}]
CONDITIONS = [{"name": "clean"}, {"name": "hard", "train_fraction": 0.5, "label_noise": 0.2,
                                  "corruption": {"kind": "gaussian_noise", "fraction": 0.5}}]


@pytest.fixture(scope="module")
def cluster():
    with two_nodes() as address:
        yield address


@pytest.fixture(scope="module")
def study(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study with every kind of dependency: twelve runs, three fits of a teacher."""
    path = tmp_path_factory.mktemp("study") / "small.yaml"
    path.write_text(yaml.safe_dump({
        "name": "small", "data": {"source": f"folder:{shapes_folder}", "dev_fraction": 0.2},
        "student": {"model": "packaged:efficientnet_lite0", "input_size": 32},
        "teachers": {"lite1": {"model": "packaged:efficientnet_lite1", "input_size": 40}},
        "arms": ARMS, "conditions": CONDITIONS, "training": {"epochs": 3, "batch_size": 16}, "seeds": [0, 1],
        "robustness": [{"kind": "center_black", "sizes": [0.5]}]}))
    return path


@pytest.fixture(scope="module")
def here(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study's folder after a run in one process of this machine."""
    root = tmp_path_factory.mktemp("here")
    done = run(study, root, "--jobs", "1")
    assert done.returncode == 0, done.stderr
    return root / "out"


def run(study: Path, root: Path, *options: str, python: str = "from tlkd.cli import main; main()",
        **environment: str) -> subprocess.CompletedProcess[str]:
    """`tlkd run` into `root/out` with a cache of its own."""
    command = [sys.executable, "-c", python, "run", str(study), "--out", str(root / "out"), *options]
    settings = {**os.environ, **ENVIRONMENT, "TLKD_CACHE": str(root / "cache"), **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=settings, check=False)


def numbers(out: Path) -> pd.DataFrame:
    """results.csv without what a clock decides."""
    return pd.read_csv(out / "results.csv").drop(columns="seconds")


def same(out: Path, other: Path) -> None:
    """Both studies came to the same numbers, and the same weights to the bit."""
    pd.testing.assert_frame_equal(numbers(out), numbers(other))
    for path in (other / "runs").glob("[!.]*"):
        assert (out / "runs" / path.name / "model.safetensors").read_bytes() == (
            path / "model.safetensors").read_bytes(), path.name
        first, second = (np.load(folder / "robustness" / path.name / "predicted.npz")["predicted"]
                         for folder in (out, other))
        assert (first == second).all()


def test_a_cluster_comes_to_the_results_of_this_machine(cluster: str, study: Path, here: Path, tmp_path: Path) -> None:
    done = run(study, tmp_path, "--engine", f"ray:{cluster}")
    assert done.returncode == 0, done.stderr
    same(tmp_path / "out", here)


def test_without_shared_storage_results_are_carried_back(cluster: str, study: Path, here: Path, tmp_path: Path) -> None:
    apart = ("from tlkd import ray_engine\n"
             "ray_engine._look = lambda *_, **__: False\n"  # as the probe finds it where nodes see nothing of ours
             "from tlkd.cli import main; main()")
    half = tmp_path / "half.yaml"
    half.write_text(study.read_text().replace("seeds:\n- 0\n- 1\n", "seeds:\n- 0\n"))
    done = run(half, tmp_path, "--engine", f"ray:{cluster}", python=apart, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(numbers(tmp_path / "out")) == 6
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").glob("*/manifest.json")}
    done = run(study, tmp_path, "--engine", f"ray:{cluster}", python=apart, TMPDIR=str(tmp_path))  # goes on
    assert done.returncode == 0, done.stderr
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    same(tmp_path / "out", here)


def test_a_killed_ray_worker_loses_nothing(cluster: str, study: Path, here: Path, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill() -> None:
        while len(killed) < 3 and not over.is_set():
            runs = len(list((tmp_path / "out" / "runs").glob("*/manifest.json")))
            if 1 + 3 * len(killed) <= runs:
                killed.extend(victims()[:1])
            time.sleep(0.05)

    over, thread = threading.Event(), threading.Thread(target=kill)
    thread.start()
    try:
        done = run(study, tmp_path, "--engine", f"ray:{cluster}")
    finally:
        over.set()
        thread.join()
    assert done.returncode == 0, done.stderr
    assert killed, "no worker was killed: this has tested nothing"
    same(tmp_path / "out", here)


def victims() -> list[int]:
    """Kill one Ray worker that is at one of our steps, and say which."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            mine = ENVIRONMENT["RAY_AUTH_TOKEN"].encode() in (path.parent / "environ").read_bytes()
            if mine and path.read_bytes().startswith((b"ray::run", b"ray::teacher", b"ray::features")):
                os.kill(int(path.parent.name), 9)
                return [int(path.parent.name)]
        except OSError:
            continue
    return []


def test_an_address_where_no_cluster_answers_is_said_in_a_line(study: Path, tmp_path: Path) -> None:
    done = run(study, tmp_path, "--engine", "ray:127.0.0.1:1")
    assert done.returncode == 2
    assert "127.0.0.1:1" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "runs").exists()
