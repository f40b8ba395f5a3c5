"""Studies in MLflow: a parent run a study, a child a training; imported only where it is asked for.

MLflow's store is the memory: which children there are, how many epochs each has and whether it is finished is asked of
it, so that nothing is logged twice, whichever process goes on.
"""

import getpass
import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlkd.trackers import Ending, Entry, Memory, Subject, masked
from tlkd.underway import Curve

SETTINGS = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
            "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1", "GIT_PYTHON_REFRESH": "quiet",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
"""MLflow's own would try for minutes; who has set them for a slow server keeps them."""

STATES = {"running": "RUNNING", "done": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
LABELS_AT_ONCE, METRICS_AT_ONCE = 100, 1000  # MLflow's limits a request: params or tags, and all together
LONGEST_PARAM, LONGEST_TAG, LONGEST_KEY = 500, 5000, 250  # characters that every MLflow from 2.0 on takes
NAME, EPOCHS, ADDRESS = "tlkd.name", "tlkd.epochs", "address"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # without it MLflow 3 opens on pages for chat models
FILES = ("report.html", "summary.txt", "study.yaml", "results.csv")
FOLDERS = ("figures", "tables")


@dataclass
class _Child:
    """What MLflow has of a training."""

    run: str
    status: str
    address: str
    epochs: int


def check_file(uri: str) -> None:
    """Raise RuntimeError where an SQLite file cannot be written to: MLflow itself would try for minutes."""
    if not uri.startswith("sqlite:///"):
        return
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise RuntimeError(f"{path}: cannot be written ({error})") from None


class MlflowTracker:
    """Logs to the MLflow at `uri`: a server's address, or a database's (artifacts beside an SQLite file)."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri = uri
        within = masked(uri).replace(f"sqlite:///{folder}/", "sqlite:///")  # a folder may be moved, or named otherwise
        self._memory = Memory(folder, f"mlflow {within}")
        self._children: dict[str, _Child] = {}
        self._client: Any = None

    def open(self, subject: Subject) -> None:
        """Find the study's parent run, or make it, and all of its children."""
        check_file(self.uri)
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=self.uri)
        self._subject = subject
        self._parent = self._same_parent() or self._new_parent()
        self._client.update_run(self._parent, status="RUNNING")
        self._put(self._parent, params=subject.params, tags=subject.tags)
        self._children = self._known_children()

    def _same_parent(self) -> str | None:
        """The parent run of an earlier start, unless somebody has deleted it or its experiment."""
        from mlflow.exceptions import MlflowException

        known = self._memory.read().get("run")
        if not isinstance(known, str):
            return None
        try:
            run = self._client.get_run(known)
            self._experiment = run.info.experiment_id
            there = self._client.get_experiment(self._experiment).lifecycle_stage == "active"
            return known if there and run.info.lifecycle_stage == "active" else None
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _new_parent(self) -> str:
        subject = self._subject
        self._experiment = self._the_experiment(subject.name)
        tags = {"mlflow.user": _user(), "mlflow.source.name": "tlkd", "mlflow.source.type": "LOCAL"}
        run: str = self._client.create_run(self._experiment, round(1000 * subject.began), tags,
                                           subject.name).info.run_id
        self._memory.write(run=run, experiment=self._experiment, ending="")
        return run

    def _the_experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage != "active":
            raise RuntimeError(f"its experiment {name!r} was deleted: restore it in MLflow, or rename the study")
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(name, artifacts_beside(self.uri), KIND))

    def _known_children(self) -> dict[str, _Child]:
        found: dict[str, _Child] = {}
        token: str | None = ""
        while token is not None:
            page = self._client.search_runs([self._experiment], f"tags.`mlflow.parentRunId` = '{self._parent}'",
                                            max_results=1000, page_token=token or None)
            for run in page:
                tags = run.data.tags
                if NAME in tags and "superseded" not in tags:
                    found[tags[NAME]] = _Child(run.info.run_id, run.info.status, tags.get(ADDRESS, ""),
                                               int(tags.get(EPOCHS, "0")))
            token = page.token or None
        return found

    def log(self, entry: Entry) -> None:
        """Log the epochs that MLflow lacks, and how the training ended; nothing where MLflow has it all."""
        child = self._children.get(entry.name)
        if child is not None and child.address and entry.address and child.address != entry.address:
            self._put(child.run, tags={"superseded": "made again, of other images or by another version"})
            child = None
        if child is None:
            child = self._children[entry.name] = self._new_child(entry)
        status = STATES[entry.state]
        epochs = len(entry.curve.epochs)
        if status == child.status and epochs <= child.epochs and (child.address or not entry.address):
            return
        if status == "RUNNING" and child.status != status:
            self._client.update_run(child.run, status=status)
        metrics = list(_points(entry.curve, child.epochs))
        if entry.state == "done":
            metrics += [(name, value, entry.ended, 0) for name, value in entry.metrics.items()]  # at 0 they are bars
        self._put(child.run, metrics, tags={EPOCHS: str(max(epochs, child.epochs)), ADDRESS: entry.address,
                                            **({"failure": entry.why} if entry.why else {})})
        child.epochs, child.address = max(epochs, child.epochs), entry.address or child.address
        if status != "RUNNING":
            self._client.set_terminated(child.run, status, round(1000 * entry.ended))
        child.status = status

    def _new_child(self, entry: Entry) -> _Child:
        tags = {"mlflow.parentRunId": self._parent, "mlflow.user": _user(), NAME: entry.name,
                **{name: value[:LONGEST_TAG] for name, value in entry.tags.items()}}
        run = self._client.create_run(self._experiment, round(1000 * entry.began), tags, entry.name).info.run_id
        self._put(run, params=entry.params)
        return _Child(run, "RUNNING", "", 0)

    def _put(self, run: str, metrics: Iterable[tuple[str, float, float, int]] = (),
             params: Mapping[str, Any] | None = None, tags: Mapping[str, str] | None = None) -> None:
        """Log within MLflow's limits: values shortened, in as few requests as they allow; the tags with the last."""
        from mlflow.entities import Metric, Param, RunTag

        points = [Metric(name, value, round(1000 * time), step) for name, value, time, step in metrics]
        values = [Param(name[:LONGEST_KEY], (value if isinstance(value, str) else json.dumps(value))[:LONGEST_PARAM])
                  for name, value in (params or {}).items()]
        labels = [RunTag(name[:LONGEST_KEY], value[:LONGEST_TAG]) for name, value in (tags or {}).items()]
        most = METRICS_AT_ONCE - 2 * LABELS_AT_ONCE  # a request holds 1000 of all kinds
        while True:
            last = len(points) <= most and len(values) <= LABELS_AT_ONCE
            self._client.log_batch(run, points[:most], values[:LABELS_AT_ONCE], labels if last else ())
            points, values = points[most:], values[LABELS_AT_ONCE:]
            if last:
                break

    def close(self, ending: Ending) -> list[str]:
        """End the parent run; where the results are new, with verdicts, means, figures, tables and report."""
        folder = self._subject.folder
        for child in self._children.values():
            if child.status == STATES["running"]:  # its worker is gone
                child.status = STATES["stopped"]
                self._client.set_terminated(child.run, child.status, round(1000 * ending.ended))
        if ending.state != "stopped" and self._memory.read().get("ending") != ending.fingerprint:
            metrics = [(_key(name), value, ending.ended, 0) for name, value in ending.metrics.items()]
            self._put(self._parent, metrics, tags={**ending.tags, "mlflow.note.content": ending.note})
            for name in FILES:
                if (folder / name).is_file():
                    self._client.log_artifact(self._parent, str(folder / name))
            for name in FOLDERS:
                if (folder / name).is_dir():
                    self._client.log_artifacts(self._parent, str(folder / name), name)
            self._memory.write(ending=ending.fingerprint)
        self._client.set_terminated(self._parent, STATES[ending.state], round(1000 * ending.ended))
        if self.uri.startswith("http"):
            return [f"mlflow:  {masked(self.uri).rstrip('/')}/#/experiments/{self._experiment}/runs/{self._parent}"]
        return [f"mlflow:  mlflow ui --backend-store-uri {masked(self.uri)}"]


def _points(curve: Curve, logged: int) -> Iterable[tuple[str, float, float, int]]:
    """The values of every epoch beyond those logged: name, value, time, epoch."""
    for row, time in list(zip(curve.epochs, curve.times(), strict=True))[logged:]:
        for name, value in row.items():
            if name != "epoch":
                yield (f"epoch_{name}" if name == "seconds" else name), value, time, int(row["epoch"])


def _key(name: str) -> str:
    """A name as MLflow allows it for a metric: letters, digits and a few signs."""
    return "".join(sign if sign.isalnum() or sign in "_-. /" else "_" for sign in name)[:LONGEST_KEY]


def _user() -> str:
    with suppress(Exception):  # an account without a name
        return getpass.getuser()
    return "unknown"


def artifacts_beside(uri: str) -> str | None:
    """Where artifacts go for an SQLite file: beside it; a server and other databases know for themselves."""
    if not uri.startswith("sqlite:///"):
        return None
    path = Path(uri.removeprefix("sqlite:///")).absolute()
    return (path.parent / f"{path.stem}-artifacts").as_uri()
