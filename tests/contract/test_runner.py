"""What every runner must do, tried on the Docker runner, the plain-process runner and the fake alike."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import pytest

from hyperagent_common.errors import BadInput, DependencyDown, NotReady
from hyperagent_tasks.runners.base import Mount, Owner, Runner, RunnerResult, RunSpec, Sink
from hyperagent_tasks.runners.docker import DockerRunner
from hyperagent_tasks.runners.fake import FakeRunner, Play
from hyperagent_tasks.runners.process import ProcessRunner
from tests import parts

REAL = ["docker", "process"]
ALL = [*REAL, "fake"]
GARBAGE = "é\u202e漢字\x1b[2J".encode() + b"\x00\xff\xfe\x80\r\n" + bytes(range(256))


@dataclass
class Bench:
    """One runner with a directory of its own; `run` gives the same command to a shell and to the fake."""

    kind: str
    root: Path
    runner: Runner
    instance: str
    plays: list[Callable[[RunSpec], Play]] = field(default_factory=list)

    @property
    def ws(self) -> Path:
        """A writable workspace."""
        path = self.root / "work" / "a1" / "ws"
        if not path.exists():
            path.mkdir(parents=True)
            self.runner.workspace(path)
        return path

    def spec(self, shell: str, **changes: Any) -> RunSpec:
        """A spec that runs `shell` in a fresh workspace."""
        deadline = datetime.now(UTC) + timedelta(minutes=5)
        owner = Owner(self.instance, "wf", "st", changes.pop("attempt", "0190-aaaa-bbbbccccdddd"), 7, deadline)
        mounts = changes.pop("mounts", (Mount(self.ws, "/workspace", read_only=False),))
        values: dict[str, Any] = {"role": "check", "argv": ("sh", "-c", shell), "timeout": 60.0, **changes}
        return RunSpec(owner=owner, mounts=mounts, **values)

    def run(
        self,
        shell: str,
        play: Play | Callable[[RunSpec], Play] | None = None,
        *,
        sink: Sink | None = None,
        cancelled: Callable[[], bool] | None = None,
        **changes: Any,
    ) -> RunnerResult:
        """Run it; `play` is what the fake makes of it."""
        self.plays[:] = [play if callable(play) else lambda _spec: play or Play()]
        return self.runner.run(self.spec(shell, **changes), sink=sink, cancelled=cancelled)

    def left(self) -> list[str]:
        """What this instance has left: containers, or processes and their records."""
        if self.kind == "docker":
            found = parts.require_docker().api.containers(all=True, filters={"label": f"hyperagent.instance={self.instance}"})
            return [str(one["Names"]) for one in found]
        runs = self.root / "run" / "processes"
        return [path.name for path in runs.iterdir()] if runs.exists() else []


class Kept:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.stdout, self.stderr = bytearray(), bytearray()
        self.first = threading.Event()

    def __call__(self, stream: str, data: bytes, /) -> None:
        (self.stdout if stream == "stdout" else self.stderr).extend(data)
        self.first.set()


def make(kind: str, root: Path) -> Bench:
    """A bench whose runner is `kind`."""
    instance = f"t-{uuid4().hex[:10]}"
    plays: list[Callable[[RunSpec], Play]] = []
    work = root / "work"
    work.mkdir(mode=0o700, exist_ok=True)
    runner: Runner
    if kind == "docker":
        runner = DockerRunner(instance=instance, image=parts.require_runner_image(), work_root=work)
    elif kind == "process":
        runner = ProcessRunner(instance=instance, work_root=work)
    else:
        runner = FakeRunner(lambda spec: plays[0](spec), instance=instance, work_root=work)
    return Bench(kind, root, runner, instance, plays)


@pytest.fixture
def swept() -> Iterator[None]:
    """Unclosed sockets show up in the test that made them, not in a later one."""
    yield
    gc.collect()


@pytest.fixture(params=ALL)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Each runner in turn; nothing may be left when the test ends."""
    made = make(request.param, tmp_path)
    yield made
    made.runner.reap(lambda labels: False)
    assert made.left() == []


real = pytest.mark.parametrize("bench", REAL, indirect=True)
only_docker = pytest.mark.parametrize("bench", ["docker"], indirect=True)
leaks_sockets = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
"""docker-py does not close the socket it could not connect (`docker.transport.unixconn`)."""
only_process = pytest.mark.parametrize("bench", ["process"], indirect=True)


def test_a_runner_that_can_run_passes_its_check(bench: Bench) -> None:
    began = time.monotonic()
    bench.runner.check()
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("code", [0, 1, 2, 77, 255])
def test_the_exit_code_is_the_command_s_own(bench: Bench, code: int) -> None:
    result = bench.run(f"exit {code}", Play(exit_code=code))
    assert (result.ended, result.exit_code, result.ok) == ("exited", code, code == 0)
    assert result.started_at <= result.finished_at
    assert bench.left() == []


def test_stdout_and_stderr_come_apart_and_byte_for_byte(bench: Bench) -> None:
    (bench.ws / "garbage").write_bytes(GARBAGE)
    (bench.ws / "garbage").chmod(0o644)
    kept = Kept()
    result = bench.run("cat garbage; printf oops >&2; cat garbage", Play(stdout=GARBAGE * 2, stderr=b"oops"), sink=kept)
    assert bytes(kept.stdout) == GARBAGE * 2
    assert bytes(kept.stderr) == b"oops"
    assert result.stderr_tail == "oops"
    assert "\x00" not in result.stdout_tail


def test_nothing_of_a_long_output_is_lost_at_the_end(bench: Bench) -> None:
    said = b"".join(b"%d\n" % number for number in range(200_000)) + b"no newline at the end"
    kept = Kept()
    shell = "seq 0 199999; printf 'no newline at the end'"
    result = bench.run(shell, Play(stdout=said), sink=kept)
    assert bytes(kept.stdout) == said
    assert result.stdout_tail == said[-8192:].decode()


@real
def test_output_comes_while_the_command_runs(bench: Bench) -> None:
    kept = Kept()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(bench.run, "echo now; sleep 3", sink=kept)
        assert kept.first.wait(2.5)
        assert not running.done()
        assert running.result().ok


def test_a_command_past_its_deadline_is_ended(bench: Bench) -> None:
    began = time.monotonic()
    result = bench.run("echo begun; sleep 60", Play(stdout=b"begun\n", seconds=60), timeout=1.0)
    assert (result.ended, result.exit_code, result.ok) == ("timeout", None, False)
    assert result.stdout_tail == "begun\n"
    assert time.monotonic() - began < 6
    assert bench.left() == []


def test_a_silent_command_is_ended_as_idle(bench: Bench) -> None:
    result = bench.run("echo begun; sleep 60", Play(stdout=b"begun\n", seconds=60), idle_timeout=1.0)
    assert (result.ended, result.exit_code) == ("idle", None)


@real
def test_a_command_that_keeps_talking_is_not_idle(bench: Bench) -> None:
    assert bench.run("for i in 1 2 3 4; do echo $i; sleep 0.5; done", idle_timeout=1.5).ok


@real
def test_a_command_that_closes_its_streams_still_has_a_deadline(bench: Bench) -> None:
    result = bench.run("exec >&- 2>&-; sleep 60", timeout=1.5)
    assert result.ended == "timeout"


def test_cancel_ends_a_command_within_two_seconds(bench: Bench) -> None:
    asked = threading.Event()
    threading.Timer(0.7, asked.set).start()
    began = time.monotonic()
    result = bench.run("trap '' TERM INT; while :; do sleep 1; done", Play(seconds=60), cancelled=asked.is_set)
    assert (result.ended, result.exit_code) == ("cancelled", None)
    assert time.monotonic() - began < 0.7 + 2


def test_an_output_bomb_is_cut_at_its_limit_and_ended(bench: Bench) -> None:
    kept = Kept()
    result = bench.run("yes bomb", Play(stdout=b"bomb\n" * 100_000, seconds=60), output_limit=100_000, sink=kept)
    assert (result.ended, result.truncated) == ("output", True)
    assert len(kept.stdout) == 100_000


def test_a_disk_bomb_is_ended(bench: Bench) -> None:
    def fill(spec: RunSpec) -> Play:
        for number in range(40):
            (spec.mounts[0].source / f"f{number}").write_bytes(b"x" * (1 << 20))
        return Play(seconds=10)

    shell = "i=0; while :; do i=$((i+1)); head -c 1048576 /dev/zero >f$i || exit 1; done"
    result = bench.run(shell, fill, disk_limit=20 << 20)
    assert result.ended == "disk"


def test_a_quick_disk_bomb_that_ended_by_itself_is_still_told(bench: Bench) -> None:
    def fill(spec: RunSpec) -> Play:
        for number in range(3):
            (spec.mounts[0].source / f"f{number}").write_bytes(b"x" * (1 << 20))
        return Play()

    result = bench.run("for i in 1 2 3; do head -c 1048576 /dev/zero >f$i; done", fill, disk_limit=2 << 20)
    assert result.ended == "disk"


@real
def test_one_file_cannot_grow_past_the_disk_limit(bench: Bench) -> None:
    result = bench.run("head -c 50000000 /dev/zero >one", disk_limit=1 << 20)
    assert not result.ok
    assert (bench.ws / "one").stat().st_size <= 1 << 20


@real
@pytest.mark.parametrize("how", ["sleep 300 &", "setsid sleep 300 >/dev/null 2>&1 </dev/null & sleep 0.2"])
def test_what_a_command_leaves_running_is_ended_with_it(bench: Bench, how: str) -> None:
    mark = f"31{uuid4().int % 10**7}"
    began = time.monotonic()
    result = bench.run(f"{how.replace('300', mark)}\necho done")
    assert result.ok
    assert time.monotonic() - began < 10
    assert not any(mark.encode() in _cmdline(path) for path in Path("/proc").glob("[0-9]*/cmdline"))


def _cmdline(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@real
def test_a_missing_program_is_exit_code_127_with_its_name(bench: Bench) -> None:
    result = bench.run("", argv=("no-such-program", "x"))
    assert (result.ended, result.exit_code) == ("exited", 127)
    assert "no-such-program" in result.stderr_tail


@real
def test_the_command_sees_its_mounts_and_environment_and_not_the_worker_s(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary-in-the-worker")
    source = bench.root / "work" / "a1" / "in"
    source.mkdir(parents=True, mode=0o755)
    (source / "base").write_text("the base")
    mounts = (Mount(bench.ws, "/workspace", read_only=False), Mount(source, "/in"))
    shell = 'cat /in/base; echo; cat "$IN/base"; pwd >here; env; test -w "$HOME" && test -w "$TMPDIR"; cat /dev/stdin'
    result = bench.run(shell, mounts=mounts, env={"IN": "/in", "GREETING": "hallo"})
    assert result.ok
    assert result.stdout_tail.startswith("the base\nthe base")
    assert "GREETING=hallo" in result.stdout_tail
    assert "canary" not in result.stdout_tail
    assert (bench.ws / "here").exists()


@real
def test_two_runs_side_by_side_do_not_mix(bench: Bench) -> None:
    sinks = [Kept(), Kept()]
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(bench.runner.run, bench.spec(f"for i in 1 2 3 4 5; do echo {name}; sleep 0.1; done"), sink=sink)
            for name, sink in zip("ab", sinks, strict=True)
        ]
        assert all(job.result().ok for job in jobs)
    assert [bytes(sink.stdout) for sink in sinks] == [b"a\n" * 5, b"b\n" * 5]


def test_a_sink_that_fails_ends_the_run_and_leaves_nothing(bench: Bench) -> None:
    def broken(_stream: str, _data: bytes, /) -> None:
        raise RuntimeError("the sink is broken")

    with pytest.raises(RuntimeError, match="the sink is broken"):
        bench.run("echo x; sleep 60", Play(stdout=b"x\n", seconds=60), sink=broken)
    assert bench.left() == []


@real
def test_a_missing_mount_is_named(bench: Bench) -> None:
    with pytest.raises(NotReady, match="not-there"):
        bench.run("true", mounts=(Mount(bench.root / "work" / "a1" / "not-there", "/in"),))


def test_remove_tree_takes_deep_and_odd_trees_and_follows_no_link(bench: Bench) -> None:
    outside = bench.root / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    ws = bench.ws
    shell = (
        f"ln -s {outside} link; mkfifo pipe; mkdir shut; touch shut/x; chmod 0 shut; touch \"$(printf 'a\\nb')\";"
        "i=0; while [ $i -lt 600 ]; do mkdir dddddddd && cd dddddddd || exit 1; i=$((i+1)); done; touch bottom"
    )
    ended = bench.run(shell).ended
    assert ended == ("exited" if bench.kind == "fake" else "disk")  # a tree too deep to look at counts as too big
    bench.runner.remove_tree(ws)
    assert not ws.exists()
    assert (outside / "precious").exists()
    bench.runner.remove_tree(ws)


def test_remove_tree_refuses_what_is_not_below_the_work_directory(bench: Bench) -> None:
    precious = bench.root / "precious"
    precious.mkdir()
    work = bench.root / "work"
    (work / "link").symlink_to(precious)
    for path in (precious, work, work / "link", work / ".." / "precious", Path("/")):
        with pytest.raises(BadInput):
            bench.runner.remove_tree(path)
    assert precious.exists()


@real
def test_reap_ends_what_a_killed_worker_left_and_only_that(bench: Bench) -> None:
    helper = _helper(bench)
    try:
        _until(lambda: bool(bench.left()) and (bench.ws / "begun").exists())
    finally:
        helper.kill()
        helper.wait(timeout=10)
    assert len(bench.left()) == 1
    assert bench.runner.reap(lambda labels: labels["hyperagent.attempt"] == "orphan") == []
    assert make(bench.kind, bench.root).runner.reap(lambda labels: False) == []
    seen: list[dict[str, str]] = []
    assert len(bench.runner.reap(lambda labels: bool(seen.append(dict(labels))))) == 1
    assert seen[0]["hyperagent.fence"] == "7"
    assert seen[0]["hyperagent.role"] == "check"
    assert bench.left() == []
    before = (bench.ws / "begun").stat().st_size
    time.sleep(0.6)
    assert (bench.ws / "begun").stat().st_size == before


def _helper(bench: Bench) -> subprocess.Popen[bytes]:
    """Another process that runs a command which does not end."""
    code = (
        "import sys; from pathlib import Path; from tests.contract import test_runner as t\n"
        "bench = t.make(sys.argv[1], Path(sys.argv[2]))\n"
        "bench.instance = bench.runner._instance = sys.argv[3]\n"
        "bench.run('while :; do echo x >>begun; sleep 0.1; done', attempt='orphan')\n"
    )
    bench.ws  # noqa: B018
    argv = [sys.executable, "-c", code, bench.kind, str(bench.root), bench.instance]
    return subprocess.Popen(argv, cwd=Path(__file__).parents[2], start_new_session=True)


def _until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@only_process
def test_reap_spares_a_process_that_took_over_the_number(bench: Bench) -> None:
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        root = bench.root / "run" / "processes" / "stale"
        root.mkdir(parents=True)
        labels = f'{{"hyperagent.instance": "{bench.instance}"}}'
        (root / "record.json").write_text(f'{{"labels": {labels}, "pid": {bystander.pid}, "born": "1"}}')
        assert bench.runner.reap(lambda labels: False) == ["stale"]
        assert bystander.poll() is None
    finally:
        bystander.send_signal(signal.SIGKILL)
        bystander.wait(timeout=5)


@only_process
def test_only_whole_paths_are_rewritten_by_the_process_runner(bench: Bench) -> None:
    result = bench.run("echo '/workspacex http://x/workspace a/workspace'; test -d '/workspace'")
    assert result.stdout_tail == "/workspacex http://x/workspace a/workspace\n"
    assert result.ok


def test_the_process_runner_says_loudly_that_it_is_no_sandbox(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ProcessRunner(instance="x", work_root=tmp_path / "work")
    assert "without any sandbox" in caplog.records[0].__dict__["why"]


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
    socat = subprocess.Popen([_socat(), f"UNIX-LISTEN:{path},fork", "EXEC:sleep 60"], start_new_session=True)
    try:
        _until(path.exists)
        began = time.monotonic()
        with pytest.raises(DependencyDown, match="in time"):
            _runner(bench, f"unix://{path}").check()
        assert time.monotonic() - began < 2
    finally:
        os.killpg(socat.pid, signal.SIGKILL)
        socat.wait(timeout=5)
        path.unlink(missing_ok=True)


@leaks_sockets
@only_docker
@pytest.mark.usefixtures("swept")
def test_an_engine_that_goes_away_during_a_run_is_a_dependency_down_and_the_reaper_ends_the_rest(bench: Bench) -> None:
    path = Path("/tmp") / f"ha-gone-{uuid4().hex[:8]}.sock"
    through = ["UNIX-CONNECT:/var/run/docker.sock"]
    socat = subprocess.Popen([_socat(), f"UNIX-LISTEN:{path},fork", *through], start_new_session=True)
    kept = Kept()
    try:
        _until(path.exists)
        runner = _runner(bench, f"unix://{path}", parts.RUNNER_IMAGE)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(runner.run, bench.spec("echo begun; sleep 60"), sink=kept)
            assert kept.first.wait(10)
            os.killpg(socat.pid, signal.SIGKILL)
            with pytest.raises(DependencyDown, match="Docker engine"):
                running.result(timeout=10)
    finally:
        socat.kill()
        socat.wait(timeout=5)
        path.unlink(missing_ok=True)
    assert len(bench.left()) == 1
    assert len(bench.runner.reap(lambda labels: False)) == 1


def _socat() -> str:
    found = shutil.which("socat")
    return found if found else parts.missing("socat", "ops/parts services")


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
