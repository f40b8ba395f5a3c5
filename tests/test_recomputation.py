"""`tlkd verify` from images through networks: what was edited together with its checksums is found, and named."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from conftest import refused
from sealed_folders import reseal
from tlkd import cli, evaluation, models, recomputation, seals, store
from tlkd.checks import verify
from tlkd.folder import Predictions, StudyFolder, load_predictions, save_predictions
from tlkd.reading import dump_yaml, read_yaml, validate
from tlkd.recomputation import ALLOWED, Recomputed, recompute
from tlkd.study import collect, run_study

RUN = "kd-clean-0"
STUDY: dict[str, Any] = {
    "name": "again", "data": {"source": "shapes", "dev_fraction": 0.2, "augment": [],
                              "shapes": {"size": 32, "train_per_class": 4, "test_per_class": 3}},
    "student": {"model": "packaged:efficientnet_lite0", "input_size": 32},
    "teachers": {"lite1": {"model": "packaged:efficientnet_lite1", "input_size": 32}},
    "arms": [{"name": "tl", "kind": "tl"}, {"name": "own", "kind": "self"},
             {"name": "kd", "kind": "tl_kd", "teacher": "lite1", "training": {"precision": "bf16"}}],
    "conditions": [{"name": "clean"}, {"name": "black", "corruption": {"kind": "center_black", "variants": 2}}],
    "robustness": [{"kind": "center_black", "sizes": [0.5]}], "training": {"epochs": 1}, "seeds": [0]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real study of every kind of bank, one of its arms trained in bf16; with its cache beside it."""
    at = tmp_path_factory.mktemp("again")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLKD_CACHE", str(at / "cache"))
        assert run_study(validate(STUDY, "again"), at / "out", torch.device("cpu")) == {}
    return at


@pytest.fixture
def folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyFolder:
    """A copy of it, which may be edited."""
    shutil.copytree(whole, tmp_path / "at")
    monkeypatch.setenv("TLKD_CACHE", str(tmp_path / "at" / "cache"))
    return StudyFolder(tmp_path / "at" / "out")


def bank(folder: StudyFolder, stage: str) -> Path:
    """Where a bank lies."""
    return store.cache_folder() / next(each["place"] for each in folder.stages() if each["stage"] == stage)


def change(path: Path, how: Callable[[np.ndarray], np.ndarray]) -> None:
    """Edit an array, and the manifest beside it so that it fits."""
    np.save(path, how(np.load(path)))
    reseal(path.parent)


def predict_otherwise(at: Path, how: Callable[[Predictions], Predictions]) -> None:
    """Edit predictions, and the result beside them so that it fits."""
    new = how(load_predictions(at / "predictions.npz"))
    save_predictions(at / "predictions.npz", new)
    result = store.read_json(at / "result.json")
    metrics = {f"test_{name}": value for name, value in evaluation.metrics(new.labels, new.logits).items()}
    store.write_json(at / "result.json", {**result, **metrics})


def edit_run(folder: StudyFolder, how: Callable[[Predictions], Predictions]) -> None:
    """The same of a run, with its manifest, results.csv and SHA256SUMS: what only recomputing can find."""
    path = folder.path / "runs" / RUN
    predict_otherwise(path, how)
    reseal(path)
    if len(load_predictions(path / "predictions.npz").logits) == 30:
        collect(folder)
    else:
        refused(lambda: collect(folder), f"{path / 'predictions.npz'}: ")
    seals.seal(folder.path, seals.STUDY)


def found(folder: StudyFolder, **more: Any) -> Recomputed:
    """What recomputing finds in a folder whose files are all as their checksums say."""
    assert verify(folder.path)[1] == []
    return recompute(folder.path, **more)


def test_a_study_as_it_was_left_is_recomputed_whole(folder: StudyFolder) -> None:
    again = found(folder)
    assert (again.problems, again.missed) == ([], [])
    banked = {each["place"] for each in folder.stages() if each["place"].startswith(("features/", "logits/"))}
    assert len(again.banks) == len(banked) == 11
    assert {name.rpartition("/")[2] for name in again.networks} >= {run.run_id for run in folder.runs()}
    assert len(again.networks) == 6 + 2
    assert max([*again.banks.values(), *again.networks.values()]) < ALLOWED / 10
    assert again.lines(16)[0].startswith("11 banks: 16 rows of each split recomputed, largest difference ")
    assert again.lines(None)[1].startswith("8 networks: every row of its test predictions recomputed, ")


def test_one_row_of_a_bank_that_is_off_by_a_hundredth_is_found(folder: StudyFolder) -> None:
    stages = ["features of student", "logits of teacher lite1", "features of teacher lite1",
              "logits of TL, clean, seed 0", "features of student, CenterBlack, side 0.5"]
    places = [bank(folder, stage) / ("test.npy" if stage.endswith("0.5") else "train.npy") for stage in stages]

    def edited(array: np.ndarray) -> np.ndarray:
        array[0, 2] *= 1.01
        return array

    for place in places:
        change(place, edited)
    problems = found(folder, rows=None).problems
    assert {line.partition(": ")[0] for line in problems} == set(map(str, places))
    assert len(problems) == len(places)
    assert all("images and network give other numbers, off by 0.0" in line for line in problems)


def test_banks_of_another_shape_or_type_are_named(folder: StudyFolder) -> None:
    edits: list[tuple[str, Callable[[np.ndarray], np.ndarray], str]] = [
        ("features of student/train", lambda array: array[:, :-1], "holds float32 ["),
        ("features of student/dev", lambda array: array[0], "holds float32 ["),
        ("features of student/test", lambda array: array.astype(np.float16), "holds float16 ["),
        ("features of teacher lite1/train", lambda array: array * np.nan, "off by nan"),
        ("features of teacher lite1/dev", lambda array: array[..., :-1], "off by inf"),
        ("features of teacher lite1/test", lambda array: array.astype(np.float16).astype(np.float32), "off by 0.000"),
        ("logits of teacher lite1/dev", lambda array: array.astype(object), "cannot be read")]
    for stage, how, _ in edits:
        name, _, split = stage.partition("/")
        change(bank(folder, name) / f"{split}.npy", how)
    problems = recompute(folder.path).problems
    assert len(problems) == len(edits)
    for stage, _, why in edits:
        name, _, split = stage.partition("/")
        line, = (line for line in problems if line.startswith(f"{bank(folder, name) / split}.npy: {name}: "))
        assert why in line


def test_a_bank_without_one_of_its_splits_is_named(folder: StudyFolder) -> None:
    path = bank(folder, "features of student")
    manifest = store.read_json(path / store.MANIFEST)
    manifest["files"].pop("dev.npy")
    manifest.pop("sha256")
    store.write_json(path / store.MANIFEST, manifest)
    (path / "dev.npy").unlink()
    problem, = recompute(folder.path).problems
    assert problem.startswith(f"{path / 'dev.npy'}: features of student: cannot be read")


def test_a_bank_that_was_computed_in_half_precision_is_a_problem(folder: StudyFolder) -> None:
    features = models.Network.features

    def half(self: models.Network, inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return features(self, inputs).float()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models.Network, "features", half)
        off = max(recompute(folder.path).banks.values())
    assert off > 10 * ALLOWED


def test_weights_of_a_run_that_were_changed_are_found(folder: StudyFolder) -> None:
    path = folder.path / "runs" / RUN / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        said, state = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    name = next(name for name, tensor in state.items() if tensor.ndim == 2)
    state[name][0] *= 1.05
    save_file(state, path, said)
    reseal(path.parent)
    problem, = found(folder).problems
    assert problem.startswith(f"runs/{RUN}/predictions.npz: the weights give other numbers, off by ")


def test_weights_that_do_not_fit_are_named(folder: StudyFolder) -> None:
    path = folder.path / "runs" / RUN / "model.safetensors"
    for content, why in ((None, "tensors do not fit"), (b"", "cannot be used")):
        if content is None:
            save_file({"other": torch.ones(2)}, path)
        else:
            path.write_bytes(content)
        reseal(path.parent)
        problem, = found(folder).problems
        assert problem.startswith(f"runs/{RUN}/model.safetensors: cannot be used")
        assert why in problem


def one_right(old: Predictions) -> Predictions:
    """The first image's logits, which now name its class for certain."""
    logits = old.logits.copy()
    logits[0] = np.eye(logits.shape[1], dtype=np.float32)[old.labels[0]] * 9
    return Predictions(old.sample_ids, old.labels, logits)


@pytest.mark.parametrize(("how", "why"), [
    (one_right, "the weights give other numbers, off by "),
    (lambda old: Predictions(old.sample_ids, old.logits.argmax(1), old.logits), "holds other labels"),
    (lambda old: Predictions(old.sample_ids[1:], old.labels[1:], old.logits[1:]), "is not of the study's 30 test"),
    (lambda old: Predictions(old.sample_ids[::-1], old.labels[::-1], old.logits[::-1]), "is not of the study's 30"),
])
def test_predictions_that_were_changed_are_found(folder: StudyFolder, how: Callable[[Predictions], Predictions],
                                                 why: str) -> None:
    edit_run(folder, how)
    problem, = recompute(folder.path, None).problems  # fewer rows also part with the teacher's, which verify says
    assert problem.startswith(f"runs/{RUN}/predictions.npz: {why}")


def test_predictions_of_a_teacher_that_were_changed_in_the_folder_are_found(folder: StudyFolder) -> None:
    predict_otherwise(folder.path / "teachers" / "lite1", one_right)
    collect(folder)
    seals.seal(folder.path, seals.STUDY)
    problem, = found(folder, rows=None).problems
    assert problem.startswith("teachers/lite1/predictions.npz: the weights give other numbers")


def test_a_run_under_other_settings_than_the_studys_is_found(folder: StudyFolder) -> None:
    raw = read_yaml(folder.path / "study.yaml")
    raw["training"]["learning_rate"] = 0.5
    (folder.path / "study.yaml").write_text(dump_yaml(raw))
    seals.seal(folder.path, seals.STUDY)
    problems = found(StudyFolder(folder.path)).problems
    assert any(line.startswith("runs/tl-clean-0: its training is another than the study's: ") for line in problems)


def test_what_the_cache_has_lost_is_said_and_is_no_problem(folder: StudyFolder) -> None:
    gone, teacher = bank(folder, "features of student"), bank(folder, "teacher lite1")
    shutil.rmtree(gone)
    shutil.rmtree(teacher)
    again = found(folder)
    assert again.problems == []
    assert "features of student, which the cache no longer holds" in again.missed
    assert "teacher lite1's weights, which the cache no longer holds" in again.missed
    assert "not recomputed: features of student, which the cache no longer holds" in again.lines(16)
    shutil.rmtree(store.cache_folder())
    assert found(folder).problems == []  # the images are painted anew
    (folder.path / "stages.json").write_text("[]")
    assert "banks, since stages.json names none" in recompute(folder.path).missed


def test_a_damaged_bank_is_a_problem(folder: StudyFolder) -> None:
    path = bank(folder, "features of student")
    content = bytearray((path / "test.npy").read_bytes())
    content[-1] ^= 64
    (path / "test.npy").write_bytes(content)
    assert found(folder).problems == [f"{path}: features of student: not what the checksums say"]


def test_networks_that_cannot_be_had_are_said_and_are_no_problem(folder: StudyFolder,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise recomputation.BadInput("student.weights: cannot be fetched")

    monkeypatch.setattr(recomputation, "network_for", offline)
    again = found(folder)
    assert (again.problems, again.banks, again.networks) == ([], {}, {})
    assert again.missed[0] == "what packaged:efficientnet_lite0 gives (student.weights: cannot be fetched)"


def test_images_that_cannot_be_had_are_said_and_are_no_problem(folder: StudyFolder) -> None:
    shutil.rmtree(store.cache_folder())
    card = json.loads((folder.path / "data.json").read_text())
    store.write_json(folder.path / "data.json", {**card, "content": "0" * 64})
    again = recompute(folder.path)
    assert again.problems == []
    assert "the study's images cannot be had" in again.missed[0]


@pytest.mark.slow
def test_of_many_runs_some_are_recomputed_and_the_rest_is_said(folder: StudyFolder,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputation, "RUNS", 2)
    again = found(folder)
    assert len([name for name in again.networks if name.startswith("runs/")]) == 2
    drawn = {tuple(found(folder, rows=1, seed=seed).networks) for seed in range(3)}
    assert len(drawn) > 1  # nobody knows beforehand which runs are looked at
    assert "predictions of 4 runs (--all recomputes them)" in again.missed
    assert not any("runs" in each for each in found(folder, everything=True).missed)


@pytest.mark.slow
def test_rows_are_drawn_by_the_seed_and_compared_in_pieces(folder: StudyFolder,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    one, same, other = (recomputation._sample(2000, 16, seed).tolist() for seed in (1, 1, 2))
    assert one == same != other
    monkeypatch.setattr(recomputation, "PIECE", 5)
    whole = found(folder, rows=None)
    assert whole.problems == []
    assert max(whole.banks.values()) < ALLOWED / 10
    last = bank(folder, "features of student") / "train.npy"

    def edited(array: np.ndarray) -> np.ndarray:
        array[0, -1, 3] = np.nan
        return array

    change(last, edited)
    assert found(folder, rows=None).problems == [
        f"{last}: features of student: images and network give other numbers, off by nan of the largest"]


def test_images_labels_or_splits_that_were_edited_in_the_cache_are_found(folder: StudyFolder) -> None:
    path = next((store.cache_folder() / "images").glob("*/samples.json"))
    stored = store.read_json(path)
    stored["labels"][:2] = stored["labels"][1::-1]
    stored["labels"][0] += 1
    store.write_json(path, stored)
    reseal(path.parent)
    assert found(folder).problems == [
        f"{path.parent}: its pixels, ids, labels or splits are not those that the study was run on"]


def test_accuracies_on_distorted_images_are_those_of_the_predicted_classes(folder: StudyFolder) -> None:
    path = folder.path / "robustness" / "tl-clean-0"
    table = pd.read_csv(path / "robustness.csv")
    table["accuracy"] += 0.1
    table.to_csv(path / "robustness.csv", index=False)
    reseal(path)
    problems = verify(folder.path)[1]
    assert len(problems) == len(table)
    assert problems[0].startswith("robustness/tl-clean-0/robustness.csv: row 1: accuracy is ")


def test_what_a_run_drew_is_drawn_again(folder: StudyFolder) -> None:
    path = folder.path / "runs" / "kd-black-0"
    with np.load(path / "drawn.npz") as held:
        drawn = dict(held)
    np.savez_compressed(path / "drawn.npz", **{**drawn, "variants": drawn["variants"][::-1]})
    reseal(path)
    seals.seal(folder.path, seals.STUDY)
    assert found(folder, everything=True).problems == [
        "runs/kd-black-0/drawn.npz: its variants are not those that its condition and seed draw"]


@pytest.mark.slow
def test_the_command_recomputes_what_it_is_asked_to(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    chosen = set(recomputation._sample(30, 4, 7).tolist())
    row = next(row for row in range(30) if row not in chosen)

    def edited(array: np.ndarray) -> np.ndarray:
        array[0, row] *= 2
        return array

    path = bank(folder, "features of student") / "test.npy"
    change(path, edited)

    def call(*words: str) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["tlkd", "verify", str(folder.path), *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code, capsys.readouterr().out

    code, out = call("--sample", "0")
    assert code == 0
    assert "not recomputed: banks and predictions (--sample 0)\n6 runs checked, 0 problems\n" in out
    code, out = call("--sample", "4", "--seed", "7")
    assert code == 0
    assert "rows drawn by --seed 7\n" in out
    seeds = {call("--sample", "1")[1].rpartition("--seed ")[2].partition("\n")[0] for _ in range(3)}
    assert len(seeds) > 1
    assert "11 banks: 4 rows of each split recomputed" in out
    code, out = call("--all")
    assert code == 1
    assert out.startswith(f"{path}: features of student: images and network give other numbers, off by ")
    assert "11 banks: every row of each split recomputed" in out
    assert out.endswith("6 runs checked, 1 problems\n")


def test_predictions_of_a_training_in_bf16_are_float32(folder: StudyFolder) -> None:
    said = store.read_json(folder.path / "runs" / RUN / "spec.json")["training"]["precision"]
    assert said == "bf16"
    assert found(folder, rows=None).networks[f"runs/{RUN}"] < ALLOWED / 10
