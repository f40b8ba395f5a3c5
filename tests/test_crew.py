"""Trainings over two real processes: the numbers of one process, one result each, and no process left hanging.

What is compared with one process, and how closely, measured here on small images with dropout and batch norm apart:
a head on banked features, and a whole network without batch norm, to 1e-5 on the logits; with dropout, whose masks are
drawn by each process for its own part, and with batch norm in train mode, which sees each part alone, to 0.1 on the
log loss. (Seen: 3e-7, and .07.)
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from tlkd import crew, engines
from tlkd.crew import ALONE, Crew
from tlkd.errors import BadInput
from tlkd.folder import Run, StudyFolder
from tlkd.reading import validate
from tlkd.specs import Study
from tlkd.study import leading, run_study

pytestmark = pytest.mark.slow  # real processes that start, die and start again

CPU = torch.device("cpu")
EXACT = 1e-5  # on logits of order 1
LOOSE = 0.1  # on the log loss
LIMIT = 240  # seconds that no launch may take
LAUNCHED = (*crew.SIZES, *crew.RANKS, "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
            "ACCELERATE_MIXED_PRECISION")

SMALL: dict[str, Any] = {
    "student": {"model": "packaged:efficientnet_lite0", "input_size": 32, "dropout": 0.0},
    "teachers": {"lite1": {"model": "packaged:efficientnet_lite1", "input_size": 32, "dropout": 0.0,
                           "training": {"epochs": 3}}},
    "arms": [{"name": "tl", "kind": "tl"},
             {"name": "tl_kd", "kind": "tl_kd", "teacher": "lite1", "soft_weight": 0.5, "temperature": 4}],
    # 48 samples: three batches of 15, and one of 3, of which the second process gets none.
    "training": {"epochs": 3, "batch_size": 15, "learning_rate": 0.02},
    "conditions": [
        {"name": "clean"},
        {"name": "dropout", "arms": ["tl"], "student": {"dropout": 0.3}},
        {"name": "everything", "arms": ["tl"], "training": {"epochs": 2},
         "student": {"model": "timm:test_convnext", "weights": "none", "trainable": "all"}},
        {"name": "norms", "arms": ["tl"], "training": {"epochs": 2, "batch_size": 16},
         "student": {"model": "timm:test_resnet", "weights": "none", "trainable": "all"}},
        {"name": "still", "arms": ["tl"], "training": {"epochs": 6, "batch_size": 16, "learning_rate": 1e-12},
         "student": {"model": "timm:test_resnet", "weights": "none", "trainable": "all"}},
        {"name": "wild", "arms": ["tl"], "training": {"learning_rate": 1e30, "weight_decay": 0.9}}],
    "seeds": [0],
}


def write_study(shapes: Path, where: Path) -> Study:
    spec = validate({"name": "small", "data": {"source": f"folder:{shapes}", "dev_fraction": 0.2}, **SMALL},
                    "small.yaml")
    where.write_text(json.dumps(spec.model_dump(mode="json")))
    return spec


class Launch:
    """Two processes of tlkd, or of a script, as a launcher starts them."""

    def __init__(self, launcher: str, cache: Path, what: list[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        command = {"accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
                                  "--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={port}"],
                   "torchrun": ["torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
                                f"--master-port={port}"]}[launcher]
        environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
        environment |= {"TLKD_CACHE": str(cache), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        self.process = subprocess.Popen([sys.executable, "-m", *command, *what], env=environment, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        try:
            out, error = self.process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"it hangs: {self.process.communicate()}")
        return self.process.returncode, out, error

    def workers(self) -> dict[int, int]:
        """The process ids of the processes that were started, by rank."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                variables = dict(each.partition("=")[::2] for each in (process / "environ").read_text().split("\0"))
            except OSError:  # it has ended
                continue
            if int(parent) == self.process.pid and "RANK" in variables:
                found[int(variables["RANK"])] = int(process.name)
        return found

    def kill(self) -> None:
        for process in [*self.workers().values(), self.process.pid]:
            os.kill(process, signal.SIGKILL)


def arguments(study: Path, out: Path, *more: str) -> list[str]:
    return ["run", str(study), "--out", str(out), "--device", "cpu", *more]


def lines(text: str) -> list[str]:
    """What tlkd itself said, between what the launcher says."""
    return [line for line in text.splitlines() if line.startswith("tlkd: ")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crew")


@pytest.fixture(scope="module")
def alone(shapes_folder: Path, home: Path) -> StudyFolder:
    """The study by one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLKD_CACHE", str(home / "cache-alone"))
        assert set(run_study(write_study(shapes_folder, home / "study.yaml"), home / "alone", CPU)) == {"tl-wild-0"}
    return StudyFolder(home / "alone")


@pytest.fixture(scope="module")
def together(shapes_folder: Path, home: Path) -> tuple[StudyFolder, int, str, str]:
    """The study by two processes with a cache of their own, and how they ended."""
    write_study(shapes_folder, home / "study.yaml")
    launch = Launch("accelerate", home / "cache-two", ["-m", "tlkd", *arguments(home / "study.yaml", home / "two")])
    return StudyFolder(home / "two"), *launch.end()


def run_of(folder: StudyFolder, name: str) -> Run:
    return next(run for run in folder.runs() if run.run_id == name)


def weights(folder: StudyFolder, name: str) -> dict[str, Any]:
    return load_file(folder.run_path(run_of(folder, name)) / "model.safetensors")


# --- the numbers of one process ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tl-clean-0", "tl_kd-clean-0", "tl-everything-0"])
def test_two_processes_train_what_one_trains(alone: StudyFolder, together: tuple[StudyFolder, int, str, str],
                                             name: str) -> None:
    two, run = together[0], run_of(alone, name)
    np.testing.assert_allclose(two.predictions(run).logits, alone.predictions(run).logits, rtol=0, atol=EXACT)
    for one, other in zip(weights(alone, name).values(), weights(two, name).values(), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=EXACT)
    for column in ("train_loss", "dev_loss", "dev_accuracy", "learning_rate"):
        np.testing.assert_allclose(two.history(run)[column], alone.history(run)[column], rtol=0, atol=EXACT)
    assert two.result(run)["test_accuracy"] == alone.result(run)["test_accuracy"]


@pytest.mark.parametrize("name", ["tl-dropout-0", "tl-norms-0"])
def test_other_masks_and_smaller_batches_under_a_norm_change_little(
        alone: StudyFolder, together: tuple[StudyFolder, int, str, str], name: str) -> None:
    two, run = together[0], run_of(alone, name)
    assert two.result(run)["test_log_loss"] == pytest.approx(alone.result(run)["test_log_loss"], abs=LOOSE)
    assert two.history(run)["train_loss"].to_numpy() == pytest.approx(alone.history(run)["train_loss"], abs=LOOSE)
    assert np.abs(two.predictions(run).logits - alone.predictions(run).logits).max() > EXACT  # it is not the same


def test_the_statistics_of_batch_norm_are_those_of_all_processes(alone: StudyFolder,
                                                                 together: tuple[StudyFolder, int, str, str]) -> None:
    """The first layer's means, which follow the images alone where nothing moves: those of the whole batches."""
    one, two = (weights(folder, "tl-still-0") for folder in (alone, together[0]))
    first = next(name for name in one if name.endswith("conv1.1.running_mean"))
    np.testing.assert_allclose(two[first], one[first], rtol=0, atol=1e-6)
    assert np.abs(one[first]).max() > 0.1


# --- one result of everything -----------------------------------------------------------------------------------------


def test_a_failed_run_fails_alone_and_the_report_is_written_once(
        together: tuple[StudyFolder, int, str, str]) -> None:
    two, code, out, error = together
    assert code != 0 and lines(error)[0].startswith("tlkd: tl-wild-0 failed: epoch 1, step ")
    assert set(two.failures()) == {"tl-wild-0"} and out.count("report:  ") == 1
    assert {run.run_id for run in two.finished()} == {run.run_id for run in two.runs()} - {"tl-wild-0"}


def test_every_result_is_published_once_and_says_how_many_trained_it(
        alone: StudyFolder, together: tuple[StudyFolder, int, str, str]) -> None:
    two = together[0]
    for run in two.finished():
        about = [json.loads((each.run_path(run) / "manifest.json").read_text()) for each in (alone, two)]
        assert about[0]["address"] == about[1]["address"]
        assert [each["about"].get("processes") for each in about] == [None, 2]
    assert {path.name for path in (two.path / "runs").iterdir()} == {run.run_id for run in two.finished()} | {".locks"}
    assert not list(two.path.rglob("*.tmp*")) and not list((two.path.parent / "cache-two").rglob("*.tmp*"))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_killed_and_started_again(shapes_folder: Path, home: Path,
                                  together: tuple[StudyFolder, int, str, str]) -> None:
    """The main process is killed in the middle of a training: the other ends too, and the next start goes on."""
    whole, out = together[0], home / "killed"
    what = ["-m", "tlkd", *arguments(home / "study.yaml", out)]
    launch, deadline = Launch("torchrun", home / "cache-two", what), time.monotonic() + LIMIT
    main, training = 0, out / ".work" / "tl-still-0"
    while not list(training.glob("*/checkpoint.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.005)
        main = main or launch.workers().get(0, 0)
    os.kill(main, signal.SIGKILL)
    code, _, _ = launch.end()
    killed, (checkpoint,) = StudyFolder(out), training.glob("*/checkpoint.safetensors")
    with safe_open(checkpoint, framework="np") as file:
        first = json.loads(file.metadata()["rest"])["history"][0]
    before = {run.run_id: (killed.run_path(run) / "manifest.json").stat().st_mtime_ns for run in killed.finished()}
    assert code != 0 and "tl-clean-0" in before and "tl-still-0" not in before, "killed too late to test anything"
    code, _, error = Launch("torchrun", home / "cache-two", what).end()
    assert code != 0 and "tl-wild-0" in lines(error)[0]  # all else went well
    for run in whole.finished():
        path = killed.run_path(run)
        assert before.get(run.run_id, 0) in (0, (path / "manifest.json").stat().st_mtime_ns)
        assert (path / "model.safetensors").read_bytes() == (whole.run_path(run) / "model.safetensors").read_bytes()
    assert killed.history(run_of(whole, "tl-still-0"))["seconds"][0] == first["seconds"]  # not trained anew


# --- nothing hangs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("more", "said"), [
    (["--set", "training.epochs=-1"], "small.yaml"),
    (["--set", "data.source=folder:/nowhere/at/all"], "data.source"),
])
def test_bad_input_ends_all_with_one_line(shapes_folder: Path, tmp_path: Path, more: list[str], said: str) -> None:
    write_study(shapes_folder, tmp_path / "small.yaml")
    code, out, error = Launch("torchrun", tmp_path / "cache", [
        "-m", "tlkd", *arguments(tmp_path / "small.yaml", tmp_path / "out", *more)]).end()
    assert code != 0 and out == "" and len(lines(error)) == 1, error
    assert said in lines(error)[0]
    assert "exitcode  : 2" in error and not (tmp_path / "out").exists()


def test_what_one_process_meets_alone_ends_all_and_fails_no_run(shapes_folder: Path, home: Path,
                                                                tmp_path: Path) -> None:
    script = tmp_path / "loose.py"
    script.write_text("import os\nfrom tlkd import cli, training\n"
                      "def loose(*_): raise ValueError('a loose cable')\n"
                      "if os.environ['RANK'] == '1': training._sum_gradients = loose\n"
                      "cli.main()\n")
    write_study(shapes_folder, tmp_path / "small.yaml")
    what = arguments(tmp_path / "small.yaml", tmp_path / "out", "--set", "conditions=[{name: clean}]")
    code, _, error = Launch("torchrun", home / "cache-two", [str(script), *what]).end()
    said = [line for line in lines(error) if "another process is gone" not in line]  # all that the main process knows
    assert code != 0 and len(said) == 1, error
    assert said[0].startswith("tlkd: process 1 of 2: ValueError: a loose cable, so that all ")
    assert StudyFolder(tmp_path / "out").failures() == {}


# --- parts, and what a launcher says ----------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(0, 70))
def test_parts_are_all_there_is_and_none_has_one_sample(processes: int, count: int) -> None:
    parts = [range(count)[Crew(processes, rank).part(count)] for rank in range(processes)]
    assert [number for part in parts for number in part] == list(range(count))
    sizes = [len(part) for part in parts]
    assert count == 1 or 1 not in sizes
    taking = [size for size in sizes if size]
    assert sizes[:len(taking)] == taking and max(taking, default=0) - min(taking, default=0) <= 1
    assert len(taking) == min(processes, max(count // 2, min(count, 1)))


def test_alone_everything_is_as_it_was() -> None:
    values = torch.ones(2)
    assert ALONE.summed(values) is values and ALONE.told(lambda: 3) == 3 and ALONE.gathered("a") == ["a"]
    assert ALONE.part(5) == slice(0, 5) and ALONE.main and crew.at_work() is ALONE and crew.note() == {}
    with crew.call(run_study, None, "anywhere"):
        assert crew.at_work() is ALONE
    crew.dismiss()


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(("variables", "expected"), [
    ({}, (1, 0)),
    ({"MASTER_ADDR": "x", "WORLD_SIZE": "4", "RANK": "2"}, (4, 2)),
    ({"MASTER_ADDR": "x", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, (2, 1)),
    ({"PMI_SIZE": "8", "PMI_RANK": "3"}, (1, 0)),  # a batch system's, who started independent processes
    ({"MASTER_ADDR": "x", "WORLD_SIZE": "1", "RANK": "0"}, (1, 0)),
])
def test_what_launchers_say(launched: pytest.MonkeyPatch, variables: dict[str, str],
                            expected: tuple[int, int]) -> None:
    for name, value in variables.items():
        launched.setenv(name, value)
    assert (crew.size(), crew.rank()) == expected and crew.follows() == (expected[1] > 0)


def test_accelerate_that_started_one_process_where_two_were_meant(launched: pytest.MonkeyPatch) -> None:
    assert crew.misled() == ""
    launched.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert crew.misled() == ""  # --num_processes 1
    launched.setenv("MASTER_PORT", "29500")
    assert "--multi_gpu" in crew.misled() and "\n" not in crew.misled()
    launched.setenv("WORLD_SIZE", "1")
    assert crew.misled() == ""


def test_a_crew_takes_one_step_at_a_time(launched: pytest.MonkeyPatch, shapes_folder: Path, tmp_path: Path) -> None:
    spec = write_study(shapes_folder, tmp_path / "small.yaml")
    launched.setenv("MASTER_ADDR", "x")
    launched.setenv("WORLD_SIZE", "2")
    assert engines.choose("local", spec, tmp_path, CPU, None, None).executor is leading
    for engine, jobs in (("ray", None), ("local", 2)):
        with pytest.raises(BadInput, match="2 processes"):
            engines.choose(engine, spec, tmp_path, CPU, jobs, None)


def test_without_accelerate_it_says_what_to_install(launched: pytest.MonkeyPatch) -> None:
    launched.setenv("MASTER_ADDR", "x")
    launched.setenv("WORLD_SIZE", "2")
    launched.setitem(sys.modules, "accelerate", None)
    with pytest.raises(BadInput, match=r"2 processes.*pip install 'tlkd\[accelerate\]'"):
        crew.join(CPU)
