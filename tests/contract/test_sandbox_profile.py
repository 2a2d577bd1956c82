"""The hardened profile as the engine made it and as a command inside feels it: one running agent container, looked at."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hyperagent_tasks.runners import profile
from hyperagent_tasks.runners.base import Mount, Owner, RunnerResult, RunSpec
from hyperagent_tasks.runners.docker import DockerRunner
from tests import parts

pytestmark = pytest.mark.docker
GOLDEN = Path(__file__).parents[1] / "golden" / "agent-container.json"
CANARY = "canary-provider-key-7f3a9"
INSTANCE = f"profile-{os.getpid()}"

DANGEROUS = """
ptrace process_vm_readv process_vm_writev keyctl add_key request_key bpf perf_event_open userfaultfd mount
umount2 move_mount fsopen fsmount open_tree pivot_root chroot unshare setns clone3 kexec_load kexec_file_load
open_by_handle_at name_to_handle_at init_module finit_module delete_module reboot swapon iopl ioperm
io_uring_setup io_uring_enter io_uring_register quotactl acct syslog kcmp pidfd_getfd process_madvise
"""

PROBE = r"""
import ctypes, glob, json, os, socket, stat, time
libc = ctypes.CDLL(None, use_errno=True)
said = {}

def call(name, number, *args):
    ctypes.set_errno(0)
    got = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(arg) for arg in args])
    said["call " + name] = "done" if got >= 0 else os.strerror(ctypes.get_errno())

def attempt(name, action):
    try:
        said[name] = "done: %r" % (action(),)
    except OSError as error:
        said[name] = "%s: %s" % (type(error).__name__, error)

NEWUSER = 0x10000000
call("io_uring_setup", 425, 1, 0)
call("ptrace", 101, 0, 0, 0, 0)
call("process_vm_readv", 310, os.getpid(), 0, 0, 0, 0, 0)
call("keyctl", 250, 0, -3, 0)
call("add_key", 248, 0, 0, 0, 0, 0)
call("request_key", 249, 0, 0, 0, 0)
call("bpf", 321, 0, 0, 0)
call("perf_event_open", 298, 0, 0, -1, -1, 0)
call("userfaultfd", 323, 0)
call("mount", 165, 0, 0, 0, 0, 0)
call("umount2", 166, 0, 0)
call("open_tree", 428, -100, 0, 0)
call("fsopen", 430, 0, 0)
call("unshare", 272, NEWUSER)
call("clone3", 435, 0, 0)
call("setns", 308, 0, 0)
call("clone with a new user namespace", 56, NEWUSER | 17, 0, 0, 0, 0)
call("kexec_load", 246, 0, 0, 0, 0)
call("open_by_handle_at", 304, 0, 0, 0)
call("pivot_root", 155, 0, 0)
call("init_module", 175, 0, 0, 0)
for family, name in ((17, "packet"), (38, "alg"), (40, "vsock")):
    attempt("socket " + name, lambda: socket.socket(family, socket.SOCK_RAW if family == 17 else socket.SOCK_STREAM).close())
for host, port in json.loads(os.environ["TARGETS"]):
    attempt("connect " + host, lambda: socket.create_connection((host, port), 2).close())
attempt("resolve", lambda: socket.getaddrinfo("example.com", 80))
attempt("connect the gateway", lambda: socket.socket(socket.AF_UNIX).connect("/run/ha/llm.sock"))
for path in ("/x", "/usr/x", "/etc/x", "/run/ha/x", "/proc/sys/kernel/core_pattern", "/sys/x", "/dev/shm/../x", "/in/x"):
    attempt("write " + path, lambda: open(path, "w").close())
for path in ("/workspace/w", "/tmp/w", "/home/agent/w"):
    attempt("write " + path, lambda: open(path, "w").close())
said["interfaces"] = sorted(os.listdir("/sys/class/net"))
said["status"] = dict(line.split(":\t") for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
said["environ"] = open("/proc/1/environ").read() + json.dumps(dict(os.environ))
said["setuid root"] = os.getuid()
places = glob.glob("/run/**", recursive=True) + glob.glob("/var/run/**", recursive=True) + glob.glob("/tmp/**")
said["sockets"] = sorted({os.path.realpath(path) for path in places if stat.S_ISSOCK(os.stat(path).st_mode)})
said["pids"] = len([name for name in os.listdir("/proc") if name.isdigit()])
said["mounts"] = open("/proc/self/mountinfo").read()
print(json.dumps(said), flush=True)
while not os.path.exists("/workspace/stop"):
    time.sleep(0.05)
"""


@dataclass(frozen=True)
class Seen:
    """What was seen of one agent container while it ran."""

    inspect: dict[str, Any]
    inside: dict[str, Any]
    result: RunnerResult
    root: Path


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Run the probe in an agent container; look at it from outside meanwhile."""
    image = parts.require_runner_image()
    root = Path(os.path.realpath(tmp_path_factory.mktemp("profile")))
    with pytest.MonkeyPatch.context() as patch, socket.socket(socket.AF_UNIX) as gateway, socket.socket() as host:
        patch.setenv("OPENAI_API_KEY", CANARY)
        patch.setenv("HYPERAGENT_PROVIDER_KEY", CANARY)
        runner = DockerRunner(instance=INSTANCE, image=image, work_root=root / "work")
        host.bind(("0.0.0.0", 0))
        host.listen()
        spec = _spec(root, runner, gateway, host.getsockname()[1])
        yield _look(root, runner, spec)
        runner.remove_tree(root / "work" / "a")


def _spec(root: Path, runner: DockerRunner, gateway: socket.socket, port: int) -> RunSpec:
    for name in ("work/a/ws", "work/a/in", "work/a/logs", "gateway"):
        (root / name).mkdir(parents=True)
    runner.workspace(root / "work/a/ws")
    runner.workspace(root / "work/a/logs")
    gateway.bind(str(root / "gateway" / "llm.sock"))
    gateway.listen()
    (root / "gateway" / "llm.sock").chmod(0o666)
    networks = parts.require_docker().api.inspect_network("bridge")["IPAM"]["Config"]
    bridge = next((one["Gateway"] for one in networks if "Gateway" in one), "172.17.0.1")
    targets = [(bridge, port), ("169.254.169.254", 80), ("1.1.1.1", 53), ("2606:4700:4700::1111", 53), ("127.0.0.1", port)]
    return RunSpec(
        role="agent",
        argv=("python3", "-c", PROBE),
        owner=Owner(INSTANCE, "wf-1", "st-1", "0190-at-1", 3, datetime(2030, 1, 1, tzinfo=UTC)),
        mounts=(
            Mount(root / "work/a/ws", "/workspace", read_only=False),
            Mount(root / "work/a/in", "/in"),
            Mount(root / "work/a/logs", "/logs", read_only=False),
        ),
        env={"TARGETS": json.dumps(targets), "OPENCODE_LOG_DIR": "/logs"},
        timeout=60.0,
        gateway_socket=root / "gateway" / "llm.sock",
    )


def _look(root: Path, runner: DockerRunner, spec: RunSpec) -> Seen:
    out = bytearray()
    found: list[dict[str, Any]] = []
    whole = threading.Event()

    def sink(stream: str, data: bytes, /) -> None:
        if stream == "stdout":
            out.extend(data)
        if out.endswith(b"\n") and not whole.is_set():
            whole.set()
            api = parts.require_docker().api
            box = api.containers(filters={"label": f"hyperagent.instance={INSTANCE}"})[0]
            found.append(api.inspect_container(box["Id"]))
            (root / "work/a/ws/stop").touch()

    result = runner.run(spec, sink=sink)
    assert result.ok, result.stderr_tail
    return Seen(found[0], json.loads(out), result, root)


# -- from outside ----------------------------------------------------------------------------------------------------


def normal(seen: Seen) -> dict[str, Any]:
    """The inspection without what differs from run to run: ids, times, paths of this host."""
    raw = json.dumps(seen.inspect).replace(str(seen.root), "<root>").replace(INSTANCE, "<instance>")
    one = json.loads(raw)
    own = f"seccomp={profile.seccomp()}"
    host = one["HostConfig"]
    host["SecurityOpt"] = ["seccomp=<seccomp.json>" if option == own else option for option in host["SecurityOpt"]]
    host.pop("ConsoleSize", None)
    host["Mounts"].sort(key=lambda mount: str(mount["Target"]))
    config = one["Config"]
    config["Image"] = "<sha256>" if config["Image"].startswith("sha256:") else config["Image"]
    config["Entrypoint"] = ["<probe>" if word == PROBE else word for word in config["Entrypoint"]]
    config["Env"] = ["TARGETS=<targets>" if word.startswith("TARGETS=") else word for word in sorted(config["Env"])]
    config["Labels"] = {name: value for name, value in config["Labels"].items() if name not in _image_labels()}
    mounts = [{key: one[key] for key in ("Type", "Source", "Destination", "RW", "Propagation")} for one in one["Mounts"]]
    return {
        "Config": config,
        "HostConfig": host,
        "Mounts": sorted(mounts, key=lambda mount: str(mount["Destination"])),
        "Networks": sorted(one["NetworkSettings"]["Networks"]),
        "Ports": one["NetworkSettings"]["Ports"],
    }


def _image_labels() -> set[str]:
    return set(parts.require_docker().images.get(parts.RUNNER_IMAGE).labels or {})


def differences(golden: Any, actual: Any, path: str = "") -> list[str]:
    """How `actual` differs; a newer engine may add empty fields, and mask more paths, and nothing else."""
    if isinstance(golden, dict) and isinstance(actual, dict):
        new = [f"{path}.{key} is new: {actual[key]}" for key in actual.keys() - golden.keys() if actual[key]]
        return new + [found for key in golden for found in differences(golden[key], actual.get(key), f"{path}.{key}")]
    if path.endswith(("MaskedPaths", "ReadonlyPaths")):
        return [] if set(golden) <= set(actual or ()) else [f"{path}: {set(golden) - set(actual or ())} is not covered"]
    same = golden == actual or (not golden and not actual)
    return [] if same else [f"{path}: {golden!r} became {actual!r}"]


def test_a_running_agent_container_is_what_the_golden_file_says(seen: Seen) -> None:
    actual = normal(seen)
    if os.environ.get("HYPERAGENT_WRITE_GOLDEN") == "1":
        GOLDEN.write_text(json.dumps(actual, indent=2, sort_keys=True) + "\n")
    assert differences(json.loads(GOLDEN.read_text()), actual) == []


def test_the_comparison_sees_a_weaker_container() -> None:
    golden = json.loads(GOLDEN.read_text())
    for change in ({"Privileged": True}, {"CapAdd": ["SYS_ADMIN"]}, {"NetworkMode": "host"}, {"Binds": ["/:/host"]}):
        weaker = {**golden, "HostConfig": {**golden["HostConfig"], **change}}
        assert differences(golden, weaker)


def test_the_worker_s_key_is_nowhere_in_the_container(seen: Seen) -> None:
    assert CANARY in os.environ.get("OPENAI_API_KEY", CANARY)
    assert CANARY not in json.dumps(seen.inspect)
    assert CANARY not in json.dumps(seen.inside)


def test_the_image_is_named_by_its_content(seen: Seen) -> None:
    assert seen.inspect["Config"]["Image"].startswith("sha256:")
    assert seen.result.image_id == seen.inspect["Image"]


# -- from inside -----------------------------------------------------------------------------------------------------


def test_no_network_is_there(seen: Seen) -> None:
    tried = {name: said for name, said in seen.inside.items() if name.startswith("connect ") and "gateway" not in name}
    assert len(tried) == 5
    assert all("Error" in said for said in tried.values()), tried
    assert "gaierror" in seen.inside["resolve"]
    assert seen.inside["interfaces"] == ["lo"]


def test_the_gateway_s_socket_is_the_only_way_out(seen: Seen) -> None:
    assert seen.inside["connect the gateway"] == "done: None"
    assert seen.inside["sockets"] == ["/run/ha/llm.sock"]
    assert "Read-only" in seen.inside["write /run/ha/x"]


def test_no_dangerous_system_call_gets_through(seen: Seen) -> None:
    calls = {name: said for name, said in seen.inside.items() if name.startswith("call ")}
    assert len(calls) == 21
    refusals = {"Operation not permitted", "Function not implemented"}
    assert {name: said for name, said in calls.items() if said not in refusals} == {}
    for family in ("packet", "alg", "vsock"):
        assert "PermissionError" in seen.inside[f"socket {family}"]


def test_the_command_has_no_power(seen: Seen) -> None:
    status = seen.inside["status"]
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert status["Uid"].split() == ["10001"] * 4
    assert status["Gid"].split() == ["10001"] * 4
    assert status["Groups"].split() in ([], ["10001"])


def test_only_the_places_meant_for_it_can_be_written(seen: Seen) -> None:
    written = {name for name, said in seen.inside.items() if name.startswith("write ") and said.startswith("done")}
    assert written == {"write /workspace/w", "write /tmp/w", "write /home/agent/w"}


def test_it_sees_only_its_own_processes(seen: Seen) -> None:
    assert seen.inside["pids"] <= 3


def test_no_mount_passes_anything_on(seen: Seen) -> None:
    assert "shared:" not in seen.inside["mounts"]
    assert "docker.sock" not in seen.inside["mounts"]


def test_our_list_of_system_calls_lets_none_of_the_dangerous_ones_through() -> None:
    listed = json.loads(profile.seccomp())
    assert listed["defaultAction"] == "SCMP_ACT_ERRNO"
    free = {name for rule in listed["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert free.isdisjoint(DANGEROUS.split())
    with_conditions = [rule for rule in listed["syscalls"] if set(rule["names"]) & {"clone", "socket", "personality"}]
    assert all(rule.get("args") for rule in with_conditions)
