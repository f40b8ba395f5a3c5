"""The explanation stage on painted scenes with real ImageNet weights."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tlkd import explained, explaining, models, regions, report, rules, shapes
from tlkd.checks import verify
from tlkd.datasets import open_dataset
from tlkd.errors import BadInput, RunFailed
from tlkd.folder import StudyFolder, TeacherFit
from tlkd.masks import Masks
from tlkd.reading import apply_set, validate
from tlkd.specs import Explanation, Study
from tlkd.study import run_study
from tlkd.training import epoch_batches
from tlkd.workshop import Workshop

CPU = torch.device("cpu")
SIDE = 32


def scenes(*assignments: str) -> Study:
    """Two arms, two seeds, ten classes of painted scenes at 32 pixels."""
    raw: dict[str, Any] = {
        "name": "scenes",
        "data": {"source": "shapes", "masks": "exact", "dev_fraction": 0.2, "augment": [],
                 "shapes": {"size": SIDE, "train_per_class": 5, "test_per_class": 4, "tie": 0.9}},
        "student": {"model": "packaged:efficientnet_lite0", "input_size": SIDE},
        "teachers": {"lite1": {"model": "packaged:efficientnet_lite1", "input_size": 40}},
        "arms": [{"name": "tl", "kind": "tl"},
                 {"name": "tl_kd", "kind": "tl_kd", "teacher": "lite1", "soft_weight": 0.5, "temperature": 4}],
        "training": {"epochs": 3, "batch_size": 16, "learning_rate": 0.02},
        "seeds": [0, 1],
        "explanation": {"images": 2, "pictures": 1, "background": {"size": 3}},
    }
    for assignment in assignments:
        apply_set(raw, assignment)
    return validate(raw, "scenes.yaml")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished study and its cache, side by side."""
    root = tmp_path_factory.mktemp("explained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLKD_CACHE", str(root / "cache"))
        assert run_study(scenes(), root / "out", CPU) == {}
        yield root


@pytest.fixture(scope="module")
def workshop(ran: Path) -> Workshop:
    study = scenes()
    return Workshop(study, open_dataset(study.data, 40, ran / "cache"), ran / "cache", CPU)


WHO = ("tl-clean-0", "tl_kd-clean-0", "tl-clean-1", "tl_kd-clean-1", "teacher-lite1")


def stamps(out: Path) -> dict[str, int]:
    return {who: (out / "explanations" / who / "attributions.npz").stat().st_mtime_ns for who in WHO}


def test_every_network_is_explained_and_the_pictures_are_of_the_first_seed(ran: Path) -> None:
    folder = StudyFolder(ran / "out")
    assert sorted(path.name for path in (ran / "out" / "explanations").iterdir() if path.is_dir()
                  and path.name[0] != ".") == sorted(WHO)
    for who in WHO:
        found, side = explained.load(folder, who), 40 if who == "teacher-lite1" else SIDE
        assert found.values.shape == (20, 3, side, side)
        drawn = 0 if who.endswith("-1") else 10
        assert found.pictures.shape == (drawn, 10, side, side)
        assert found.labels.tolist() == sorted(list(range(10)) * 2)
        assert found.labels[found.picture_rows].tolist() == list(range(10))[:drawn]
        assert list(explained.regions(folder, who).columns) == list(regions.COLUMNS)
        assert len(explained.regions(folder, who)) == 20
    images = explained.load_images(folder)
    assert images.images.shape == (20, SIDE, SIDE, 3)
    assert images.masked.all()
    assert not images.uncertain.any()


@pytest.mark.parametrize("who", WHO)
def test_attributions_are_of_the_stored_network_and_sum_to_its_own_prediction(ran: Path, who: str) -> None:
    """The outputs are those that the run stored, which no other seed's or arm's weights would give."""
    folder = StudyFolder(ran / "out")
    found = explained.load(folder, who)
    path = folder.teacher_path(TeacherFit("lite1")) if who == "teacher-lite1" else ran / "out" / "runs" / who
    stored = np.load(path / "predictions.npz")
    places = {name: number for number, name in enumerate(stored["sample_ids"].tolist())}
    logits = stored["logits"][[places[name] for name in found.sample_ids.tolist()]]
    own = logits[np.arange(len(logits)), found.labels]
    np.testing.assert_allclose(found.output, own, atol=2e-4)
    np.testing.assert_allclose(found.values.sum((1, 2, 3)) + found.expected, own, atol=1e-3)
    assert np.abs(found.residual).max() < 1e-4 * max(1, float(np.ptp(logits)))
    assert found.predicted.tolist() == logits.argmax(1).tolist()


def test_pictures_hold_every_class_and_agree_with_the_label_attributions(ran: Path) -> None:
    found = explained.load(StudyFolder(ran / "out"), "tl_kd-clean-0")
    for picture, row in zip(found.pictures, found.picture_rows, strict=True):
        np.testing.assert_allclose(picture[found.labels[row]], found.values[row].sum(0), atol=1e-4)
        assert len({round(float(each.sum()), 4) for each in picture}) == 10


def test_regions_are_those_of_the_masks(ran: Path, workshop: Workshop) -> None:
    folder = StudyFolder(ran / "out")
    found, table = explained.load(folder, "tl-clean-1"), explained.regions(folder, "tl-clean-1")
    settings = workshop.study.data.shapes
    assert settings is not None
    masks = np.array([shapes.mask(name, settings, 0) for name in found.sample_ids.tolist()])
    np.testing.assert_array_equal(explained.load_images(folder).masks, masks)
    again = regions.measure(found.values, masks, "channel")
    np.testing.assert_allclose(table["positive_share"], again["positive_share"], rtol=1e-6)
    assert table["sample_id"].tolist() == found.sample_ids.tolist()
    assert (table["correct"] == (found.predicted == found.labels)).all()


def test_a_finished_explanation_is_not_repeated_and_a_missing_one_comes_back_the_same(ran: Path) -> None:
    out = ran / "out"
    before = stamps(out)
    lost = out / "explanations" / "tl-clean-1"
    values = explained.load(StudyFolder(out), "tl-clean-1").values
    (lost / "regions.csv").write_text("harm")
    assert run_study(scenes(), out, CPU) == {}
    after = stamps(out)
    assert {who for who in WHO if before[who] != after[who]} == {"tl-clean-1"}
    np.testing.assert_allclose(explained.load(StudyFolder(out), "tl-clean-1").values, values, atol=1e-5)


@pytest.mark.slow
def test_another_explanation_replaces_explanations_and_no_run(ran: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(ran / "out", out)
    runs = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.safetensors")}
    before = explained.load(StudyFolder(out), "tl-clean-0")
    assert run_study(scenes("explanation.background={kind: black}", "explanation.seeds=1",
                            "explanation.teachers=false"), out, CPU) == {}
    after = explained.load(StudyFolder(out), "tl-clean-0")
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.safetensors")} == runs
    np.testing.assert_allclose(after.output, before.output, atol=1e-5)
    assert not np.allclose(after.expected, before.expected, atol=1e-3)
    manifest = json.loads((out / "explanations" / "tl-clean-0" / "manifest.json").read_text())
    assert manifest["spec"]["background"] == {"kind": "black"}
    # What was explained otherwise stays where it is, and no longer counts.
    assert (out / "explanations" / "tl-clean-1" / "attributions.npz").is_file()
    assert [run.run_id for run in explained.explained_runs(StudyFolder(out))] == ["tl-clean-0", "tl_kd-clean-0"]
    assert explained.explained_teachers(StudyFolder(out)) == {}
    assert verify(out) == (4, [])
    report.write(out)
    assert run_study(scenes("explanation.images=1", "explanation.seeds=1"), out, CPU) == {}
    assert len(explained.load_images(StudyFolder(out)).sample_ids) == 10
    report.write(out)
    assert run_study(scenes("explanation=null"), out, CPU) == {}
    assert explained.explained_runs(StudyFolder(out)) == []
    assert "H2 TL+KD attends more to the foreground: not examined" in report.write(out).with_name(
        "summary.txt").read_text()
    assert manifest["about"]["additive"] is True


def test_a_network_that_is_trained_whole_is_explained_by_itself(ran: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    study = scenes("student.trainable=last:1", "seeds=[0]", "explanation.images=1", "training.epochs=1",
                   "explanation.background.size=2", "explanation.teachers=false")
    assert run_study(study, out, CPU) == {}
    found = explained.load(StudyFolder(out), "tl_kd-clean-0")
    network = models.build(study.student, 10, 0)
    models.load_trained(network, load_file(out / "runs" / "tl_kd-clean-0" / "model.safetensors"))
    stored = np.load(out / "runs" / "tl_kd-clean-0" / "predictions.npz")
    places = {name: number for number, name in enumerate(stored["sample_ids"].tolist())}
    own = [stored["logits"][places[name], label] for name, label in zip(found.sample_ids, found.labels, strict=True)]
    np.testing.assert_allclose(found.values.sum((1, 2, 3)) + found.expected, own, atol=1e-3)


def test_another_explainer_goes_through_the_same_stage(ran: Path, tmp_path: Path) -> None:
    study = scenes("explanation.explainer=grad_cam", "seeds=[0]", "explanation.images=1", "explanation.pictures=0",
                   "explanation.teachers=false")
    assert run_study(study, tmp_path / "out", CPU) == {}
    found = explained.load(StudyFolder(tmp_path / "out"), "tl-clean-0")
    assert np.isnan(found.residual).all()
    assert found.values.min() >= 0
    assert found.values.max() > 0
    manifest = json.loads((tmp_path / "out" / "explanations" / "tl-clean-0" / "manifest.json").read_text())
    assert manifest["about"] == {**manifest["about"], "additive": False, "largest_residual": None}


def test_an_operator_without_a_rule_is_told_before_anything_is_trained(
        ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(rules.RULES, "hardtanh")
    with pytest.raises(BadInput, match=r"no rule for the operator aten\.hardtanh"):
        run_study(scenes(), tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


def test_bad_masks_are_told_before_anything_is_trained(ran: Path, tmp_path: Path) -> None:
    study = scenes(f"data.masks={tmp_path / 'nowhere.json'}")
    with pytest.raises(BadInput, match=r"data\.masks"):
        run_study(study, tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


def test_an_explanation_that_fails_is_reported_and_takes_nothing_along(
        ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RunFailed("they are not additive")

    study = scenes("seeds=[0]", "explanation.teachers=false")
    with monkeypatch.context() as patch:
        patch.setattr(explaining, "deep_shap_of_heads", fail)
        failures = run_study(study, tmp_path / "out", CPU)
    assert failures == {f"explanation of {who}-clean-0": "they are not additive" for who in ("tl", "tl_kd")}
    assert len(pd.read_csv(tmp_path / "out" / "results.csv")) == 2
    assert run_study(study, tmp_path / "out", CPU) == {}
    assert explained.there(StudyFolder(tmp_path / "out"), "tl-clean-0")


def test_a_failure_of_an_earlier_start_is_forgotten(ran: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(ran / "out", out)
    (out / "failures").mkdir(exist_ok=True)
    (out / "failures" / "explanation-tl_kd-clean-1.txt").write_text("once upon a time\n")
    assert run_study(scenes(), out, CPU) == {}


def test_a_background_larger_than_the_training_split_is_refused(ran: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="found 500; allowed: 1 to 40, the images of the training split"):
        run_study(scenes("explanation.background.size=500"), tmp_path / "out", CPU)


# --- what is checked afterwards ---------------------------------------------------------------------------------------


def sealed(place: Path) -> None:
    """Write a manifest's checksums anew: the harm is then one that checksums do not show."""
    manifest = json.loads((place / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        entry["sha256"] = hashlib.sha256((place / name).read_bytes()).hexdigest()
        entry["bytes"] = (place / name).stat().st_size
    (place / "manifest.json").write_text(json.dumps(manifest))


def test_verify_recomputes_sums_and_regions(ran: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(ran / "out", out)
    assert verify(out) == (4, [])
    place = out / "explanations" / "tl-clean-1"
    with (place / "attributions.npz").open("r+b") as file:
        file.seek(3000)
        file.write(b"harm")
    assert verify(out)[1] == ["explanations/tl-clean-1/attributions.npz: missing, or not what its checksum says"]
    shutil.copytree(ran / "out" / "explanations" / "tl-clean-1", place, dirs_exist_ok=True)
    found = explained.load(StudyFolder(out), "tl-clean-1")
    found.values[4, 0, 7, 7] += 0.5
    explained.save(place / "attributions.npz", found)
    sealed(place)
    problems = verify(out)[1]
    where, name = "explanations/tl-clean-1", found.sample_ids[4]
    assert problems[0].startswith(f"{where}/attributions.npz: {name} does not sum to its output")
    wrong = {line.split()[1] for line in problems[1:] if line.startswith(f"{where}/regions.csv: ")}
    assert {"positive_share", "density"} < wrong and wrong & {"fg_pos", "bg_pos"}
    assert len(problems) == 1 + len(wrong)


def test_verify_holds_what_was_explained_to_what_was_predicted(ran: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(ran / "out", out)
    for who in ("tl-clean-1", "teacher-lite1"):
        place = out / "explanations" / who
        found = explained.load(StudyFolder(out), who)
        found.values[:] *= 2
        found.output[:], found.expected[:] = 2 * found.output, 2 * found.expected
        explained.save(place / "attributions.npz", found)
        sealed(place)
        problems = [line for line in verify(out)[1] if line.startswith(f"explanations/{who}/attributions.npz: ")]
        assert problems[0].startswith(f"explanations/{who}/attributions.npz: the output explained of ")
        assert not [line for line in problems if "does not sum" in line]


# --- what is chosen ---------------------------------------------------------------------------------------------------


def test_certain_masks_come_first_then_doubtful_ones_then_none(workshop: Workshop) -> None:
    dataset = workshop.dataset
    test = dataset.splits["test"].reshape(10, 4)
    masked = np.sort(test[:, [1, 3]].ravel())
    masks = Masks(masked, np.ones((20, SIDE, SIDE), bool), np.isin(masked, test[:, 1]), ((),) * 20, (), "")
    three, pictured = explaining.choose(workshop, Explanation(images=3, pictures=1), masks)
    for label in range(10):
        mine = three[dataset.labels[three] == label]
        assert {test[label, 1], test[label, 3]} < set(mine)
    assert three[pictured].tolist() == test[:, 3].tolist()
    every, _ = explaining.choose(workshop, Explanation(), masks)
    assert every.tolist() == masked.tolist()
    two, _ = explaining.choose(workshop, Explanation(), None)
    assert len(two) == 20
    more, _ = explaining.choose(workshop, Explanation(images=3), None)
    assert set(two) < set(more)


@pytest.mark.parametrize("kind", ["random", "first", "black", "mean"])
def test_backgrounds(workshop: Workshop, kind: str) -> None:
    dataset = workshop.dataset
    network = models.build(workshop.study.student, 10, 0)
    spec = Explanation.model_validate({"background": {"kind": kind, "size": 7}})
    subject = explaining.Subject(spec, np.empty(0, np.int64), np.empty(0, np.int64), {}, "")
    found = explaining.backgrounds(workshop, subject, network)
    mean, sd = (torch.tensor(each).view(3, 1, 1) for each in (network.mean, network.sd))
    raw = (found * sd + mean) * 255
    train = dataset.splits["train"]
    if kind == "black":
        assert found.shape == (1, 3, SIDE, SIDE)
        torch.testing.assert_close(raw, torch.zeros_like(raw), atol=1e-3, rtol=0)
    elif kind == "mean":
        truth = torch.from_numpy(dataset.images[train].astype(np.float64).mean(0)).permute(2, 0, 1)
        torch.testing.assert_close(raw[0].double(), truth, atol=0.51, rtol=0)
    else:
        known = {dataset.images[row].tobytes(): number for number, row in enumerate(train)}
        rows = [known[each.round().byte().permute(1, 2, 0).contiguous().numpy().tobytes()] for each in raw]
        assert len(set(rows)) == 7
        if kind == "first":
            order, _ = next(epoch_batches(0, 1, len(train), 1, 7))
            assert rows == order.tolist()
        else:
            assert len(set(dataset.labels[train[rows]])) > 2


