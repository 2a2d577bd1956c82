"""The reader of directories an agent could write: hostile content is noted, never followed, never an error."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from hyperagent_common.errors import DependencyDown, IntakeRefused
from hyperagent_tasks import beneath, intake
from hyperagent_tasks.intake import Caps
from tests import parts


@pytest.fixture(params=["openat2", "stepwise"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs with the kernel's `openat2` and with the way that stands in for it."""
    if request.param == "openat2" and not beneath.has_openat2():
        parts.missing("openat2 of the kernel", "Linux 5.6, and a profile that allows it")
    if request.param == "stepwise":
        monkeypatch.setattr(beneath, "has_openat2", lambda: False)
    return str(request.param)


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What the sandbox left."""
    (tmp_path / "left").mkdir()
    return tmp_path / "left"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the host that must never come out."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "key").write_text("secret")
    return tmp_path / "host" / "key"


def reasons(report: intake.Report) -> dict[str, str]:
    """Refused names with their reasons."""
    return {refusal.name: refusal.reason for refusal in report.refused}


def test_plain_files_come_out_as_they_are(left: Path, tmp_path: Path) -> None:
    (left / "a b" / "c").mkdir(parents=True)
    (left / "a b" / "c" / "ü.log").write_bytes(b"\x00\xff" * 700_000)
    (left / "empty").touch()
    report = intake.take(left, tmp_path / "taken")
    assert report.names == ["a b/c/ü.log", "empty"]
    assert report.refused == []
    assert report.total == 1_400_000
    assert (tmp_path / "taken" / "a b" / "c" / "ü.log").read_bytes() == b"\x00\xff" * 700_000


def test_a_directory_that_is_not_there_gives_nothing(left: Path, tmp_path: Path) -> None:
    report = intake.take(left, tmp_path / "taken", under=".hyperagent/workflow-logs")
    assert (report.names, report.refused) == ([], [])


def test_links_pipes_sockets_and_second_names_are_left_out(left: Path, secret: Path, tmp_path: Path) -> None:
    (left / "link").symlink_to(secret)
    (left / "folder").symlink_to(secret.parent)
    os.link(secret, left / "hard")
    os.mkfifo(left / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(left)  # the path of a socket is short
        listening.bind("sock")
        os.chdir("/")
        report = intake.take(left, tmp_path / "taken")
    assert report.names == []
    assert set(reasons(report)) == {"link", "folder", "hard", "pipe", "sock"}
    assert "symbolic link" in reasons(report)["link"]
    assert "hard link" in reasons(report)["hard"]
    assert "pipe" in reasons(report)["pipe"]


@pytest.mark.parametrize("under", ["logs", "logs/deeper", "../host", "/etc", "a/../../host"])
def test_a_start_that_leads_elsewhere_is_refused(left: Path, secret: Path, tmp_path: Path, under: str) -> None:
    (left / "logs").symlink_to(secret.parent)
    (secret.parent / "deeper").mkdir()
    (secret.parent / "deeper" / "key").write_text("secret")
    report = intake.take(left, tmp_path / "taken", under=under)
    assert report.names == []
    assert report.refused_count == 1


@pytest.mark.parametrize("name", [b"bad\xff", b"line\nfeed", b"esc\x1b[2J", "bidi\u202e".encode(), b"back\\slash", b"x" * 240])
def test_odd_names_are_left_out_and_shown_harmless(left: Path, tmp_path: Path, name: bytes) -> None:
    Path(os.fsdecode(bytes(left) + b"/" + name)).touch()
    report = intake.take(left, tmp_path / "taken")
    assert report.names == []
    assert [refusal.name.isprintable() for refusal in report.refused] == [True]


def test_each_limit_is_kept_and_told(left: Path, tmp_path: Path) -> None:
    for position in range(10):
        (left / f"f{position}").write_bytes(b"x" * 100)
    (left / "big").write_bytes(b"x" * 201)
    (left / "d" / "e" / "f").mkdir(parents=True)
    (left / "d" / "e" / "f" / "deep").touch()

    def taken(name: str, **caps: int) -> intake.Report:
        return intake.take(left, tmp_path / name, caps=Caps(**caps))  # type: ignore[arg-type]

    assert "more than the 200 allowed" in reasons(taken("1", file_bytes=200))["big"]
    assert taken("2", total_bytes=350).total <= 350
    assert len(taken("3", files=4).names) == 4
    assert "deeper than 2" in reasons(taken("4", depth=2))["d/e"]
    assert "more than 5 entries" in reasons(taken("5", entries=5))["."]


def test_a_sparse_file_counts_with_its_size(left: Path, tmp_path: Path) -> None:
    with (left / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert "sparse" in reasons(intake.take(left, tmp_path / "taken"))


def test_thousands_of_bad_names_make_a_short_report(left: Path, tmp_path: Path) -> None:
    for position in range(500):
        (left / f"l{position}").symlink_to("/etc/passwd")
    report = intake.take(left, tmp_path / "taken")
    assert (len(report.refused), report.refused_count) == (100, 500)


def test_a_file_that_grows_while_it_is_read_is_left_out_whole(
    left: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (left / "log").write_bytes(b"x" * 10)
    real = os.read

    def growing(file: int, count: int) -> bytes:
        with (left / "log").open("ab") as more:
            more.write(b"x" * 100)
        return real(file, 50)

    monkeypatch.setattr("hyperagent_tasks.intake.os.read", growing)
    report = intake.take(left, tmp_path / "taken", caps=Caps(file_bytes=1000))
    monkeypatch.undo()
    assert "grew" in reasons(report)["log"]
    assert not (tmp_path / "taken" / "log").exists()


def test_one_known_file_is_read_or_nothing(left: Path, secret: Path) -> None:
    (left / "checks.json").write_text("{}")
    (left / "link").symlink_to(secret)
    assert intake.read_small(left, "checks.json", limit=10) == b"{}"
    assert intake.read_small(left, "checks.json", limit=1) is None
    assert intake.read_small(left, "link", limit=10) is None
    assert intake.read_small(left, "missing", limit=10) is None
    assert intake.read_small(left / "missing", "x", limit=10) is None
    assert intake.read_small(left, "../host/key", limit=10) is None


def test_one_known_file_is_copied_or_refused(left: Path, secret: Path, tmp_path: Path) -> None:
    (left / "out.bundle").write_bytes(b"bundle")
    assert intake.copy_file(left, "out.bundle", tmp_path / "mine", limit=10) == 6
    assert (tmp_path / "mine").read_bytes() == b"bundle"
    (left / "link").symlink_to(secret)
    for name in ("link", "missing", "../host/key"):
        with pytest.raises(IntakeRefused):
            intake.copy_file(left, name, tmp_path / "other", limit=10)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
def test_a_host_in_trouble_says_nothing_of_what_the_agent_left(
    left: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def ailing(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    (left / "out.bundle").write_bytes(b"bundle")
    for broken, name in ((beneath, "open_at"), (os, "read")):
        with monkeypatch.context() as patch:
            patch.setattr(broken, name, ailing)
            for i, look in enumerate((
                lambda dest: intake.copy_file(left, "out.bundle", dest, limit=10),
                lambda dest: intake.read_small(left, "out.bundle", limit=10),
                lambda dest: intake.take(left, dest),
            )):  # fmt: skip
                with pytest.raises(DependencyDown, match=os.strerror(number)):
                    look(tmp_path / f"{name}{i}")


def test_a_name_that_never_stands_still_is_the_agents_fault(left: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def moving(*_: object) -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    (left / "out.bundle").write_bytes(b"bundle")
    monkeypatch.setattr(beneath, "open_at", moving)
    with pytest.raises(IntakeRefused):
        intake.copy_file(left, "out.bundle", tmp_path / "mine", limit=10)


def test_nothing_leaks_while_names_are_exchanged_under_the_reader(left: Path, secret: Path, tmp_path: Path) -> None:
    (left / "logs").mkdir()
    (left / "logs" / "key").write_text("harmless")
    (left / "evil").symlink_to(secret.parent)
    (left / "file").write_text("harmless")
    (left / "bad").symlink_to(secret)
    stop = threading.Event()

    def exchange() -> None:
        while not stop.is_set():
            for one, other in (("logs", "evil"), ("file", "bad")):
                os.rename(left / one, left / "aside")
                os.rename(left / other, left / one)
                os.rename(left / "aside", left / other)

    thread = threading.Thread(target=exchange)
    thread.start()
    seen, end = 0, time.monotonic() + 3
    try:
        while time.monotonic() < end:
            taken = tmp_path / f"taken{seen}"
            report = intake.take(left, taken)
            assert all((taken / name).read_text() == "harmless" for name in report.names)
            assert intake.read_small(left, "file", limit=100) in (None, b"harmless")
            seen += 1
    finally:
        stop.set()
        thread.join(10)
    assert seen > 10
