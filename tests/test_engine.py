"""Jobs in order, worker processes that may die, Ctrl-C, and what is left in the logs."""

import ctypes
import os
import pty
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from tlkd import engine, progress, workers
from tlkd.engine import Inline, Job, Outcome, draft_path, log_path, run_all
from tlkd.errors import BadInput, RunFailed
from tlkd.workers import Local

HERE = Path(__file__).parent
QUIET = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "TTY_COMPATIBLE")}


@dataclass(frozen=True)
class Context:
    folder: Path


def wait_for(condition, seconds=10.0):
    """Whether the condition came true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def die(number):
    os.kill(os.getpid(), number)
    time.sleep(60)


def shout():
    """Print in every way in which a process can."""
    print("python's stdout")
    print("python's stderr", file=sys.stderr)
    warnings.warn("a warning", stacklevel=1)
    os.write(1, b"the descriptor itself\n")
    libc = ctypes.CDLL(None)
    libc.printf(b"a native library\n")
    subprocess.run(["echo", "a child process"], check=True)


def raise_it(error):
    raise error


def meet(folder, mine, other):
    """True when the job of the other name is running at the same time."""
    (folder / mine).touch()
    return wait_for((folder / other).exists)


def report_bars():
    with progress.bar("epochs", 3) as advance:
        for _ in range(3):
            time.sleep(progress.NEWS_EVERY + 0.05)
            advance()


ACTS = {
    "pid": lambda folder: os.getpid(),
    "kill": lambda folder: die(signal.SIGKILL),
    "segfault": lambda folder: ctypes.string_at(0),
    "exit-0": lambda folder: os._exit(0),
    "exit-3": lambda folder: os._exit(3),
    "leave": lambda folder: sys.exit("gone"),
    "shout": lambda folder: shout(),
    "shout-raise": lambda folder: (shout(), raise_it(ValueError("two\n lines"))),
    "shout-kill": lambda folder: (shout(), die(signal.SIGKILL)),
    "run-failed": lambda folder: raise_it(RunFailed("the loss is NaN in epoch 3")),
    "full": lambda folder: raise_it(BadInput("the disk is full")),
    "lambda": lambda folder: lambda: None,
    "sleep": lambda folder: ((folder / f"asleep-{os.getpid()}").touch(), time.sleep(60)),
    "await-sleep": lambda folder: wait_for(lambda: any(folder.glob("asleep-*"))),
    "left": lambda folder: meet(folder, "left-here", "right-here"),
    "right": lambda folder: meet(folder, "right-here", "left-here"),
    "gpu": lambda folder: (meet(folder, f"gpu-{os.getpid()}", "all-here"), os.environ.get("CUDA_VISIBLE_DEVICES"))[1],
    "say": lambda folder: progress.say("a line for the person [red] :key:"),
    "say-much": lambda folder: [progress.say(f"{number} " + "é" * 9000) for number in range(200)],
    "bars": lambda folder: report_bars(),
    "input": lambda folder: sys.stdin.read(),
}


def work(context, job):
    """Do what the first word of the job's name says."""
    return Outcome(job, ACTS[job.split()[0]](context.folder))


def run(jobs, executor):
    """All outcomes by name, in the order in which they came."""
    outcomes = {}
    try:
        run_all(jobs, executor, lambda outcome: outcomes.__setitem__(outcome.job, outcome))
    finally:
        executor.close()
    return outcomes


@pytest.fixture
def local(tmp_path):
    """A maker of worker pools that are all closed in the end."""
    made = []

    def make(jobs=2, does=work, **options):
        made.append(Local(does, Context(tmp_path), jobs, tmp_path / "logs", **options))
        return made[-1]

    yield make
    for executor in made:
        executor.close(now=True)


def logs(tmp_path):
    return sorted(path.name for path in (tmp_path / "logs").glob("*")) if (tmp_path / "logs").exists() else []


# --- order ------------------------------------------------------------------------------------------------------------


class Threads:
    """An executor that notes how much was in flight."""

    def __init__(self, does, slots=2):
        self.slots, self.does = slots, does
        self.started, self.flying, self.most, self.closed = [], 0, 0, []
        self.pool = ThreadPoolExecutor(8)

    def submit(self, job):
        self.started.append(job.name)
        self.flying += 1
        self.most = max(self.most, self.flying)
        future = self.pool.submit(self.does, job.name)
        future.add_done_callback(lambda _: setattr(self, "flying", self.flying - 1))
        return future

    def close(self, *, now=False):
        self.closed.append(now)


def test_jobs_start_in_the_order_given_as_soon_as_their_needs_are_over():
    jobs = [Job("run b", ("bank",)), Job("run a", ("bank",)), Job("bank", ("teacher",)), Job("other"), Job("teacher")]
    executor = Threads(lambda name: Outcome(name, name.upper()), slots=1)
    seen = []
    run_all(jobs, executor, lambda outcome: seen.append((outcome.job, outcome.value)))
    assert executor.started == ["other", "teacher", "bank", "run b", "run a"]
    assert seen == [(name, name.upper()) for name in executor.started]
    assert executor.closed == []


def test_the_slots_are_full_and_no_fuller():
    executor = Threads(lambda name: (time.sleep(0.02), Outcome(name))[1], slots=3)
    run_all([Job(str(number)) for number in range(12)], executor, lambda outcome: None)
    assert executor.most == 3


def test_a_job_whose_need_failed_still_runs():
    def does(name):
        return Outcome(name, failure="no" if name == "teacher" else "")

    seen = []
    run_all([Job("run", ("teacher",)), Job("teacher")], Threads(does), seen.append)
    assert [(outcome.job, outcome.failure) for outcome in seen] == [("teacher", "no"), ("run", "")]


def test_a_busy_job_goes_behind_the_others_and_is_tried_again(monkeypatch):
    monkeypatch.setattr(engine, "BACK_OFF", 0.2)
    tries = []

    def does(name):
        tries.append((name, time.monotonic()))
        busy = name == "busy" and sum(tried == "busy" for tried, _ in tries) < 4
        return Outcome(name, busy=busy)

    seen = []
    run_all([Job("busy"), Job("a"), Job("b"), Job("after", ("busy",))], Threads(does, slots=1), seen.append)
    assert [name for name, _ in tries] == ["busy", "a", "b", "busy", "busy", "busy", "after"]
    times = [when for name, when in tries if name == "busy"]
    assert all(later - earlier >= 0.19 for earlier, later in pairwise(times))
    assert [outcome.job for outcome in seen] == ["a", "b", "busy", "after"] and not any(each.busy for each in seen)


def test_two_drivers_in_one_folder_share_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "BACK_OFF", 0.05)
    did = []

    def does(name):
        done, lock = tmp_path / name, tmp_path / f"{name}.lock"
        if done.exists():
            return Outcome(name, "there")
        try:
            lock.touch(exist_ok=False)
        except FileExistsError:
            return Outcome(name, busy=True)
        time.sleep(0.05)
        done.touch()
        did.append(name)
        return Outcome(name, "made")

    jobs = [Job(str(number)) for number in range(8)]
    with ThreadPoolExecutor(2) as drivers:
        found = [[], []]
        for each in found:
            drivers.submit(run_all, jobs, Threads(does, slots=1), each.append)
    assert sorted(did) == sorted(job.name for job in jobs)
    assert all(sorted(outcome.job for outcome in each) == sorted(did) for each in found)


@pytest.mark.parametrize(("jobs", "said"), [
    ([Job("a"), Job("a")], "two jobs are called 'a'"),
    ([Job("a", ("b",))], "'a' needs 'b', and no job is called so"),
    ([Job("a", ("b",)), Job("b", ("c",)), Job("c", ("b",))], "need each other"),
    ([Job("a", ("a",))], "need each other"),
])
def test_what_cannot_be_ordered_is_an_error_before_anything_runs(jobs, said):
    executor = Threads(Outcome)
    with pytest.raises(ValueError, match=said):
        run_all(jobs, executor, lambda outcome: None)
    assert executor.started == []


def test_no_jobs_are_no_trouble():
    run_all([], Threads(Outcome), lambda outcome: None)


@pytest.mark.parametrize("error", [BadInput("the disk is full"), KeyboardInterrupt(), ZeroDivisionError()])
def test_an_error_of_the_driver_closes_the_executor(error):
    executor = Threads(Outcome)
    with pytest.raises(type(error)):
        run_all([Job("a")], executor, lambda outcome: raise_it(error))
    assert executor.closed == [True]


def test_what_an_executor_raises_is_a_failure_of_that_job():
    def does(name):
        return raise_it(OSError("node\nlost")) if name == "a" else Outcome(name)

    seen = []
    run_all([Job("a"), Job("b")], Threads(does, slots=1), seen.append)
    assert [(outcome.job, outcome.failure) for outcome in seen] == [("a", "OSError: node lost"), ("b", "")]


# --- in this process --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:a warning")
def test_inline_works_here_and_keeps_the_traceback(tmp_path):
    jobs = [Job("pid"), Job("shout-raise"), Job("run-failed", ("shout-raise",))]
    found = run(jobs, Inline(work, Context(tmp_path), tmp_path / "logs"))
    assert list(found) == [job.name for job in jobs]
    assert found["pid"].value == os.getpid()
    assert found["shout-raise"].failure == "ValueError: two lines"
    assert found["run-failed"].failure == "the loss is NaN in epoch 3"
    assert logs(tmp_path) == ["run-failed.log", "shout-raise.log"]
    assert "in raise_it" in log_path(tmp_path / "logs", "shout-raise").read_text()
    run([Job("shout-raise")], Inline(lambda context, job: Outcome(job), None, tmp_path / "logs"))
    assert logs(tmp_path) == ["run-failed.log"]


def test_inline_lets_bad_input_out(tmp_path):
    with pytest.raises(BadInput, match="the disk is full"):
        run([Job("full"), Job("pid")], Inline(work, Context(tmp_path)))


# --- worker processes -------------------------------------------------------------------------------------------------


def test_workers_work_at_the_same_time_elsewhere(local, tmp_path):
    found = run([Job("left"), Job("right"), Job("pid", ("left", "right"))], local())
    assert found["left"].value and found["right"].value
    assert found["pid"].value != os.getpid()
    assert logs(tmp_path) == []


def test_a_worker_that_dies_fails_its_job_alone(local, tmp_path):
    names = ["pid 1", "kill", "pid 2", "exit-0", "exit-3", "segfault", "leave", "lambda", "pid 3", "pid 4"]
    found = run([Job(name) for name in names], local())
    failures = {name: outcome.failure for name, outcome in found.items() if outcome.failure}
    unsent = failures.pop("lambda")
    assert failures == {
        "kill": "its worker was killed by signal 9 (SIGKILL), as the kernel does where memory runs out",
        "exit-0": "its worker ended with exit code 0 in the middle of its job",
        "exit-3": "its worker ended with exit code 3 in the middle of its job",
        "segfault": "its worker was killed by signal 11 (SIGSEGV)",
        "leave": "SystemExit: gone",
    }
    assert unsent.startswith("its value cannot be sent to the driver: ")
    assert len(found) == len(names)
    assert logs(tmp_path) == sorted(f"{name}.log" for name in [*failures, "lambda"])
    assert "Segmentation fault" in log_path(tmp_path / "logs", "segfault").read_text()


def test_a_worker_that_is_killed_between_two_jobs_is_not_missed(local):
    executor = local(jobs=1)
    first = executor.submit(Job("pid")).result()
    os.kill(first.value, signal.SIGKILL)
    assert wait_for(lambda: not is_running(first.value))
    second = executor.submit(Job("pid")).result()
    assert second.failure == "" and second.value != first.value
    assert executor.submit(Job("pid")).result().value == second.value  # and a worker that lives is used again


def never_serve(*_):
    os._exit(7)


def test_a_worker_that_cannot_start_is_not_started_for_ever(local, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_serve", never_serve)
    found = run([Job("pid 1"), Job("pid 2")], local())
    failure = "its worker ended with exit code 7 in the middle of its job"
    assert {outcome.failure for outcome in found.values()} == {failure}
    assert log_path(tmp_path / "logs", "pid 1").read_text() == failure + "\n"


def test_what_a_failed_job_printed_is_kept(local, tmp_path, capfd):
    found = run([Job("shout"), Job("shout-raise"), Job("shout-kill")], local(jobs=1))
    assert found["shout"].failure == ""
    assert logs(tmp_path) == ["shout-kill.log", "shout-raise.log"]
    raised, killed = ((tmp_path / "logs" / name).read_text() for name in ("shout-raise.log", "shout-kill.log"))
    for text in ("python's stdout", "python's stderr", "the descriptor itself", "a native library", "a child process"):
        assert raised.count(text) == 1
        assert killed.count(text) == 1 or text == "a native library"  # which may hold back what goes to a file
    assert "in raise_it" in raised and raised.endswith("ValueError: two\n lines\n")
    assert killed.endswith("its worker was killed by signal 9 (SIGKILL), as the kernel does where memory runs out\n")
    assert capfd.readouterr() == ("", "")


def test_warnings_go_to_the_log(local, tmp_path):
    run([Job("shout-raise")], local(jobs=1))
    assert "UserWarning: a warning" in (tmp_path / "logs" / "shout-raise.log").read_text()


def test_the_log_of_an_earlier_failure_goes_when_the_job_succeeds(local, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "pid.log").write_text("old")
    run([Job("pid")], local())
    assert logs(tmp_path) == []


def busy_work(context, job):
    print("not mine")
    return Outcome(job, busy=len(list(context.folder.glob("try-*"))) < 2 and not (
        context.folder / f"try-{time.monotonic_ns()}").touch())


def test_a_busy_job_leaves_the_log_of_the_process_that_is_at_it(local, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "BACK_OFF", 0.05)
    executor = local(jobs=1, does=busy_work)
    (tmp_path / "logs").mkdir()
    theirs, ended = draft_path(tmp_path / "logs" / "a-job.log", os.getppid()), tmp_path / "logs" / "a-job.log"
    theirs.write_text("theirs")
    ended.write_text("of an earlier start")
    assert executor.submit(Job("a job")).result().busy
    assert theirs.read_text() == "theirs" and ended.exists() and len(logs(tmp_path)) == 2
    run([Job("a job")], executor)
    assert theirs.read_text() == "theirs" and not ended.exists()


def test_drafts_of_killed_processes_are_swept(local, tmp_path):
    with subprocess.Popen(["true"]) as process:
        pass
    (tmp_path / "logs").mkdir()
    dead, alive = (draft_path(tmp_path / "logs" / "a.log", number) for number in (process.pid, os.getpid()))
    dead.touch()
    alive.touch()
    local()
    assert not dead.exists() and alive.exists()


def test_names_that_lose_something_in_a_file_name_stay_apart():
    paths = [log_path(Path("logs"), name) for name in ("run a/b", "run a:b", "run-a b", "run a-b", "x" * 300)]
    assert len(set(paths[:3])) == 3 and all(len(path.name) < 140 for path in paths)
    assert log_path(Path("logs"), "run tl_kd-clean,0.5-0") != log_path(Path("logs"), "run tl_kd-clean-0.5-0")
    assert log_path(Path("logs"), "run tl_kd-clean-0").name == "run-tl_kd-clean-0.log"


def test_bad_input_comes_out_and_the_others_are_stopped(local, tmp_path):
    started = time.monotonic()
    executor = local(jobs=2)
    with pytest.raises(BadInput, match=r"^the disk is full$"):
        run_all([Job("sleep"), Job("await-sleep"), Job("full", ("await-sleep",))], executor, lambda _: None)
    assert time.monotonic() - started < 20
    sleeper = int(next(tmp_path.glob("asleep-*")).name.partition("-")[2])
    assert not is_running(sleeper)
    assert logs(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "logs").touch()
    executor = Local(work, Context(tmp_path), 1, tmp_path / "logs" / "deeper")
    with pytest.raises(BadInput, match="cannot be written"):
        run([Job("pid")], executor)


@pytest.mark.parametrize(("visible", "given", "expected"), [
    ("4,5,7", None, {"4", "5", "7"}), (None, ["0", "1"], {"0", "1"}), ("3", None, {"3"}), ("", None, {""}),
])
def test_workers_share_the_gpus_out(local, tmp_path, monkeypatch, visible, given, expected):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    count = max(len(expected), 2)
    executor = local(jobs=count, devices=given)
    futures = [executor.submit(Job(f"gpu {number}")) for number in range(count)]
    assert wait_for(lambda: len(list(tmp_path.glob("gpu-*"))) == count)
    (tmp_path / "all-here").touch()
    assert {future.result().value for future in futures} == expected
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


def test_a_job_cannot_read_the_terminal(local):
    assert run([Job("input")], local(jobs=1))["input"].value == ""


def test_lines_reach_the_person_and_the_log(local, capfd):
    progress.console.cache_clear()
    run([Job("say")], local(jobs=1))
    assert capfd.readouterr() == ("", "a line for the person [red] :key:\n")


def test_a_worker_never_waits_for_its_listener(local, capfd):
    progress.console.cache_clear()
    assert run([Job("say-much")], local(jobs=1))["say-much"].failure == ""
    said = capfd.readouterr().err.splitlines()
    assert said and all(len(line.encode()) < 4096 and "é" in line for line in said)


DRIVER = """
import sys
from pathlib import Path
from test_engine import Context, work
from tlkd.engine import Job, run_all
from tlkd.workers import Local

def main():
    folder = Path(sys.argv[1])
    executor = Local(work, Context(folder), 2, folder / "logs")
    jobs = [Job(name) for name in sys.argv[2:]]
    try:
        run_all(jobs, executor, lambda outcome: print(outcome.job, outcome.failure, flush=True))
    except KeyboardInterrupt:
        print("stopped")
        sys.exit(130)
    executor.close()

if __name__ == "__main__":
    main()
"""


def start_driver(tmp_path, *jobs, **options):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    return subprocess.Popen([sys.executable, script, tmp_path, *jobs], text=True, start_new_session=True,
                            env={**QUIET, "PYTHONPATH": str(HERE)}, **options)


def session(number):
    """The processes that belong to a session, as /proc tells it."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == number and state != "Z":
            found.append(int(stat.parent.name))
    return found


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")


@needs_proc
def test_ctrl_c_ends_everything_quickly_and_quietly(tmp_path):
    with start_driver(tmp_path, "sleep 1", "sleep 2", "sleep 3", stdout=subprocess.PIPE,
                      stderr=subprocess.PIPE) as driver:
        try:
            assert wait_for(lambda: len(list(tmp_path.glob("asleep-*"))) == 2, 30)
            assert len(session(driver.pid)) >= 3
            pressed = time.monotonic()
            os.killpg(driver.pid, signal.SIGINT)
            out, err = driver.communicate(timeout=20)
            assert time.monotonic() - pressed < 5
            assert wait_for(lambda: session(driver.pid) == [], 2)
        finally:
            kill_session(driver.pid)
    assert (driver.returncode, out, err) == (130, "stopped\n", "")


@needs_proc
def test_ctrl_c_while_workers_start_is_quiet_too(tmp_path):
    for number, delay in enumerate((0.05, 0.2, 0.4)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with start_driver(folder, "sleep 1", "sleep 2", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as driver:
            try:
                assert wait_for(lambda: len(session(driver.pid)) >= 3, 30)
                time.sleep(delay)
                os.killpg(driver.pid, signal.SIGINT)
                out, err = driver.communicate(timeout=20)
            finally:
                kill_session(driver.pid)
        assert (driver.returncode, out, err) == (130, "stopped\n", "")


@needs_proc
def test_workers_end_with_a_driver_that_was_killed(tmp_path):
    with start_driver(tmp_path, "sleep 1", "sleep 2") as driver:
        try:
            assert wait_for(lambda: len(list(tmp_path.glob("asleep-*"))) == 2, 30)
            driver.kill()
            assert wait_for(lambda: session(driver.pid) == [], 3)
        finally:
            kill_session(driver.pid)


def kill_session(number):
    for process in session(number):
        os.kill(process, signal.SIGKILL)


def test_bars_of_workers_are_rows_of_the_driver(tmp_path):
    ours, theirs = pty.openpty()
    shown = b""
    with start_driver(tmp_path, "bars", "say", stdout=subprocess.DEVNULL, stderr=theirs) as driver:
        os.close(theirs)
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux says so when the other side is closed
                break
            if not part:
                break
            shown += part
    os.close(ours)
    assert driver.returncode == 0
    assert b"jobs" in shown and b"bars: epochs" in shown and b"/3" in shown
    assert b"a line for the person [red] :key:" in shown


def test_close_lets_jobs_in_flight_finish(local):
    executor = local(jobs=2)
    future: Future[Outcome] = executor.submit(Job("pid"))
    executor.close()
    assert future.result(timeout=0).failure == ""
    assert wait_for(lambda: not is_running(future.result().value))
    with pytest.raises(RuntimeError):
        executor.submit(Job("pid"))
