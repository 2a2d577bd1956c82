"""What every runner must do, tried on the Docker runner, the plain-process runner and the fake alike."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hyperagent_common.errors import NotReady
from hyperagent_tasks.runners.base import Mount, RunSpec
from hyperagent_tasks.runners.fake import Play
from hyperagent_tasks.runners.process import ProcessRunner
from tests.contract.runner_bench import Bench, Kept, only_process, real

GARBAGE = "é\u202e漢字\x1b[2J".encode() + b"\x00\xff\xfe\x80\r\n" + bytes(range(256))


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


@only_process
def test_only_whole_paths_are_rewritten_by_the_process_runner(bench: Bench) -> None:
    result = bench.run("echo '/workspacex http://x/workspace a/workspace'; test -d '/workspace'")
    assert result.stdout_tail == "/workspacex http://x/workspace a/workspace\n"
    assert result.ok


def test_the_process_runner_says_loudly_that_it_is_no_sandbox(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ProcessRunner(instance="x", work_root=tmp_path / "work")
    assert "without any sandbox" in caplog.records[0].__dict__["why"]
