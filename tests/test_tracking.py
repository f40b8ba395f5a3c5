"""`--track` in real processes: what is allowed, and that no tracker ever fails a run or holds a study up."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sealed_folders import lay_down
from tlkd import chronicle
from tlkd.errors import BadInput
from tlkd.folder import StudyFolder
from tlkd.reading import dump_yaml
from tlkd.trackers import Memory, lock
from tlkd.tracking import check, choose, end, following, start

pytest.importorskip("mlflow")
pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def cache(own_cache: Path) -> Path:
    return own_cache


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    return lay_down(tmp_path / "out", waiting=("kd-clean-1",))


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- what is allowed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "expected"), [
    ("mlflow", ("mlflow", "")), ("mlflow:http://127.0.0.1:5000", ("mlflow", "http://127.0.0.1:5000")),
    ("mlflow:sqlite:///all.db", ("mlflow", "sqlite:///all.db")), ("wandb:online", ("wandb", "online")),
    ("mlflow:postgresql+psycopg2://me:x@host/db", ("mlflow", "postgresql+psycopg2://me:x@host/db"))])
def test_a_tracker_that_there_is(option: str, expected: tuple[str, str]) -> None:
    assert check([option, option]) == (expected,)


@pytest.mark.parametrize("option", ["", "mlfow", "mlflow:", "mlflow:runs", "mlflow:http://", "mlflow:ftp://host/a",
                                    "wandb:", "wandb:onlin", "MLflow", "tensorboard"])
def test_a_tracker_that_there_is_not(option: str) -> None:
    with pytest.raises(BadInput, match=r"--track: found .*allowed: mlflow, mlflow:http://HOST:PORT, .*wandb:online"):
        check(["mlflow", option])


def test_a_password_is_not_repeated() -> None:
    for option in ("mlflow:ftp://me:secret@host/a", "mlfow:http://me:secret@host"):
        with pytest.raises(BadInput) as caught:
            check([option])
        assert "me:***@host" in str(caught.value)
    assert chronicle.one_line(ValueError("no http://me:secret@host/a")) == "no http://me:***@host/a"


@pytest.mark.parametrize(("name", "others"), [("mlflow", []), ("wandb", ["wandb"])])
def test_a_missing_extra_is_said_with_the_command_that_brings_it(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, others: list[str]) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    for folder in others:  # as W&B leaves one behind: no package
        (tmp_path / folder).mkdir()
    with pytest.raises(BadInput, match=rf"^--track {name} needs the extra {name}: pip install 'tlkd\[{name}\]'$"):
        check([name])


def test_wandb_is_offline_unless_its_variable_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert check(["wandb"]) == (("wandb", "offline"),)
    monkeypatch.setenv("WANDB_MODE", "online")
    assert check(["wandb", "wandb:offline"]) == (("wandb", "online"), ("wandb", "offline"))
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    with pytest.raises(BadInput, match="WANDB_MODE: found 'nonsense'; allowed: offline, online, disabled"):
        check(["wandb"])


# --- processes --------------------------------------------------------------------------------------------------------


def test_a_finished_study_is_logged_and_said_where(study: StudyFolder, capfd: pytest.CaptureFixture[str]) -> None:
    followers = choose(check(["mlflow", "wandb"]), study.path)
    with following(followers):
        start(followers)
    assert [line for follower in followers for line in follower.lines] == [
        f"mlflow:  mlflow ui --backend-store-uri sqlite:///{study.path / 'mlflow.db'}",
        f"wandb:   wandb sync {study.path}/wandb/offline-run-*"]
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{study.path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    assert {run.info.run_name for run in runs} == {"small", "teacher big", "tl-clean-0", "kd-clean-0", "tl-clean-1"}
    assert len(list((study.path / "wandb").glob("offline-run-*"))) == 5
    assert "failed" not in capfd.readouterr().err
    again = choose(check(["wandb"]), study.path)
    with following(again):
        start(again)
    assert len(list((study.path / "wandb").glob("offline-run-*"))) == 5


def test_a_server_that_is_not_there_costs_a_line_and_little_time(study: StudyFolder,
                                                                 capfd: pytest.CaptureFixture[str]) -> None:
    followers = choose(check([f"mlflow:http://127.0.0.1:{free_port()}"]), study.path)
    began = time.monotonic()
    with following(followers):
        start(followers)
        time.sleep(4)
    assert time.monotonic() - began < 45
    (line,) = capfd.readouterr().err.splitlines()
    assert line == ("mlflow: its server does not answer; the study goes on without it, and the same command logs later "
                    "what is missing")
    assert followers[0].lines == []


def test_a_database_that_cannot_be_written_costs_a_line(study: StudyFolder, capfd: pytest.CaptureFixture[str]) -> None:
    followers = choose(check(["mlflow:sqlite:////dev/null/runs.db"]), study.path)
    with following(followers):
        start(followers)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("mlflow: ")
    assert line.endswith("; the study goes on without it, and the same command logs later what is missing")


def test_a_tracker_that_hangs_is_left_behind(study: StudyFolder, capfd: pytest.CaptureFixture[str]) -> None:
    (follower,) = followers = choose(check(["mlflow"]), study.path)
    start(followers)
    assert follower._process is not None
    os.kill(follower._process.pid, signal.SIGSTOP)
    began = time.monotonic()
    end(followers, chronicle.FINISH, 1.0)
    assert time.monotonic() - began < 10
    assert "mlflow: has not answered for 1 seconds and is left behind" in capfd.readouterr().err.replace("\n", "")
    assert not alive(follower._process.pid)


def test_a_tracker_that_dies_costs_a_line(study: StudyFolder, capfd: pytest.CaptureFixture[str]) -> None:
    (follower,) = followers = choose(check(["mlflow"]), study.path)
    with following(followers):
        start(followers)
        assert follower._process is not None
        os.kill(follower._process.pid, signal.SIGKILL)
    assert "mlflow: its process ended with exit code -9" in capfd.readouterr().err


def test_a_process_that_cannot_be_started_costs_a_line(study: StudyFolder, capfd: pytest.CaptureFixture[str],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    followers = choose(check(["mlflow"]), study.path)
    with following(followers):
        start(followers)
    assert "mlflow: cannot be started (No such file or directory)" in capfd.readouterr().err


def test_a_second_driver_logs_nothing(study: StudyFolder, capfd: pytest.CaptureFixture[str]) -> None:
    (follower,) = followers = choose(check(["wandb"]), study.path)
    with lock(study.path, chronicle.slug(follower.name, follower.where), 1), following(followers):
        start(followers)
    assert "wandb: another `tlkd run` logs this study already" in capfd.readouterr().err
    assert not (study.path / "wandb").exists()


def test_a_stopped_study_stops_its_trackers(study: StudyFolder) -> None:
    (follower,) = followers = choose(check(["wandb"]), study.path)
    with pytest.raises(KeyboardInterrupt), following(followers):
        start(followers)
        raise KeyboardInterrupt
    assert follower._process is not None
    assert not alive(follower._process.pid)
    assert "ending" not in Memory(study.path, "wandb").read()


def test_a_tracker_ends_when_its_driver_is_killed(study: StudyFolder) -> None:
    driver = subprocess.Popen([sys.executable, "-c", f"""
import time
from pathlib import Path
from tlkd.tracking import check, choose, start
(follower,) = followers = choose(check(["wandb"]), Path({str(study.path)!r}))
start(followers)
print(follower._process.pid, flush=True)
time.sleep(100)
"""], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    process = int(driver.stdout.readline())
    driver.kill()
    driver.wait()
    until = time.monotonic() + 30
    while alive(process) and time.monotonic() < until:
        time.sleep(0.1)
    assert not alive(process)


def test_nothing_is_started_before_the_study_has_its_folder(tmp_path: Path) -> None:
    followers = choose(check(["mlflow"]), tmp_path / "out")
    with pytest.raises(BadInput, match="refused"), following(followers):
        raise BadInput("refused")
    assert not (tmp_path / "out").exists()


# --- a tracker that fails and comes back ------------------------------------------------------------------------------


class Moody:
    """Raises as long as it is told to; otherwise notes what it is told."""

    def __init__(self, moods: list[bool]) -> None:
        self.moods, self.names = moods, []

    def open(self, subject: Any) -> None:
        if self.moods and self.moods.pop(0):
            raise ConnectionError("gone")

    def log(self, entry: Any) -> None:
        self.names.append(entry.name)

    def close(self, ending: Any) -> list[str]:
        return ["over"]


def test_a_tracker_that_comes_back_is_told_what_it_missed(study: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chronicle, "FIRST_REST", 0.05)
    reading, writing = os.pipe()
    tracker, said = Moody([True, True, False]), []

    def say(what: Any) -> None:
        said.append(what)
        if what.get("failing") is False:
            os.write(writing, b"finish\n")

    with os.fdopen(reading, "rb", 0) as orders:
        chronicle.follow(chronicle.Chronicle(study.path, tracker, say), "moody", orders, say)
    os.close(writing)
    assert [what["news"] for what in said if "news" in what] == [
        "moody: its server does not answer; the study goes on without it, and the same command logs later what is "
        "missing", "moody: works again; what was missed is logged"]
    assert said[-1] == {"lines": ["over"]}
    assert set(tracker.names) == {"teacher big", "tl-clean-0", "kd-clean-0", "tl-clean-1"}


def test_libraries_long_messages_become_one_line() -> None:
    assert chronicle.one_line(ValueError("a\nb  c.")) == "a b c"
    assert chronicle.one_line(ValueError()) == "ValueError"
    assert len(chronicle.one_line(ValueError("x" * 1000))) == 160
    try:
        try:
            raise ConnectionRefusedError("no")
        except OSError as error:
            raise RuntimeError("API request failed") from error
    except RuntimeError as error:
        assert chronicle.one_line(error) == "its server does not answer"


# --- whole studies ----------------------------------------------------------------------------------------------------

RAW = {"name": "tracked", "student": {"model": "packaged:efficientnet_lite0", "input_size": 32},
       "teachers": {"big": {"model": "packaged:efficientnet_lite1", "input_size": 32}},
       "arms": [{"name": "tl", "kind": "tl"}, {"name": "kd", "kind": "tl_kd", "teacher": "big"}],
       "training": {"epochs": 4}, "seeds": [0, 1]}


def started(folder: Path, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-m", "tlkd", "run", "study.yaml", "--jobs", "2", *words], cwd=folder,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A real MLflow server on the loopback."""
    port, place = free_port(), tmp_path / "server"
    place.mkdir()
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
         "--backend-store-uri", f"sqlite:///{place / 'mlflow.db'}", "--artifacts-destination", "artifacts"],
        cwd=place, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{address}/health", timeout=1).close()
            break
        except OSError:
            time.sleep(0.5)
    yield address, process
    if process.poll() is None or alive(process.pid):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_a_real_server_with_two_workers_and_one_that_is_killed_in_the_middle(
        shapes_folder: Path, tmp_path: Path, server: tuple[str, "subprocess.Popen[bytes]"]) -> None:
    address, process = server
    (tmp_path / "study.yaml").write_text(dump_yaml({**RAW, "data": {"source": f"folder:{shapes_folder}"}}))
    run = started(tmp_path, "--track", f"mlflow:{address}")
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert f"mlflow:  {address}/#/experiments/" in out
    from mlflow import MlflowClient

    client = MlflowClient(address)
    experiment = client.get_experiment_by_name("tracked").experiment_id
    runs = client.search_runs([experiment])
    assert {each.info.run_name: each.info.status for each in runs} == dict.fromkeys(
        ("tracked", "teacher big", "tl-clean-0", "tl-clean-1", "kd-clean-0", "kd-clean-1"), "FINISHED")
    folder = StudyFolder(tmp_path / "out" / "tracked")
    for planned in folder.finished():
        (child,) = [each for each in runs if each.info.run_name == planned.run_id]
        points = sorted(client.get_metric_history(child.info.run_id, "dev_accuracy"), key=lambda point: point.step)
        assert [point.value for point in points] == folder.history(planned)["dev_accuracy"].tolist()
        assert child.data.metrics["test_accuracy"] == folder.result(planned)["test_accuracy"]
    (parent,) = [each for each in runs if each.info.run_name == "tracked"]
    assert {"figures", "report.html"} <= {each.path for each in client.list_artifacts(parent.info.run_id)}

    # More seeds, and the server goes away as soon as the first new run is there: the study does not notice.
    words = ("--set", "seeds=[0,1,2,3]", "--track", f"mlflow:{address}")
    run = started(tmp_path, *words)
    until = time.monotonic() + 200
    while len(StudyFolder(folder.path).finished()) < 5 and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    began = time.monotonic()
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert time.monotonic() - began < 120
    assert err.count("mlflow: ") == 1
    assert "mlflow: its server does not answer; the study goes on without it" in err
    assert len(StudyFolder(folder.path).finished()) == 8


@pytest.mark.slow
def test_trackers_speak_to_nobody_outside(shapes_folder: Path, tmp_path: Path) -> None:
    """Every socket that a tracked study connects, its Go and Python processes included, as the kernel sees it."""
    import shutil

    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    (tmp_path / "study.yaml").write_text(dump_yaml({**RAW, "data": {"source": f"folder:{shapes_folder}"}}))
    hidden = ("CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST", "PYTEST_VERSION")  # in which MLflow is quiet by itself
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [strace, "-f", "-e", "trace=connect,sendto,sendmsg", "-e", "signal=none", "-o", "trace.txt",
         sys.executable, "-m", "tlkd", "run", "study.yaml", "--jobs", "2", "--set", "seeds=[0]", "--track", "mlflow",
         "--track", "wandb"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert "wandb sync" in done.stdout
    calls = (tmp_path / "trace.txt").read_text().splitlines()
    assert any("AF_UNIX" in line or "127.0.0.1" in line for line in calls)  # so the look can find something
    outside = [line for line in calls if "AF_INET" in line and "127.0.0.1" not in line and '"::1"' not in line]
    assert outside == []
