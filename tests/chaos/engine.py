"""A Docker engine of its own, so that restarting it harms nobody else: own socket, own data, no network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import docker
from docker.errors import DockerException

from tests import parts
from tests.chaos.server import Server


class Engine:
    """`dockerd` below `root`, with the runner image copied from the engine of this machine."""

    def __init__(self, root: Path) -> None:
        self.root, self.socket = root / "engine", root / "engine" / "d.sock"
        self.root.mkdir(mode=0o711)
        # a network namespace of its own: an engine without a bridge removes the one it finds
        argv = [
            "unshare",
            "--net",
            "dockerd",
            "--host",
            self.url,
            "--data-root",
            str(self.root / "data"),
            "--exec-root",
            str(self.root / "exec"),
        ]
        argv += ["--pidfile", str(self.root / "pid"), "--bridge", "none", "--iptables=false", "--ip-masq=false"]
        self.server = Server(argv, root / "engine.log", dict(os.environ))

    @staticmethod
    def require() -> None:
        """What `parts.missing` does where there can be none."""
        if os.geteuid() != 0 or not shutil.which("dockerd"):
            parts.missing("an engine that may be restarted (dockerd, as root)", "ops/parts engine")

    @property
    def url(self) -> str:
        """What DOCKER_HOST must say."""
        return f"unix://{self.socket}"

    def start(self) -> None:
        """Start it; returns once it answers."""
        self.server.start()
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self.server.alive, f"dockerd ended; see {self.server.log}"
            assert time.monotonic() < deadline, "dockerd did not answer within 60 s"
            time.sleep(0.2)

    def load(self) -> None:
        """Copy the runner image over."""
        saved = subprocess.Popen(["docker", "save", parts.require_runner_image()], stdout=subprocess.PIPE)
        subprocess.run(
            ["docker", "--host", self.url, "load", "-q"], stdin=saved.stdout, check=True, timeout=600, stdout=subprocess.DEVNULL
        )
        assert saved.stdout is not None
        saved.stdout.close()
        assert saved.wait(60) == 0

    def restart(self, down: float) -> None:
        """Stop it with everything that runs in it; up again after `down` seconds."""
        self.server.end(signal.SIGTERM, group=False)
        time.sleep(down)
        self.start()

    def end(self) -> None:
        """End it for good."""
        self.server.end(signal.SIGTERM, group=False)

    def containers(self) -> list[str]:
        """Ids of the containers there are, running or not."""
        client = docker.DockerClient(base_url=self.url, timeout=30)
        try:
            return [str(box.id) for box in client.containers.list(all=True, ignore_removed=True)]
        finally:
            client.close()

    def _answers(self) -> bool:
        try:
            client = docker.DockerClient(base_url=self.url, timeout=5, version="1.41")
        except DockerException:
            return False
        try:
            return bool(client.ping())
        except (DockerException, OSError):
            return False
        finally:
            client.close()
