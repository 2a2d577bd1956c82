"""Nothing is left of a run: processes, containers, directories, whoever made them and whoever died."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from hyperagent_common.errors import BadInput
from hyperagent_tasks.runners import leftovers
from tests import parts
from tests.contract.runner_bench import Bench, make, only_process, real, socat, until


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
        until(lambda: bool(bench.left()) and (bench.ws / "begun").exists())
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
        "import sys; from pathlib import Path; from tests.contract import runner_bench as t\n"
        "bench = t.make(sys.argv[1], Path(sys.argv[2]))\n"
        "bench.instance = bench.runner._instance = sys.argv[3]\n"
        "bench.run('while :; do echo x >>begun; sleep 0.1; done', attempt='orphan')\n"
    )
    bench.ws  # noqa: B018
    argv = [sys.executable, "-c", code, bench.kind, str(bench.root), bench.instance]
    return subprocess.Popen(argv, cwd=Path(__file__).parents[2], start_new_session=True)


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


@pytest.fixture
def other_user(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of a user who is not root but may use the engine; the test runs as that user."""
    parts.require_runner_image()
    root = Path(tempfile.mkdtemp(prefix="ha-user-"))
    was = os.geteuid()
    with _engine_for_all() as url:
        if was == 0:
            monkeypatch.setenv("DOCKER_HOST", url)
            os.chown(root, 12345, 12345)
            os.seteuid(12345)
        try:
            yield root
        finally:
            os.seteuid(was)
            shutil.rmtree(root, ignore_errors=True)


@contextmanager
def _engine_for_all() -> Iterator[str]:
    """The engine's socket for a user outside its group."""
    path = Path("/tmp") / f"ha-open-{uuid4().hex[:8]}.sock"
    argv = [socat(), f"UNIX-LISTEN:{path},fork,mode=666", "UNIX-CONNECT:/var/run/docker.sock"]
    forward = subprocess.Popen(argv, start_new_session=True)
    try:
        until(lambda: path.exists() and path.stat().st_mode & 0o666 == 0o666)
        yield f"unix://{path}"
    finally:
        os.killpg(forward.pid, signal.SIGKILL)
        forward.wait(timeout=5)
        path.unlink(missing_ok=True)


def test_a_worker_that_is_not_root_shares_a_workspace_and_removes_it(other_user: Path) -> None:
    made = make("docker", other_user)
    made.runner.check()
    shell = "mkdir -p shut/deep; touch shut/deep/x; chmod -R a-rwx shut; mkdir own; touch own/y"
    assert made.run(shell).ok
    assert oct(made.ws.parent.stat().st_mode)[-3:] == "700"
    (made.ws.parent / "kept").mkdir()
    (made.ws.parent / "kept" / "log").write_text("x")
    made.runner.remove_tree(made.ws.parent)
    assert list((other_user / "work").iterdir()) == []
    assert made.runner.reap(lambda labels: False) == []


def test_a_process_that_ends_while_its_environment_is_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, said in (("11", b"A=1\0B=2\0"), ("12", b""), ("13", b"C=3\0"), ("self", b"D=4\0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "environ").write_bytes(said)
    (tmp_path / "14").mkdir()
    whole = Path.read_bytes

    def read(path: Path) -> bytes:
        if path.parent.name == "12":
            raise ProcessLookupError(errno.ESRCH, "No such process", str(path))  # as Linux says of one that is ending
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert sorted(leftovers.environments(tmp_path)) == [(11, [b"A=1", b"B=2", b""]), (13, [b"C=3", b""])]


def test_where_there_is_no_proc_nothing_is_read(tmp_path: Path) -> None:
    assert list(leftovers.environments(tmp_path / "proc")) == []
