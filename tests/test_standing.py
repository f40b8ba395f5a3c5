"""`tlkd status`: what is done, running, failed and waiting, in lines, in a table and for machines; without torch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.numpy import save_file

from hard_studies import hard_study
from sealed_folders import lay_down
from tlkd import stages, standing, store
from tlkd.engine import log_path
from tlkd.folder import StudyFolder
from tlkd.standing import record, standings, text
from tlkd.study import run_study


@pytest.fixture(autouse=True)
def cache(own_cache: Path) -> Path:
    return own_cache


def locked(final: Path) -> FileLock:
    """What a process does that makes this artifact."""
    (final.parent / ".locks").mkdir(parents=True, exist_ok=True)
    return FileLock(final.parent / ".locks" / f"{final.name}.lock")


def checkpoint(work: Path, epochs: int) -> None:
    work.mkdir(parents=True)
    rest = json.dumps({"history": [{"epoch": number} for number in range(epochs)]})
    save_file({"a": np.zeros(1, np.float32)}, work / "checkpoint.safetensors", metadata={"rest": rest})


def test_done_running_failed_and_waiting_are_told_apart(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "out", waiting=("kd-clean-0", "kd-clean-1"), failed=("tl-clean-1",))
    accuracy = folder.result(folder.runs()[0])["test_accuracy"]
    checkpoint(folder.path / ".work" / "kd-clean-0" / "abc", 2)
    with locked(folder.path / "runs" / "kd-clean-0"):
        lines = text(standings(folder)).splitlines()
    assert lines == [
        "teacher big  done",
        f"tl-clean-0   done     accuracy {accuracy:.4f}  1.2 s",
        "kd-clean-0   running  epoch 2 of 3",
        "tl-clean-1   failed   epoch 2, step 5: the loss is nan (failures/tl-clean-1.txt)",
        "kd-clean-1   waiting",
        "teachers: 1 done, 0 running, 0 failed, 0 waiting of 1",
        "1 done, 1 running, 1 failed, 1 waiting of 4",
        "start again with --retry-failed to try these once more"]
    assert "kd-clean-0   waiting" in text(standings(folder))  # its process is gone


def test_a_checkpoint_that_cannot_be_read_is_no_epoch(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "out", waiting=("kd-clean-0",))
    work = folder.path / ".work" / "kd-clean-0" / "abc"
    work.mkdir(parents=True)
    (work / "checkpoint.safetensors").write_bytes(b"\xff" * 20)
    with locked(folder.path / "runs" / "kd-clean-0"):
        assert "kd-clean-0   running  epoch 0 of 3" in text(standings(folder))


def test_a_real_training_shows_how_far_it_is(shapes_folder: Path, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real, out = [], stages.train, tmp_path / "out"

    def train(*words, **named):
        done = real(*words, **named)
        seen.append(text(standings(StudyFolder(out))))  # before the run is published
        return done

    monkeypatch.setattr(stages, "train", train)
    study = hard_study(shapes_folder, "arms=[{name: tl, kind: tl}]", "conditions=[{name: clean}]", "exclude=[]",
                       "training.epochs=3", "seeds=[0, 1]")
    assert run_study(study, out, torch.device("cpu")) == {}
    assert [line for line in seen[0].splitlines() if "tl-clean-0" in line] == [
        "tl-clean-0                running  epoch 3 of 3", "robustness of tl-clean-0  waiting"]
    assert "0 done, 1 running, 0 failed, 1 waiting of 2" in seen[0]
    assert "1 done, 1 running, 0 failed, 0 waiting of 2" in seen[1]
    after = text(standings(StudyFolder(out))).splitlines()
    assert after[-2:] == ["robustness: 2 done, 0 running, 0 failed, 0 waiting of 2",
                          "2 done, 0 running, 0 failed, 0 waiting of 2"]


def test_a_failure_points_to_its_log(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "out", failed=("tl-clean-0",))
    log = log_path(folder.path / "logs", "run tl-clean-0")
    log.parent.mkdir()
    log.write_text("all that it printed\n")
    assert "the loss is nan (logs/run-tl-clean-0.log)" in text(standings(folder))


def test_what_was_killed_needs_no_retry(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "out", waiting=("tl-clean-0",))
    store.replace_text(folder.failure_path(folder.runs()[0]), "its worker was killed by signal 9 (SIGKILL)\n")
    assert text(standings(folder)).splitlines()[-1] == "start again to try these once more"
    store.replace_text(folder.failure_path(folder.runs()[0]), "ValueError: no\n")
    assert text(standings(folder)).splitlines()[-1] == "start again with --retry-failed to try these once more"
    assert "try" not in text(standings(lay_down(tmp_path / "whole")))


def test_a_failed_teacher_is_shown(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "out")
    teacher = tmp_path / "out" / "teachers" / "big"
    (teacher / "predictions.npz").unlink()
    assert text(standings(folder)).startswith("teacher big  waiting\n")
    (tmp_path / "out" / "failures").mkdir()
    (tmp_path / "out" / "failures" / "teacher-big.txt").write_text("epoch 1, step 1: the loss is inf\n")
    assert text(standings(folder)).startswith("teacher big  failed   epoch 1, step 1: the loss is inf")
    assert "teachers: 0 done, 0 running, 1 failed, 0 waiting of 1" in text(standings(folder))


def test_many_runs_are_counted_by_condition_and_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = list(range(20))
    folder = lay_down(tmp_path / "out", f"seeds={seeds}",
                      "conditions=[{name: clean}, {name: few, train_fraction: 0.1}]",
                      "exclude=[{arms: [kd], conditions: [few]}]", failed=("tl-clean-3",),
                      waiting=tuple(f"tl-few-{seed}" for seed in range(4)))
    store.replace_text(folder.explanation_failure_path("tl-clean-0"), "RunFailed: no sum\n")
    assert len(folder.runs()) == 60
    assert len(text(standings(folder)).splitlines()) == 60 + 5  # few enough for a line each
    monkeypatch.setattr(standing, "MOST_LINES", 59)
    assert text(standings(folder)).splitlines() == [
        "done/running/failed/waiting        tl        kd",
        "clean                        19/0/1/0  20/0/0/0",
        "few                          16/0/0/4         -",
        "",
        "tl-clean-3 failed: epoch 2, step 5: the loss is nan (failures/tl-clean-3.txt)",
        "tl-clean-0 failed: its explanation: RunFailed: no sum",
        "",
        "teachers: 1 done, 0 running, 0 failed, 0 waiting of 1",
        "55 done, 0 running, 1 failed, 4 waiting of 60",
        "start again with --retry-failed to try these once more"]
    assert len(text(standings(folder), everything=True).splitlines()) == 60 + 5


def test_what_the_cache_is_at_is_counted_while_something_waits(tmp_path: Path, cache: Path) -> None:
    folder = lay_down(tmp_path / "out", waiting=("tl-clean-0",))
    assert "in the cache" not in text(standings(folder))
    with locked(cache / "teachers" / "abc"), locked(cache / "features" / "def"):
        assert "in the cache: 2 teachers or banks are being made" in text(standings(folder))
        assert "in the cache" not in text(standings(lay_down(tmp_path / "whole")))


def test_the_same_for_machines(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "out", "robustness=[{kind: jpeg}]", waiting=("kd-clean-1",), failed=("tl-clean-1",))
    found = json.loads(json.dumps(record(standings(folder))))
    assert found["totals"] == {
        "runs": {"done": 2, "running": 0, "failed": 1, "waiting": 1},
        "teachers": {"done": 1, "running": 0, "failed": 0, "waiting": 0},
        "robustness": {"done": 0, "running": 0, "failed": 0, "waiting": 4}}
    done, failed = found["runs"][0], found["runs"][2]
    assert done == {"name": "tl-clean-0", "state": "done", "arm": "tl", "condition": "clean", "seed": 0, "epoch": None,
                    "epochs": 3, "test_accuracy": folder.result(folder.runs()[0])["test_accuracy"], "seconds": 1.25}
    assert failed["why"] == "epoch 2, step 5: the loss is nan" and failed["log"].endswith("failures/tl-clean-1.txt")
    assert [each["name"] for each in found["teachers"]] == ["teacher big"]
