"""What is seen of a study while it runs: results so far against the stored ones, time left, what is complete."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

import study_folders
from sealed_folders import lay_down, publish
from test_standing import locked
from test_underway import checkpoint
from tlkd import store
from tlkd.errors import BadInput
from tlkd.folder import StudyFolder
from tlkd.outlook import Watcher


@pytest.fixture(autouse=True)
def cache(own_cache: Path) -> Path:
    return own_cache


def finished(folder: StudyFolder, seconds: float, apart: float, now: float) -> None:
    """Say of the finished runs that each took so long, the last ended `now`, the one before `apart` earlier ..."""
    for number, run in enumerate(reversed(folder.finished())):
        path = folder.run_path(run) / "result.json"
        store.write_json(path, {**folder.result(run), "seconds": seconds})
        os.utime(path, (now - number * apart,) * 2)


def test_means_and_gains_are_those_of_the_finished_runs(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "out", "seeds=[0,1,2,3]", waiting=("kd-clean-1", "kd-clean-3", "tl-clean-2"))
    tl, kd = Watcher(folder.path).look().groups
    accuracies = {run.run_id: folder.result(run)["test_accuracy"] for run in folder.finished()}
    assert (tl.label, kd.label, tl.states, kd.planned) == ("TL", "TL+KD", {"done": 3, "waiting": 1}, 4)
    assert tl.mean == pytest.approx(np.mean([accuracies[f"tl-clean-{seed}"] for seed in (0, 1, 3)]))
    assert tl.sd == pytest.approx(np.std([accuracies[f"tl-clean-{seed}"] for seed in (0, 1, 3)], ddof=1))
    assert kd.gains == {0: accuracies["kd-clean-0"] - accuracies["tl-clean-0"]}  # seed 2 has no TL yet
    assert tl.gains == {}
    curves = [folder.curve(run) for run in folder.finished() if run.arm.name == "tl"]
    assert tl.curve == pytest.approx(np.mean(curves, axis=0))


def test_a_run_in_training_shows_its_epochs_and_its_part_of_the_curve(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "out", waiting=("kd-clean-0", "kd-clean-1"))
    run = folder.runs()[1]
    checkpoint(folder.work_path(run) / "abc", 2, time.time())
    with locked(folder.run_path(run)):
        outlook = Watcher(folder.path).look()
    (training,) = outlook.training
    assert (training.run.run_id, training.accuracies, training.epochs) == ("kd-clean-0", (0.01, 0.02), 3)
    assert outlook.groups[1].curve == (0.01, 0.02)
    assert not outlook.complete


def test_the_time_left_is_that_of_like_runs_at_the_pace_so_far(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "out", "seeds=[0,1,2,3,4,5]", waiting=("tl-clean-5", "kd-clean-4", "kd-clean-5"))
    finished(folder, 10.0, 5.0, time.time() - 1)  # two at a time: one every 5 seconds
    outlook = Watcher(folder.path).look()
    assert outlook.left == pytest.approx(3 * 5.0, rel=0.15)  # the first and the last run had no company
    assert outlook.elapsed == pytest.approx(8 * 5.0 + 10.0, abs=2)


def test_a_pause_between_two_starts_does_not_count(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "out", "seeds=[0,1,2,3]", waiting=("kd-clean-3",))
    now = time.time()
    finished(folder, 10.0, 10.0, now)
    for run in folder.finished()[:4]:
        os.utime(folder.run_path(run) / "result.json", (now - 86_400,) * 2)
    outlook = Watcher(folder.path).look()
    assert outlook.elapsed == pytest.approx(30.0, abs=1)
    assert outlook.left == pytest.approx(10.0, abs=1)


def test_before_any_run_is_finished_epochs_tell_the_time_left(tmp_path: Path) -> None:
    names = tuple(f"{arm}-clean-{seed}" for arm in ("tl", "kd") for seed in (0, 1))
    folder = lay_down(tmp_path / "out", "training.epochs=10", waiting=names)
    watcher = Watcher(folder.path)
    assert (watcher.look().left, watcher.look().elapsed) == (None, None)
    run = folder.runs()[0]
    checkpoint(folder.work_path(run) / "abc", 4, time.time())
    with locked(folder.run_path(run)):
        assert watcher.look().left == pytest.approx(4 * 5.0 - 2.0, abs=1)


def test_it_is_complete_when_all_is_over_and_the_report_is_newer(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "out", waiting=("kd-clean-1",), failed=("tl-clean-1",))
    watcher = Watcher(folder.path)
    assert not watcher.look().complete
    store.replace_text(folder.path / "report.html", "of an earlier start")
    os.utime(folder.path / "report.html", (time.time() - 100,) * 2)
    publish(folder, folder.runs()[3])
    outlook = watcher.look()
    assert (outlook.complete, outlook.left, [each.name for each in outlook.failed]) == (False, None, ["tl-clean-1"])
    store.replace_text(folder.path / "report.html", "of now")
    assert watcher.look().complete


@pytest.mark.parametrize("later", [86_400.0, 31_536_000.0])
def test_what_was_written_before_the_clock_was_set_back_tells_no_times(tmp_path: Path, later: float) -> None:
    folder = lay_down(tmp_path / "out", "seeds=[0,1,2]", waiting=("tl-clean-2", "kd-clean-2"))
    now = time.time()
    finished(folder, 10.0, 10.0, now - 1)
    for path in [folder.path / "study.yaml", *(folder.run_path(run) / "result.json" for run in folder.finished()[:2])]:
        os.utime(path, (now + later,) * 2)
    checkpoint(folder.work_path(folder.runs()[4]) / "abc", 4, now + later)
    with locked(folder.run_path(folder.runs()[4])):
        outlook = Watcher(folder.path).look()
    assert outlook.elapsed is not None and outlook.left is not None
    assert 0 < outlook.elapsed < 60 and 0 < outlook.left < 60 and 0 <= outlook.quiet < 60
    for run in folder.runs()[4:]:
        publish(folder, run)
    store.replace_text(folder.path / "report.html", "of now")
    outlook = Watcher(folder.path).look()
    assert outlook.complete and outlook.elapsed is not None and 0 < outlook.elapsed < 60


def test_a_study_that_grows_while_it_is_watched_is_read_anew(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "out")
    watcher = Watcher(folder.path)
    assert sum(group.planned for group in watcher.look().groups) == 4
    StudyFolder(folder.path).prepare(folder.study.model_copy(update={"seeds": (0, 1, 2)}), {})
    assert sum(group.planned for group in watcher.look().groups) == 6


def test_a_damaged_result_is_not_counted_and_no_error(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "out")
    (folder.run_path(folder.runs()[0]) / "result.json").write_bytes(b"\xff{")
    assert len(Watcher(folder.path).look().groups[0].accuracies) == 1


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no study lies here"):
        Watcher(tmp_path).look()


def test_650_runs_are_looked_at_in_a_tenth_of_a_second(tmp_path: Path) -> None:
    conditions = [{"name": "clean"}, *({"name": f"few{part}", "train_fraction": part / 100} for part in range(1, 13))]
    arms = [{"name": "tl", "kind": "tl"}, {"name": "self", "kind": "self"},
            *({"name": f"kd{weight}", "kind": "tl_kd", "teacher": "lite1", "soft_weight": weight / 10}
              for weight in (1, 5, 9))]
    folder = study_folders.lay_down(tmp_path / "out", classes=("a", "b"), per_class=2, conditions=conditions, arms=arms,
                                    missing=("self-few12-9", "kd9-few12-9"))
    watcher = Watcher(folder.path)
    assert len(watcher.look().found.runs) == 650
    spent = []
    for _ in range(3):
        began = time.process_time()
        watcher.look()
        spent.append(time.process_time() - began)
    assert min(spent) < 0.1
