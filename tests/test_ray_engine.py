"""The engine on a real Ray cluster of two nodes; and results that travel where nodes share no storage."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ray_cluster import ENVIRONMENT, free_ports, kill_session, session, two_nodes
from tlkd import ray_engine
from tlkd.engine import Job, Outcome, log_path, run_all
from tlkd.errors import BadInput
from tlkd.ray_engine import RayExecutor, pack_folders, unpack_folders

pytestmark = pytest.mark.slow  # real processes that start, die and start again

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Context:
    folder: Path


def here():
    import ray

    return ray.get_runtime_context().get_node_id()


def publish(context, job, text):
    folder = context.folder / "results" / job
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / "text").write_text(text)


def result_of(context, job):
    path = context.folder / "results" / job / "text"
    return path.read_text() if path.exists() else None


def work(context, job):
    """Do what the first word of the job's name says; `see` names the jobs whose results it wants to see."""
    act, *names = job.split()
    if act == "full":
        raise BadInput("the disk is full")
    if act == "fail":
        print("what it printed")
        raise ValueError("two\nlines")
    if act == "sleep":
        (context.folder / f"asleep-{os.getpid()}").touch()
        time.sleep(60)
    if act == "once":  # killed the first time
        mark = context.folder / "killed"
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if act == "always":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "cache":
        return Outcome(job, os.environ.get("TLKD_CACHE"))
    time.sleep(0.3)
    publish(context, job, f"made by {job}")
    return Outcome(job, (here(), os.getpid(), [result_of(context, name) for name in names]))


@dataclass(frozen=True)
class NodeCarrier:
    """Every node has a scratch folder below `scratch`, named after it."""

    scratch: Path

    def context_for(self, context):
        folder = self.scratch / here()
        folder.mkdir(exist_ok=True)
        return replace(context, folder=folder)

    def pack(self, context, job):
        return pack_folders(context.folder, [f"results/{job}"])

    def unpack(self, context, packed):
        unpack_folders(context.folder, packed)


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with two_nodes() as address:
            yield address


@pytest.fixture
def execute(cluster, tmp_path):
    """Run jobs on the cluster; the outcomes by name."""
    def run(*jobs, does=work, **options):
        outcomes = {}
        executor = RayExecutor(does, Context(tmp_path), cluster, log_folder=tmp_path / "logs", **options)
        try:
            run_all([job if isinstance(job, Job) else Job(job) for job in jobs], executor,
                    lambda outcome: outcomes.__setitem__(outcome.job, outcome))
        finally:
            executor.close()
        return outcomes

    return run


# --- on the cluster ---------------------------------------------------------------------------------------------------


def test_jobs_run_on_both_nodes_after_what_they_need(execute, tmp_path, monkeypatch):
    monkeypatch.setenv("TLKD_CACHE", str(tmp_path / "cache"))
    runs = [Job(f"see teacher bank{' ' * number}", ("bank",)) for number in range(1, 7)]
    found = execute(*runs, Job("bank", ("teacher",)), "teacher", "cache", shared_folders=[tmp_path / "new" / "folder"])
    assert all(outcome.failure == "" for outcome in found.values())
    assert list(found)[:2] in (["teacher", "cache"], ["cache", "teacher"]) and list(found)[2] == "bank"
    nodes, processes, seen = zip(*(found[job.name].value for job in runs), strict=True)
    assert len(set(nodes)) == 2 and os.getpid() not in processes
    assert all(each == ["made by teacher", "made by bank"] for each in seen)
    assert len(set(processes)) < len(processes)  # workers are used again, with what they have opened
    assert found["cache"].value == str(tmp_path / "cache")
    assert list((tmp_path / "new" / "folder").iterdir()) == []  # no token is left


def test_a_killed_worker_loses_nothing(execute, tmp_path):
    found = execute("once", "teacher", "other", jobs=2)
    assert (tmp_path / "killed").exists()
    assert all(outcome.failure == "" for outcome in found.values())
    assert found["once"].value[0] and result_of(Context(tmp_path), "once") == "made by once"


def test_a_job_that_kills_every_worker_fails_alone(execute, tmp_path):
    found = execute("always", "teacher", retries=1)
    failure = found["always"].failure
    assert failure.startswith("its worker was killed or lost (WorkerCrashedError: ") and "\n" not in failure
    assert log_path(tmp_path / "logs", "always").read_text() == failure + "\n"
    assert found["teacher"].failure == ""


def test_a_failed_job_leaves_its_log_with_the_driver(execute, tmp_path):
    found = execute("fail", "teacher")
    assert found["fail"].failure == "ValueError: two lines" and found["teacher"].failure == ""
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["fail.log"]
    log = log_path(tmp_path / "logs", "fail").read_text()
    assert log.startswith("what it printed\n") and log.endswith("ValueError: two\nlines\n")
    execute("fail", does=always_well)
    assert list((tmp_path / "logs").iterdir()) == []


def always_well(context, job):
    return Outcome(job)


def test_bad_input_comes_out(execute):
    with pytest.raises(BadInput, match=r"^the disk is full$"):
        execute("teacher", "full", "other")
    import ray

    assert not ray.is_initialized()


def test_a_job_may_ask_for_more_threads_than_any_node_has(execute):
    assert execute(Job("teacher", threads=16), jobs=1)["teacher"].failure == ""


def test_slots_are_the_cpus_of_the_cluster():
    nodes = [{"Resources": resources} for resources in ({"CPU": 4.0, "GPU": 2.0}, {"CPU": 3.0, "GPU": 1.0}, {})]
    assert [ray_engine._slots(nodes, jobs, gpus) for jobs, gpus in ((None, 0), (5, 0), (9, 0), (None, 1), (None, 0.5),
                                                                    (2, 0.5), (None, 0.1))] == [7, 5, 7, 3, 6, 2, 7]
    assert ray_engine._slots([{"Resources": {}}], None, 0) == 1
    with pytest.raises(BadInput, match="no node has the 3 GPUs that a job asks for; the largest has 2"):
        ray_engine._slots(nodes, None, 3)


def test_more_gpus_than_any_node_has_are_bad_input(cluster, tmp_path):
    with pytest.raises(BadInput, match=r"no node has the 0\.5 GPUs"):
        RayExecutor(work, Context(tmp_path), cluster, gpus_per_job=0.5)


# --- without shared storage -------------------------------------------------------------------------------------------


def test_results_travel_where_storage_is_not_shared(execute, tmp_path):
    (tmp_path / "scratch").mkdir()
    publish(Context(tmp_path), "earlier", "made before")
    runs = [Job(f"see teacher bank earlier other{' ' * number}", ("bank",)) for number in range(1, 7)]
    found = execute(*runs, Job("bank", ("teacher", "fail")), "teacher", "fail", "other", shared=False,
                    carrier=NodeCarrier(tmp_path / "scratch"), held=["earlier"])
    assert [name for name, outcome in found.items() if outcome.failure] == ["fail"]
    nodes = {found[job.name].value[0] for job in runs}
    assert len(nodes) == 2 and {path.name for path in (tmp_path / "scratch").iterdir()} == nodes
    for job in runs:  # "other" is nobody's need: it is seen where it was made
        *seen, other = found[job.name].value[2]
        assert seen == ["made by teacher", "made by bank", "made before"]
        assert other == ("made by other" if found[job.name].value[0] == found["other"].value[0] else None)
    for name in (*(job.name for job in runs), "bank", "teacher", "other"):
        assert result_of(Context(tmp_path), name) == f"made by {name}"


OWN = Path("/proc/self/cwd")  # one path, and another folder for every process that stands elsewhere


@pytest.mark.skipif(not OWN.exists(), reason="needs /proc")
def test_the_probe_finds_out_that_storage_is_not_shared(execute, cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(BadInput, match=r"not every node sees /proc/self/cwd/study; choose an --out"):
        RayExecutor(work, Context(tmp_path), cluster, shared_folders=[OWN / "study"])
    found = execute(Job("see teacher", ("teacher",)), "teacher", shared_folders=[OWN / "study"],
                    carrier=NodeCarrier(tmp_path / "scratch"))
    assert found["see teacher"].value[2] == ["made by teacher"]
    assert list((tmp_path / "scratch").iterdir())


# --- what cannot work -------------------------------------------------------------------------------------------------


def test_an_unreachable_cluster_is_bad_input_at_once(tmp_path):
    port, = free_ports(1)
    started = time.monotonic()
    with pytest.raises(BadInput, match=rf"--engine ray:127.0.0.1:{port}: nothing answers there \(Connection refused\)"):
        RayExecutor(work, Context(tmp_path), f"127.0.0.1:{port}")
    assert time.monotonic() - started < 5


def test_what_listens_there_but_is_no_cluster_is_bad_input(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "CONNECT", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()
        with pytest.raises(BadInput, match="no Ray cluster of ours answers there within 2 s"):
            RayExecutor(work, Context(tmp_path), f"127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - started < 10


def test_a_cluster_with_another_token_is_bad_input(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "CONNECT", 5.0)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    with pytest.raises(BadInput, match="wants its token; set RAY_AUTH_MODE=token"):
        RayExecutor(work, Context(tmp_path), cluster)


def test_auto_without_a_cluster_is_bad_input(tmp_path, monkeypatch):
    port, = free_ports(1)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setattr(ray_engine, "CONNECT", 2.0)
    with pytest.raises(BadInput, match=r"^--engine ray:auto: "):
        RayExecutor(work, Context(tmp_path), "auto")


@pytest.mark.parametrize("address", ["", "here", "host:", ":6379", "host:port", "ray://host:10001", "host:0",
                                     "host:99999"])
def test_what_is_no_address_is_bad_input(tmp_path, address):
    with pytest.raises(BadInput, match="allowed: ray, ray:auto, ray:HOST:PORT"):
        RayExecutor(work, Context(tmp_path), address)


def test_without_ray_there_is_a_way_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'tlkd\[ray\]'"):
        RayExecutor(work, Context(tmp_path))


# --- drivers of their own ---------------------------------------------------------------------------------------------

DRIVER = """
import sys
from pathlib import Path
from test_ray_engine import Context, work
from tlkd.engine import Job, run_all
from tlkd.ray_engine import RayExecutor

folder, address, *jobs = sys.argv[1:]
executor = RayExecutor(work, Context(Path(folder)), address if address != "local" else None, jobs=2, retries=1)
print("slots", executor.slots)
try:
    run_all([Job(name) for name in jobs], executor, lambda outcome: print(outcome.job, outcome.failure[:18]))
except KeyboardInterrupt:
    print("stopped")
    sys.exit(130)
executor.close()
print("closed")
"""


def start_driver(folder, address, *jobs, **variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen([sys.executable, "-c", DRIVER, folder, address, *jobs], text=True, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**kept, "PYTHONPATH": str(HERE), **variables})


def test_ray_says_nothing_on_our_terminal(cluster, tmp_path):
    with start_driver(tmp_path, cluster, "once", "always", **ENVIRONMENT) as driver:
        out, err = driver.communicate(timeout=90)
    assert err == "" and driver.returncode == 0
    assert sorted(out.splitlines()) == ["always its worker was kil", "closed", "once ", "slots 2"]


def test_a_local_ray_comes_and_goes_quietly(tmp_path):
    with start_driver(tmp_path, "local", "once", "teacher", HOME=str(tmp_path)) as driver:
        try:
            out, err = driver.communicate(timeout=90)
            assert wait_for(lambda: session(driver.pid) == [])
        finally:
            kill_session(driver.pid)
    assert err == "" and driver.returncode == 0
    assert sorted(out.splitlines()) == ["closed", "once ", "slots 2", "teacher "]


def wait_for(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def test_ctrl_c_ends_the_jobs_on_the_cluster_too(cluster, tmp_path):
    with start_driver(tmp_path, cluster, "sleep 1", "sleep 2", **ENVIRONMENT) as driver:
        try:
            assert wait_for(lambda: len(list(tmp_path.glob("asleep-*"))) == 2, 60)
            pressed = time.monotonic()
            os.killpg(driver.pid, signal.SIGINT)
            out, err = driver.communicate(timeout=30)
            assert time.monotonic() - pressed < 10
        finally:
            kill_session(driver.pid)
    assert (driver.returncode, out, err) == (130, "slots 2\nstopped\n", "")
    workers = [path.name.partition("-")[2] for path in tmp_path.glob("asleep-*")]
    assert wait_for(lambda: not any(b"asleep" in cmdline(number) or is_running(number) for number in workers))


def cmdline(number):
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return b""


def is_running(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- folders as bytes -------------------------------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path):
    for name in ("a/b/deep/file", "a/b/empty-folder/", "c/file"):
        path = tmp_path / "source" / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(name.encode())
    return pack_folders(tmp_path / "source", ["a/b", "c"])


def tree(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
            for path in sorted(root.rglob("*"))}


def test_folders_come_out_as_they_went_in(packed, tmp_path):
    unpack_folders(tmp_path / "target", packed)
    assert tree(tmp_path / "target") == tree(tmp_path / "source")
    unpack_folders(tmp_path / "target", packed)  # a second time nothing happens
    assert tree(tmp_path / "target") == tree(tmp_path / "source")


def test_a_folder_that_is_there_is_left(packed, tmp_path):
    (tmp_path / "target" / "c").mkdir(parents=True)
    unpack_folders(tmp_path / "target", packed)
    assert tree(tmp_path / "target")["c"] is None and "c/file" not in tree(tmp_path / "target")
    assert (tmp_path / "target" / "a/b/deep/file").exists()


def test_a_folder_appears_whole_or_not_at_all(packed, tmp_path, monkeypatch):
    def no_rename(self, target):
        raise OSError("no")

    monkeypatch.setattr(Path, "rename", no_rename)
    with pytest.raises(OSError, match="no"):
        unpack_folders(tmp_path / "target", packed)
    assert list(tree(tmp_path / "target")) == ["a"]


def test_many_may_unpack_the_same_at_once(packed, tmp_path):
    threads = [threading.Thread(target=unpack_folders, args=(tmp_path / "target", packed)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tree(tmp_path / "target") == tree(tmp_path / "source")


def archive(*members, folders=("a",)):
    """An archive that somebody else has made: pairs of name and kind."""
    made = io.BytesIO()
    listing = json.dumps(list(folders)).encode()
    with tarfile.open(fileobj=made, mode="w") as file:
        header = tarfile.TarInfo(ray_engine.LISTING)
        header.size = len(listing)
        file.addfile(header, io.BytesIO(listing))
        for name, kind in members:
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "/etc/passwd"
            file.addfile(header)
    return made.getvalue()


@pytest.mark.parametrize("bad", [
    archive(("a/x", tarfile.REGTYPE), ("/tmp/x", tarfile.REGTYPE)),
    archive(("a/../../x", tarfile.REGTYPE)),
    archive(("a/x", tarfile.SYMTYPE)),
    archive(("a/x", tarfile.LNKTYPE)),
    archive(("a/x", tarfile.FIFOTYPE)),
    archive(("b/x", tarfile.REGTYPE)),
    archive(("ab/x", tarfile.REGTYPE)),
    archive(folders=["/tmp"]),
    archive(folders=["a/../.."]),
    archive(folders=[""]),
    archive(folders=["."]),
])
def test_nothing_gets_out_of_its_folder(bad, tmp_path):
    with pytest.raises(ValueError, match=r"is not a path below|is no file or folder of"):
        unpack_folders(tmp_path / "target", bad)
    assert not (tmp_path / "target").exists()


def test_other_archives_are_refused(tmp_path):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as file:
        file.addfile(tarfile.TarInfo("a"))
    with pytest.raises(ValueError, match="not made by pack_folders"):
        unpack_folders(tmp_path, made.getvalue())
    with pytest.raises(ValueError, match="is not a path below"):
        pack_folders(tmp_path, ["../elsewhere"])
