"""Studies in Weights & Biases: a group a study, a run a training; imported only where it is asked for.

Offline its files cannot be asked what they hold: what is logged is remembered in the study's `tracking.json`.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, cast

from tlkd.trackers import Ending, Entry, Memory, Subject
from tlkd.underway import Curve

SETTINGS = {"WANDB_ERROR_REPORTING": "false", "DO_NOT_TRACK": "true", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off",
            "WANDB_DISABLE_CODE": "true"}
DEFAULTS = {"WANDB_INIT_TIMEOUT": "15"}
MODES = ("offline", "online", "disabled")
PROJECT = "tlkd"  # where WANDB_PROJECT names no other
LONGEST_NAME, LONGEST_TAG = 128, 64


class WandbTracker:
    """Logs to `wandb/` in the study's folder (`mode` offline, to be synced by hand) or to a server (online)."""

    def __init__(self, mode: str, folder: Path) -> None:
        self.mode, self._folder = mode, folder
        self._memory = Memory(folder, "wandb")
        self._open: dict[str, Any] = {}
        self._logged: dict[str, dict[str, Any]] = {}  # name -> state, address, epochs

    def open(self, subject: Subject) -> None:
        """Recall what earlier starts have logged."""
        self._subject = subject
        self._identity = self._memory.identity()
        known = self._memory.read().get("logged")
        self._logged = {**known} if isinstance(known, dict) and not self._logged else self._logged

    def log(self, entry: Entry) -> None:
        """Log the epochs that are new, and how the training ended; nothing where all is logged."""
        known = self._logged.get(entry.name, {"state": "", "address": "", "epochs": 0})
        if known["address"] and entry.address and known["address"] != entry.address:
            known = {"state": "", "address": "", "epochs": 0}  # it was made again: another run
        epochs = len(entry.curve.epochs)
        if known["state"] == entry.state and epochs <= known["epochs"]:
            return
        run = self._open.get(entry.name) or self._begin(
            f"{entry.name} {entry.address}", name=entry.name, job_type=entry.kind, config=dict(entry.params),
            tags=[tag[:LONGEST_TAG] for tag in (entry.tags.get("arm"), entry.tags.get("condition")) if tag])
        self._open[entry.name] = run
        for step, row in _points(entry.curve, known["epochs"]):
            run.log(row, step=step)
        if entry.state != "running":
            run.summary.update({**entry.tags, **entry.metrics, **({"failure": entry.why} if entry.why else {})})
            self._open.pop(entry.name).finish(exit_code=0 if entry.state == "done" else 1)
        self._logged[entry.name] = {"state": entry.state, "address": entry.address or known["address"],
                                    "epochs": max(epochs, known["epochs"])}
        self._memory.write(logged=self._logged)

    def _begin(self, what: str, **words: Any) -> Any:
        """Start a W&B run, under the same id in whatever process."""
        import wandb

        settings = wandb.Settings(x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
                                  disable_git=True, disable_code=True, silent=True, console="off")
        where = hashlib.sha256(f"{self._identity} {what}".encode()).hexdigest()[:12]
        words["name"] = words["name"][:LONGEST_NAME]
        return wandb.init(id=where, project=os.environ.get("WANDB_PROJECT") or PROJECT, dir=str(self._folder),
                          group=self._subject.name[:LONGEST_NAME], mode=cast(Any, self.mode),
                          resume="allow", reinit="create_new", settings=settings, **words)

    def close(self, ending: Ending) -> list[str]:
        """End what is open; where the results are new, log them as a run of their own."""
        for run in self._open.values():
            run.finish(exit_code=255)
        self._open.clear()
        if ending.state != "stopped" and self._memory.read().get("ending") != ending.fingerprint:
            self._log_results(ending)
            self._memory.write(ending=ending.fingerprint)
        if self.mode == "offline":
            return [f"wandb:   wandb sync {self._folder / 'wandb'}/offline-run-*"]
        return [] if self.mode == "disabled" else [f"wandb:   {self._url}"] if self._url else []

    _url = ""

    def _log_results(self, ending: Ending) -> None:
        import pandas as pd
        import wandb

        run = self._begin("the study", name=self._subject.name, job_type="study", config=dict(self._subject.params),
                          notes=ending.note)
        run.summary.update({**self._subject.tags, **ending.tags, **ending.metrics})
        shown: dict[str, Any] = {f"figures/{path.stem}": wandb.Image(str(path))
                                 for path in sorted((self._folder / "figures").glob("*.png"))}
        if (self._folder / "report.html").is_file():
            shown["report"] = wandb.Html(str(self._folder / "report.html"), inject=False)
        if (self._folder / "results.csv").is_file():
            shown["results"] = wandb.Table(dataframe=pd.read_csv(self._folder / "results.csv", dtype={"run_id": str}))
        run.log(shown)
        for name in ("study.yaml", "summary.txt", "results.csv"):
            if (self._folder / name).is_file():
                run.save(str(self._folder / name), base_path=str(self._folder), policy="now")
        self._url = run.url or ""
        run.finish(exit_code=0 if ending.state == "done" else 1)


def _points(curve: Curve, logged: int) -> list[tuple[int, dict[str, float]]]:
    """The epochs beyond those logged, each with its values and its time."""
    rows = list(zip(curve.epochs, curve.times(), strict=True))[logged:]
    return [(int(row["epoch"]), {**{("epoch_seconds" if name == "seconds" else name): value
                                    for name, value in row.items()}, "_timestamp": time}) for row, time in rows]
