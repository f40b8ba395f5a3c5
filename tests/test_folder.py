"""A study's folder: the plan, what may be run again into it, and reading results back."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import tlkd
from sealed_folders import PROVENANCE, lay_down, small_raw
from tlkd import __version__, comparison_report, report, store
from tlkd.checks import verify
from tlkd.conditions import Condition
from tlkd.distortions import describe
from tlkd.errors import BadInput
from tlkd.folder import (
    EXTENDABLE,
    KILLED,
    Predictions,
    Run,
    StudyFolder,
    load_predictions,
    plan,
    save_predictions,
    teacher_fit,
    teacher_fits,
)
from tlkd.outlook import Watcher
from tlkd.reading import apply_set, dump_yaml, raw_study, validate
from tlkd.specs import Arm, Study
from tlkd.standing import standings
from tlkd.study import refuse_newer


def study(*assignments: str) -> Study:
    return validate(small_raw(*assignments), "small.yaml")


def state(path: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder: what it holds, and when it was written."""
    return {str(file.relative_to(path)): (file.read_bytes(), file.stat().st_mtime_ns)
            for file in sorted(path.rglob("*")) if file.is_file()}


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_plan_goes_seed_by_seed_with_tl_first() -> None:
    raw = small_raw("seeds=[7, 0]")
    raw["arms"] = [raw["arms"][1], raw["arms"][0], {"name": "kd4", "kind": "tl_kd", "teacher": "big", "temperature": 4}]
    runs = plan(validate(raw, "x"))
    assert [run.run_id for run in runs] == ["tl-clean-7", "kd-clean-7", "kd4-clean-7",
                                            "tl-clean-0", "kd-clean-0", "kd4-clean-0"]


def test_a_run_is_called_by_arm_condition_and_seed() -> None:
    assert Run(Arm(name="tl_kd", kind="tl"), Condition(name="clean"), 3).run_id == "tl_kd-clean-3"


def test_run_ids_do_not_meet() -> None:
    arms = "arms=[{name: a, kind: tl}, {name: a_1, kind: tl}, {name: a1, kind: tl}]"
    runs = plan(study("seeds=[0, 1, 10, 11]", arms))
    assert len({run.run_id for run in runs}) == len(runs) == 12


CONDITIONS = ("conditions=[{name: clean}, {name: few, train_fraction: 0.5, arms: [kd], seeds: [7]}, "
              "{name: noisy, label_noise: 0.2}]")


def test_the_plan_goes_condition_by_condition_with_the_arms_and_seeds_of_each() -> None:
    runs = plan(study(CONDITIONS, "exclude=[{arms: [kd], conditions: [noisy], seeds: [1]}]"))
    assert [run.run_id for run in runs] == [
        "tl-clean-0", "kd-clean-0", "tl-clean-1", "kd-clean-1", "kd-few-7", "tl-noisy-0", "kd-noisy-0", "tl-noisy-1"]


@pytest.mark.parametrize(("assignments", "fits"), [
    ((), ["big", "big-few-7", "big-noisy-0", "big-noisy-1"]),
    (("teachers.big.per_seed=true",), ["big-0", "big-1", "big-few-7", "big-noisy-0", "big-noisy-1"]),
    (("teachers.big.trained_on=clean",), ["big"]),
    (("teachers.big.trained_on=clean", "teachers.big.per_seed=true"), ["big-0", "big-1", "big-7"]),
    (("teachers.big.fit=false",), ["big"]),
    (("exclude=[{arms: [kd], conditions: [clean, noisy]}]",), ["big-few-7"]),
])
def test_a_teacher_is_fitted_for_each_condition_and_seed_that_it_knows_no_more_than(assignments: tuple[str, ...],
                                                                                    fits: list[str]) -> None:
    spec = study(CONDITIONS, *assignments)
    assert [fit.fit_id for fit in teacher_fits(spec)] == fits
    for run in plan(spec):
        if run.arm.teacher is not None:
            fit = teacher_fit(spec, run.arm.teacher, run.condition, run.seed)
            assert fit.fit_id in fits
            assert fit.condition in (None, run.condition) and fit.seed in (None, run.seed)


# --- prepare ----------------------------------------------------------------------------------------------------------


def test_prepare_writes_a_fresh_folder(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "a" / "b")
    folder.prepare(study(), PROVENANCE)
    again = StudyFolder(tmp_path / "a" / "b")
    assert again.study == study() == folder.study
    assert again.provenance == PROVENANCE == folder.provenance
    assert [file.name for file in (tmp_path / "a" / "b").iterdir()] == ["study.yaml"]


def test_prepare_takes_an_empty_folder(tmp_path: Path) -> None:
    StudyFolder(tmp_path).prepare(study(), PROVENANCE)
    assert StudyFolder(tmp_path).study == study()


def test_the_same_study_again_changes_nothing(tmp_path: Path) -> None:
    StudyFolder(tmp_path).prepare(study(), PROVENANCE)
    before = state(tmp_path)
    StudyFolder(tmp_path).prepare(study(), {"command": "another"})
    assert state(tmp_path) == before


@pytest.mark.parametrize("change", [
    "seeds=[0, 1, 2]", "verdict.level=0.01", "name=other", "footnotes=[a note]",
])
def test_what_may_change_may_change(tmp_path: Path, change: str) -> None:
    folder = StudyFolder(tmp_path)
    folder.prepare(study(), PROVENANCE)
    assert folder.study == study()
    folder.prepare(study(change), {"command": "second"})
    assert folder.study == StudyFolder(tmp_path).study == study(change)
    assert folder.provenance == {"command": "second"}
    assert change.partition("=")[0].partition(".")[0] in (*EXTENDABLE, "seeds")


def test_seeds_are_added_and_not_taken_away(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    folder.prepare(study(), PROVENANCE)
    with pytest.raises(BadInput, match=r"holds a study with seeds: \[0, 1\] \(now \[1\]\)"):
        folder.prepare(study("seeds=[1]"), PROVENANCE)
    assert StudyFolder(tmp_path).study == study()


def test_arms_and_teachers_may_be_added(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    folder.prepare(study(), PROVENANCE)
    raw = small_raw("teachers.other.model=timm:resnet34")
    raw["arms"] = [{"name": "kd_other", "kind": "tl_kd", "teacher": "other"}, *raw["arms"]]
    folder.prepare(validate(raw, "x"), PROVENANCE)
    assert [arm.name for arm in folder.study.arms] == ["kd_other", "tl", "kd"]
    assert len(folder.runs()) == 6


@pytest.mark.parametrize(("change", "where", "was", "now"), [
    ("data.source=cifar10", "data.augment", "[]", "['hflip']"),  # the first key that differs, by name
    ("data.data_seed=3", "data.data_seed", "0", "3"),
    ("student.dropout=0.5", "student.dropout", "0.2", "0.5"),
    ("arms.kd.temperature=4", "arms.kd.temperature", "10.0", "4.0"),
    ("arms.kd.soft_weight=0.5", "arms.kd.soft_weight", "0.1", "0.5"),
    ("arms.kd.name=kd2", "arms.kd", "{'name': 'kd'", "None"),
    ("teachers.big.input_size=64", "teachers.big.input_size", "224", "64"),
    ("training.epochs=4", "teachers.big.training.epochs", "3", "4"),
    ("bank=off", "bank", "True", "False"),
    ("data.normalise={mean: [0, 0, 0], sd: [1, 1, 1]}", "data.normalise", "model", "{'mean'"),
])
def test_another_study_is_refused_with_the_first_difference(tmp_path: Path, change: str, where: str, was: str,
                                                            now: str) -> None:
    StudyFolder(tmp_path).prepare(study(), PROVENANCE)
    before = state(tmp_path)
    with pytest.raises(BadInput) as caught:
        StudyFolder(tmp_path).prepare(study(change), PROVENANCE)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: holds a study with {where}: {was}")
    assert f"(now {now}" in message
    assert message.endswith("choose another --out")
    assert state(tmp_path) == before


def test_an_arm_may_not_be_taken_away(tmp_path: Path) -> None:
    StudyFolder(tmp_path).prepare(study(), PROVENANCE)
    with pytest.raises(BadInput, match=r"arms\.kd: "):
        StudyFolder(tmp_path).prepare(study("arms=[{name: tl, kind: tl}]"), PROVENANCE)


def test_conditions_may_be_added_and_neither_changed_nor_taken_away(tmp_path: Path) -> None:
    two = "conditions=[{name: clean}, {name: few, train_fraction: 0.5}]"
    folder = StudyFolder(tmp_path)
    folder.prepare(study(two), PROVENANCE)
    before = state(tmp_path)
    for conditions, said in (
            ("[{name: clean}]", r"conditions\.few: \{'name': 'few'.* \(now None\)"),
            ("[{name: clean}, {name: few, train_fraction: 0.6}]",
             r"conditions\.few\.train_fraction: 0\.5 \(now 0\.6\)"),
            ("[{name: clean}, {name: few, train_fraction: 0.5, training: {epochs: 1}}]",
             r"conditions\.few\.training: None \(now \{'epochs': 1\}\)")):
        with pytest.raises(BadInput, match=rf"holds a study with {said}"):
            folder.prepare(study(f"conditions={conditions}"), PROVENANCE)
        assert state(tmp_path) == before
    more = study("conditions=[{name: noisy, label_noise: 0.2}, {name: clean}, {name: few, train_fraction: 0.5}]",
                 "exclude=[{arms: [kd], conditions: [noisy]}]", "robustness=[{kind: jpeg}]")
    folder.prepare(more, PROVENANCE)
    assert StudyFolder(tmp_path).study == more
    assert [run.run_id for run in folder.runs()][:3] == ["tl-noisy-0", "tl-noisy-1", "tl-clean-0"]


def test_another_value_of_a_grid_may_be_added(tmp_path: Path) -> None:
    base, grid = "conditions=[{name: clean}, {name: few}]", "grid.conditions.few.train_fraction="
    folder = StudyFolder(tmp_path)
    folder.prepare(study(base, f"{grid}[0.5]"), PROVENANCE)
    folder.prepare(study(base, f"{grid}[0.1, 0.5, 1]"), PROVENANCE)
    assert [condition.name for condition in folder.study.conditions] == ["clean", "few_0_1", "few_0_5"]
    with pytest.raises(BadInput, match=r"holds a study with conditions\.few_0_5: .* \(now None\)"):
        folder.prepare(study(base, f"{grid}[0.1]"), PROVENANCE)


def test_a_teacher_that_no_arm_uses_may_come_and_go(tmp_path: Path) -> None:
    idle = "teachers.idle={model: packaged:efficientnet_lite2, input_size: 64}"
    folder = StudyFolder(tmp_path)
    folder.prepare(study(idle), PROVENANCE)
    folder.prepare(study(idle.replace("64", "96")), PROVENANCE)
    folder.prepare(study(), PROVENANCE)
    assert "idle" not in StudyFolder(tmp_path).study.teachers


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("photos")
    with pytest.raises(BadInput, match="is not empty and holds no study; choose another --out"):
        StudyFolder(tmp_path).prepare(study(), PROVENANCE)
    assert [file.name for file in tmp_path.iterdir()] == ["holiday.txt"]


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    for out in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(BadInput, match=r"(is a file|cannot be written).*choose another --out"):
            StudyFolder(out).prepare(study(), PROVENANCE)
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.parametrize("content", [b"", b"- a\n", b"name: [\n", b"\xff\xfe\x00", b"name: x\nnonsense: 3\n"])
def test_a_damaged_study_is_neither_read_nor_written_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "study.yaml").write_bytes(content)
    with pytest.raises(BadInput, match=r"study\.yaml"):
        _ = StudyFolder(tmp_path).study
    with pytest.raises(BadInput, match=r"study\.yaml"):
        StudyFolder(tmp_path).prepare(study(), PROVENANCE)
    assert (tmp_path / "study.yaml").read_bytes() == content


def test_a_folder_without_a_study_says_so(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BadInput, match="no study lies here"):
            StudyFolder(path).runs()


# --- predictions ------------------------------------------------------------------------------------------------------


def test_predictions_come_back_bit_for_bit(tmp_path: Path) -> None:
    logits = np.array([[1.5, -np.pi], [np.float32(1e-38), 3e38]], np.float32)
    given = Predictions(np.array(["a/é.png", "b/longer name.png"]), np.array([1, 0]), logits)
    save_predictions(tmp_path / "predictions.npz", given)
    found = load_predictions(tmp_path / "predictions.npz")
    assert found.sample_ids.tolist() == given.sample_ids.tolist()
    assert found.labels.tolist() == [1, 0]
    assert found.logits.dtype == np.float32
    assert found.logits.tobytes() == logits.tobytes()


class Bomb:
    """What runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_predictions_is_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    bombs = np.array([Bomb(marker)], dtype=object)
    np.savez(tmp_path / "bomb.npz", sample_ids=bombs, labels=np.array([0]), logits=np.zeros((1, 2)))
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Bomb(marker)))
    for name in ("bomb.npz", "raw.npz"):
        with pytest.raises(BadInput, match="cannot be read"):
            load_predictions(tmp_path / name)
    assert not marker.exists()
    pickle.loads((tmp_path / "raw.npz").read_bytes())  # the bomb works where it is let
    assert marker.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x93NUMPY nonsense"])
def test_damaged_predictions_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "predictions.npz"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        load_predictions(path)
    assert str(caught.value).startswith(f"{path}: cannot be read")


def test_predictions_that_lack_an_array_or_are_not_there_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "predictions.npz", labels=np.array([0]))
    np.save(tmp_path / "one.npy", np.array([0]))
    for name in ("predictions.npz", "one.npy", "nowhere.npz"):
        with pytest.raises(BadInput, match=f"{name}: cannot be read"):
            load_predictions(tmp_path / name)


# --- reading results --------------------------------------------------------------------------------------------------


def test_done_waiting_and_failed_are_told_apart(tmp_path: Path) -> None:
    folder = lay_down(tmp_path, waiting=("kd-clean-1",), failed=("tl-clean-1",))
    assert [run.run_id for run in folder.finished()] == ["tl-clean-0", "kd-clean-0"]
    assert folder.failures() == {"tl-clean-1": "epoch 2, step 5: the loss is nan"}
    assert not folder.done(folder.runs()[3])


def test_a_run_folder_without_its_manifest_is_not_done(tmp_path: Path) -> None:
    folder = lay_down(tmp_path)
    (folder.run_path(folder.runs()[0]) / "manifest.json").unlink()
    assert [run.run_id for run in folder.finished()] == ["kd-clean-0", "tl-clean-1", "kd-clean-1"]


def test_results_come_back(tmp_path: Path) -> None:
    folder = StudyFolder(lay_down(tmp_path).path)
    run = folder.runs()[1]
    table = folder.results()
    assert table["run_id"].tolist() == [each.run_id for each in folder.runs()]
    assert table["test_accuracy"].iloc[1] == folder.result(run)["test_accuracy"]
    assert (folder.predictions(run).logits.argmax(1) == folder.predictions(run).labels).mean() == (
        pytest.approx(folder.result(run)["test_accuracy"]))
    assert folder.history(run)["epoch"].tolist() == [1, 2, 3]
    assert folder.card()["classes"] == ["a", "b", "c"]
    assert folder.stages()[0]["stage"] == "teacher big"
    assert folder.provenance == PROVENANCE


def test_names_that_look_like_numbers_or_nothing_stay_names(tmp_path: Path) -> None:
    # pandas reads `na` as nothing, and a column of `007` as sevens
    for number, names in enumerate((("na", "007"), ("nan", "null"), ("01", "1"))):
        arms = f"arms=[{{name: '{names[0]}', kind: tl}}, {{name: '{names[1]}', kind: tl_kd, teacher: big}}]"
        folder = lay_down(tmp_path / str(number), arms, "seeds=[0]")
        assert folder.results()["arm"].tolist() == list(names)
        assert folder.results()["run_id"].tolist() == [f"{name}-clean-0" for name in names]


def test_a_folder_without_results_says_so(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    folder.prepare(study(), PROVENANCE)
    assert folder.stages() == []
    assert folder.provenance == PROVENANCE
    with pytest.raises(BadInput, match=r"no results yet \(there is no results\.csv\); finish it with `tlkd run`"):
        folder.results()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = lay_down(tmp_path)
    run = folder.runs()[0]
    for path, read in ((folder.run_path(run) / "result.json", lambda: folder.result(run)),
                       (folder.run_path(run) / "history.csv", lambda: folder.history(run)),
                       (folder.run_path(run) / "predictions.npz", lambda: folder.predictions(run)),
                       (folder.path / "results.csv", folder.results), (folder.path / "data.json", folder.card),
                       (folder.path / "stages.json", folder.stages)):
        path.write_bytes(b"\xff\x00 [")
        with pytest.raises(BadInput) as caught:
            read()
        assert str(caught.value).startswith(f"{path}: cannot be read")


# --- teachers ---------------------------------------------------------------------------------------------------------


def test_agreement_is_taken_with_the_arms_own_teacher_or_the_studys_first(tmp_path: Path) -> None:
    raw = small_raw("teachers.other.model=timm:resnet34", "teachers.idle.model=timm:resnet34")
    raw["arms"].append({"name": "kd_other", "kind": "tl_kd", "teacher": "other"})
    folder = StudyFolder(tmp_path)
    folder.prepare(validate(raw, "x"), PROVENANCE)
    found = {run.run_id: folder.teacher_of(run) for run in folder.runs() if run.seed == 0}
    assert found == {"tl-clean-0": tmp_path / "teachers" / "big", "kd-clean-0": tmp_path / "teachers" / "big",
                     "kd_other-clean-0": tmp_path / "teachers" / "other"}
    assert folder.teachers() == {"big": [], "other": []}


def test_under_a_condition_agreement_is_taken_with_its_own_teacher_or_with_none(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    folder.prepare(study(CONDITIONS, "exclude=[{arms: [kd], conditions: [noisy], seeds: [1]}]"), PROVENANCE)
    found = {run.run_id: None if folder.teacher_of(run) is None else folder.teacher_of(run).name
             for run in folder.runs()}
    assert found == {**{f"{arm}-clean-{seed}": "big" for arm in ("tl", "kd") for seed in (0, 1)},
                     "kd-few-7": "big-few-7", "tl-noisy-0": "big-noisy-0", "kd-noisy-0": "big-noisy-0",
                     "tl-noisy-1": None}


def test_a_failed_teacher_is_named_with_its_condition_and_seed(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    folder.prepare(study(CONDITIONS), PROVENANCE)
    for fit in teacher_fits(folder.study):
        store.replace_text(folder.teacher_failure_path(fit), f"why {fit.fit_id}\nand a traceback\n")
    assert folder.teacher_failures() == {"big": "why big", "big, few, seed 7": "why big-few-7",
                                         "big, noisy, seed 0": "why big-noisy-0",
                                         "big, noisy, seed 1": "why big-noisy-1"}


def test_failures_are_forgotten_where_a_worker_was_killed_or_where_asked(tmp_path: Path) -> None:
    for everything, left in ((False, ["explanation-x.txt", "tl-clean-0.txt"]), (True, ["explanation-x.txt"])):
        folder = StudyFolder(tmp_path / str(everything))
        folder.prepare(study(), PROVENANCE)
        for name, why in (("tl-clean-0", "the loss is nan"), ("kd-clean-0", f"{KILLED} by signal 9 (SIGKILL)"),
                          ("teacher-big", f"{KILLED} by signal 9"), ("explanation-x", "the loss is nan")):
            store.replace_text(folder.path / "failures" / f"{name}.txt", f"{why}\nand more\n")
        folder.forget_failures(everything)
        assert sorted(path.name for path in (folder.path / "failures").iterdir()) == left


def test_robustness_is_done_where_all_that_is_asked_for_now_was_shown(tmp_path: Path) -> None:
    folder = lay_down(tmp_path, "robustness=[{kind: jpeg, severities: [1, 2]}]", waiting=("kd-clean-1",))
    run, waiting = folder.runs()[0], folder.runs()[3]
    assert not folder.robustness_done(run)
    for each in (run, waiting):
        path = folder.robustness_path(each)
        store.write_json(path / "manifest.json", {"inputs": {"run": "made once"}, "files": {}})
        shown = [describe(one) for one in folder.study.robustness[0].distortions]
        pd.DataFrame({"distortion": shown}).to_csv(path / "robustness.csv", index=False)
    store.write_json(folder.run_path(run) / "manifest.json", {"address": "made once"})
    assert folder.robustness_done(run)
    assert not folder.robustness_done(waiting)  # its run is not there
    store.write_json(folder.run_path(run) / "manifest.json", {"address": "made again"})
    assert not folder.robustness_done(run)
    folder.prepare(study("robustness=[{kind: jpeg, severities: [1, 3]}]"), PROVENANCE)
    assert not folder.robustness_done(run)
    (folder.robustness_path(run) / "robustness.csv").write_bytes(b"\xff\x00")
    assert not folder.robustness_done(run)


def test_a_teacher_per_seed_has_a_folder_per_seed(tmp_path: Path) -> None:
    folder = lay_down(tmp_path, "teachers.big.per_seed=true")
    assert folder.teachers() == {"big": [tmp_path / "teachers" / "big-0", tmp_path / "teachers" / "big-1"]}
    assert [folder.teacher_of(run) for run in folder.runs()][2] == tmp_path / "teachers" / "big-1"


def test_a_study_without_teachers_has_none(tmp_path: Path) -> None:
    raw = small_raw()
    apply_set(raw, "arms=[{name: tl, kind: tl}]")
    folder = StudyFolder(tmp_path)
    folder.prepare(validate(raw, "x"), PROVENANCE)
    assert folder.teacher_of(folder.runs()[0]) is None
    assert folder.teachers() == {}


def test_a_name_too_long_is_answered_with_one_line() -> None:
    with pytest.raises(BadInput, match=r"^a{77}\.\.\.: file name too long; choose another folder$"):
        StudyFolder(Path("a" * 300))


# --- schemas ----------------------------------------------------------------------------------------------------------


def rewritten(path: Path, before: str, after: str) -> None:
    """Change the text of a folder's `study.yaml`."""
    text = (path / "study.yaml").read_text()
    assert before in text
    (path / "study.yaml").write_text(text.replace(before, after, 1))


def test_a_folder_names_its_schema_and_one_without_is_of_the_first(tmp_path: Path) -> None:
    StudyFolder(tmp_path).prepare(study(), PROVENANCE)
    assert (tmp_path / "study.yaml").read_text().startswith("schema: 1\n")
    assert validate(raw_study(str(tmp_path / "study.yaml")), "again") == study()
    rewritten(tmp_path, "schema: 1\n", "")
    before = state(tmp_path)
    assert StudyFolder(tmp_path).study == study()
    StudyFolder(tmp_path).prepare(study(), {"command": "another"})
    assert state(tmp_path) == before
    assert validate(raw_study(str(tmp_path / "study.yaml")), "again") == study()


@pytest.mark.parametrize(("schema", "said"), [
    ("2", "a newer tlkd wrote this folder, in schema 2 (tlkd 9.1; this is {}), and this tlkd reads schema 1: "
          "update tlkd, or choose another folder"),
    ("0", "an older tlkd wrote this folder, in schema 0 (tlkd 9.1; this is {}), and this tlkd reads schema 1: "
          "use that one, or choose another folder"),
    ("one", "schema: found 'one'; allowed: 1, as `tlkd run` writes it"),
    ("true", "schema: found 'True'; allowed: 1, as `tlkd run` writes it"),
    ("null", "schema: found 'None'; allowed: 1, as `tlkd run` writes it"),
])
def test_a_folder_of_another_schema_is_refused_wherever_it_is_read(tmp_path: Path, schema: str, said: str) -> None:
    lay_down(tmp_path / "a")
    folder, other = StudyFolder(tmp_path / "a"), lay_down(tmp_path / "b")
    (tmp_path / "a" / "study.yaml").write_text(dump_yaml({
        "schema": 1, **study().model_dump(mode="json"), "provenance": {"versions": {"tlkd": "9.1"}}}))
    rewritten(tmp_path / "a", "schema: 1", f"schema: {schema}\nfuture: {{}}")
    before, expected = state(tmp_path / "a"), f"{tmp_path / 'a' / 'study.yaml'}: {said.format(__version__)}"
    for reads in (lambda: folder.study, lambda: folder.refuse_other(study()), lambda: folder.prepare(study(), {}),
                  lambda: standings(folder), lambda: verify(folder.path), lambda: Watcher(folder.path).look(),
                  lambda: raw_study(str(tmp_path / "a" / "study.yaml")), lambda: tlkd.open_results(folder.path),
                  lambda: tlkd.load_study(tmp_path / "a" / "study.yaml"), lambda: report.write(folder.path),
                  lambda: comparison_report.write([folder.path, other.path], tmp_path / "c", [])):
        with pytest.raises(BadInput) as caught:
            reads()
        assert str(caught.value) == expected
    assert state(tmp_path / "a") == before and not (tmp_path / "c").exists()


def test_what_another_version_wrote_and_this_one_does_not_know_names_that_version(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(dump_yaml({
        **study().model_dump(mode="json"), "glow": 3, "provenance": {"versions": {"tlkd": "0.0.3"}}}))
    with pytest.raises(BadInput, match=rf"glow: unknown key.* \(tlkd 0\.0\.3; this is {__version__}\)$"):
        _ = StudyFolder(tmp_path).study


def test_what_a_newer_version_made_is_not_made_again(tmp_path: Path) -> None:
    folder = lay_down(tmp_path)
    refuse_newer(folder)
    path = folder.run_path(folder.runs()[0]) / "manifest.json"
    path.write_text(json.dumps({"version": 99, "kind": "run"}))
    with pytest.raises(BadInput, match=rf"{folder.runs()[0].run_id}: a newer tlkd made this \(version 99 of runs, "):
        refuse_newer(folder)
    path.write_text("damaged")
    refuse_newer(folder)


def test_a_folder_that_another_process_is_just_beginning_is_not_refused(tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".study.yaml.tmp-other-1-0a1b2c3d").write_text("na")
    one = StudyFolder(tmp_path)
    study = validate(small_raw(), "small")
    one.prepare(study, {})
    assert StudyFolder(tmp_path).study == study
    (tmp_path / "mine").write_text("x")
    looked = []

    def late(path: Path, find: Any = Path.is_file) -> bool:
        looked.append(path.name)
        return len(looked) > 1 and find(path)  # study.yaml appears right after it was looked for

    monkeypatch.setattr(Path, "is_file", late)
    StudyFolder(tmp_path).refuse_other(study)
    (tmp_path / "study.yaml").unlink()
    with pytest.raises(BadInput, match="is not empty and holds no study"):
        StudyFolder(tmp_path).refuse_other(study)
