"""Real servers for tests: each in its own directory, on loopback or a Unix socket, ended by its own process."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg

from tests import parts


def free_port() -> int:
    """A loopback port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> None:
    """Raises `OSError` where nobody listens."""
    socket.create_connection(("127.0.0.1", port), timeout=1).close()


def wait_for(ask: Callable[[], None], process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Wait until `ask` no longer raises; a process that ended, or the end of the time, is a failure."""
    deadline = time.monotonic() + seconds
    while True:
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        try:
            return ask()
        except (OSError, psycopg.OperationalError):
            assert time.monotonic() < deadline, f"{process.args} did not answer within {seconds} s"
            time.sleep(0.05)


def bound() -> list[str]:
    """What to put before a server's command so that it ends with the tests, also where those are killed."""
    return ["setpriv", "--pdeathsig", "INT"] if shutil.which("setpriv") else []


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End the process at the end: SIGINT, on which PostgreSQL does not wait for its clients."""
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(15)


@contextlib.contextmanager
def redis_server(directory: Path) -> Iterator[str]:
    """Debian's Redis with AOF and noeviction; gives its URL."""
    port = free_port()
    directory.mkdir(parents=True, exist_ok=True)
    argv = [*bound(), parts.require_redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)]
    argv += ["--appendonly", "yes", "--maxmemory-policy", "noeviction", "--save", ""]
    with ended(subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)) as process:
        wait_for(lambda: answers(port), process)
        yield f"redis://127.0.0.1:{port}/0"


def as_postgres() -> list[str]:
    """As `bound`, for PostgreSQL, which root may not run: by one call, for a second one that changes the user would undo the
    first one's promise to end it."""
    if os.geteuid() != 0:
        return bound()
    return [*(bound() or ["setpriv"]), "--reuid=postgres", "--regid=postgres", "--init-groups"]


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """A PostgreSQL of its own; gives the URL of its `postgres` database."""
    programs = parts.require_postgres()
    directory = Path(f"/tmp/ha-pg-{uuid.uuid4().hex[:8]}")
    directory.mkdir(mode=0o700)
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    as_user = as_postgres()
    if os.geteuid() == 0:
        shutil.chown(directory, "postgres", "postgres")
    port, data = free_port(), directory / "data"
    try:
        init = [*as_user, str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", user, "--no-sync"]
        init += ["-E", "UTF8", "--locale=C"]  # a bare machine's own locale would make SQL_ASCII of it
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL, timeout=120, cwd="/")
        argv = [*as_user, str(programs / "postgres"), "-D", str(data), "-p", str(port), "-k", str(directory)]
        argv += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        log = (directory / "log").open("wb")
        with log, ended(subprocess.Popen(argv, stdout=log, stderr=log, cwd="/")) as process:
            url = f"postgresql://{user}@127.0.0.1:{port}/postgres"
            wait_for(lambda: psycopg.connect(url, connect_timeout=5).close(), process)  # it listens before it answers
            yield url
    finally:
        shutil.rmtree(directory, ignore_errors=True)
