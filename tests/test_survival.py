"""A study that is killed, interrupted, run twice at once, or fails in part: nothing is lost and nothing is repeated."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

pytestmark = pytest.mark.slow  # real processes that start, die and start again

CONDITIONS = [{"name": "clean"}, {"name": "hard", "train_fraction": 0.5, "label_noise": 0.2}]

# Counts trainings: a line a training, in a file that all processes append to.
COUNTING = """
import os, sys, torch
from pathlib import Path
from tlkd import stages
from tlkd.reading import read_study
from tlkd.study import run_study
study, out, lines = sys.argv[1:]
train = stages.train
def counted(workshop, who, *rest, **named):
    with open(lines, "a") as file:
        file.write(f"{named['work'].name} {os.getpid()}\\n")
    return train(workshop, who, *rest, **named)
stages.train = counted
failures = run_study(read_study(study), Path(out), torch.device("cpu"), retry_failed=False)
sys.exit(1 if failures else 0)
"""


@pytest.fixture(scope="module")
def study(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight runs and three fits of a teacher."""
    path = tmp_path_factory.mktemp("study") / "small.yaml"
    write(path, shapes_folder)
    return path


def write(path: Path, images: Path, **changes: object) -> None:
    path.write_text(yaml.safe_dump({
        "name": "small", "data": {"source": f"folder:{images}", "dev_fraction": 0.2},
        "student": {"model": "packaged:efficientnet_lite0", "input_size": 32},
        "teachers": {"lite1": {"model": "packaged:efficientnet_lite1", "input_size": 40}},
        "arms": [{"name": "tl", "kind": "tl"}, {"name": "kd", "kind": "tl_kd", "teacher": "lite1"}],
        "conditions": CONDITIONS, "training": {"epochs": 8, "batch_size": 8}, "seeds": [0, 1], **changes}))


@pytest.fixture(scope="module")
def whole(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study, run in peace."""
    root = tmp_path_factory.mktemp("whole")
    process = start(study, root)
    assert process.wait(200) == 0, said(process)
    return root / "out"


def start(study: Path, root: Path, *options: str) -> subprocess.Popen[str]:
    """`tlkd run` into `root/out`, with a cache and a process group of its own."""
    command = [sys.executable, "-m", "tlkd", "run", str(study), "--out", str(root / "out"), *options]
    return subprocess.Popen(command, env={**os.environ, "TLKD_CACHE": str(root / "cache")}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def said(process: subprocess.Popen[str]) -> str:
    return process.communicate()[1]


def numbers(out: Path) -> pd.DataFrame:
    """results.csv without what a clock decides."""
    return pd.read_csv(out / "results.csv").drop(columns="seconds")


def finished(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in (out / "runs").glob("*/manifest.json")}


def until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait while the process lives and this does not hold."""
    while process.poll() is None and not holds():
        time.sleep(0.02)


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The worker processes of a driver: those that were spawned and are not its resource tracker."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and b"spawn_main" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_two_drivers_in_one_folder_share_the_work(study: Path, whole: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    command = [sys.executable, "-c", COUNTING, str(study), str(tmp_path / "out"), str(lines)]
    settings = {**os.environ, "TLKD_CACHE": str(tmp_path / "cache")}
    both = [subprocess.Popen(command, env=settings, text=True, stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.wait(200) for process in both] == [0, 0], [said(process) for process in both]
    trained = Counter(line.split()[0] for line in lines.read_text().splitlines())
    assert set(trained.values()) == {1} and len(trained) == 8 + 3  # runs, and the teacher: clean, and hard a seed
    pd.testing.assert_frame_equal(numbers(tmp_path / "out"), numbers(whole))


def test_the_death_of_a_worker_costs_its_own_run_alone(study: Path, whole: Path, tmp_path: Path) -> None:
    process = start(study, tmp_path, "--jobs", "2")
    until(lambda: len(finished(tmp_path / "out")) >= 2, process)
    victims = workers(process)
    os.kill(victims[0], signal.SIGKILL)
    code, error = process.wait(200), said(process)
    failures = list((tmp_path / "out" / "failures").glob("*.txt"))
    assert len(failures) == (1 if code else 0), error  # it may have been between two runs
    assert code in (0, 1)
    for failure in failures:
        assert failure.read_text().startswith("its worker was killed by signal 9")
    assert len(finished(tmp_path / "out")) >= 7
    before = finished(tmp_path / "out")
    again = start(study, tmp_path)  # what was killed is tried again without being asked
    assert again.wait(200) == 0, said(again)
    assert {name: stamp for name, stamp in finished(tmp_path / "out").items() if name in before} == before
    pd.testing.assert_frame_equal(numbers(tmp_path / "out"), numbers(whole))


def test_ctrl_c_stops_everything_and_says_how_to_go_on(study: Path, whole: Path, tmp_path: Path) -> None:
    process = start(study, tmp_path, "--jobs", "2")
    until(lambda: bool(finished(tmp_path / "out")), process)
    children = workers(process)
    os.killpg(process.pid, signal.SIGINT)
    code, error = process.wait(20), said(process)
    assert code == 130 and "the same command goes on from here" in error and "Traceback" not in error
    assert children and not any(Path(f"/proc/{child}").exists() for child in children)
    before = finished(tmp_path / "out")
    again = start(study, tmp_path)
    assert again.wait(200) == 0, said(again)
    assert {name: stamp for name, stamp in finished(tmp_path / "out").items() if name in before} == before
    pd.testing.assert_frame_equal(numbers(tmp_path / "out"), numbers(whole))


def test_a_study_that_is_stopped_and_moved_goes_on_without_its_cache(study: Path, whole: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "another place"
    process = start(study, first, "--jobs", "1")
    until(lambda: len(finished(first / "out")) >= 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = finished(first / "out")
    second.mkdir()
    (first / "out").rename(second / "out")
    again = start(study, second, "--jobs", "1")
    assert again.wait(200) == 0, said(again)
    assert {name: stamp for name, stamp in finished(second / "out").items() if name in before} == before
    pd.testing.assert_frame_equal(numbers(second / "out"), numbers(whole))
    places = [place for place in (second / "out").rglob("*") if place.is_file() and place.name != "study.yaml"
              and any(str(root).encode() in place.read_bytes() for root in (first, second))]
    assert not [place for place in places if place.parent.name != "logs" and place.name != "report.html"]  # the command


def test_what_fails_by_itself_keeps_its_log_and_is_tried_again_only_when_asked(shapes_folder: Path,
                                                                               tmp_path: Path) -> None:
    study = tmp_path / "wild.yaml"
    write(study, shapes_folder, seeds=[0], training={"epochs": 2, "batch_size": 8},
          conditions=[{"name": "clean"}, {"name": "wild", "arms": ["tl"], "training": {"learning_rate": 1e38}}])
    process = start(study, tmp_path, "--jobs", "1")
    code, error = process.wait(200), said(process)
    assert code == 1 and "tl-wild-0 failed: epoch" in error and "--retry-failed" in error
    failure = tmp_path / "out" / "failures" / "tl-wild-0.txt"
    log, = (tmp_path / "out" / "logs").glob("*tl-wild-0*.log")
    assert log.is_file() and set(finished(tmp_path / "out")) == {"tl-clean-0", "kd-clean-0"}
    stamp = failure.stat().st_mtime_ns
    for options, tried in (((), False), (("--retry-failed",), True)):
        process = start(study, tmp_path, *options)
        assert process.wait(200) == 1
        assert (failure.stat().st_mtime_ns != stamp) == tried
