"""The engine on a Ray cluster: an executor whose slots are the cluster's CPUs. Imported only when it is asked for.

Where all nodes see the study's folder and the cache, a job finds there what it needs and leaves there what it makes.
Elsewhere results travel: each job is given what the jobs that it needs have published, and what it publishes itself
goes back to the driver.
"""

import importlib.util
import io
import json
import logging
import os
import pickle
import platform
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from tlkd import __version__
from tlkd.engine import Job, Outcome, Work, failure_line, log_path, logged, unpickle
from tlkd.errors import BadInput, missing
from tlkd.store import guard_disk, replace_text

REACH = 5.0  # seconds in which the cluster's port must answer
CONNECT = 15.0  # seconds in which what answers there must prove to be a Ray cluster that takes us
LOOK = 120.0  # seconds in which every node must have started a worker and read the tokens
LOG_LIMIT = 1_000_000  # characters of a failed job's log that travel
LISTING = "folders.json"  # the first member of what `pack_folders` makes

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of results that nobody fetches, since their job has failed
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would build an environment anew on every node
}

PASSED_ON = ("PYTHONPATH", "TLKD_CACHE")  # variables of the driver that jobs see

# Run by another process, which may be killed: on its own `ray.init` tries for two minutes, with a screen of warnings.
CONNECTS = """
import logging, sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
except BaseException as error:
    print(" ".join(f"{type(error).__name__}: {error}".split())[:300])
    sys.exit(1)
"""


class Carrier(Protocol):
    """How results travel between machines without shared storage; it can be pickled."""

    def context_for(self, context: Any) -> Any:
        """The context with folders that exist on this node: a scratch folder, made once."""
        ...

    def pack(self, context: Any, job: str) -> bytes:
        """What a job that went well has published."""
        ...

    def unpack(self, context: Any, packed: bytes) -> None:
        """Publish that here; what is there already is left as it is."""
        ...


@dataclass(frozen=True)
class _Order:
    """All that a Ray worker is told of a job, but for the results of others."""

    work: bytes
    context: bytes
    carrier: bytes | None
    job: str
    path: tuple[str, ...]


class RayExecutor:
    """Jobs as Ray tasks on the cluster at `address` ("auto" or HOST:PORT), or on a local Ray if there is none.

    A job whose worker or node dies is started again up to `retries` times. `shared_folders` are probed: if some node
    does not see them as this machine does, results travel by `carrier`, and the results of the jobs `held`, which the
    driver has from earlier, are given to every job. `shared` tells instead of asking. Paths in the context must be
    absolute. What a failed job printed is kept in `log_folder`. Raises BadInput if there is no Ray, no cluster, no
    GPU where `gpus_per_job` asks for one, or no way for results.
    """

    def __init__(self, work: Work, context: Any, address: str | None = None, *, jobs: int | None = None,
                 gpus_per_job: float = 0, retries: int = 3, shared_folders: Sequence[Path] = (),
                 carrier: Carrier | None = None, shared: bool | None = None, held: Sequence[str] = (),
                 log_folder: Path | None = None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise missing("--engine ray", "ray")
        self._context, self._carrier, self._logs = context, carrier, log_folder
        self._closed = False
        self._ours = _connect(address, jobs, retries)
        try:
            nodes = _alive_nodes()
            self._cpus = max(1.0, *(node["Resources"].get("CPU", 0.0) for node in nodes))
            self.slots = _slots(nodes, jobs, gpus_per_job)
            self.shared = _look(nodes, shared_folders, probe=shared is None and address is not None)
            self.shared = self.shared if shared is None else shared
            if not self.shared and carrier is None:
                folders = ", ".join(map(str, shared_folders))
                raise BadInput(f"--engine ray: not every node sees {folders}; choose an --out and a TLKD_CACHE on "
                               "storage that all nodes share")
            self._order = _Order(pickle.dumps(work), pickle.dumps(context),
                                 None if self.shared else pickle.dumps(carrier), "", tuple(sys.path))
            import ray

            # Grown workers keep what they have opened; but one with a GPU ends, since the next job may get another GPU.
            self._task: Any = ray.remote(num_returns=2, max_calls=1 if gpus_per_job else 0)(_work_on_node)
            self._options = {"num_gpus": gpus_per_job, "max_retries": retries, "scheduling_strategy": "SPREAD"}
            self._held = [] if self.shared or carrier is None else [ray.put(carrier.pack(context, name))
                                                                    for name in held]
            self._packed: dict[str, Any] = {}
            self._reach: dict[str, frozenset[str]] = {}
            self._threads = ThreadPoolExecutor(4, thread_name_prefix="tlkd-ray")
        except BaseException:
            self.close(now=True)
            raise

    def submit(self, job: Job) -> Future[Outcome]:
        """Hand the job to the cluster, with the results of all that it needs, however far back."""
        self._reach[job.name] = frozenset(job.needs).union(*(self._reach.get(need, ()) for need in job.needs))
        needed = [*self._held, *(self._packed[name] for name in sorted(self._reach[job.name]) if name in self._packed)]
        order = _Order(self._order.work, self._order.context, self._order.carrier, job.name, self._order.path)
        options = {**self._options, "num_cpus": min(float(job.threads), self._cpus), "name": job.name}
        answer, packed = self._task.options(**options).remote(order, needed)
        done: Future[Outcome] = Future()
        answer.future().add_done_callback(lambda found: self._hand_over(job.name, found, packed, done))
        return done

    def _hand_over(self, job: str, found: Future[Any], packed: Any, done: Future[Outcome]) -> None:
        """Called in a thread of Ray's, which must not wait for anything."""
        with suppress(RuntimeError):  # closed meanwhile: nobody waits for it
            self._threads.submit(self._finish, job, found, packed, done)

    def _finish(self, job: str, found: Future[Any], packed: Any, done: Future[Outcome]) -> None:
        import ray

        try:
            answer, log = found.result()
            outcome: Outcome | BadInput = pickle.loads(answer)
            if isinstance(outcome, BadInput):
                raise outcome
            if not self.shared and self._carrier is not None and not outcome.failure and not outcome.busy:
                self._carrier.unpack(self._context, ray.get(packed))
                self._packed[job] = packed
            self._keep_log(outcome, log)
            done.set_result(outcome)
        except ray.exceptions.RayError as error:
            outcome = Outcome(job, failure=_cluster_failure(error))
            with suppress(OSError, BadInput):
                self._keep_log(outcome, f"{outcome.failure}\n")  # what it printed died with its worker
            done.set_result(outcome)
        except BaseException as error:
            done.set_exception(error)

    def _keep_log(self, outcome: Outcome, log: str) -> None:
        if self._logs is not None and not outcome.busy:
            path = log_path(self._logs, outcome.job)
            if outcome.failure:
                replace_text(path, log)
            else:
                path.unlink(missing_ok=True)

    def close(self, *, now: bool = False) -> None:
        """Leave the cluster, which ends what it still does for us; a local Ray ends."""
        if self._closed:
            return
        self._closed = True
        if hasattr(self, "_threads"):
            self._threads.shutdown(wait=not now, cancel_futures=now)
        if self._ours:
            import ray

            ray.shutdown()


# --- on the driver ----------------------------------------------------------------------------------------------------


def _connect(address: str | None, jobs: int | None, retries: int) -> bool:
    """Become a driver of the cluster at `address`, or of a local one; False where this process is one already."""
    if address is not None:
        reach(address)
    for name, value in {**SETTINGS, "RAY_task_oom_retries": str(retries)}.items():  # read when ray is imported
        os.environ.setdefault(name, value)
    if address is not None:
        _rehearse(address)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():
        return False
    # Ray prints on stdout that a worker died, whatever `log_to_driver` says; that is a job's retry or its failure.
    ray._private.worker._worker_logs_enabled = False
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    where: dict[str, Any] = {"address": address}
    if address is None:
        where = {"address": "local", "num_cpus": jobs, "include_dashboard": False}
    try:
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": variables})
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise BadInput(f"--engine ray{f':{address}' if address else ''}: {failure_line(error)}") from error
    return True


def reach(address: str) -> None:
    """Raise BadInput unless the address is one and something listens there."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or "/" in host:
        raise BadInput(f"--engine ray:{address}: allowed: ray, ray:auto, ray:HOST:PORT (as `ray start --head` says it)")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH).close()
    except OSError as error:
        raise BadInput(f"--engine ray:{address}: nothing answers there ({error.strerror or error}); is the cluster up? "
                       "`ray start --head` starts one") from None


def _rehearse(address: str) -> None:
    """Raise BadInput unless a process can connect to the cluster from here in good time."""
    try:
        tried = subprocess.run([sys.executable, "-c", CONNECTS, address], capture_output=True, text=True, check=False,
                               stdin=subprocess.DEVNULL, timeout=CONNECT)
        said, noise = tried.stdout.strip(), tried.stderr
        if tried.returncode == 0:
            return
    except subprocess.TimeoutExpired as error:
        said, noise = f"no Ray cluster of ours answers there within {CONNECT:.0f} s", str(error.stderr or "")
    if "Unauthenticated" in noise:
        said = "the cluster wants its token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN if it is not in ~/.ray"
    raise BadInput(f"--engine ray:{address}: {said or 'Ray ended while it connected'}")


def _alive_nodes() -> list[dict[str, Any]]:
    import ray

    nodes: Any = ray.nodes
    return [node for node in nodes() if node["Alive"]]


def _slots(nodes: Sequence[Mapping[str, Any]], jobs: int | None, gpus_per_job: float) -> int:
    """How many jobs the cluster does at once, `jobs` at most."""
    def total(kind: str) -> float:
        return float(sum(node["Resources"].get(kind, 0.0) for node in nodes))

    slots = max(1, int(total("CPU")))
    if gpus_per_job:
        largest = max(node["Resources"].get("GPU", 0.0) for node in nodes)
        if largest < gpus_per_job:
            raise BadInput(f"--engine ray: no node has the {gpus_per_job:g} GPUs that a job asks for; the largest has "
                           f"{largest:g}")
        slots = min(slots, int(total("GPU") / gpus_per_job))
    return slots if jobs is None else min(slots, jobs)


def _look(nodes: Sequence[Mapping[str, Any]], folders: Sequence[Path], *, probe: bool) -> bool:
    """Whether every node reads what is written into the folders here; without `probe` only whether nodes are fit."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with _tokens(folders if probe else ()) as tokens:
        task: Any = ray.remote(num_cpus=0, max_retries=1)(_look_on_node)
        looking = {node["NodeID"]: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(
            node["NodeID"], soft=False)).remote(tokens) for node in nodes}
        shared = True
        for node in nodes:
            who = f"--engine ray: node {node['NodeManagerAddress']}"
            try:
                version, seen = ray.get(looking[node["NodeID"]], timeout=LOOK)
            except ray.exceptions.GetTimeoutError:
                raise BadInput(f"{who} has not started a worker in {LOOK:.0f} s") from None
            except ray.exceptions.RayError as error:
                raise BadInput(f"{who} cannot do tlkd's work: {_cluster_failure(error)}") from None
            if version != __version__:
                raise BadInput(f"{who} has tlkd {version}, and this machine {__version__}; install the same")
            shared = shared and seen
        return shared


@contextmanager
def _tokens(folders: Sequence[Path]) -> Iterator[dict[str, str]]:
    """A new file in each folder for as long as this lasts: its path and what stands in it."""
    tokens: dict[str, str] = {}
    try:
        for folder in folders:
            with guard_disk(folder):
                folder.mkdir(parents=True, exist_ok=True)
                path, token = folder.absolute() / f".seen-{uuid.uuid4().hex}", uuid.uuid4().hex
                path.write_text(token)
            tokens[str(path)] = token
        yield tokens
    finally:
        for written in tokens:
            Path(written).unlink(missing_ok=True)


def _cluster_failure(error: BaseException) -> str:
    """What Ray has to say of a job that it lost, on one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return failure_line(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # None of the job's own doing, as the reason's first words tell: the next start tries it again.
    return f"its worker was killed or lost ({type(error).__name__}: {lines[0] if lines else 'no more is known'})"


# --- on a node --------------------------------------------------------------------------------------------------------


_unpacked: set[str] = set()  # the results that this process has unpacked, by the hex of their reference


def _look_on_node(tokens: Mapping[str, str]) -> tuple[str, bool]:
    """The version of tlkd here, and whether the files are here with their tokens in them."""
    def reads(path: str, token: str) -> bool:
        with suppress(OSError):
            return Path(path).read_text() == token
        return False

    return __version__, all(reads(path, token) for path, token in tokens.items())


def _work_on_node(order: _Order, needed: Sequence[Any]) -> tuple[tuple[bytes, str], bytes]:
    """Do one job: the pickled Outcome or BadInput, the log if it failed, and what it published if that must travel."""
    import ray

    sys.path.extend(folder for folder in order.path if folder not in sys.path)
    published = b""

    def work(_: Any, job: str) -> Outcome:
        nonlocal published
        does, context = unpickle(order.work, order.context)
        if order.carrier is None:
            return does(context, job)
        carrier: Carrier = pickle.loads(order.carrier)
        context = carrier.context_for(context)
        for reference in needed:
            if reference.hex() not in _unpacked:
                carrier.unpack(context, ray.get(reference))
                _unpacked.add(reference.hex())
        outcome = does(context, job)
        if not outcome.failure and not outcome.busy:
            published = carrier.pack(context, job)
        return outcome

    with tempfile.TemporaryDirectory(prefix="tlkd-") as folder:
        log = log_path(Path(folder), order.job)
        answer = logged(work, None, order.job, log)
        return (answer, log.read_text(errors="replace")[-LOG_LIMIT:] if log.exists() else ""), published


# --- folders as bytes -------------------------------------------------------------------------------------------------


def pack_folders(root: Path, folders: Sequence[str]) -> bytes:
    """Folders below `root`, with all files in them, as one tar archive in memory."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        listing = json.dumps([_below(folder).as_posix() for folder in folders]).encode()
        header = tarfile.TarInfo(LISTING)
        header.size = len(listing)
        archive.addfile(header, io.BytesIO(listing))
        for folder in folders:
            archive.add(root / folder, arcname=_below(folder).as_posix())
    return packed.getvalue()


def unpack_folders(root: Path, packed: bytes) -> None:
    """Put packed folders below `root`, each by one rename; one that is there stays as it is.

    Raises ValueError for a path that would leave its folder, and for anything but files and folders.
    """
    with guard_disk(root), tarfile.open(fileobj=io.BytesIO(packed), mode="r") as archive:
        listing, *members = archive.getmembers()
        if listing.name != LISTING:
            raise ValueError("these bytes were not made by pack_folders")
        folders = [_below(name) for name in json.loads(_content(archive, listing))]
        contents = [(_below(member.name), member) for member in members]
        for path, member in contents:  # all is looked at before anything is written
            if not (member.isfile() or member.isdir()) or not any(map(path.is_relative_to, folders)):
                raise ValueError(f"{member.name!r} is no file or folder of {', '.join(map(str, folders))}")
        for folder in folders:
            if not (root / folder).exists():
                _put(archive, [(path.relative_to(folder), member) for path, member in contents
                               if path.is_relative_to(folder)], root / folder)


def _put(archive: tarfile.TarFile, contents: Sequence[tuple[PurePosixPath, tarfile.TarInfo]], final: Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    # Named as the store names what is being written, so that it is swept away after a process that was killed.
    temporary = final.with_name(f".{final.name}.tmp-{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir()
        for path, member in contents:
            if member.isdir():
                (temporary / path).mkdir(parents=True, exist_ok=True)
            else:
                (temporary / path).parent.mkdir(parents=True, exist_ok=True)
                (temporary / path).write_bytes(_content(archive, member))
        temporary.rename(final)
    except OSError:
        if not final.exists():  # nobody was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise ValueError(f"{member.name!r} is no file")
    return file.read()


def _below(name: str) -> PurePosixPath:
    """A path that stays below where it starts."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{name!r} is not a path below the folder that it is packed for")
    return path
