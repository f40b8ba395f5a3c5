"""`tlkd verify`: a folder as it was left passes; each kind of change to it is found and named."""

import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conftest import refused
from sealed_folders import lay_down, reseal
from tlkd import seals
from tlkd.checks import covered, refuse_damaged, verify
from tlkd.errors import BadInput
from tlkd.folder import Predictions, StudyFolder, load_predictions, save_predictions
from tlkd.study import collect

RUN = "kd-clean-1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_down(tmp_path_factory.mktemp("whole")).path


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> StudyFolder:
    shutil.copytree(whole, tmp_path / "out")
    return StudyFolder(tmp_path / "out")


def run_path(folder: StudyFolder) -> Path:
    return folder.path / "runs" / RUN


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_results(folder: StudyFolder, column: str, value: object) -> None:
    path = folder.path / "results.csv"
    table = pd.read_csv(path, dtype=str)
    table.loc[table["run_id"] == RUN, column] = str(value)
    table.to_csv(path, index=False)


def test_a_folder_as_it_was_left_passes(folder: StudyFolder) -> None:
    assert verify(folder.path) == (4, [])


def test_a_teacher_per_seed_passes_too(tmp_path: Path) -> None:
    assert verify(lay_down(tmp_path, "teachers.big.per_seed=true").path) == (4, [])


def test_waiting_and_failed_runs_are_no_problem(tmp_path: Path) -> None:
    path = lay_down(tmp_path, waiting=("kd-clean-1",), failed=("tl-clean-0",)).path
    assert verify(path) == (2, [])


@pytest.mark.parametrize("name", ["model.safetensors", "predictions.npz", "history.csv", "spec.json", "result.json"])
def test_one_flipped_bit_in_any_file_is_found(folder: StudyFolder, name: str) -> None:
    path = run_path(folder) / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    count, problems = verify(folder.path)
    assert count == 4
    assert problems[0] == f"runs/{RUN}/{name}: missing, or not what its checksum says"
    assert all(RUN in problem for problem in problems)


def test_a_file_that_is_gone_is_found(folder: StudyFolder) -> None:
    (run_path(folder) / "model.safetensors").unlink()
    assert verify(folder.path) == (4, [f"runs/{RUN}/model.safetensors: missing, or not what its checksum says"])


def test_an_edited_result_is_found_even_where_the_manifest_was_made_to_fit(folder: StudyFolder) -> None:
    edit_json(run_path(folder) / "result.json", test_accuracy=0.99)
    reseal(run_path(folder))
    edit_results(folder, "test_accuracy", 0.99)
    _, problems = verify(folder.path)
    accuracy = (load_predictions(run_path(folder) / "predictions.npz").logits.argmax(1).reshape(3, 10)
                == np.arange(3)[:, None]).mean()
    assert problems == [f"runs/{RUN}/result.json: test_accuracy is 0.99, its predictions give {accuracy}"]


def test_edited_predictions_are_found_even_where_the_manifest_was_made_to_fit(folder: StudyFolder) -> None:
    path = run_path(folder) / "predictions.npz"
    found = load_predictions(path)
    save_predictions(path, Predictions(found.sample_ids, found.labels, np.eye(3, dtype=np.float32)[found.labels]))
    reseal(run_path(folder))
    _, problems = verify(folder.path)
    assert any(problem.startswith(f"runs/{RUN}/result.json: test_accuracy is ") for problem in problems)
    assert any(problem.startswith(f"results.csv: {RUN}, teacher_agreement is ") for problem in problems)


@pytest.mark.parametrize(("column", "value"), [
    ("test_accuracy", 0.99), ("test_accuracy", "words"), ("test_accuracy", ""), ("test_f1", 0.1), ("test_ece", 0.1),
    ("test_log_loss", -1), ("epochs", 30), ("best_epoch", 1), ("seconds", 0.1), ("seed", 0), ("arm", "tl"),
    ("condition", "noisy"), ("teacher_agreement", 1.0), ("teacher_agreement", ""),
])
def test_an_edited_row_is_found(folder: StudyFolder, column: str, value: object) -> None:
    edit_results(folder, column, value)
    _, problems = verify(folder.path)
    assert len(problems) == 1
    assert problems[0].startswith(f"results.csv: {RUN}, {column} is ")


def test_a_curve_that_was_edited_no_longer_fits_the_result(folder: StudyFolder) -> None:
    path = folder.path / "runs" / RUN
    curve = pd.read_csv(path / "history.csv")
    best = int(curve["dev_accuracy"].argmax())
    curve.loc[best, "dev_accuracy"] = 0.0
    curve.to_csv(path / "history.csv", index=False)
    reseal(path)
    problems = verify(folder.path)[1]
    assert len(problems) == 1
    assert problems[0].startswith(f"runs/{RUN}/result.json: best_epoch is {best + 1}, history.csv gives ")
    curve.iloc[:1].to_csv(path / "history.csv", index=False)
    reseal(path)
    assert any(line.startswith(f"runs/{RUN}/result.json: epochs is ") for line in verify(folder.path)[1])


def test_the_last_bits_of_a_decimal_are_no_problem(folder: StudyFolder) -> None:
    exact = folder.result(folder.runs()[3])["test_log_loss"]
    edit_results(folder, "test_log_loss", exact + 1e-12)
    assert verify(folder.path)[1] == []
    edit_results(folder, "test_log_loss", exact + 1e-6)
    assert len(verify(folder.path)[1]) == 1


def change_rows(folder: StudyFolder, change: Callable[[pd.DataFrame], pd.DataFrame]) -> list[str]:
    path = folder.path / "results.csv"
    change(pd.read_csv(path, dtype=str)).to_csv(path, index=False)
    return verify(folder.path)[1]


def test_rows_that_are_too_many_or_too_few_are_found(folder: StudyFolder) -> None:
    whole = pd.read_csv(folder.path / "results.csv", dtype=str)
    assert change_rows(folder, lambda table: table[:-1]) == [f"results.csv: lacks {RUN}"]
    assert change_rows(folder, lambda _: pd.concat([whole, whole.assign(run_id="kd-clean-9")[-1:]])) == [
        "results.csv: holds kd-clean-9, which is not a finished run"]
    assert change_rows(folder, lambda _: pd.concat([whole, whole[-1:]])) == [f"results.csv: holds {RUN} more than once"]
    assert change_rows(folder, lambda _: whole.drop(columns="run_id")) == ["results.csv: has no column run_id"]


def test_a_row_whose_run_is_gone_is_found(folder: StudyFolder) -> None:
    (run_path(folder) / "manifest.json").unlink()
    assert verify(folder.path) == (3, [f"results.csv: holds {RUN}, which is not a finished run"])


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": 3}', '{"files": {"result.json": {}}}'])
def test_a_broken_manifest_is_found(folder: StudyFolder, content: str) -> None:
    (run_path(folder) / "manifest.json").write_text(content)
    count, problems = verify(folder.path)
    assert count == 4
    assert len(problems) == 1
    assert problems[0].startswith(f"runs/{RUN}/manifest.json: cannot be read")


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{}", b'{"test_accuracy": "high"}',
                                     b'{"test_accuracy": null}'])
def test_a_broken_result_is_found_whatever_its_manifest_says(folder: StudyFolder, content: bytes) -> None:
    (run_path(folder) / "result.json").write_bytes(content)
    reseal(run_path(folder))
    _, problems = verify(folder.path)
    assert problems
    assert all(RUN in problem and "\n" not in problem for problem in problems)


def test_broken_predictions_are_found_whatever_their_manifest_says(folder: StudyFolder) -> None:
    path = run_path(folder) / "predictions.npz"
    ids, labels = np.array(["a", "b"]), np.array([0, 1])
    for logits in (np.zeros((3, 2)), np.full((2, 2), np.nan), np.zeros((2, 1)), np.zeros(2)):
        save_predictions(path, Predictions(ids, labels, logits.astype(np.float32)))
        reseal(run_path(folder))
        assert f"runs/{RUN}/predictions.npz: cannot be evaluated" in verify(folder.path)[1][0]
    path.write_bytes(b"PK")
    reseal(run_path(folder))
    assert f"runs/{RUN}/predictions.npz: cannot be evaluated" in verify(folder.path)[1][0]


def test_an_edited_teacher_is_found(folder: StudyFolder) -> None:
    edit_json(folder.path / "teachers" / "big" / "result.json", test_accuracy=1.0)
    _, problems = verify(folder.path)
    assert len(problems) == 1
    assert problems[0].startswith("teachers/big/result.json: test_accuracy is 1.0, its predictions give ")


def test_a_teacher_that_is_gone_is_found(folder: StudyFolder) -> None:
    for file in (folder.path / "teachers" / "big").iterdir():
        file.unlink()
    (folder.path / "teachers" / "big").rmdir()
    assert "teachers/big: is not there, though kd-clean-0 learned from it" in verify(folder.path)[1]


def test_a_study_that_was_stopped_before_anyone_learned_lacks_no_teacher(folder: StudyFolder) -> None:
    for path in (folder.path / "teachers" / "big", *(folder.path / "runs").glob("kd*")):
        shutil.rmtree(path)
    table = pd.read_csv(folder.path / "results.csv")
    table[table["arm"] == "tl"].to_csv(folder.path / "results.csv", index=False)
    assert not [line for line in verify(folder.path)[1] if line.startswith("teachers/")]


def test_a_folder_without_study_or_results_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no study lies here"):
        verify(tmp_path / "nowhere")
    path = lay_down(tmp_path / "out").path
    (path / "results.csv").unlink()
    with pytest.raises(BadInput, match="no results yet"):
        verify(path)
    (path / "results.csv").write_bytes(b"")
    with pytest.raises(BadInput, match="cannot be read"):
        verify(path)


def test_runs_that_have_changed_places_are_found(folder: StudyFolder) -> None:
    first, other = run_path(folder), folder.path / "runs" / "kd-clean-0"
    first.rename(folder.path / "aside")
    other.rename(first)
    (folder.path / "aside").rename(other)
    collect(folder)
    _, problems = verify(folder.path)
    assert problems == ["runs/kd-clean-0/spec.json: is of the run kd-clean-1",
                        "runs/kd-clean-1/spec.json: is of the run kd-clean-0"]


def test_an_archive_of_arrays_that_would_fill_memory_is_refused_before_it_is_unpacked(folder: StudyFolder) -> None:
    path = run_path(folder) / "predictions.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed, packed.open(
            "logits.npy", "w", force_zip64=True) as file:
        for _ in range(1025):
            file.write(bytes(2**20))
    refused(lambda: load_predictions(path), str(path), "unpacks to 1,074,790,400 bytes; allowed: 1,073,741,824")


def test_what_is_about_to_be_written_has_no_checksum_meanwhile(folder: StudyFolder) -> None:
    seals.seal(folder.path, seals.STUDY)
    (folder.path / "summary.txt").write_text("said")
    seals.seal(folder.path, seals.REPORT)
    seals.unseal(folder.path, seals.REPORT)
    assert "summary.txt" not in seals.read(folder.path) and "results.csv" in seals.read(folder.path)
    collect(folder)  # by a driver that has gone on while another came to its end
    assert not (folder.path / seals.NAME).exists()
    assert verify(folder.path)[1] == []


# --- what no manifest holds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["study.yaml", "results.csv", "data.json", "stages.json", "teachers/big/history.csv"])
def test_a_flipped_bit_in_a_file_without_a_manifest_is_named_and_refused(folder: StudyFolder, name: str) -> None:
    seals.seal(folder.path, seals.STUDY)
    assert verify(folder.path)[1] == []
    path = folder.path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 2
    path.write_bytes(content)
    assert f"{name}: missing, or not what SHA256SUMS says" in verify(folder.path)[1]
    refused(lambda: refuse_damaged(StudyFolder(folder.path)), str(path), "is not what SHA256SUMS says")


def test_a_file_that_sha256sums_forgot_is_named(folder: StudyFolder) -> None:
    seals.seal(folder.path, seals.STUDY)
    sums = folder.path / seals.NAME
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if "results.csv" not in line))
    assert verify(folder.path)[1] == ["results.csv: SHA256SUMS lacks it"]


def test_a_report_refuses_a_damaged_history_by_name(folder: StudyFolder) -> None:
    path = run_path(folder) / "history.csv"
    path.write_text(path.read_text() + "\n")
    refused(lambda: refuse_damaged(folder), str(path), "is missing or damaged", "tlkd run")


def test_sums_are_read_by_sha256sum_itself(folder: StudyFolder) -> None:
    seals.seal(folder.path, seals.STUDY)
    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("sha256sum is not installed")
    assert subprocess.run([tool, "-c", "--quiet", seals.NAME], cwd=folder.path, check=False).returncode == 0


def test_a_run_removes_what_is_damaged_and_the_sums_until_its_end(
        folder: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    seals.seal(folder.path, seals.STUDY)
    (folder.path / "results.csv").write_text("other")
    seals.mend(folder.path)
    assert not (folder.path / "results.csv").exists() and not (folder.path / seals.NAME).exists()
    assert (folder.path / "data.json").exists()
    assert "results.csv: is not what SHA256SUMS says; it is made again" in capsys.readouterr().err


def test_checksums_of_files_elsewhere_are_passed_by_and_nothing_is_removed_there(folder: StudyFolder) -> None:
    seals.seal(folder.path, seals.STUDY)
    other = folder.path.parent / "other" / "teachers" / "big" / "history.csv"
    other.parent.mkdir(parents=True)
    other.write_text("theirs")
    sums = folder.path / seals.NAME
    lines = [f"{'0' * 64}  {name}" for name in ("../other/teachers/big/history.csv", str(other), "teachers/../../other/"
                                                "teachers/big/history.csv", "../results.csv", "\0", ".", "/")]
    sums.write_text(sums.read_text() + "\n".join(lines) + "\n")
    assert verify(folder.path)[1] == []
    seals.mend(folder.path)
    assert other.read_text() == "theirs"


def test_nothing_is_removed_where_a_link_leads(folder: StudyFolder) -> None:
    theirs = folder.path.parent / "theirs"
    theirs.mkdir()
    (theirs / "gains.png").write_text("theirs")
    (folder.path / "figures").symlink_to(theirs)
    (folder.path / seals.NAME).write_text(f"{'0' * 64}  figures/gains.png\n")
    assert seals.damaged(folder.path) == ["figures/gains.png"]
    seals.mend(folder.path)
    assert (theirs / "gains.png").read_text() == "theirs"


def test_what_was_checked_is_said(folder: StudyFolder) -> None:
    lines = covered(folder.path)
    assert lines[0] == "4 runs: files, metrics from predictions, results.csv, best epochs from curves"
    assert lines[-1].startswith("not checked: ")
