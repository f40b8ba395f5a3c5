"""What a study ran on: versions, git commit, hardware."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tlkd import crew

PACKAGES = ("tlkd", "torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn", "scipy", "statsmodels")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str | None:
    """The commit of the checkout that tlkd's code lies in, with `+` where it has been changed; None outside of one."""
    folder = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout

    try:
        if git("ls-files", "--", Path(__file__).name).strip() == "":
            return None  # tlkd is installed inside somebody else's checkout
        return git("rev-parse", "HEAD").strip() + ("+" if git("status", "--porcelain", "--", ".").strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


def hardware(device: torch.device) -> dict[str, Any]:
    """Processor, cores, memory and device."""
    found: dict[str, Any] = {"processor": _processor(), "cores": len(os.sched_getaffinity(0)) if hasattr(
        os, "sched_getaffinity") else os.cpu_count(), "system": platform.platform(), "device": device.type}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    if crew.size() > 1:
        found["processes"] = crew.size()
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda
    return found


def provenance(command: str, device: torch.device) -> dict[str, Any]:
    """All of it, for `study.yaml`."""
    return {"command": command or " ".join(sys.argv), "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "git_commit": git_commit(), "versions": versions(), "hardware": hardware(device)}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
