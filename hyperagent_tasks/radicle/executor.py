"""Where Radicle's programs run: in the node's container (the default), or as processes of this host."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from hyperagent_common.errors import DependencyDown, NodeDown, NotReady, PushTimedOut
from hyperagent_tasks import failpoints
from hyperagent_tasks.runners import profile
from hyperagent_tasks.runners.engine import Output

START_SECONDS = 20.0
CALL_SECONDS = 120.0
LONGEST_SECONDS = 300.0
"""`rad-push` ends each of its own commands after a minute: what takes longer than this stands still, with its engine."""
KILLED = 137


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str


class Executor(Protocol):
    """Runs Radicle's programs with RAD_HOME set."""

    def once(self, argv: Sequence[str]) -> Done:
        """Run a command before there is a node."""

    def call(self, argv: Sequence[str]) -> Done:
        """Run a command beside the node."""

    def start_node(self) -> None:
        """Start the node; idempotent."""

    def stop_node(self) -> None:
        """Stop the node; idempotent."""

    def version(self) -> str | None:
        """Radicle's version as recorded when it was built."""


class ContainerExecutor:
    """The Radicle container of this host: node, keys and publisher. It never runs agent code."""

    def __init__(self, *, instance: str, image: str, home: Path, repos: Path, network: str, passphrase: str) -> None:
        self.name = f"ha-radicle-{instance}"
        self._instance, self._image, self._home, self._repos = instance, image, home, repos
        self._network, self._passphrase = network, passphrase
        self._made: Any = None

    @property
    def _client(self) -> Any:
        if self._made is None:
            try:
                self._made = docker.from_env(timeout=int(CALL_SECONDS))
            except DockerException as error:
                raise DependencyDown("The Docker engine does not answer.", mend="Start it: ops/parts engine.") from error
        return self._made

    def _options(self) -> dict[str, Any]:
        paths = {str(path): {"bind": str(path), "mode": "rw"} for path in (self._home, self._repos)}
        return {
            "image": self._image,
            "user": f"{os.getuid()}:{os.getgid()}",
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "read_only": True,
            "tmpfs": {"/tmp": "rw,nosuid,nodev,size=256m,mode=1777"},
            "volumes": paths,
            "environment": self._environment(),
            "labels": {
                profile.MANAGED: "1",
                profile.INSTANCE: self._instance,
                profile.ROLE: "radicle",
            },
            "init": True,
            "pids_limit": 512,
            "mem_limit": "1g",
        }

    def _environment(self) -> dict[str, str]:
        return {
            "HOME": "/tmp",
            "RAD_HOME": str(self._home),
            "RAD_PASSPHRASE": self._passphrase,
            "GIT_AUTHOR_NAME": "HyperAgent",
            "GIT_AUTHOR_EMAIL": "hyperagent@localhost",
            "GIT_COMMITTER_NAME": "HyperAgent",
            "GIT_COMMITTER_EMAIL": "hyperagent@localhost",
            "GIT_CONFIG_NOSYSTEM": "1",
        }

    def once(self, argv: Sequence[str]) -> Done:
        """In a container of its own, without network."""
        try:
            container = self._client.containers.create(command=list(argv), network_mode="none", **self._options())
            try:
                container.start()
                code = int(container.wait(timeout=CALL_SECONDS)["StatusCode"])
                out, err = container.logs(stderr=False), container.logs(stdout=False)
            finally:
                container.remove(force=True, v=True)
        except (DockerException, requests.RequestException) as error:
            raise self._trouble(error) from error
        return Done(code, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))

    def call(self, argv: Sequence[str]) -> Done:
        """In the node's container."""
        api = self._client.api
        try:
            made = api.exec_create(self.name, list(argv), environment=failpoints.environment())["Id"]
            out, err = _outputs(Output(api.exec_start(made, socket=True)), LONGEST_SECONDS)
            code = api.exec_inspect(made)["ExitCode"]
        except (DockerException, requests.RequestException, TimeoutError) as error:
            raise self._trouble(error) from error
        ended = KILLED if code is None else int(code)  # None: the container ended under the command
        return Done(ended, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))

    def start_node(self) -> None:
        """Start or adopt the container; one of another image is made anew."""
        try:
            wanted = self._client.images.get(self._image).id
            container = self._container()
            if container is not None and container.attrs["Image"] != wanted:
                container.remove(force=True)
                container = None
            if container is None:
                container = self._client.containers.create(
                    name=self.name,
                    command=["radicle-node", "--force"],
                    network=self._network,
                    restart_policy={"Name": "unless-stopped"},
                    **self._options(),
                )
            if container.status != "running":
                container.start()
        except (DockerException, requests.RequestException) as error:
            raise self._trouble(error) from error

    def stop_node(self) -> None:
        """Stop and remove the container; RAD_HOME stays."""
        try:
            container = self._container()
            if container is not None:
                container.stop(timeout=5)
                container.remove(force=True)
        except (DockerException, requests.RequestException) as error:
            raise self._trouble(error) from error

    def _container(self) -> Any:
        try:
            return self._client.containers.get(self.name)
        except NotFound:
            return None

    def version(self) -> str | None:
        """From the image's label."""
        try:
            labels = self._client.images.get(self._image).labels
        except (DockerException, requests.RequestException) as error:
            raise self._trouble(error) from error
        return str(labels.get("hyperagent.radicle")) if "hyperagent.radicle" in labels else None

    def _trouble(self, error: Exception) -> NotReady | DependencyDown | PushTimedOut:
        if isinstance(error, ImageNotFound):
            return NotReady(f"The image {self._image} is missing.", mend="Build it: ops/parts radicle-image.")
        if isinstance(error, NotFound) or (isinstance(error, APIError) and "is not running" in str(error)):
            return NodeDown("The Radicle node's container does not run.", mend="Start it: `hyperagent up`.")
        if isinstance(error, APIError):
            return DependencyDown(f"The Docker engine refused the Radicle container: {error.explanation}")
        if isinstance(error, (requests.ReadTimeout, TimeoutError)):
            return PushTimedOut("A command in the Radicle container did not end in time.")
        return DependencyDown("The Docker engine does not answer.", mend="Start it: ops/parts engine.")


def _outputs(output: Output, seconds: float) -> tuple[bytes, bytes]:
    """All of stdout and stderr, to their end. Raises `TimeoutError` after so many seconds, whatever came until then."""
    taken, deadline = {"stdout": bytearray(), "stderr": bytearray()}, time.monotonic() + seconds
    poll = select.poll()
    try:
        poll.register(output, select.POLLIN | select.POLLHUP)
        while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            frames = output.read()
            if frames is None:
                return bytes(taken["stdout"]), bytes(taken["stderr"])
            for stream, data in frames:
                taken[stream] += data
        raise TimeoutError
    finally:
        output.close()


class HostExecutor:
    """Radicle's programs as processes of this host, for a laptop that has them and no Docker."""

    def __init__(self, *, programs: Path, helper: Path, home: Path, passphrase: str) -> None:
        self._programs, self._helper, self._home = programs, helper, home
        self._env = {
            "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
            "HOME": str(home),
            "RAD_HOME": str(home),
            "RAD_PASSPHRASE": passphrase,
            "GIT_AUTHOR_NAME": "HyperAgent",
            "GIT_AUTHOR_EMAIL": "hyperagent@localhost",
            "GIT_COMMITTER_NAME": "HyperAgent",
            "GIT_COMMITTER_EMAIL": "hyperagent@localhost",
            "GIT_CONFIG_NOSYSTEM": "1",
        }

    def once(self, argv: Sequence[str]) -> Done:
        """The same as `call`."""
        return self.call(argv)

    def call(self, argv: Sequence[str]) -> Done:
        """As a child process."""
        if argv[0] == "rad-push":
            argv = [str(self._helper), *argv[1:]]
        try:
            done = subprocess.run(
                list(argv),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=CALL_SECONDS,
                env={**self._env, **failpoints.environment()},
            )
        except subprocess.TimeoutExpired as error:
            raise PushTimedOut(f"{argv[0]} did not end within {CALL_SECONDS:.0f} s.") from error
        except OSError as error:
            raise DependencyDown(f"{argv[0]} did not run: {error}") from error
        return Done(done.returncode, done.stdout, done.stderr)

    def start_node(self) -> None:
        """`rad node start` puts it into the background."""
        done = self.call(["rad", "node", "start"])
        if done.exit_code:
            raise NotReady(f"The Radicle node did not start: {(done.stderr or done.stdout).strip()[-300:]}")

    def stop_node(self) -> None:
        """`rad node stop`; it says nothing useful where none runs."""
        self.call(["rad", "node", "stop"])

    def version(self) -> str | None:
        """From `rad --version`."""
        return self.call(["rad", "--version"]).stdout.strip() or None


def wait_until(answers: Any, seconds: float = START_SECONDS) -> bool:
    """Ask until it answers true or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answers():
            return True
        time.sleep(0.05)
    return False


def host_programs(extra: Mapping[str, str] | None = None) -> Path | None:
    """The directory of rad, radicle-node and git-remote-rad on this host, or None."""
    found = shutil.which("rad")
    folder = Path(found).parent if found else None
    needed = ("rad", "radicle-node", "git-remote-rad")
    return folder if folder and all((folder / name).exists() for name in needed) else None
