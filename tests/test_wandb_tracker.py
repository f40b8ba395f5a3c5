"""Studies in Weights & Biases: offline files that are really written, read back as its own records."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sealed_folders import lay_down, publish
from test_standing import locked
from test_underway import checkpoint
from tlkd.chronicle import Chronicle
from tlkd.folder import StudyFolder
from tlkd.study import collect
from tlkd.wandb_tracker import DEFAULTS, SETTINGS, WandbTracker

wandb = pytest.importorskip("wandb")
BLOCK, HEADER = 32768, 7  # of a LevelDB log, which W&B's files are, behind 7 bytes of their own


@pytest.fixture(autouse=True)
def quiet(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {**DEFAULTS, **SETTINGS}.items():
        monkeypatch.setenv(name, value)
    yield
    wandb.teardown()


def records(path: Path) -> list[Any]:
    """The records of a `.wandb` file, parsed by wandb's own protocol."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    found, part, at = [], b"", HEADER
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4:at + 6], "little"), content[at + 6]
        part += content[at + HEADER:at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last part of one
            record = Record()
            record.ParseFromString(part)
            found.append(record)
            part = b""
    return found


class Logged:
    """What one offline run's file holds."""

    def __init__(self, path: Path) -> None:
        self.records = records(path)
        (self.run,) = [each.run for each in self.records if each.WhichOneof("record_type") == "run"][:1]
        self.rows = [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in
                      each.history.item} for each in self.records if each.WhichOneof("record_type") == "history"]
        self.config = {item.key: json.loads(item.value_json) for item in self.run.config.update}
        self.summary = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for each in self.records
                        if each.WhichOneof("record_type") == "summary" for item in each.summary.update}
        self.codes = [each.exit.exit_code for each in self.records if each.WhichOneof("record_type") == "exit"]


def logged(folder: StudyFolder) -> dict[str, list[Logged]]:
    found: dict[str, list[Logged]] = {}
    for path in sorted((folder.path / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        one = Logged(path)
        found.setdefault(one.run.display_name, []).append(one)
    return found


def chronicle(folder: StudyFolder) -> Chronicle:
    return Chronicle(folder.path, WandbTracker("offline", folder.path), lambda what: None)


def test_a_study_is_a_group_with_a_run_a_training(tmp_path: Path) -> None:
    study = lay_down(tmp_path / "out", waiting=("kd-clean-0", "kd-clean-1"), failed=("tl-clean-1",))
    collect(study)
    lines = chronicle(study).close("done")
    assert lines == [f"wandb:   wandb sync {study.path}/wandb/offline-run-*"]
    found = logged(study)
    assert set(found) == {"teacher big", "tl-clean-0", "tl-clean-1", "small"}
    (one,) = found["tl-clean-0"]
    run = study.finished()[0]
    history = study.history(run)
    assert [(row["epoch"], row["dev_accuracy"]) for row in one.rows] == list(
        zip(history["epoch"], history["dev_accuracy"], strict=True))
    assert one.rows[-1]["_timestamp"] == pytest.approx((study.run_path(run) / "history.csv").stat().st_mtime, abs=1e-3)
    assert (one.run.run_group, one.run.job_type, set(one.run.tags)) == ("small", "run", {"clean", "tl"})
    assert one.config["training.learning_rate"] == study.study.training.learning_rate
    assert one.summary["test_accuracy"] == study.result(run)["test_accuracy"]
    assert (one.codes, found["tl-clean-1"][0].codes) == ([0], [1])
    assert found["tl-clean-1"][0].summary["failure"] == "epoch 2, step 5: the loss is nan"
    assert found["small"][0].run.job_type == "study"
    assert any(name.startswith("results") for row in found["small"][0].rows for name in row)


def test_nothing_is_logged_twice_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    study = lay_down(tmp_path / "out", waiting=("kd-clean-0", "kd-clean-1"))
    run, telling = study.runs()[1], chronicle(study)
    with locked(study.run_path(run)):
        checkpoint(study.work_path(run) / "abc", 2, time.time())
        telling.catch_up()
        telling.close("stopped")
    before = sorted((study.path / "wandb").iterdir())
    telling = chronicle(study)  # another process
    with locked(study.run_path(run)):
        telling.catch_up()
        assert sorted((study.path / "wandb").iterdir()) == before
        checkpoint(study.work_path(run) / "abc", 3, time.time())
        telling.catch_up()
    telling.close("stopped")
    first, then = logged(study)["kd-clean-0"]
    assert first.run.run_id == then.run.run_id
    assert [[row["epoch"] for row in one.rows] for one in (first, then)] == [[1, 2], [3]]
    assert {name: len(each) for name, each in logged(study).items()} == {
        "teacher big": 1, "tl-clean-0": 1, "tl-clean-1": 1, "kd-clean-0": 2}


def test_a_run_that_was_made_again_is_another(tmp_path: Path) -> None:
    study = lay_down(tmp_path / "out", "seeds=[0]", waiting=("kd-clean-0",))
    chronicle(study).catch_up()
    (path,) = (study.run_path(run) for run in study.finished())
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"address": "', '"address": "f'))
    chronicle(study).catch_up()
    first, then = logged(study)["tl-clean-0"]
    assert first.run.run_id != then.run.run_id
    publish(study, study.runs()[1])
