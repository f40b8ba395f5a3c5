"""Studies in a real MLflow store: parents, children, curves, going on, and what is never logged twice."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import study_folders
from sealed_folders import lay_down, publish
from test_standing import locked
from test_underway import checkpoint
from tlkd import report, store
from tlkd.chronicle import Chronicle, subject_of
from tlkd.folder import StudyFolder
from tlkd.mlflow_tracker import DEFAULTS, SETTINGS, MlflowTracker, artifacts_beside, check_file
from tlkd.study import collect
from tlkd.trackers import Entry, masked
from tlkd.underway import Curve

pytest.importorskip("mlflow")
WAITING = ("kd-clean-0", "kd-clean-1")


@pytest.fixture(autouse=True)
def quiet(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**DEFAULTS, **SETTINGS}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests, since it takes seconds to make: each test has a study of another name."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'runs.db'}"


@pytest.fixture
def study(request: pytest.FixtureRequest, tmp_path: Path) -> StudyFolder:
    """A study whose tl_kd runs are waiting, one run has failed, and whose name is the test's."""
    name = request.node.name.replace("[", "-").strip("]")[:60]
    return lay_down(tmp_path / "out", f"name={name}", waiting=WAITING, failed=("tl-clean-1",))


def chronicle(study: StudyFolder, uri: str) -> Chronicle:
    return Chronicle(study.path, MlflowTracker(uri, study.path), lambda what: None)


def logged(study: StudyFolder, uri: str) -> tuple[Any, dict[str, Any], Any]:
    """The parent, its children by name, and the client: what MLflow itself says."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(study.study.name).experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert len(children) == len(runs) - 1
    return parent, children, client


def curve(client: Any, run: Any, name: str = "dev_accuracy") -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))


def test_a_study_is_a_parent_with_a_child_a_training(study: StudyFolder, uri: str) -> None:
    chronicle(study, uri).catch_up()
    parent, children, client = logged(study, uri)
    assert set(children) == {"teacher big", "tl-clean-0", "tl-clean-1"}
    assert (parent.info.status, parent.data.tags["seeds"]) == ("RUNNING", "0, 1")
    assert parent.data.params["teachers.big.model"] == "timm:resnet50"
    assert parent.data.params["arms.kd.temperature"] == "10.0"
    run, child = study.finished()[0], children["tl-clean-0"]
    assert child.info.status == "FINISHED"
    assert {name: child.data.tags[name] for name in ("arm", "condition", "seed")} == {
        "arm": "tl", "condition": "clean", "seed": "0"}
    assert child.data.tags["address"] == store.read_json(study.run_path(run) / store.MANIFEST)["address"]
    assert child.data.params["training.learning_rate"] == str(study.study.training.learning_rate)
    history = study.history(run)
    assert curve(client, child) == list(zip(history["epoch"], history["dev_accuracy"], strict=True))
    numbers = {name: value for name, value in study.result(run).items() if isinstance(value, int | float)}
    assert child.data.metrics | numbers == child.data.metrics
    ended = (study.run_path(run) / "result.json").stat().st_mtime
    assert child.info.end_time == pytest.approx(1000 * ended, abs=2)
    assert child.info.end_time - child.info.start_time == pytest.approx(1000 * study.result(run)["seconds"], abs=2)
    points = sorted(client.get_metric_history(child.info.run_id, "dev_accuracy"), key=lambda point: point.step)
    assert points[-1].timestamp == pytest.approx(1000 * ended, abs=1000)
    assert children["tl-clean-1"].info.status == "FAILED"
    assert children["tl-clean-1"].data.tags["failure"] == "epoch 2, step 5: the loss is nan"


def test_curves_grow_while_a_run_is_in_training_and_go_on_after_a_stop(study: StudyFolder, uri: str) -> None:
    run, telling = study.runs()[1], chronicle(study, uri)
    assert run.run_id == "kd-clean-0"
    work = study.work_path(run) / store.address("run", 1, {"run": run.run_id}, {})
    with locked(study.run_path(run)):
        for epochs in (1, 2):
            checkpoint(work, epochs, time.time())
            telling.catch_up()
    _, children, client = logged(study, uri)
    assert (children["kd-clean-0"].info.status, curve(client, children["kd-clean-0"])) == ("RUNNING", [(1, 0.01),
                                                                                                     (2, 0.02)])
    telling.close("stopped")
    parent, children, client = logged(study, uri)
    assert (parent.info.status, children["kd-clean-0"].info.status) == ("KILLED", "KILLED")
    telling = chronicle(study, uri)  # another process
    with locked(study.run_path(run)):
        checkpoint(work, 3, time.time())
        telling.catch_up()
        assert logged(study, uri)[1]["kd-clean-0"].info.status == "RUNNING"
    publish(study, run)
    telling.close("done")
    parent, children, client = logged(study, uri)
    assert (parent.info.status, children["kd-clean-0"].info.status) == ("FAILED", "FINISHED")  # one run has failed
    assert curve(client, children["kd-clean-0"]) == [(1, 0.01), (2, 0.02), (3, 0.03)]  # as they were when they were new
    assert len(children) == 4


def test_nothing_is_logged_twice(study: StudyFolder, uri: str) -> None:
    chronicle(study, uri).close("done")
    parent, before, client = logged(study, uri)
    chronicle(study, uri).close("done")
    again, after, _ = logged(study, uri)
    assert parent.info.run_id == again.info.run_id
    assert {name: run.to_dictionary() for name, run in before.items()} == {
        name: run.to_dictionary() for name, run in after.items()}
    assert len(client.get_metric_history(after["tl-clean-0"].info.run_id, "test_accuracy")) == 1


def test_a_run_that_was_made_again_is_a_child_of_its_own(study: StudyFolder, uri: str) -> None:
    chronicle(study, uri).catch_up()
    first = logged(study, uri)[1]["tl-clean-0"].info.run_id
    path = study.run_path(study.finished()[0]) / store.MANIFEST
    store.write_json(path, {**store.read_json(path), "address": "f" * 20})
    chronicle(study, uri).catch_up()
    from mlflow import MlflowClient

    assert "superseded" in MlflowClient(uri).get_run(first).data.tags
    chronicle(study, uri).catch_up()  # and once is enough
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(study.study.name).experiment_id],
                              "attributes.run_name = 'tl-clean-0'")
    assert [run.data.tags["address"] for run in runs if "superseded" not in run.data.tags] == ["f" * 20]
    assert len(runs) == 2


def test_a_failed_run_that_is_tried_again_goes_on(study: StudyFolder, uri: str) -> None:
    chronicle(study, uri).catch_up()
    run = next(run for run in study.runs() if run.run_id == "tl-clean-1")
    study.failure_path(run).unlink()
    publish(study, run)
    chronicle(study, uri).catch_up()
    assert logged(study, uri)[1]["tl-clean-1"].info.status == "FINISHED"


def test_a_parent_that_was_deleted_is_made_anew(study: StudyFolder, uri: str) -> None:
    chronicle(study, uri).catch_up()
    parent, _, client = logged(study, uri)
    client.delete_run(parent.info.run_id)
    chronicle(study, uri).catch_up()
    runs = client.search_runs([parent.info.experiment_id], "tags.kind = 'study'")
    assert [run.info.run_id != parent.info.run_id for run in runs] == [True]


def test_verdicts_report_and_figures_are_on_the_parent(uri: str, tmp_path: Path) -> None:
    study = study_folders.lay_down(tmp_path / "out", name="whole", seeds=3, classes=("a", "b", "c"), per_class=20)
    collect(study)
    report.write(study.path)
    lines = chronicle(study, uri).close("done")
    parent, _, client = logged(study, uri)
    assert lines == [f"mlflow:  mlflow ui --backend-store-uri {uri}"]
    summary = (study.path / "summary.txt").read_text()
    assert parent.data.tags["hypothesis_1"] in summary
    assert parent.data.tags["hypothesis_2"] == "not examined"
    assert parent.data.tags["mlflow.note.content"] == summary
    results = study.results().groupby("arm")["test_accuracy"].mean()
    assert parent.data.metrics["mean_test_accuracy_tl"] == pytest.approx(results["tl"])
    assert parent.data.metrics["gain_tl_kd"] == pytest.approx(results["tl_kd"] - results["tl"])
    assert {each.path for each in client.list_artifacts(parent.info.run_id)} == {
        "figures", "tables", "report.html", "results.csv", "study.yaml", "summary.txt"}
    path = client.download_artifacts(parent.info.run_id, "report.html", str(tmp_path))
    assert Path(path).read_text() == (study.path / "report.html").read_text()
    assert Path(uri.removeprefix("sqlite:///")).with_name("runs-artifacts").is_dir()  # and not in the working folder
    assert parent.info.status == "FINISHED"


def test_mlflows_limits_are_kept(study: StudyFolder, uri: str) -> None:
    tracker = MlflowTracker(uri, study.path)
    tracker.open(replace(subject_of(study), params={f"key{number}": "v" * 9000 for number in range(250)},
                         tags={f"tag{number}": "t" * 9000 for number in range(150)}))
    rows = tuple({"epoch": number, "train_loss": 1 / number, "dev_loss": 2.0, "dev_accuracy": 0.5, "seconds": 1.0}
                 for number in range(1, 701))
    tracker.log(Entry("a run", "run", "done", "abc", {"long": "v" * 9000}, {"arm": "tl"}, Curve(rows, time.time()),
                      {"test_accuracy": 0.5}, 1.0, 2.0))
    parent, children, client = logged(study, uri)
    assert (len(parent.data.params), len(parent.data.params["key249"])) == (250, 500)
    assert len([name for name in parent.data.tags if name.startswith("tag")]) == 150
    assert len(curve(client, children["a run"], "train_loss")) == 700


def test_markup_comes_back_as_the_text_that_it_is(study: StudyFolder, uri: str) -> None:
    """In parameters, tags, names of runs and the text that a person may read: MLflow's page is given text alone."""
    hostile = '<script>alert(1)</script> {{7*7}} "><img src=x onerror=alert(2)> ${x} %s'
    tracker = MlflowTracker(uri, study.path)
    tracker.open(replace(subject_of(study), params={"data.source": hostile}, tags={"arms": hostile}))
    tracker.log(Entry(hostile, "run", "failed", "abc", {"data.source": hostile}, {"why": hostile},
                      Curve((), time.time()), {}, 1.0, 2.0))
    parent, children, _ = logged(study, uri)
    assert parent.data.params["data.source"] == parent.data.tags["arms"] == hostile
    child = children[hostile]
    assert child.data.params["data.source"] == child.data.tags["why"] == hostile


def test_an_experiment_that_was_deleted_is_said_in_words(study: StudyFolder, uri: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment(study.study.name))
    with pytest.raises(RuntimeError, match=r"was deleted: restore it in MLflow, or rename the study"):
        chronicle(study, uri).catch_up()


def test_where_artifacts_lie_and_passwords_do_not() -> None:
    assert artifacts_beside("sqlite:////data/a/mlflow.db") == "file:///data/a/mlflow-artifacts"
    assert artifacts_beside("sqlite:///x.db") == (Path.cwd() / "x-artifacts").as_uri()
    assert artifacts_beside("http://127.0.0.1:5000") is None
    assert masked("http://me:secret@host:1/a") == "http://me:***@host:1/a"
    assert masked("sqlite:///a.db") == "sqlite:///a.db"


def test_a_file_that_cannot_be_written_is_known_at_once(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    (tmp_path / "other.db").write_text("this is no database, and long enough to be seen as none" * 20)
    for name, why in (("mlflow.db", "unable to open"), ("other.db", "file is not a database"),
                      ("no/x.db", "unable to open")):
        with pytest.raises(RuntimeError, match=rf"{name}: cannot be written \({why}"):
            check_file(f"sqlite:///{tmp_path / name}")
    check_file(f"sqlite:///{tmp_path / 'new.db'}")
    check_file("http://127.0.0.1:1")


def test_the_folder_may_be_moved(study: StudyFolder, tmp_path: Path) -> None:
    places = []
    for path in (study.path, tmp_path / "elsewhere"):
        if path != study.path:
            study.path.rename(path)
        tracker = MlflowTracker(f"sqlite:///{path / 'mlflow.db'}", path)
        places.append(tracker._memory._place)
    assert places == ["mlflow sqlite:///mlflow.db"] * 2
