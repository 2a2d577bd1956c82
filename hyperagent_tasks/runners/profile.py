"""The hardened profile: one pure function from a `RunSpec` to the body of the engine's create call.

Nothing a user, plan or agent says reaches the engine except through the fields of `RunSpec`; there are no extra options.
`docs/sandbox.md` says what each line is for, `tests/golden/agent-container.json` what the engine makes of it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from hyperagent_common.errors import BadInput, DependencyDown, NotReady
from hyperagent_tasks.runners import trees
from hyperagent_tasks.runners.base import Mount, Owner, Role, RunSpec

UID = GID = 10001
HOME = "/home/agent"
GATEWAY_DIR = "/run/ha"
SEATS = ("/workspace", "/in", "/in-sealed", "/out", "/logs")
ROLES: tuple[str, ...] = get_args(Role)
MANAGED, INSTANCE, ROLE = "hyperagent.managed", "hyperagent.instance", "hyperagent.role"
STEP, ATTEMPT, FENCE = "hyperagent.step", "hyperagent.attempt", "hyperagent.fence"
DEADLINE = "hyperagent.deadline"

_TMPFS = {
    "/tmp": "rw,nosuid,nodev,exec,size=1g,mode=1777",
    HOME: f"rw,nosuid,nodev,exec,size=1g,uid={UID},gid={GID},mode=0700",
    "/run": "rw,nosuid,nodev,noexec,size=16m,mode=0755",
}


@cache
def seccomp() -> str:
    """Our own list of allowed system calls, as compact JSON."""
    return json.dumps(json.loads(files(__package__).joinpath("seccomp.json").read_text()), separators=(",", ":"))


def labels(owner: Owner, role: str) -> dict[str, str]:
    """What is written on a sandbox, for the reaper and for people."""
    return {
        MANAGED: "1",
        INSTANCE: owner.instance,
        "hyperagent.workflow": owner.workflow_id,
        STEP: owner.step_id,
        ATTEMPT: owner.attempt_id,
        FENCE: str(owner.fence),
        ROLE: role,
        DEADLINE: owner.deadline.isoformat(),
    }


def container_name(spec: RunSpec) -> str:
    """A name no other container has, that tells role and attempt."""
    short = "".join(c for c in spec.owner.attempt_id if c.isalnum())[-12:] or "none"
    return f"ha-{spec.role}-{short}-{secrets.token_hex(4)}"


def container(spec: RunSpec, image_id: str, work_root: Path, runtime: str | None = None) -> dict[str, Any]:
    """The body of the create call. Raises `BadInput` for a spec that would weaken the sandbox, `NotReady`,
    `DependencyDown` where a mount or the gateway's socket is missing."""
    if not spec.argv or any("\0" in word for word in (*spec.argv, *spec.env, *spec.env.values())):
        raise BadInput("A sandbox needs a command, and no word of it may hold a NUL character.")
    return {
        "Image": image_id,
        "User": f"{UID}:{GID}",
        "Entrypoint": list(spec.argv),
        "Cmd": [],
        "Env": [f"{name}={value}" for name, value in environment(spec.env).items()],
        "WorkingDir": spec.workdir,
        "Hostname": "sandbox",
        "Labels": labels(spec.owner, spec.role),
        "Healthcheck": {"Test": ["NONE"]},
        "AttachStdin": False,
        "AttachStdout": True,
        "AttachStderr": True,
        "OpenStdin": False,
        "Tty": False,
        "HostConfig": _host(spec, work_root, runtime),
    }


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """What the command sees beside the image's own variables: nothing of the worker's environment."""
    return {"HOME": HOME, "TMPDIR": "/tmp", "LANG": "C.UTF-8", **given}


def _host(spec: RunSpec, work_root: Path, runtime: str | None) -> dict[str, Any]:
    body = {
        "Mounts": [_bind(mount) for mount in mounts(spec, work_root)],
        "Tmpfs": dict(_TMPFS),
        **_fences(),
        **_limits(spec),
        "Init": True,
        "AutoRemove": False,
        "RestartPolicy": {"Name": "no"},
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "8m", "max-file": "2"}},
    }
    return body | ({"Runtime": runtime} if runtime else {})


def _fences() -> dict[str, Any]:
    return {
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true", f"seccomp={seccomp()}"],
        "Privileged": False,
        "ReadonlyRootfs": True,
        "NetworkMode": "none",
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "PidMode": "",
        "UTSMode": "",
        "PublishAllPorts": False,
    }


def _limits(spec: RunSpec) -> dict[str, Any]:
    # No `nproc`: the kernel counts it per user over all containers, so one sandbox could starve another.
    hard = {"nofile": 8192, "fsize": spec.disk_limit, "core": 0}
    return {
        "PidsLimit": spec.pids,
        "Memory": spec.memory,
        "MemorySwap": spec.memory,
        "OomKillDisable": False,
        "NanoCpus": int(spec.cpus * 1_000_000_000),
        "ShmSize": 256 << 20,
        "Ulimits": [{"Name": name, "Soft": value, "Hard": value} for name, value in hard.items()],
    }


def mounts(spec: RunSpec, work_root: Path) -> list[Mount]:
    """The mounts of a run, each below the work directory, and the gateway's directory for an agent."""
    found = [_checked(mount, work_root) for mount in spec.mounts]
    if spec.gateway_socket is None:
        return found
    if spec.role != "agent":
        raise BadInput(f"A {spec.role} sandbox gets no way to the model gateway; only an agent does.")
    if not spec.gateway_socket.is_socket():
        raise DependencyDown("The model gateway of this host is not running.", mend="Start it: `hyperagent gateway`.")
    return [*found, Mount(spec.gateway_socket.parent.resolve(), GATEWAY_DIR)]


def _checked(mount: Mount, work_root: Path) -> Mount:
    target = mount.target
    root, *parts = target.split("/")
    if root or f"/{parts[0] if parts else ''}" not in SEATS or any(part in ("", ".", "..") for part in parts):
        raise BadInput(f"{target} is no place for a mount; it must lie in one of {', '.join(SEATS)}.")
    # The engine follows links in a source, as root: a link the last sandbox left would show it a file of this host.
    source = trees.inside(work_root, mount.source)
    if not source.exists():
        raise NotReady(f"{source} is to be mounted at {target} and does not exist.")
    if not source.is_dir() and (not source.is_file() or source.stat().st_nlink != 1):
        raise BadInput(f"{source} is to be mounted at {target} and is neither a directory nor a plain file.")
    return Mount(source, target, mount.read_only)


def _bind(mount: Mount) -> dict[str, Any]:
    return {
        "Type": "bind",
        "Source": str(mount.source),
        "Target": mount.target,
        "ReadOnly": mount.read_only,
        "BindOptions": {"Propagation": "rprivate"},
    }
