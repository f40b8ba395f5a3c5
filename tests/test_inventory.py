"""What a study is made of is known by address before it is made: held against what a run really leaves."""

import shutil
from pathlib import Path

import pytest
import torch

from hard_studies import hard_study
from tlkd import store
from tlkd.folder import StudyFolder, plan, teacher_fits
from tlkd.inventory import Inventory, made_by
from tlkd.specs import Study
from tlkd.study import Context, open_workshop, run_study

CPU = torch.device("cpu")


def inventory_of(study: Study, out: Path) -> Inventory:
    context = Context(study, out, store.cache_folder(), "cpu")
    return Inventory(open_workshop(context), StudyFolder(out))


def in_cache(kind: str) -> set[str]:
    return {path.name for path in (store.cache_folder() / kind).glob("[!.]*")}


@pytest.mark.parametrize("changes", [
    (), ("bank=off", "robustness=[]"), ("teachers.clean1.labels=same_view",),
    ("student.start=tl", "student.weights=none", "teachers.lite1.per_seed=true"),
    ("student.trainable=all", "teachers.lite1.trainable=last:1", "arms=[{name: tl, kind: tl}, {name: own, kind: self}, "
     "{name: kd, kind: tl_kd, teacher: lite1}]", "exclude=[]"),
])
def test_every_address_is_known_before_anything_is_made(shapes_folder: Path, own_cache: Path, tmp_path: Path,
                                                        changes: tuple[str, ...]) -> None:
    study, out = hard_study(shapes_folder, *changes), tmp_path / "out"
    before = inventory_of(study, out)
    banks = {bank.recipe.address: bank for use in before.uses.values() for bank in use.banks}
    runs = {run.run_id: before.run_recipe(run).address for run in plan(study)}
    teachers = {before.teacher_recipe(fit).address for fit in teacher_fits(study)}
    assert {bank.state for bank in banks.values()} <= {"missing"}
    made = made_by(before)
    assert {bank.recipe.address for each in made for bank in each.banks} == set(banks)
    assert sum(len(each.banks) for each in made) == len(banks)  # each is made by one step alone
    assert {each.run.run_id for each in made if each.run and each.step.kind == "run"} == set(runs)

    assert run_study(study, out, CPU) == {}
    assert in_cache("features") | in_cache("logits") == set(banks)
    assert in_cache("teachers") == teachers
    for run_id, address in runs.items():
        assert store.read_json(out / "runs" / run_id / "manifest.json")["address"] == address
    for address, bank in banks.items():
        files = list((own_cache / bank.recipe.kind / address).glob("*.npy"))
        assert bank.bytes == sum(path.stat().st_size - 128 for path in files), bank.what

    after = inventory_of(study, out)
    assert {bank.state for use in after.uses.values() for bank in use.banks} <= {"there"}
    assert made_by(after) == []


def test_what_is_missing_or_damaged_is_made_again(shapes_folder: Path, own_cache: Path, tmp_path: Path) -> None:
    study, out = hard_study(shapes_folder), tmp_path / "out"
    assert run_study(study, out, CPU) == {}
    first = inventory_of(study, out)
    wanted = {bank.what: bank for use in first.uses.values() for bank in use.banks}
    student = wanted["features of student at 32 px"]
    damaged = own_cache / "features" / student.recipe.address / "train.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    gone = wanted["logits of teacher lite1, CenterBlack, side 0.89 to 1"]
    shutil.rmtree(own_cache / "logits" / gone.recipe.address)
    shutil.rmtree(out / "runs" / "kd-black-0")
    second = inventory_of(study, out)
    states = {bank.what: bank.state for use in second.uses.values() for bank in use.banks}
    assert states[student.what] == "damaged"
    assert states[gone.what] == "missing"
    assert set(states.values()) == {"there", "damaged", "missing"}
    made = {each.step.name: each for each in made_by(second)}
    assert {bank.what for each in made.values() for bank in each.banks} == {student.what, gone.what}
    assert {bank.what for bank in made["run kd-black-0"].banks} == {gone.what}
    assert "run tl-black-0" not in made
    assert "robustness of kd-black-0" in made and "robustness of tl-black-0" not in made


def test_a_run_that_failed_is_left_out_and_one_whose_worker_was_killed_is_not(shapes_folder: Path, own_cache: Path,
                                                                              tmp_path: Path) -> None:
    study, out = hard_study(shapes_folder, "robustness=[]"), tmp_path / "out"
    runs = plan(study)
    folder = StudyFolder(out)
    store.replace_text(folder.failure_path(runs[0]), "epoch 1, step 3: the loss is nan\n")
    store.replace_text(folder.failure_path(runs[1]), "its worker was killed by signal 9 (SIGKILL)\n")
    made = {each.step.name for each in made_by(inventory_of(study, out))}
    assert f"run {runs[1].run_id}" in made
    assert f"run {runs[0].run_id}" not in made or runs[0].arm.kind == "tl"  # what others start from is tried with them
