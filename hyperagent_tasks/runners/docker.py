"""DockerRunner: one command in one hardened, network-less container that is gone when the call returns."""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hyperagent_common.errors import DependencyDown, HyperagentError
from hyperagent_tasks.runners import profile, trees
from hyperagent_tasks.runners.base import Ended, Mount, Owner, RunnerResult, RunSpec, Sink
from hyperagent_tasks.runners.engine import Engine, Factory, Output, from_environment, look_over
from hyperagent_tasks.runners.watch import TICK, DiskWatch, Watch, writable

log = logging.getLogger(__name__)

CHECK_SECONDS = 1.5
KILL_SECONDS = 10.0
DRAIN_SECONDS = 2.0
_EMPTY = "chmod -R u+rwX . 2>/dev/null; find . -mindepth 2 -delete"


class DockerRunner:
    """Runs commands in containers of `image`; mounts must lie below `work_root`; `runtime` such as `runsc`."""

    name = "docker"

    def __init__(
        self,
        *,
        instance: str,
        image: str,
        work_root: Path,
        runtime: str | None = None,
        client_factory: Factory = from_environment,
    ) -> None:
        self._instance, self._image, self._runtime = instance, image, runtime
        self._work_root = work_root
        self._engine = Engine(client_factory)

    def check(self) -> None:
        """Raise `NotReady` or `DependencyDown` where no container could run now; answers within about 2 s."""
        client = self._engine.quick(CHECK_SECONDS)
        try:
            look_over(client, self._image, self._runtime)
        finally:
            client.close()

    def run(self, spec: RunSpec, *, sink: Sink | None = None, cancelled: Callable[[], bool] | None = None) -> RunnerResult:
        """Run to the end, the deadline or until `cancelled()`. Raises `NotReady`, `DependencyDown`, `BadInput`."""
        image_id = self._engine.image_id(self._image)
        body = profile.container(spec, image_id, self._work_root, self._runtime)
        box = self._engine.create(body, profile.container_name(spec))
        try:
            with DiskWatch(writable(spec), spec.disk_limit) as disk:
                watch = Watch(spec, sink, cancelled, disk)
                ended = self._follow(box, watch)
                return self._judge(box, ended, watch, image_id, disk)
        finally:
            self._remove(box)

    def _remove(self, box: str) -> None:
        """Remove it. Where that fails its labels stay for the reaper: a finished run is not lost for it."""
        try:
            self._engine.remove(box)
        except HyperagentError as error:
            log.warning("container.left", extra={"container": box, "reason": error.sentence})

    def _follow(self, box: str, watch: Watch) -> Ended | None:
        """Start it and take its output until it ends (None) or must be ended (why; it is dead on return)."""
        output = self._engine.attach(box)
        try:
            self._engine.start(box)
            watch.start()
            ended = _take(output, watch) or self._outlive(box, watch)
            if ended is not None:
                self._stop(box, output, watch)
            return ended
        finally:
            output.close()

    def _outlive(self, box: str, watch: Watch) -> Ended | None:
        """Its output has ended: wait for itself. A command may close its streams and go on."""
        while not self._engine.wait(box, 1.0):
            ended = watch.end()
            if ended is not None:
                return ended
        return None

    def _stop(self, box: str, output: Output, watch: Watch) -> None:
        """Kill it and take what it had written. The engine's kill does not return before its output is taken."""
        with ThreadPoolExecutor(1, thread_name_prefix="kill") as pool:
            killing = pool.submit(self._engine.kill, box)
            _drain(output, watch)
            output.close()
            killing.result()
        if not self._engine.wait(box, KILL_SECONDS):
            raise DependencyDown("The Docker engine could not end a container.", mend="Restart the engine.")

    def _judge(self, box: str, ended: Ended | None, watch: Watch, image_id: str, disk: DiskWatch) -> RunnerResult:
        """What the engine says of the dead container, as a result."""
        state = self._engine.state(box)
        code = int(state.get("ExitCode", -1))
        if ended is None:
            ended = _own_end(state, code, watch, disk)
        kept = {name: state.get(name) for name in ("ExitCode", "OOMKilled", "Error", "StartedAt", "FinishedAt")}
        return watch.result(
            ended,
            code if ended in ("exited", "oom") else None,
            container_id=box,
            image_id=image_id,
            inspect={**kept, "runner": self.name, "runtime": self._runtime or "default"},
        )

    def workspace(self, path: Path) -> None:
        """Give a directory below the work directory to the sandbox's user; see docs/sandbox.md for who else sees it."""
        place = trees.inside(self._work_root, path)
        if os.geteuid() == 0:
            os.chown(place, profile.UID, profile.GID, follow_symlinks=False)
            place.chmod(0o700)
            return
        place.parent.chmod(0o700)
        place.chmod(0o777)

    def remove_tree(self, path: Path) -> None:
        """Remove a directory below the work directory, whoever owns what is in it. Raises `BadInput` elsewhere."""
        place = trees.inside(self._work_root, path)
        if os.geteuid() != 0 and place.is_dir():
            self._empty(place)
        trees.remove(place)

    def _empty(self, place: Path) -> None:
        """Let the sandbox's user remove what it made; what this user made, this user removes afterwards."""
        shared = [child for child in place.iterdir() if child.is_dir() and child.stat().st_mode & 0o002]
        shared += [place] if place.stat().st_mode & 0o002 else []
        mounts = [Mount(child, f"/workspace/{number}", read_only=False) for number, child in enumerate(shared)]
        if not mounts:
            return
        owner = Owner(self._instance, "", "", "", 0, datetime.now(UTC) + timedelta(minutes=5))
        spec = RunSpec("probe", ("sh", "-c", _EMPTY), owner, mounts, timeout=120.0)
        result = self.run(spec)
        if result.ended != "exited":
            log.warning("workspace.not-emptied", extra={"path": str(place), "ended": result.ended})

    def reap(self, keep: Callable[[Mapping[str, str]], bool]) -> list[str]:
        """End and remove each sandbox of this instance whose labels `keep` refuses; returns their container ids."""
        ended = []
        for found in self._engine.list({profile.MANAGED: "1", profile.INSTANCE: self._instance}):
            said = dict(found.get("Labels") or {})
            if said.get(profile.ROLE) in profile.ROLES and not keep(said):
                self._engine.remove(str(found["Id"]))
                ended.append(str(found["Id"]))
        return ended


def _take(output: Output, watch: Watch) -> Ended | None:
    """Take output until it ends (None) or the run must end (why)."""
    poll = select.poll()
    poll.register(output, select.POLLIN | select.POLLHUP)
    while True:
        ended = watch.end()
        if ended is not None:
            return ended
        if poll.poll(TICK * 1000):
            frames = output.read()
            if frames is None:
                return None
            for stream, data in frames:
                watch.take(stream, data)


def _drain(output: Output, watch: Watch) -> None:
    """Take what a killed container had written before it died."""
    poll = select.poll()
    poll.register(output, select.POLLIN | select.POLLHUP)
    deadline = time.monotonic() + DRAIN_SECONDS
    while time.monotonic() < deadline:
        frames = output.read() if poll.poll(TICK * 1000) else []
        if frames is None:
            return
        for stream, data in frames:
            watch.take(stream, data)


def _own_end(state: Mapping[str, Any], code: int, watch: Watch, disk: DiskWatch) -> Ended:
    """How a container that nobody ended did end."""
    if watch.truncated:
        return "output"
    if disk.look():
        return "disk"
    return "oom" if code != 0 and state.get("OOMKilled") else "exited"
