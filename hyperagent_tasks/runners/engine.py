"""The Docker engine behind a few calls: one kept-alive client a process, every fault turned into one of our errors."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import docker
import requests
from docker.errors import APIError, DockerException
from docker.utils import kwargs_from_env

from hyperagent_common.errors import DependencyDown, NotReady

CALL_SECONDS = 60.0
OLDEST_API = (1, 41)
SEE_DOCS = "See docs/sandbox.md for what it needs."
START_ENGINE = "Start it: `ops/parts engine` as root, or `systemctl start docker`."
JOIN_GROUP = "Let this user use it: `usermod -aG docker USER` as root, then log in again."
Factory = Callable[[float], docker.APIClient]


def from_environment(timeout: float) -> docker.APIClient:
    """A client of the engine that DOCKER_HOST names, or of the local one; `timeout` in seconds holds for each call."""
    return docker.APIClient(**kwargs_from_env(), version="auto", timeout=timeout)


class Output:
    """The attached output of one container: raw frames off the connection, taken apart into streams."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._raw._sock.settimeout(None)
        self._stream: Literal["stdout", "stderr"] = "stdout"
        self._header, self._left = bytearray(), 0

    def fileno(self) -> int:
        """For `poll`."""
        return int(self._raw.fileno())

    def read(self) -> list[tuple[Literal["stdout", "stderr"], bytes]] | None:
        """What has come, as (stream, bytes); None at the end. Blocks where `poll` has not said that something is there."""
        try:
            data = self._raw._sock.recv(64 << 10)
        except ConnectionError:
            return None
        return list(self._frames(data)) if data else None

    def _frames(self, data: bytes) -> Iterator[tuple[Literal["stdout", "stderr"], bytes]]:
        view = memoryview(data)
        while view:
            if not self._left:
                wanted = 8 - len(self._header)
                self._header += view[:wanted]
                view = view[wanted:]
                if len(self._header) == 8:
                    kind, self._left = struct.unpack(">BxxxL", self._header)
                    self._stream = "stderr" if kind == 2 else "stdout"
                    self._header.clear()
                continue
            yield self._stream, bytes(view[: self._left])
            taken = min(len(view), self._left)
            self._left, view = self._left - taken, view[taken:]

    def close(self) -> None:
        """Give the connection back to the system."""
        if self._raw.closed:
            return
        response = self._raw._response
        connection = response.raw._connection  # an upgraded connection must never go back to the pool
        response.close()
        if connection is not None:
            connection.close()
        self._raw.close()


class Engine:
    """Calls of the Docker engine. Raises `DependencyDown` where it does not answer, `NotReady` where it refuses."""

    def __init__(self, factory: Factory = from_environment) -> None:
        self._factory = factory
        self._kept: tuple[int, docker.APIClient] | None = None

    def client(self) -> docker.APIClient:
        """This process's client; made anew after a fork."""
        if self._kept is None or self._kept[0] != os.getpid():
            with told():
                self._kept = (os.getpid(), self._factory(CALL_SECONDS))
        return self._kept[1]

    def quick(self, timeout: float) -> docker.APIClient:
        """A client for one look, that gives up after `timeout` seconds a call."""
        with told():
            return self._factory(timeout)

    def image_id(self, image: str) -> str:
        """The sha256 id an image name stands for now."""
        client = self.client()
        with told(image=image):
            return str(client.inspect_image(image)["Id"])

    def create(self, body: Mapping[str, Any], name: str) -> str:
        """A new container's id."""
        client = self.client()
        with told(image=str(body["Image"])):
            return str(client.create_container_from_config(dict(body), name)["Id"])

    def attach(self, container: str) -> Output:
        """The output of a container that has not started."""
        client = self.client()
        with told():
            return Output(client.attach_socket(container, {"stdout": 1, "stderr": 1, "stream": 1}))

    def start(self, container: str) -> None:
        """Start it."""
        client = self.client()
        with told():
            client.start(container)

    def wait(self, container: str, seconds: float) -> bool:
        """True once it has ended; False where it still runs after `seconds`."""
        client = self.client()
        with told():
            try:
                client.wait(container, timeout=seconds)
            except (requests.exceptions.ReadTimeout, requests.exceptions.ConnectionError) as error:
                if _timed_out(error):
                    return False
                raise
        return True

    def state(self, container: str) -> dict[str, Any]:
        """What the engine says of it."""
        client = self.client()
        with told():
            return dict(client.inspect_container(container)["State"])

    def kill(self, container: str) -> None:
        """End it at once; fine where it has ended."""
        client = self.client()
        with told(fine=(404, 409)):
            client.kill(container)

    def remove(self, container: str) -> None:
        """Remove it with its anonymous volumes, running or not; fine where it is gone."""
        client = self.client()
        with told(fine=(404, 409)):
            client.remove_container(container, force=True, v=True)

    def list(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """Containers, running or not, that carry `labels`."""
        client = self.client()
        with told():
            wanted = [f"{name}={value}" for name, value in labels.items()]
            return list(client.containers(all=True, filters={"label": wanted}))


@contextmanager
def told(*, image: str = "", fine: tuple[int, ...] = ()) -> Iterator[None]:
    """The engine's faults as ours; HTTP statuses in `fine` are none."""
    try:
        yield
    except APIError as error:
        if error.status_code not in fine:
            raise _refused(error, image) from error
    except (DockerException, requests.exceptions.RequestException) as error:
        raise unreachable(error) from error


def _refused(error: APIError, image: str) -> DependencyDown | NotReady:
    said = str(error.explanation or error).strip()
    if error.status_code == 404 and image and "image" in said.lower():
        return NotReady(f"The image {image} is not on this host.", mend="Build it: `ops/parts runner-image`.")
    if error.status_code in (404, 409):  # somebody prunes, or another container has the name: it passes
        return DependencyDown(f"The Docker engine lost the container: {said}", mend="See who removes containers there.")
    if error.status_code is not None and error.status_code < 500:
        return NotReady(f"The Docker engine refuses the sandbox: {said}", mend=SEE_DOCS)
    return DependencyDown(f"The Docker engine failed: {said}", mend="Look at its log; restart it where it stays so.")


def unreachable(error: BaseException) -> DependencyDown | NotReady:
    """Why no answer came, with its mend."""
    causes = list(_causes(error))
    if any(isinstance(cause, PermissionError) for cause in causes):
        return NotReady("The Docker engine does not let this user in.", mend=JOIN_GROUP)
    if _timed_out(error):
        return DependencyDown("The Docker engine did not answer in time.", mend="Restart it: `systemctl restart docker`.")
    missing = any(isinstance(cause, (FileNotFoundError, ConnectionRefusedError)) for cause in causes)
    how = "is not running" if missing else "went away during a call"
    return DependencyDown(f"The Docker engine {how}.", mend=START_ENGINE)


def _timed_out(error: BaseException) -> bool:
    return any(isinstance(cause, (TimeoutError, requests.exceptions.Timeout)) for cause in _causes(error))


def _causes(error: BaseException, depth: int = 0) -> Iterator[BaseException]:
    """An error with everything it wraps, by cause, context or argument."""
    yield error
    inner = [error.__cause__, error.__context__, getattr(error, "reason", None), *error.args]
    for cause in inner if depth < 8 else ():
        if isinstance(cause, BaseException) and cause is not error:
            yield from _causes(cause, depth + 1)


def look_over(client: Any, image: str, runtime: str | None) -> None:
    """Everything the profile needs of the engine is there, and so is the image. Raises `NotReady`, `DependencyDown`."""
    with told():
        version = tuple(int(part) for part in str(client.api_version).split(".")[:2])
        info = client.info()
    lacking = lacks(info, version, runtime)
    if lacking:
        raise NotReady(f"The Docker engine lacks what the sandbox needs: {'; '.join(lacking)}.", mend=SEE_DOCS)
    with told(image=image):
        client.inspect_image(image)


def lacks(info: Mapping[str, Any], api: tuple[int, ...], runtime: str | None) -> list[str]:
    """What the profile needs and this engine does not have, each as words."""
    found = {
        f"API 1.41 or newer (this is {'.'.join(map(str, api))})": api >= OLDEST_API,
        "Linux containers": info.get("OSType") == "linux",
        "seccomp": any("seccomp" in str(option) for option in info.get("SecurityOptions") or ()),
        "memory limits": bool(info.get("MemoryLimit")),
        "process limits": bool(info.get("PidsLimit")),
        "CPU limits": bool(info.get("CpuCfsQuota")),
        "an init binary": bool(info.get("InitBinary")),
        f"the runtime {runtime}": runtime is None or runtime in (info.get("Runtimes") or {}),
    }
    return [what for what, there in found.items() if not there]
