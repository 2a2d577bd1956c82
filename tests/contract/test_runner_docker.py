"""What only the Docker runner can promise, and how it tells what is wrong with the engine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import docker
import pytest

from hyperagent_common.errors import BadInput, DependencyDown, NotReady
from hyperagent_tasks.runners.base import Mount
from hyperagent_tasks.runners.docker import DockerRunner
from tests import parts
from tests.contract.runner_bench import Bench, Kept, leaks_sockets, only_docker, socat, until


@only_docker
def test_a_memory_bomb_is_told_as_out_of_memory(bench: Bench) -> None:
    result = bench.run("exec python3 -c 'x = bytearray(1 << 30)'", memory=64 << 20)
    assert (result.ended, result.exit_code) == ("oom", 137)


@only_docker
def test_a_fork_bomb_stays_inside_its_limit(bench: Bench) -> None:
    shell = "i=0; while [ $i -lt 300 ]; do sleep 30 & i=$((i+1)); done; echo unreached"
    result = bench.run(shell, pids=64, timeout=15.0)
    assert "unreached" not in result.stdout_tail
    assert "fork" in result.stderr_tail.lower()


@only_docker
def test_a_read_only_mount_refuses_writes(bench: Bench) -> None:
    result = bench.run("touch /workspace/x", mounts=(Mount(bench.ws, "/workspace"),))
    assert result.exit_code == 1
    assert "Read-only file system" in result.stderr_tail


@only_docker
def test_a_mount_may_not_reach_outside_the_work_directory_or_over_the_system(bench: Bench) -> None:
    outside = bench.root / "outside"
    outside.mkdir()
    (bench.ws / "link").symlink_to("/etc/hostname")
    refused = [
        Mount(outside, "/in"),
        Mount(Path("/var/run/docker.sock"), "/in/docker.sock"),
        Mount(bench.ws / "link", "/in/link"),
        *(Mount(bench.ws, target) for target in ("/", "/etc", "/run/ha", "/in/../etc", "in", "/usr/local/bin")),
    ]
    for mount in refused:
        with pytest.raises(BadInput):
            bench.run("true", mounts=(mount,))


@only_docker
def test_only_an_agent_gets_a_way_to_the_gateway(bench: Bench) -> None:
    with pytest.raises(BadInput, match="check sandbox"):
        bench.run("true", gateway_socket=bench.root / "llm.sock")
    with pytest.raises(DependencyDown, match="gateway"):
        bench.run("true", role="agent", gateway_socket=bench.root / "llm.sock")


def _runner(bench: Bench, url: str, image: str = "x") -> DockerRunner:
    def factory(timeout: float) -> docker.APIClient:
        return docker.APIClient(base_url=url, version="auto", timeout=timeout)

    work = bench.root / "work"
    return DockerRunner(instance=bench.instance, image=image, work_root=work, client_factory=factory)


@leaks_sockets
@only_docker
@pytest.mark.usefixtures("swept")
def test_an_engine_that_is_not_running_is_told_with_its_mend(bench: Bench) -> None:
    runner = _runner(bench, "unix:///nonexistent/docker.sock")
    for call in (runner.check, lambda: runner.run(bench.spec("true")), lambda: runner.reap(lambda labels: True)):
        with pytest.raises(DependencyDown, match="not running") as raised:
            call()
        assert "ops/parts engine" in raised.value.mend


@leaks_sockets
@only_docker
@pytest.mark.usefixtures("swept")
def test_an_engine_that_hangs_is_told_within_two_seconds(bench: Bench) -> None:
    path = Path("/tmp") / f"ha-hang-{uuid4().hex[:8]}.sock"
    forward = subprocess.Popen([socat(), f"UNIX-LISTEN:{path},fork", "EXEC:sleep 60"], start_new_session=True)
    try:
        until(path.exists)
        began = time.monotonic()
        with pytest.raises(DependencyDown, match="in time"):
            _runner(bench, f"unix://{path}").check()
        assert time.monotonic() - began < 2
    finally:
        os.killpg(forward.pid, signal.SIGKILL)
        forward.wait(timeout=5)
        path.unlink(missing_ok=True)


@leaks_sockets
@only_docker
@pytest.mark.usefixtures("swept")
def test_an_engine_that_goes_away_during_a_run_is_a_dependency_down_and_the_reaper_ends_the_rest(bench: Bench) -> None:
    path = Path("/tmp") / f"ha-gone-{uuid4().hex[:8]}.sock"
    through = ["UNIX-CONNECT:/var/run/docker.sock"]
    forward = subprocess.Popen([socat(), f"UNIX-LISTEN:{path},fork", *through], start_new_session=True)
    kept = Kept()
    try:
        until(path.exists)
        runner = _runner(bench, f"unix://{path}", parts.RUNNER_IMAGE)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(runner.run, bench.spec("echo begun; sleep 60"), sink=kept)
            assert kept.first.wait(10)
            os.killpg(forward.pid, signal.SIGKILL)
            with pytest.raises(DependencyDown, match="Docker engine"):
                running.result(timeout=10)
    finally:
        forward.kill()
        forward.wait(timeout=5)
        path.unlink(missing_ok=True)
    assert len(bench.left()) == 1
    assert len(bench.runner.reap(lambda labels: False)) == 1


@only_docker
def test_a_missing_image_is_told_with_its_mend(bench: Bench) -> None:
    runner = DockerRunner(instance=bench.instance, image="hyperagent/none:dev", work_root=bench.root / "work")
    for call in (runner.check, lambda: runner.run(bench.spec("true"))):
        with pytest.raises(NotReady, match="hyperagent/none:dev") as raised:
            call()
        assert "ops/parts runner-image" in raised.value.mend


@only_docker
def test_an_unknown_runtime_is_told_by_the_check(bench: Bench) -> None:
    image = parts.require_runner_image()
    runner = DockerRunner(instance=bench.instance, image=image, work_root=bench.root / "work", runtime="none-such")
    with pytest.raises(NotReady, match="none-such"):
        runner.check()
