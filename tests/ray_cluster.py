"""A real Ray cluster of two nodes on this machine, for tests: two `ray start` processes with all that they start."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

# A token of its own: Ray listens on all interfaces. Must be in the environment before a process imports ray.
ENVIRONMENT = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(16).hex(), "RAY_USAGE_STATS_ENABLED": "0"}
PORTS = ("node-manager-port", "object-manager-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
         "metrics-export-port", "runtime-env-agent-port")


def free_ports(count):
    """Port numbers that nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def session(number):
    """The living processes of a session, as /proc tells it."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == number and state != "Z":
            found.append(int(stat.parent.name))
    return found


def kill_session(number):
    """End every process of a session that a test has started."""
    for process in session(number):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@contextmanager
def node(folder, name, *options):
    """One node, until this ends: `ray start` stays in the foreground, and all that it starts is in its session."""
    chosen = [f"--{option}={port}" for option, port in zip(PORTS, free_ports(len(PORTS)), strict=True)]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address=127.0.0.1",
               "--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000", "--min-worker-port=0",
               "--max-worker-port=0", *chosen, *options]
    with (folder / f"{name}.log").open("w") as log, subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, cwd=folder,
            env={**os.environ, **ENVIRONMENT}) as process:
        try:
            yield process
        finally:
            while session(process.pid):
                kill_session(process.pid)
                time.sleep(0.05)


@contextmanager
def two_nodes():
    """The address of a cluster with two nodes of one CPU each; the processes that use it need `ENVIRONMENT`."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: its sockets' paths must fit into 107 bytes
    port, = free_ports(1)
    address = f"127.0.0.1:{port}"
    try:
        with node(folder, "head", "--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}/t"):
            await_nodes(address, 1, folder)
            with node(folder, "second", f"--address={address}"):
                await_nodes(address, 2, folder)
                yield address
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def await_nodes(address, count, folder):
    """Wait until so many nodes are there; another process asks, so that this one has not yet met Ray."""
    script = ("import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); "
              "sys.exit(sum(node['Alive'] for node in ray.nodes()) != int(sys.argv[2]))")
    until = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(address.split(":"), 1).close()
            subprocess.run([sys.executable, "-c", script, address, str(count)], check=True, capture_output=True,
                           timeout=20, env={**os.environ, **ENVIRONMENT})
            return
        except (OSError, subprocess.SubprocessError) as error:
            if time.monotonic() > until:
                logs = "\n".join(path.read_text() for path in folder.glob("*.log"))
                raise RuntimeError(f"the Ray cluster did not start: {error}\n{logs}") from error
            time.sleep(0.3)
