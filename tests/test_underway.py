"""Curves of trainings, finished and under way: from files that may change or go away at any moment."""

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sealed_folders import lay_down
from tlkd.folder import teacher_fits
from tlkd.underway import NOTHING, Curve, Files, Trainings, checkpointed


def checkpoint(work: Path, epochs: int, ended: float = 1000.0) -> Path:
    """A checkpoint with this many epochs of half a second each, as `training` writes it."""
    work.mkdir(parents=True, exist_ok=True)
    rows = [{"epoch": number, "dev_accuracy": number / 100, "seconds": 0.5} for number in range(1, epochs + 1)]
    save_file({"a": np.zeros(1000, np.float32)}, work / "checkpoint.tmp", metadata={"rest": json.dumps(
        {"history": rows})})
    os.utime(work / "checkpoint.tmp", (ended, ended))
    return (work / "checkpoint.tmp").replace(work / "checkpoint.safetensors")


def test_a_finished_run_has_the_curve_of_its_history(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "out")
    run, trainings = folder.runs()[0], Trainings()
    curve = trainings.of_run(folder, run)
    history = folder.history(run)
    assert curve.values("dev_accuracy") == history["dev_accuracy"].tolist()
    assert [row["epoch"] for row in curve.epochs] == history["epoch"].tolist()
    assert trainings.of_teacher(folder, teacher_fits(folder.study)[0]).values("dev_accuracy")
    assert trainings.result(folder.run_path(run)) == folder.result(run)


def test_a_run_in_training_has_the_curve_of_its_checkpoint(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "out", waiting=("tl-clean-0",))
    run, trainings = folder.runs()[0], Trainings()
    assert trainings.of_run(folder, run) == NOTHING
    checkpoint(folder.work_path(run) / "abc", 2)
    assert trainings.of_run(folder, run).values("dev_accuracy") == [0.01, 0.02]
    checkpoint(folder.work_path(run) / "abc", 3)
    curve = trainings.of_run(folder, run)
    assert (curve.values("dev_accuracy"), curve.address) == ([0.01, 0.02, 0.03], "abc")
    assert (curve.times(), curve.began) == ([999.0, 999.5, 1000.0], 998.5)


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x10" + b"\0" * 7 + b"{}", (2**40).to_bytes(8, "little")])
def test_a_checkpoint_that_is_not_whole_is_no_curve(tmp_path: Path, content: bytes) -> None:
    folder = lay_down(tmp_path / "out", waiting=("tl-clean-0",))
    work = folder.work_path(folder.runs()[0]) / "abc"
    work.mkdir(parents=True)
    (work / "checkpoint.safetensors").write_bytes(content)
    assert Trainings().of_run(folder, folder.runs()[0]) == NOTHING


def test_only_the_header_of_a_checkpoint_is_read(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "abc", 4)
    whole = path.read_bytes()
    path.write_bytes(whole[:8 + int.from_bytes(whole[:8], "little")])
    assert len(checkpointed(path).epochs) == 4


def test_a_checkpoint_that_is_replaced_all_the_time_always_reads_whole(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "out", waiting=("tl-clean-0",))
    run, trainings, over = folder.runs()[0], Trainings(), threading.Event()
    work = folder.work_path(run) / "abc"
    checkpoint(work, 1)

    def replace() -> None:
        for number in range(300):
            checkpoint(work, 1 + number % 40)
        over.set()

    writer = threading.Thread(target=replace)
    writer.start()
    seen = set()
    while not over.is_set():
        seen.add(len(trainings.of_run(folder, run).epochs))
    writer.join()
    assert len(seen) > 5
    assert 0 not in seen


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path: Path) -> None:
    path, files, reads = tmp_path / "a.txt", Files(), []

    def reader(path: Path) -> str:
        reads.append(path)
        return path.read_text()

    assert files.read(path, reader) is None
    path.write_text("one")
    assert [files.read(path, reader) for _ in range(3)] == ["one"] * 3
    assert len(reads) == 1
    time.sleep(0.01)
    path.write_text("two")
    assert (files.read(path, reader), len(reads)) == ("two", 2)
    path.unlink()
    assert files.read(path, reader) is None


def test_what_is_no_number_is_left_out_of_a_column() -> None:
    curve = Curve(({"epoch": 1, "dev_accuracy": float("nan")}, {"epoch": 2, "dev_accuracy": 0.5}, {"epoch": 3}))
    assert curve.values("dev_accuracy") == [0.5]
