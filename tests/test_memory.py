"""Memory that runs out: one plain line, nothing taken for another fault, and the next start goes on to the same end."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from conftest import refused
from tlkd import cli, engine, images, stages
from tlkd.checks import verify
from tlkd.engine import attempt
from tlkd.errors import NO_MEMORY, BadInput, RunFailed, memory_trouble
from tlkd.folder import StudyFolder
from tlkd.reading import validate
from tlkd.study import run_study

STUDY: dict[str, Any] = {
    "name": "small", "data": {"source": "shapes", "dev_fraction": 0.2, "augment": [],
                              "shapes": {"size": 32, "train_per_class": 4, "test_per_class": 3}},
    "student": {"model": "packaged:efficientnet_lite0", "input_size": 32},
    "teachers": {"lite1": {"model": "packaged:efficientnet_lite1", "input_size": 32}},
    "arms": [{"name": "tl", "kind": "tl"}, {"name": "kd", "kind": "tl_kd", "teacher": "lite1"}],
    "training": {"epochs": 2}, "seeds": [0]}


def from_torch() -> None:
    """Ask for more than there is, as PyTorch does."""
    torch.empty(2**62, dtype=torch.uint8)


def weights(out: Path) -> dict[str, bytes]:
    """All that was learnt."""
    return {path.parent.name: path.read_bytes() for path in (out / "runs").glob("*/model.safetensors")}


@pytest.mark.parametrize("error", [
    MemoryError(), MemoryError("Unable to allocate 9 GiB"), OSError(12, "Cannot allocate memory"),
    RuntimeError("can't start new thread"), ImportError("libtorch_cpu.so: failed to map segment from shared object")])
def test_want_of_memory_is_known_by_any_name(error: Exception) -> None:
    line = memory_trouble(error)
    assert line is not None
    assert line.startswith(f"{NO_MEMORY} ({type(error).__name__}")


def test_want_of_memory_is_known_behind_what_was_made_of_it() -> None:
    with pytest.raises(BadInput) as caught:
        try:
            from_torch()
        except RuntimeError as error:
            raise BadInput("student.input_size: found 32") from error
    assert NO_MEMORY in str(memory_trouble(caught.value))
    with pytest.raises(BadInput) as caught:
        try:
            raise MemoryError
        except MemoryError:
            raise BadInput("cannot be read") from None
    assert NO_MEMORY in str(memory_trouble(caught.value))


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), OSError(28, "full"), ValueError("memory"),
                                   BadInput("x"), RunFailed("the loss is nan"), None])
def test_other_faults_are_not_taken_for_it(error: Exception | None) -> None:
    assert memory_trouble(error) is None


def test_a_step_that_runs_short_fails_alone_and_a_full_disk_ends_the_study() -> None:
    def work(_: Any, job: str) -> engine.Outcome:
        if job == "short":
            try:
                from_torch()
            except RuntimeError as error:
                raise BadInput("student.input_size: found 32") from error
        raise BadInput("the disk is full")

    assert attempt(work, None, "short")[0].failure.startswith(NO_MEMORY)
    refused(lambda: attempt(work, None, "full"), "the disk is full")


def test_an_image_is_not_called_damaged_for_want_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (9, 7)).save(tmp_path / "0.png")

    def short(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", short)
    monkeypatch.setattr(images, "_rgb", short)
    with pytest.raises(images.BadImage, match="damaged: MemoryError"):  # there is memory: the file asks for too much
        images.decode(tmp_path / "0.png")
    monkeypatch.setattr(images, "SPARE", 2**60)
    with pytest.raises(MemoryError):
        images.decode(tmp_path / "0.png")


def test_a_network_is_not_called_unfit_for_want_of_memory(monkeypatch: pytest.MonkeyPatch,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    def short(*_: Any, **__: Any) -> None:
        try:
            from_torch()
        except RuntimeError as error:
            raise BadInput("student.input_size: found 32; it cannot take it") from error

    monkeypatch.setattr(cli, "app", short)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tlkd: {NO_MEMORY} (RuntimeError: ")
    assert line.endswith("the same command goes on from here")


@pytest.mark.slow
@pytest.mark.parametrize("step", ["teacher", "run"])
def test_a_study_that_ran_short_goes_on_to_the_same_end(step: str, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """One training runs short after its first epoch; the next start takes it up without being asked."""
    monkeypatch.setenv("TLKD_CACHE", str(tmp_path / "cache"))
    study, cpu = validate(STUDY, "small.yaml"), torch.device("cpu")
    real: Callable[..., Any] = stages.train

    def short(workshop: Any, who: Any, *rest: Any, **named: Any) -> Any:
        if ("teacher" in who.who) == (step == "teacher"):
            from_torch()
        return real(workshop, who, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "train", short)
        failures = run_study(study, tmp_path / "out", cpu)
    short_of = ["kd-clean-0"] if step == "teacher" else ["kd-clean-0", "tl-clean-0"]
    assert sorted(failures) == short_of
    assert all(NO_MEMORY in line for line in failures.values())
    assert sorted(weights(tmp_path / "out")) == sorted({"kd-clean-0", "tl-clean-0"} - set(short_of))
    assert run_study(study, tmp_path / "out", cpu, retry_failed=False) == {}
    monkeypatch.setenv("TLKD_CACHE", str(tmp_path / "other"))
    assert run_study(study, tmp_path / "whole", cpu) == {}
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    assert verify(tmp_path / "out")[1] == []


# --- in processes that may have only so much --------------------------------------------------------------------------


HELD = """
import resource, runpy, sys
limit = int(sys.argv.pop(1))
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
runpy.run_module("tlkd", run_name="__main__", alter_sys=True)
"""


def start(at: Path, limit: int = 0) -> subprocess.Popen[str]:
    """`tlkd run` with at most `limit` bytes of address space (0: as many as it likes)."""
    (at / "small.yaml").write_text(yaml.safe_dump(STUDY))
    words = ["run", str(at / "small.yaml"), "--out", str(at / "out"), "--jobs", "1"]
    return subprocess.Popen([sys.executable, "-c", HELD, str(limit), *words], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE,
                            env={**os.environ, "TLKD_CACHE": str(at / "cache"), "OMP_NUM_THREADS": "1"})


def peak(process: subprocess.Popen[str]) -> int:
    """The most address space, in bytes, that a process had while it lived, until it ends."""
    found = 0
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            break
        found = max([found, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmPeak:"))])
        time.sleep(0.05)
    return found


def numbers(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "results.csv").drop(columns="seconds")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="/proc is not there")
def test_processes_with_too_little_say_so_and_later_ones_finish_what_is_left(tmp_path: Path) -> None:
    whole, at = tmp_path / "whole", tmp_path / "at"
    whole.mkdir()
    at.mkdir()
    process = start(whole)
    enough = peak(process)
    assert process.wait(200) == 0, process.communicate()[1]
    codes = []
    for share in (0.4, 0.88, 0.94):
        process = start(at, int(share * enough))
        error = process.communicate(timeout=200)[1]
        codes.append(process.returncode)
        assert process.returncode in (0, 1, 2), error
        assert "Traceback" not in error, error
        assert process.returncode == 0 or "emory" in error, error  # OpenBLAS ends the process itself, and says why
        assert process.returncode != 2 or len(error.splitlines()) == 1, error
    assert codes[0] == 2
    process = start(at)
    assert process.wait(200) == 0, process.communicate()[1]
    pd.testing.assert_frame_equal(numbers(at / "out"), numbers(whole / "out"))
    assert weights(at / "out") == weights(whole / "out")
    skipped = StudyFolder(at / "out").card()["skipped"]
    assert not skipped
