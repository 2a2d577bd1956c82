"""What chaos happens to: a Redis, a database, a gateway and workers of our own, each of which can be ended and started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import psycopg
import redis

from hyperagent_common import db
from hyperagent_tasks.gitgate.importing import QUARANTINE
from hyperagent_tasks.runners import leftovers
from tests import parts, servers
from tests.chaos.engine import Engine
from tests.chaos.server import Server

LEASE = 3.0
MEMORY, ROOM = Path("/dev/shm"), 2 << 30
"""What is killed here is processes, not the machine: nothing has to wait for a disk."""
WORKERS = ("one", "two")
CONTROLS = ("control", "control2")


class Rig:
    """Everything one run of chaos needs, below one directory, ended by itself."""

    def __init__(self, *, seed: int, without: tuple[str, ...] = (), sandbox: str = "process", kill: float, stop: float) -> None:
        self.without = without
        self.root = (MEMORY if sandbox == "process" and _roomy(MEMORY) else Path("/tmp")) / f"ha-chaos-{uuid.uuid4().hex[:6]}"
        self.home = self.root / "home"
        (self.home / "run").mkdir(parents=True, mode=0o700)
        self.pg_port, self.redis_port = servers.free_port(), servers.free_port()
        self.broker = f"redis://127.0.0.1:{self.redis_port}/0"
        self.database = self._database()
        self.url = f"postgresql://postgres@127.0.0.1:{self.pg_port}/postgres"
        redis_argv = [
            parts.require_redis_server(),
            "--port",
            str(self.redis_port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.root),
        ]
        redis_argv += ["--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction", "--save", ""]
        self.redis = Server(redis_argv, self.root / "redis.log")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HYPERAGENT_", "WORKFLOW_AGENT_"))}
        settings = {
            "HYPERAGENT_HOME": self.home, "HYPERAGENT_DATABASE_URL": self.url, "HYPERAGENT_BROKER_URL": self.broker,
            "WORKFLOW_AGENT_PROVIDER": "null", "HYPERAGENT_VERIFY": "off", "WORKFLOW_AGENT_MAX_ROUNDS": 1,
            "HYPERAGENT_SANDBOX": sandbox, "HYPERAGENT_FORGE": "stand-in",
            "HYPERAGENT_LEASE_SECONDS": LEASE, "HYPERAGENT_HEARTBEAT_SECONDS": 0.8, "HYPERAGENT_RECONCILE_SECONDS": 1,
            "HYPERAGENT_REQUEUE_AFTER": 3, "HYPERAGENT_RETRY_BACKOFF": 1, "HYPERAGENT_RETRY_BACKOFF_MAX": 2,
            "HYPERAGENT_MAX_ATTEMPTS": 100, "HYPERAGENT_VISIBILITY_TIMEOUT": 4, "HYPERAGENT_DRAIN_SECONDS": 2,
            "HYPERAGENT_RUNNER_IMAGE": parts.RUNNER_IMAGE,
            "REMAP_SIGTERM": "SIGQUIT",
            "CHAOS_SEED": seed, "CHAOS_WITHOUT": ",".join(without), "CHAOS_KILL": kill, "CHAOS_STOP": stop,
        }  # fmt: skip
        self.engine = Engine(self.root) if sandbox == "docker" else None
        if self.engine is not None:
            settings |= {"DOCKER_HOST": self.engine.url}
        self.env = {**clean, **{name: str(value) for name, value in settings.items()}}
        self.gateway = Server([sys.executable, "-m", "hyperagent_tasks.gateway"], self.root / "gateway.log", self.env)
        celery = [sys.executable, "-m", "celery", "-A", "tests.chaos.worker", "worker", "--without-gossip", "--without-mingle"]
        self.workers = [
            Server(
                [*celery, "-Q", "steps", "-P", "prefork", "-c", "3", "-n", f"{name}@chaos"], self.root / f"{name}.log", self.env
            )
            for name in WORKERS
        ]
        self.controls = [Server([*celery, *self._beat(name)], self.root / f"{name}.log", self.env) for name in CONTROLS]

    def _beat(self, name: str) -> list[str]:
        """What a control worker adds: a beat of its own, so that two reconcilers look at the same time."""
        schedule = str(self.home / "run" / f"beat-{name}")
        return ["-Q", "control", "-P", "threads", "-c", "2", "-B", "-s", schedule, "-n", f"{name}@chaos"]

    @property
    def places(self) -> list[Path]:
        """Directories that must be empty where nothing runs."""
        run = self.home / "run"
        return [self.home / "work", run / "processes", run / "bundles", self.home / "repos" / QUARANTINE]

    def _database(self) -> Server:
        programs, data = parts.require_postgres(), self.root / "pg"
        data.mkdir(mode=0o700)
        as_user = servers.as_postgres()
        if os.geteuid() == 0:
            self.root.chmod(0o755)
            subprocess.run(["chown", "postgres", str(data)], check=True)
        init = [
            *as_user,
            str(programs / "initdb"),
            "-D",
            str(data),
            "-A",
            "trust",
            "-U",
            "postgres",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL, timeout=120, cwd="/")
        argv = [str(programs / "postgres"), "-D", str(data), "-p", str(self.pg_port), "-k", str(data)]
        argv += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        return Server(argv, self.root / "pg.log", user=as_user)

    def start_database(self) -> None:
        """Start it; returns once it answers."""
        self.database.start()
        assert self.database.process is not None
        servers.wait_for(lambda: psycopg.connect(self.url, connect_timeout=5).close(), self.database.process)

    def start_redis(self) -> None:
        """Start it; returns once it answers."""
        self.redis.start()
        assert self.redis.process is not None
        servers.wait_for(lambda: servers.answers(self.redis_port), self.redis.process)

    def client(self) -> redis.Redis:
        """A client of the broker."""
        return redis.Redis.from_url(self.broker, socket_timeout=5)

    @property
    def servers(self) -> list[Server]:
        """All that must run, in the order they start."""
        return [self.gateway, *self.controls, *self.workers]

    def revive(self) -> None:
        """Start again what was killed."""
        for server in self.servers:
            if not server.alive:
                server.start()

    def end(self) -> None:
        """End everything, the stopped too, and what a killed worker left."""
        db.engine(self.url).dispose()
        for server in [*self.servers, self.redis, self.database]:
            server.send(signal.SIGCONT, group=True)
            server.end(signal.SIGINT if server is self.database else signal.SIGKILL, group=server is not self.database)
        for pid in self.strays():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.engine is not None:
            self.engine.end()

    def strays(self) -> list[int]:
        """Processes of this rig's workers."""
        mark = f"HYPERAGENT_HOME={self.home}".encode()
        return [pid for pid, said in leftovers.environments() if mark in said]

    def accidents(self) -> list[tuple[str, int]]:
        """What workers noted of themselves: (kind, pid)."""
        path = self.home / "accidents"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [(line.split()[0], int(line.split()[1])) for line in lines]

    def tail(self) -> str:
        """The end of every log."""
        logs = sorted(self.root.glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in logs)


def _roomy(place: Path) -> bool:
    return place.is_dir() and os.access(place, os.W_OK) and shutil.disk_usage(place).free > ROOM


def children(pid: int) -> list[int]:
    """Direct children of a process."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
