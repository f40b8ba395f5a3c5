"""The search on small real images: equal effort, the test split untouched, and every way to stop in the middle."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from PIL import Image

from test_study import small_study
from tlkd import cli, proposals, tuning
from tlkd.engine import Inline, Job, Outcome
from tlkd.errors import BadInput, RunFailed
from tlkd.folder import KILLED, StudyFolder
from tlkd.reading import read_study
from tlkd.spaces import Search, search_of
from tlkd.study import run_study
from tlkd.tuned import Trials, table
from tlkd.tuning import tune
from tlkd.workers import Local

CPU = torch.device("cpu")
BAD_RATE = "training.learning_rate=0.0001"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache that the tests of this module share: the same banks and the same teacher serve them all."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("cache")
        patch.setenv("TLKD_CACHE", str(path))
        yield path


def small_search(folder: Path, *assignments: str, **choice: Any) -> Search:
    return search_of(small_study(folder, BAD_RATE, *assignments), **{"seeds": 1, **choice})


def numbers(trials: Trials) -> pd.DataFrame:
    """The table without what a clock decides."""
    return table(trials).drop(columns="seconds")


def count_trainings(monkeypatch: pytest.MonkeyPatch, stop_at: int = 0) -> list[str]:
    """The names of the trainings from here on; the one of this number is where somebody presses Ctrl-C."""
    trained: list[str] = []
    real = tuning.train

    def counted(workshop: Any, who: Any, *rest: Any, **more: Any) -> Any:
        trained.append(who.who.partition(" ")[0])
        if len(trained) == stop_at:
            raise KeyboardInterrupt
        return real(workshop, who, *rest, **more)

    monkeypatch.setattr(tuning, "train", counted)
    return trained


@pytest.fixture(scope="module")
def searched(shapes_folder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trials, Path]:
    """Seven trials of two arms on one seed, from a learning rate that is far too small, in one go."""
    out = tmp_path_factory.mktemp("searched") / "out"
    return tune(small_search(shapes_folder), 7, out, CPU), out


# --- what a search is -------------------------------------------------------------------------------------------------


def test_every_arm_has_as_many_trials_and_beats_a_bad_setting(searched: tuple[Trials, Path]) -> None:
    trials, out = searched
    assert {arm: [trial.number for trial in each] for arm, each in trials.of.items()} == {
        "tl": list(range(1, 8)), "tl_kd": list(range(1, 8))}
    for arm in trials.search.arms:
        first = trials.of[arm.name][0]
        assert first.setting == trials.search.own(arm)
        assert first.setting["training.learning_rate"] == 0.0001
        assert trials.best(arm).score > first.score + 0.2
        assert trials.chosen(arm).training is not None
    assert len({json.dumps(trial.setting) for trial in trials.of["tl"]}) == 7
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == {
        "search.yaml", "journal.log", "trials", "trials.csv", "tuned.yaml", "search.svg", "search.png"}


def test_a_trial_is_judged_on_dev_and_predicts_nothing_on_test(searched: tuple[Trials, Path]) -> None:
    trials, out = searched
    folders = [path.parent for path in (out / "trials").glob("*/manifest.json")]
    assert len(folders) == 14
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == {"history.csv", "result.json", "manifest.json"}
        assert "test" not in (folder / "history.csv").read_text() + (folder / "result.json").read_text()
    trial = trials.of["tl_kd"][3]
    result = json.loads((out / "trials" / trial.artifacts[0] / "result.json").read_text())
    history = pd.read_csv(out / "trials" / trial.artifacts[0] / "history.csv")
    assert trial.score == result["dev_accuracy"] == pytest.approx(history["dev_accuracy"].iloc[-1])
    assert trial.loss == result["dev_log_loss"] == pytest.approx(history["dev_loss"].iloc[-1], rel=1e-4)


def test_other_test_images_change_nothing(searched: tuple[Trials, Path], shapes_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes_folder, tmp_path / "shapes")
    rng = np.random.default_rng(0)
    for path in sorted((tmp_path / "shapes" / "test").rglob("*.png")):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    other = tune(small_search(tmp_path / "shapes"), 3, tmp_path / "out", CPU)
    first = Trials(searched[0].search, {arm: each[:3] for arm, each in searched[0].of.items()})
    pd.testing.assert_frame_equal(numbers(first).drop(columns="folder_seed_0"),
                                  numbers(other).drop(columns="folder_seed_0"))


def test_the_tuned_study_runs(searched: tuple[Trials, Path], tmp_path: Path) -> None:
    trials, out = searched
    study = read_study(str(out / "tuned.yaml"), ("seeds=[0]",))
    assert study.training_of(study.arms[0], study.conditions[0]).learning_rate == trials.best(
        trials.search.arms[0]).setting["training.learning_rate"]
    assert run_study(study, tmp_path / "out", CPU) == {}
    folder = StudyFolder(tmp_path / "out")
    for arm, run in zip(trials.search.arms, folder.runs(), strict=True):
        # The run is the best trial's training: the same curve, to the last bit.
        trial = pd.read_csv(out / "trials" / trials.best(arm).artifacts[0] / "history.csv")
        assert trial["dev_loss"].tolist() == folder.history(run)["dev_loss"].tolist()


def test_all_kinds_of_arms_are_searched_without_a_test_prediction(shapes_folder: Path, tmp_path: Path) -> None:
    search = small_search(
        shapes_folder, "student.start=tl", "conditions=[{name: noisy, label_noise: 0.2, corruption: {kind: "
        "center_black, fraction: 0.5}}]", "arms=[{name: tl, kind: tl}, {name: own, kind: self}, {name: smooth, kind: "
        "label_smoothing, teacher: lite1}, {name: shuffled, kind: tl_kd_shuffled, teacher: lite1}]")
    trials = tune(search, 2, tmp_path / "out", CPU)
    assert all(trial.scores for each in trials.of.values() for trial in each)
    kept = list((tmp_path / "out").rglob("model.safetensors"))
    assert len(kept) == 1  # the TL student that others start from: the study's own setting of it
    assert not list((tmp_path / "out").rglob("*predict*"))


def test_a_training_that_fails_is_a_bad_trial_and_no_more(shapes_folder: Path, tmp_path: Path) -> None:
    search = small_search(shapes_folder, "training.learning_rate=1e30", "training.weight_decay=0.9",
                          "teachers.lite1.training={learning_rate: 0.01, weight_decay: 0.0}",
                          asked=["training.weight_decay=1e-5..1e-4"])
    trials = tune(search, 2, tmp_path / "out", CPU)
    for arm in search.arms:
        first, second = trials.of[arm.name]
        assert "epoch" in first.failure and "step" in first.failure
        assert trials.best(arm) is second
    assert not list((tmp_path / "out").glob(".work/*"))


def test_a_teacher_that_fails_ends_the_search(shapes_folder: Path, tmp_path: Path) -> None:
    search = small_search(shapes_folder, "teachers.lite1.training={learning_rate: 1.0e+30, weight_decay: 0.9}")
    with pytest.raises(RunFailed, match="teacher lite1 failed: epoch"):
        tune(search, 2, tmp_path / "out", CPU)


# --- going on ---------------------------------------------------------------------------------------------------------


def test_the_same_again_does_nothing_and_more_goes_on(searched: tuple[Trials, Path], shapes_folder: Path,
                                                      tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven trials are reached by three and four: what is proposed does not depend on where one stopped."""
    search, out = small_search(shapes_folder), tmp_path / "out"
    trained = count_trainings(monkeypatch)
    tune(search, 3, out, CPU)
    assert len(trained) == 6
    before = {path: path.stat().st_mtime_ns for path in (out / "trials").glob("*/manifest.json")}
    tune(search, 3, out, CPU)
    assert len(trained) == 6
    trials = tune(search, 7, out, CPU)
    assert len(trained) == 14
    assert {path: path.stat().st_mtime_ns for path in before} == before
    pd.testing.assert_frame_equal(numbers(trials), numbers(searched[0]))
    again = tune(search, 2, out, CPU)  # fewer than there are: the first of them
    assert again.each == 2
    assert len(trained) == 14


def test_ctrl_c_in_the_middle(searched: tuple[Trials, Path], shapes_folder: Path, tmp_path: Path,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    search, out = small_search(shapes_folder), tmp_path / "out"
    trained = count_trainings(monkeypatch, stop_at=6)
    with pytest.raises(KeyboardInterrupt):
        tune(search, 7, out, CPU)
    assert not (out / "tuned.yaml").exists()  # nothing is said before all arms have had as many trials
    trials = tune(search, 7, out, CPU)
    assert len(trained) == 15  # only the one that was stopped was begun twice
    pd.testing.assert_frame_equal(numbers(trials), numbers(searched[0]))


@pytest.mark.slow
def test_killed_and_started_again(shapes_folder: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle, a torn line in the journal, a lock that nobody holds: nothing is lost or repeated."""
    search = small_search(shapes_folder, "training.epochs=20")
    yaml = tmp_path / "study.yaml"
    yaml.write_text(json.dumps(search.study.model_dump(mode="json")))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = tune(search, 5, whole, CPU)
    code = ("import sys, torch; from pathlib import Path; from tlkd.reading import read_study;"
            "from tlkd.spaces import search_of; from tlkd.tuning import tune;"
            "tune(search_of(read_study(sys.argv[1]), seeds=1), 5, Path(sys.argv[2]), torch.device('cpu'))")
    process = subprocess.Popen([sys.executable, "-c", code, str(yaml), str(killed)], env=dict(os.environ))
    deadline = time.monotonic() + 120
    while len(list(killed.glob("trials/*/manifest.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stamps = {path: path.stat().st_mtime_ns for path in killed.glob("trials/*/manifest.json")}
    assert 3 <= len(stamps) < 10, "killed too late to test anything"
    with (killed / "journal.log").open("a") as file:
        file.write('{"op_code":5,"wor')
    (killed / "journal.log.lock").unlink(missing_ok=True)  # it may have been killed just then
    (killed / "journal.log.lock").symlink_to(killed / "journal.log")
    found = tune(search, 5, killed, CPU)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    pd.testing.assert_frame_equal(numbers(found), numbers(expected))


class Unlucky(Inline):
    """An executor that loses the job of a trial, `times` times, as a worker that was killed would."""

    def __init__(self, work: Any, context: Any, trial: str, times: int) -> None:
        super().__init__(work, context)
        self.trial, self.times = trial, times

    def submit(self, job: Job) -> Future[Outcome]:
        if job.name.startswith(self.trial) and self.times:
            self.times -= 1
            lost: Future[Outcome] = Future()
            lost.set_result(Outcome(job.name, failure=f"{KILLED} by signal 9 (SIGKILL)"))
            return lost
        return super().submit(job)


def unlucky(trial: str, times: int) -> Callable[[Any, Any], Unlucky]:
    return lambda work, context: Unlucky(work, context, trial, times)


def test_a_worker_that_was_killed_costs_nothing(searched: tuple[Trials, Path], shapes_folder: Path,
                                                tmp_path: Path) -> None:
    trials = tune(small_search(shapes_folder), 7, tmp_path / "out", CPU, executor=unlucky("tl-2-0", 1))
    pd.testing.assert_frame_equal(numbers(trials), numbers(searched[0]))


def test_what_failed_by_no_fault_of_its_setting_is_taken_up_by_the_next_start(
        searched: tuple[Trials, Path], shapes_folder: Path, tmp_path: Path) -> None:
    search, out = small_search(shapes_folder), tmp_path / "out"
    with pytest.raises(RunFailed, match="tl_kd-5-0 failed: its worker was killed by signal 9"):
        tune(search, 5, out, CPU, executor=unlucky("tl_kd-5-0", 2))
    assert not (out / "tuned.yaml").exists()
    trials = tune(search, 7, out, CPU)
    pd.testing.assert_frame_equal(numbers(trials), numbers(searched[0]))


@pytest.mark.slow
def test_two_workers_make_each_trial_once(shapes_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    search = small_search(shapes_folder, seeds=2)
    trials = tune(search, 4, out, CPU, executor=lambda work, context: Local(work, context, 2, out / "logs"), threads=1)
    assert trials.each == 4
    assert {len(each) for each in trials.of.values()} == {4}
    folders = [folder for each in trials.of.values() for trial in each for folder in trial.artifacts.values()]
    assert len(folders) == len(set(folders)) == 16
    assert {path.parent.name for path in out.glob("trials/*/manifest.json")} == set(folders)
    # The random settings at the beginning, and so their results, are those of one worker.
    alone = tune(search, 4, tmp_path / "alone", CPU)
    pd.testing.assert_frame_equal(numbers(trials), numbers(alone))


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("assignments", "choice", "said"), [
    (("training.epochs=4",), {}, "holds a search with training.epochs: 3 (now 4)"),
    (("arms.tl_kd.temperature=2",), {}, "arms.tl_kd.temperature: 4 (now 2)"),
    ((), {"arms": ["tl"]}, "holds a search with"),
    ((), {"seeds": 2}, "holds a search with"),
    ((), {"asked": ["training.learning_rate=log:0.01..1"]},
     "search.tl.training.learning_rate: log:0.001..1 (now log:0.01..1)"),
    (("verdict.metric=balanced_accuracy",), {}, "metric: accuracy (now balanced_accuracy)"),
])
def test_a_folder_of_another_search_is_refused(searched: tuple[Trials, Path], shapes_folder: Path,
                                               assignments: tuple[str, ...], choice: dict[str, Any],
                                               said: str) -> None:
    with pytest.raises(BadInput) as caught:
        tune(small_search(shapes_folder, *assignments, **choice), 7, searched[1], CPU)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_decides_nothing_may_change(searched: tuple[Trials, Path], shapes_folder: Path) -> None:
    search = small_search(shapes_folder, "name=other", "seeds=[0, 1, 2]", "verdict.smallest_gain=0.01")
    trials = tune(search, 7, searched[1], CPU)
    pd.testing.assert_frame_equal(numbers(trials), numbers(searched[0]))
    assert read_study(str(searched[1] / "tuned.yaml")).name == "other-tuned"


def test_a_folder_of_something_else_is_refused(shapes_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="is not empty and holds no search"):
        tune(small_search(shapes_folder), 2, tmp_path / "out", CPU)
    with pytest.raises(BadInput, match="is a file"):
        tune(small_search(shapes_folder), 2, tmp_path / "out" / "notes.txt", CPU)


def test_two_searches_in_one_folder_are_one_too_many(searched: tuple[Trials, Path], shapes_folder: Path) -> None:
    with FileLock(searched[1] / ".lock"), pytest.raises(BadInput, match="another `tlkd tune` is at work there"):
        tune(small_search(shapes_folder), 7, searched[1], CPU)


def test_a_damaged_journal_is_one_line(searched: tuple[Trials, Path], shapes_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(searched[1], tmp_path / "out")
    (tmp_path / "out" / "journal.log").write_text("nonsense\n" * 3)
    with pytest.raises(BadInput, match=r"journal.log: cannot be read"):
        tune(small_search(shapes_folder), 8, tmp_path / "out", CPU)


def test_bad_input_is_known_before_anything_is_written(shapes_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"student\.model"):
        tune(small_search(shapes_folder, "student.model=packaged:efficientnet_lite9"), 2, tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


def test_without_optuna_the_extra_is_named(shapes_folder: Path, tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(BadInput, match=r"pip install 'tlkd\[tune\]'"):
        tune(small_search(shapes_folder), 2, tmp_path / "out", CPU)


# --- names and the command --------------------------------------------------------------------------------------------


def test_a_training_s_name_holds_all_that_it_needs(shapes_folder: Path) -> None:
    search = small_search(shapes_folder, asked=["training.schedule=cosine,plateau", "training.early_stopping=null,5",
                                                "training.batch_size=8..16", "temperature=fixed"])
    setting = {"training.learning_rate": 0.1 + 0.2, "training.weight_decay": 1e-6, "soft_weight": 0.25,
               "training.batch_size": 8, "training.schedule": "cosine", "training.early_stopping": None}
    assert list(setting) == [space.key for space in search.spaces["tl_kd"]]
    name = proposals.job_name("tl_kd", 12, 3, setting)
    assert name == 'tl_kd-12-3 0.30000000000000004 1e-06 0.25 8 "cosine" null'
    run = tuning.run_of(search, name)
    assert (run.arm.name, run.seed, run.condition.name) == ("tl_kd", 3, "clean")
    assert run.arm.training == {"learning_rate": 0.1 + 0.2, "weight_decay": 1e-6, "schedule": "cosine",
                                "early_stopping": None, "batch_size": 8}
    assert (run.arm.soft_weight, run.arm.temperature) == (0.25, 4.0)
    assert tuning.run_of(search, proposals.job_name("tl", 1, 0, {})).arm == search.study.arms[0]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tlkd", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return command


def test_the_command_prints_a_table_and_leaves_a_study(call: Callable[..., tuple[int, str, str]], shapes_folder: Path,
                                                       tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    yaml = tmp_path / "study.yaml"
    yaml.write_text(json.dumps(small_study(shapes_folder).model_dump(mode="json")))
    code, out, err = call("tune", str(yaml), "--trials", "2", "--seeds", "1", "--arms", "tl", "--jobs", "1")
    assert (code, err) == (0, "")
    assert "2 trials for every arm" in out
    assert [line.split()[0] for line in out.splitlines()[2:4]] == ["arm", "tl"]
    assert (tmp_path / "out" / "small-tuning" / "tuned.yaml").is_file()
    assert "Not tuned: tl_kd." in read_study("out/small-tuning/tuned.yaml").footnotes[0]


@pytest.mark.parametrize(("words", "said"), [
    (("--trials", "0"), "--trials"),
    ((), "Missing option '--trials'"),
    (("--trials", "2", "--search", "temperature=0..3"), "--search temperature=0..3: arms.tl_kd.temperature: found 0"),
    (("--trials", "2", "--set", "selection=test", "--set", "data.dev_fraction=0"), "selection: found 'test'"),
    (("--trials", "2", "--set", "data.dev_fraction=0"), "data.dev_fraction and selection"),
    (("--trials", "2", "--condition", "few"), "--condition: found 'few'"),
    (("--trials", "2", "--arms", "tl,"), "--arms: found ''"),
    (("--trials", "2", "--engine", "dask"), "--engine: found 'dask'"),
])
def test_bad_input_is_one_line(call: Callable[..., tuple[int, str, str]], words: tuple[str, ...], said: str) -> None:
    code, out, err = call("tune", "cifar10", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
