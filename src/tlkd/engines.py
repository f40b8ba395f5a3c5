"""Which executor takes a study's steps: worker processes on this machine, or a Ray cluster."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkd import crew, store
from tlkd.engine import Executor, Work
from tlkd.errors import BadInput
from tlkd.specs import Study
from tlkd.workers import Local

if TYPE_CHECKING:
    import torch

WORKER = 2 * 2**30  # bytes that a worker process is reckoned to need
MOST_BY_DEFAULT = 8


@dataclass(frozen=True)
class Ways:
    """How steps are taken: what makes the executor, and how many threads each builds banks with."""

    executor: Callable[[Work, Any], Executor]
    threads: int


def check(engine: str) -> None:
    """Raise `BadInput` for an engine that there is not."""
    if engine != "local" and not re.fullmatch(r"ray(:[^:\s]+(:\d+)?)?", engine):
        raise BadInput(f"--engine: found {engine!r}; allowed: local, ray (a cluster started here), ray:HOST:PORT")
    if engine.startswith("ray:"):  # before anything is written
        from tlkd.ray_engine import reach

        reach(engine.removeprefix("ray:"))


def choose(engine: str, study: Study, out: Path, device: "torch.device", jobs: int | None,
           gpus_per_job: float | None) -> Ways:
    """The executor that the command line asks for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if crew.size() > 1:
        if engine != "local" or jobs not in (None, 1):
            raise BadInput(f"--engine and --jobs: found {engine} and {jobs}, but {crew.size()} processes were started "
                           "together, which train one network at a time; leave both out, or start tlkd alone")
        from tlkd.study import leading

        return Ways(leading, cores)
    if engine == "local":
        count = jobs or _default_jobs(study, device, cores)
        return Ways(lambda work, context: Local(work, context, count, out.absolute() / "logs"), max(1, cores // count))
    from tlkd.carried import DATA, Carried
    from tlkd.ray_engine import RayExecutor

    address = engine.partition(":")[2] or None
    share = gpus_per_job if gpus_per_job is not None else float(device.type == "cuda")
    shared = [out.absolute(), store.cache_folder().absolute()]
    return Ways(lambda work, context: RayExecutor(work, context, address, gpus_per_job=share, jobs=jobs,
                                                  shared_folders=shared, carrier=Carried(), held=(DATA, *context.held),
                                                  log_folder=out.absolute() / "logs"), 1)


def _default_jobs(study: Study, device: "torch.device", cores: int) -> int:
    """A job for every GPU, or for as many cores as a training uses, as far as the free memory goes."""
    if device.type == "cuda":
        import torch

        return max(1, torch.cuda.device_count())
    threads = max(study.training_of(arm, condition).threads for arm in study.arms for condition in study.conditions)
    return max(1, min(cores // threads, _free_memory() // WORKER, MOST_BY_DEFAULT))


def _free_memory() -> int:
    """Bytes of memory that are free for new processes, as far as the system tells."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return WORKER * MOST_BY_DEFAULT
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else WORKER * MOST_BY_DEFAULT
