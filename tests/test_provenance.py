"""What a study ran on: versions, commit, hardware."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

import tlkd
from tlkd import provenance

CPU = torch.device("cpu")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout with the module in it, not yet committed; answers for the real one."""
    for name in list(os.environ):
        if name.startswith("GIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    module = tmp_path / "repo" / "src" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text("code\n")
    git(tmp_path / "repo", "init", "--quiet")
    monkeypatch.setattr(provenance, "__file__", str(module))
    return tmp_path / "repo"


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=folder, check=True,
                          capture_output=True, text=True).stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "x")
    return git(folder, "rev-parse", "HEAD")


def test_a_clean_checkout_is_its_commit(checkout: Path) -> None:
    head = commit(checkout)
    assert len(head) == 40
    assert provenance.git_commit() == head


def test_changed_code_is_marked_and_other_changes_are_not(checkout: Path) -> None:
    head = commit(checkout)
    (checkout / "notes.txt").write_text("beside the code")
    assert provenance.git_commit() == head
    (checkout / "src" / "provenance.py").write_text("changed\n")
    assert provenance.git_commit() == f"{head}+"


def test_new_code_is_marked(checkout: Path) -> None:
    head = commit(checkout)
    (checkout / "src" / "new.py").write_text("new\n")
    assert provenance.git_commit() == f"{head}+"


def test_somebody_elses_checkout_is_none(checkout: Path) -> None:
    (checkout / ".gitignore").write_text("src/\n")
    commit(checkout)  # as with an environment inside a project of one's own
    assert provenance.git_commit() is None


def test_a_checkout_without_a_commit_is_none(checkout: Path) -> None:
    git(checkout, "add", "--all")
    assert provenance.git_commit() is None


def test_no_checkout_is_none(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert provenance.git_commit() is None


def test_no_git_is_none(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(checkout)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_commit() is None


def test_versions_are_those_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = provenance.versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["tlkd"] == tlkd.__version__
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert set(found) == {"python", *provenance.PACKAGES}
    monkeypatch.setattr(provenance, "PACKAGES", ("no-such-package",))
    assert provenance.versions()["no-such-package"] == "not installed"


def test_hardware_is_named() -> None:
    found = provenance.hardware(CPU)
    assert found["device"] == "cpu"
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert found["processor"]
    assert found["system"]
    assert found.get("memory_gib", 1) > 0
    assert "gpu" not in found


def test_the_processor_is_named_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert isinstance(provenance.hardware(CPU)["processor"], str)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_named() -> None:
    assert provenance.hardware(torch.device("cuda"))["gpu"]


def test_all_of_it_can_stand_in_yaml() -> None:
    from tlkd.reading import dump_yaml, parse_yaml

    found = provenance.provenance("tlkd run x --set name='a b'", CPU)
    assert set(found) == {"command", "started", "git_commit", "versions", "hardware"}
    assert found["command"] == "tlkd run x --set name='a b'"
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found["started"])).total_seconds()) < 60
    assert parse_yaml(dump_yaml(found), "x") == found
    assert provenance.provenance("", CPU)["command"] == " ".join(sys.argv)
