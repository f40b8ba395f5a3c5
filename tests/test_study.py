"""The pipeline on small real images with real ImageNet weights."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import draw_shape
from tlkd import stages
from tlkd.datasets import open_dataset
from tlkd.errors import BadInput
from tlkd.folder import KILLED, RESULT_COLUMNS, StudyFolder, plan, teacher_fits
from tlkd.reading import apply_set, validate
from tlkd.specs import Data, Study
from tlkd.study import Step, open_steps, run_study, steps

CPU = torch.device("cpu")


def small_study(folder: Path, *assignments: str) -> Study:
    """Two arms, two seeds, 32-pixel lite0 from lite1: seconds."""
    raw: dict[str, Any] = {
        "name": "small",
        "data": {"source": f"folder:{folder}", "dev_fraction": 0.2},
        "student": {"model": "packaged:efficientnet_lite0", "input_size": 32},
        "teachers": {"lite1": {"model": "packaged:efficientnet_lite1", "input_size": 40}},
        "arms": [{"name": "tl", "kind": "tl"},
                 {"name": "tl_kd", "kind": "tl_kd", "teacher": "lite1", "soft_weight": 0.5, "temperature": 4}],
        "training": {"epochs": 3, "batch_size": 16, "learning_rate": 0.02},
        "seeds": [0, 1],
    }
    for assignment in assignments:
        apply_set(raw, assignment)
    return validate(raw, "small.yaml")


def numbers(out: Path) -> pd.DataFrame:
    """results.csv without what a clock decides."""
    return pd.read_csv(out / "results.csv").drop(columns="seconds")


def weights(out: Path, run_id: str) -> bytes:
    return (out / "runs" / run_id / "model.safetensors").read_bytes()


def test_a_study_leaves_what_it_promises(shapes_folder: Path, own_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_study(small_study(shapes_folder), out, CPU) == {}
    table = pd.read_csv(out / "results.csv")
    assert list(table.columns) == list(RESULT_COLUMNS)
    assert table["run_id"].tolist() == ["tl-clean-0", "tl_kd-clean-0", "tl-clean-1", "tl_kd-clean-1"]
    assert table["test_accuracy"].min() > 1 / 3
    assert table["teacher_agreement"].between(0, 1).all()
    for run_id in table["run_id"]:
        names = {path.name for path in (out / "runs" / run_id).iterdir()}
        assert names == {"spec.json", "history.csv", "predictions.npz", "model.safetensors", "result.json",
                         "manifest.json"}
    run = StudyFolder(out).runs()[0]
    predictions = StudyFolder(out).predictions(run)
    assert predictions.logits.shape == (24, 3)
    assert predictions.logits.dtype == np.float32
    assert predictions.sample_ids[0].startswith("test/")
    accuracy = (predictions.logits.argmax(1) == predictions.labels).mean()
    assert table["test_accuracy"][0] == pytest.approx(accuracy)
    provenance = StudyFolder(out).provenance
    assert provenance["versions"]["torch"] == torch.__version__.partition("+")[0] or provenance["versions"]["torch"]
    assert not (out / ".work").exists()
    assert (out / "teachers" / "lite1" / "predictions.npz").is_file()


def test_a_finished_run_is_never_repeated(shapes_folder: Path, own_cache: Path, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    spec = small_study(shapes_folder)
    run_study(spec, out, CPU)
    before = numbers(out)
    trained: list[str] = []
    real = stages.train
    monkeypatch.setattr(stages, "train", lambda *a, **k: trained.append(a[1].who + str(k["seed"])) or real(*a, **k))
    shutil.rmtree(out / "runs" / "tl_kd-clean-1")
    run_study(spec, out, CPU)
    assert trained == ["student1"]  # neither the teacher nor any other run
    pd.testing.assert_frame_equal(before, numbers(out))


def test_cached_and_live_agree(shapes_folder: Path, own_cache: Path, tmp_path: Path) -> None:
    run_study(small_study(shapes_folder), tmp_path / "cached", CPU)
    run_study(small_study(shapes_folder, "bank=off"), tmp_path / "live", CPU)
    cached, live = StudyFolder(tmp_path / "cached"), StudyFolder(tmp_path / "live")
    for run in cached.runs():
        a, b = cached.predictions(run), live.predictions(run)
        np.testing.assert_allclose(a.logits, b.logits, rtol=0, atol=1e-3)
        np.testing.assert_allclose(cached.history(run)["train_loss"], live.history(run)["train_loss"], rtol=1e-4)
        assert cached.result(run)["test_accuracy"] == live.result(run)["test_accuracy"]


def test_without_soft_weight_an_arm_is_tl_bit_for_bit(shapes_folder: Path, own_cache: Path, tmp_path: Path) -> None:
    for trainable in ("head", "all"):
        out = tmp_path / trainable
        run_study(small_study(shapes_folder, "arms.tl_kd.soft_weight=0", f"student.trainable={trainable}", "seeds=[3]",
                              "training.epochs=2"), out, CPU)
        folder = StudyFolder(out)
        tl, tl_kd = folder.runs()
        assert np.array_equal(folder.predictions(tl).logits, folder.predictions(tl_kd).logits)
        assert weights(out, tl.run_id) == weights(out, tl_kd.run_id)
        assert folder.history(tl)["train_loss"].tolist() == folder.history(tl_kd)["train_loss"].tolist()


def test_a_teacher_changes_a_tl_run_in_nothing(shapes_folder: Path, own_cache: Path, tmp_path: Path) -> None:
    run_study(small_study(shapes_folder, "seeds=[0]"), tmp_path / "a", CPU)
    other = small_study(shapes_folder, "seeds=[0]", "teachers.lite1.training={epochs: 1}", "arms.tl_kd.temperature=2")
    run_study(other, tmp_path / "b", CPU)
    manifests = [json.loads((tmp_path / which / "runs" / "tl-clean-0" / "manifest.json").read_text()) for which in "ab"]
    assert manifests[0]["address"] == manifests[1]["address"]
    assert "soft_labels" not in manifests[0]["inputs"]
    kd = [json.loads((tmp_path / which / "runs" / "tl_kd-clean-0" / "manifest.json").read_text()) for which in "ab"]
    assert kd[0]["address"] != kd[1]["address"]


def test_everything_trained_from_tl_with_a_teacher_per_seed(shapes_folder: Path, own_cache: Path,
                                                            tmp_path: Path) -> None:
    out = tmp_path / "out"
    spec = small_study(shapes_folder, "student.trainable=all", "student.start=tl", "teachers.lite1.per_seed=true",
                       "training.epochs=1", "data.augment=[hflip, 'crop:2']")
    assert run_study(spec, out, CPU) == {}
    folder = StudyFolder(out)
    tl, tl_kd = folder.runs()[:2]
    tl_address = json.loads((folder.run_path(tl) / "manifest.json").read_text())["address"]
    assert json.loads((folder.run_path(tl_kd) / "manifest.json").read_text())["inputs"]["start"] == tl_address
    assert {path.name for path in (out / "teachers").iterdir()} == {"lite1-0", "lite1-1"}
    from safetensors.numpy import load_file

    stored = load_file(folder.run_path(tl) / "model.safetensors")
    assert sum(name.startswith("backbone.") for name in stored) > 100  # everything was trained, so everything is kept


def test_a_failed_teacher_fails_its_runs_alone(shapes_folder: Path, own_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    spec = small_study(shapes_folder, "seeds=[0]",
                       "teachers.lite1.training={learning_rate: 1.0e+30, weight_decay: 0.9, epochs: 3}")
    failures = run_study(spec, out, CPU)
    assert set(failures) == {"tl_kd-clean-0"}
    assert failures["tl_kd-clean-0"].startswith("its teacher lite1 failed: epoch ")
    assert pd.read_csv(out / "results.csv")["run_id"].tolist() == ["tl-clean-0"]


def test_other_pixels_under_the_same_names_sizes_and_times_are_other_data(own_cache: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folders = tmp_path / "a", tmp_path / "b"
    for root in folders:
        for kind in ("x", "y"):
            (root / kind).mkdir(parents=True)
            for number in range(20):
                path = root / kind / f"{number}.bmp"
                draw_shape("disc", rng, 32).save(path)
                os.utime(path, (1, 1))
    contents = {open_dataset(Data(source=f"folder:{root}"), 32, own_cache).content for root in folders}
    assert len(contents) == 2


def test_a_failed_run_leaves_the_others(shapes_folder: Path, own_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    spec = small_study(shapes_folder, "training.learning_rate=1e30", "training.weight_decay=0.9",
                       "teachers.lite1.training={learning_rate: 0.01, weight_decay: 0.0}", "seeds=[0]")
    failures = run_study(spec, out, CPU)
    assert set(failures) == {"tl-clean-0", "tl_kd-clean-0"}
    assert "epoch" in failures["tl-clean-0"] and "step" in failures["tl-clean-0"]
    assert pd.read_csv(out / "results.csv").empty


@pytest.mark.parametrize(("assignment", "said"), [
    ("student.model=packaged:efficientnet_lite9", "student.model"),
    ("teachers.lite1.model=packaged:lite1", "teachers.lite1.model"),
    ("teachers.lite1.fit=false", "teachers.lite1.weights"),
    ("student.weights=imagenet22k", "student.weights"),
    ("data.source=folder:/nowhere/at/all", "data.source"),
    ("data.dev_fraction=0.01", "data.dev_fraction"),
    ("conditions=[{name: few, train_fraction: 0.01}]",
     r"^conditions\.few\.train_fraction: found 0\.01, which leaves none of the 16 training images of class 'disc'"),
    ("conditions=[{name: noisy, label_noise: {fraction: 0.1, to: {disk: frame}}}]",
     r"^conditions\.noisy\.label_noise\.to: there is no class 'disk'; did you mean 'disc'\?; allowed: disc, frame"),
    ("conditions=[{name: other, student: {model: 'packaged:efficientnet_lite9'}}]",
     r"^conditions\.other\.student\.model"),
])
def test_bad_input_is_known_before_anything_is_written(shapes_folder: Path, own_cache: Path, tmp_path: Path,
                                                       assignment: str, said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        run_study(small_study(shapes_folder, assignment), tmp_path / "out", CPU)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("killed", [False, True])
def test_what_failed_is_tried_again_where_asked_and_what_was_killed_always(
        shapes_folder: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool) -> None:
    out, spec = tmp_path / "out", small_study(shapes_folder, "seeds=[0]", "training.epochs=1")
    real = stages.publish_run

    def failing(workshop: Any, folder: StudyFolder, run: Any) -> None:
        if run.arm.name == "tl_kd":
            raise RuntimeError("of its own doing")
        real(workshop, folder, run)

    monkeypatch.setattr(stages, "publish_run", failing)
    assert run_study(spec, out, CPU) == {"tl_kd-clean-0": "RuntimeError: of its own doing"}
    monkeypatch.setattr(stages, "publish_run", real)
    failure = out / "failures" / "tl_kd-clean-0.txt"
    assert "Traceback" in failure.read_text()
    if killed:
        failure.write_text(f"{KILLED} by signal 9 (SIGKILL)\n")
    else:
        assert set(run_study(spec, out, CPU, retry_failed=False)) == {"tl_kd-clean-0"}
    assert open_steps(spec, StudyFolder(out)).keys() == (
        {"run tl_kd-clean-0", "teacher lite1", "features of student at 32 px", "features of teacher lite1 at 40 px"}
        if killed else set())
    assert run_study(spec, out, CPU, retry_failed=not killed) == {}
    assert not failure.exists()
    assert len(StudyFolder(out).finished()) == 2


# --- the steps --------------------------------------------------------------------------------------------------------


def full_study(*assignments: str) -> Study:
    """Every kind of step; nothing of it is run."""
    raw: dict[str, Any] = {
        "name": "full", "data": {"source": "mnist5k"}, "student": {"model": "timm:resnet18", "input_size": 32},
        "teachers": {"big": {"model": "timm:resnet34", "input_size": 64},
                     "wise": {"model": "timm:resnet34", "input_size": 64, "trained_on": "clean",
                              "labels": "clean_view"},
                     "asked": {"model": "timm:resnet50", "input_size": 64, "trained_on": "clean"}},
        "arms": [{"name": "kd", "kind": "tl_kd", "teacher": "big"},
                 {"name": "wise", "kind": "tl_kd", "teacher": "wise"},
                 {"name": "asked", "kind": "tl_kd", "teacher": "asked"}, {"name": "own", "kind": "self"},
                 {"name": "tl", "kind": "tl"}],
        "conditions": [{"name": "clean"}, {"name": "few", "train_fraction": 0.5},
                       {"name": "dark", "corruption": {"kind": "center_black", "fraction": 0.5}},
                       {"name": "darker", "corruption": {"kind": "center_black", "fraction": 0.9}},
                       {"name": "jpeg", "corruption": {"kind": "jpeg"}, "arms": ["tl"], "seeds": [7]}],
        "seeds": [0, 1], "robustness": [{"kind": "jpeg"}]}
    for assignment in assignments:
        apply_set(raw, assignment)
    return validate(raw, "full.yaml")


def by_name(study: Study) -> dict[str, Step]:
    found = {step.name: step for step in steps(study)}
    assert len(found) == len(steps(study))
    return found


STUDENT, BIG, WISE, ASKED = ("features of student at 32 px", "features of teacher big at 64 px",
                             "features of teacher wise at 64 px", "features of teacher asked at 64 px")


@pytest.mark.parametrize("assignments", [
    (), ("bank=off",), ("student.start=tl",), ("student.trainable=all",), ("teachers.big.trainable=last:1",),
    ("teachers.big.per_seed=true", "teachers.wise.per_seed=true"), ("student.weights=none",), ("robustness=[]",),
    ("exclude=[{arms: [kd, own], conditions: [dark]}, {arms: [asked]}]",)])
def test_every_need_is_a_step_that_comes_before(assignments: tuple[str, ...]) -> None:
    spec = full_study(*assignments)
    before: set[str] = set()
    for step in steps(spec):
        assert before.issuperset(step.needs), step
        assert len(set(step.needs)) == len(step.needs)
        before.add(step.name)
    assert {name for name in before if name.startswith("run ")} == {f"run {run.run_id}" for run in plan(spec)}
    assert {name for name in before if name.startswith("teacher ")} == {
        f"teacher {fit.fit_id}" for fit in teacher_fits(spec)}
    needed = {need for step in steps(spec) for need in step.needs}
    assert {step.name for step in steps(spec) if step.kind in ("features", "teacher")} <= needed  # nothing in vain


def test_what_each_step_needs() -> None:
    found = by_name(full_study())
    assert {name for name, step in found.items() if step.kind == "features"} == {
        STUDENT, BIG, WISE, ASKED, f"{STUDENT}, dark", f"{STUDENT}, jpeg", f"{BIG}, dark", f"{ASKED}, dark"}
    assert {name: set(step.needs) for name, step in found.items() if step.kind == "teacher"} == {
        "teacher big": {BIG}, "teacher wise": {WISE}, "teacher asked": {ASKED},
        **{f"teacher big-few-{seed}": {BIG} for seed in (0, 1)},
        **{f"teacher big-{name}-{seed}": {BIG, f"{BIG}, dark"} for name in ("dark", "darker") for seed in (0, 1)}}
    expected = {
        "tl-clean-0": {STUDENT}, "kd-clean-0": {STUDENT, "teacher big", BIG},
        "wise-clean-1": {STUDENT, "teacher wise", WISE}, "own-few-1": {STUDENT, "run tl-few-1"},
        "kd-few-1": {STUDENT, "teacher big-few-1", BIG},
        "kd-darker-0": {STUDENT, f"{STUDENT}, dark", "teacher big-darker-0", BIG, f"{BIG}, dark"},
        "wise-dark-0": {STUDENT, f"{STUDENT}, dark", "teacher wise", WISE},
        "asked-dark-0": {STUDENT, f"{STUDENT}, dark", "teacher asked", ASKED, f"{ASKED}, dark"},
        "own-dark-1": {STUDENT, f"{STUDENT}, dark", "run tl-dark-1"}, "tl-jpeg-7": {STUDENT, f"{STUDENT}, jpeg"}}
    assert {name: set(found[f"run {name}"].needs) for name in expected} == expected
    assert {step.needs for step in found.values() if step.kind == "robustness"} == {
        (f"run {run.run_id}",) for run in plan(full_study())}


def test_without_banks_or_with_all_of_a_network_trained_there_is_nothing_to_bank() -> None:
    live = by_name(full_study("bank=off"))
    assert {step.kind for step in live.values()} == {"teacher", "run", "robustness"}
    assert live["run kd-dark-0"].needs == ("teacher big-dark-0",) and live["run tl-dark-0"].needs == ()
    whole = by_name(full_study("student.trainable=all"))
    assert not any(name.startswith(STUDENT) for name in whole)
    assert set(whole["run kd-dark-0"].needs) == {"teacher big-dark-0", BIG, f"{BIG}, dark"}


def test_every_arm_but_tl_waits_for_tl_where_it_starts_from_it() -> None:
    found = by_name(full_study("student.start=tl"))
    for run in plan(full_study()):
        waits = f"run tl-{run.condition.name}-{run.seed}" in found[f"run {run.run_id}"].needs
        assert waits == (run.arm.name != "tl")


def test_a_step_says_how_many_threads_it_takes() -> None:
    found = by_name(full_study("training.threads=2", "teachers.big.training.threads=3",
                               "arms.kd.training={threads: 4}"))
    assert (found["run tl-clean-0"].threads, found["run kd-clean-0"].threads) == (2, 4)
    assert (found["teacher big"].threads, found["teacher wise"].threads, found[STUDENT].threads) == (3, 2, 1)


def test_a_damaged_bank_is_rebuilt_and_said(shapes_folder: Path, own_cache: Path, tmp_path: Path,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    run_study(small_study(shapes_folder, "seeds=[0]"), tmp_path / "a", CPU)
    for bank in (own_cache / "features").glob("*/train.npy"):
        data = bytearray(bank.read_bytes())
        data[-1] ^= 0xFF
        bank.write_bytes(data)
    run_study(small_study(shapes_folder, "seeds=[0, 1]"), tmp_path / "a", CPU)
    assert "checksums do not match" in capsys.readouterr().err
    run_study(small_study(shapes_folder), tmp_path / "b", CPU)
    pd.testing.assert_frame_equal(numbers(tmp_path / "a"), numbers(tmp_path / "b"))


@pytest.mark.slow
def test_killed_and_started_again(shapes_folder: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle: the second start finishes, keeps what was whole, and ends at the same numbers."""
    spec = small_study(shapes_folder, "training.epochs=60", "seeds=[0, 1, 2]")
    yaml = tmp_path / "study.yaml"
    yaml.write_text(json.dumps(spec.model_dump(mode="json")))
    environment = {**os.environ, "TLKD_CACHE": str(tmp_path / "cache")}

    def start(out: Path) -> subprocess.Popen[bytes]:
        code = ("import sys, torch; from pathlib import Path; from tlkd.reading import read_study;"
                "from tlkd.study import run_study;"
                "run_study(read_study(sys.argv[1]), Path(sys.argv[2]), torch.device('cpu'))")
        return subprocess.Popen([sys.executable, "-c", code, str(yaml), str(out)], env=environment)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait(timeout=300) == 0
    process = start(killed)
    deadline = time.monotonic() + 120
    while not list(killed.glob("runs/*/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stamps = {path: path.stat().st_mtime_ns for path in killed.glob("runs/*/manifest.json")}
    assert 0 < len(stamps) < 6, "killed too late to test anything"
    assert start(killed).wait(timeout=300) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    pd.testing.assert_frame_equal(numbers(whole), numbers(killed))
    for run in StudyFolder(whole).runs():
        assert weights(whole, run.run_id) == weights(killed, run.run_id)


# --- unsound runs -----------------------------------------------------------------------------------------------------


def test_other_images_in_the_same_place_make_every_run_anew(shapes_folder: Path, own_cache: Path,
                                                            tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(shapes_folder, images)
    assert run_study(small_study(images), out, CPU) == {}
    before = {run: weights(out, run) for run in ("tl-clean-0", "tl_kd-clean-1")}
    rng = np.random.default_rng(99)
    for path in sorted((images / "train" / "disc").iterdir()):
        draw_shape("disc", rng).save(path)
    assert run_study(small_study(images, "seeds=[0, 1, 2]"), out, CPU) == {}
    assert all(weights(out, run) != content for run, content in before.items())
    contents = {json.loads(path.read_text())["inputs"]["data"] for path in (out / "runs").glob("*/manifest.json")}
    assert contents == {json.loads((out / "data.json").read_text())["content"]} and len(numbers(out)) == 6


@pytest.mark.parametrize("harm", ["truncate weights", "remove predictions", "spoil result", "spoil manifest",
                                  "spoil teacher"])
def test_what_is_damaged_is_made_anew(shapes_folder: Path, own_cache: Path, tmp_path: Path, harm: str) -> None:
    out, study = tmp_path / "out", small_study(shapes_folder)
    run_study(study, out, CPU)
    whole, run = numbers(out), out / "runs" / "tl_kd-clean-0"
    good = weights(out, "tl_kd-clean-0")
    if harm == "truncate weights":
        (run / "model.safetensors").write_bytes(good[:100])
    elif harm == "remove predictions":
        (run / "predictions.npz").unlink()
    elif harm == "spoil teacher":
        (out / "teachers" / "lite1" / "result.json").write_text("{")
    else:
        (run / f"{harm.removeprefix('spoil ')}.json").write_text("not JSON")
    untouched = (out / "runs" / "tl-clean-1" / "manifest.json").stat().st_mtime_ns
    assert run_study(study, out, CPU) == {}
    pd.testing.assert_frame_equal(numbers(out), whole)
    assert weights(out, "tl_kd-clean-0") == good
    assert (out / "runs" / "tl-clean-1" / "manifest.json").stat().st_mtime_ns == untouched


def test_two_classes_leave_nothing_to_shuffle(shapes_folder: Path, own_cache: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(shapes_folder, images, ignore=shutil.ignore_patterns("stripes"))
    study = small_study(images, "arms.tl_kd.kind=tl_kd_shuffled")
    with pytest.raises(BadInput, match=r"arms\.tl_kd\.kind: found 'tl_kd_shuffled' with 2 classes; it needs at least"):
        run_study(study, tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()
