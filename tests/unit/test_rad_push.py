"""What `rad-push` refuses before it touches Radicle: run as a program, with no Radicle and only the standard library."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hyperagent_tasks.radicle.choose import HELPER

RID = "rad:z3gqcJUoA1n9HaHKufZs5FCSGazv5"
REGISTER = {"repo": "/nowhere", "name": "p", "description": "d", "branch": "main"}


def push(home: Path, *argv: str) -> tuple[int, dict[str, Any]]:
    """Exit code and the one JSON line."""
    env = {"RAD_HOME": str(home), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-S", str(HELPER), *argv, "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    (line,) = done.stdout.splitlines()
    assert not done.stderr
    return done.returncode, json.loads(line)


def asked(home: Path, command: str, **spec: object) -> tuple[int, dict[str, Any]]:
    """The same, with a spec."""
    return push(home, command, "--spec", json.dumps(spec))


@pytest.mark.parametrize("rid", [RID + "x", RID[:-2], "rad:z" + "A" * 29, "rad:z" + "2" * 25, "rad:z0OIl", "rad:z", RID[4:]])
def test_a_radicle_id_that_is_not_twenty_bytes_is_bad_input(tmp_path: Path, rid: str) -> None:
    code, said = asked(tmp_path, "registration", rid=rid)
    assert (code, said["outcome"]) == (2, "bad-input")
    assert "rid" in said["error"]
    assert asked(tmp_path, "standing", rids=[RID, rid])[0] == 2


@pytest.mark.parametrize("rid", [RID, "rad:z" + "1" * 20, "rad:z" + "z" * 27])
def test_a_radicle_id_of_twenty_bytes_is_looked_up(tmp_path: Path, rid: str) -> None:
    assert asked(tmp_path, "registration", rid=rid)[1]["outcome"] == "ok"


@pytest.mark.parametrize("field", ["name", "description", "branch"])
def test_what_radicle_measures_in_bytes_is_measured_in_bytes(tmp_path: Path, field: str) -> None:
    code, said = asked(tmp_path, "register", **{**REGISTER, field: "ü" * 128})
    assert (code, said["outcome"]) == (2, "bad-input")
    assert f"{field}: must have at most 255 bytes" in said["error"]
    fits = asked(tmp_path, "register", **{**REGISTER, field: "ü" * 127 + "x"})[1]
    assert "255" not in fits["error"]


@pytest.mark.parametrize("wait", ["x", None, True, [], -1, 601, float("nan"), float("inf")])
def test_a_wait_without_an_end_is_refused_before_anything_is_done(tmp_path: Path, wait: object) -> None:
    code, said = asked(tmp_path, "announce", rid=RID, wait=wait)
    assert (code, said["outcome"]) == (2, "bad-input")
    assert "wait: must be seconds" in said["error"]
    code, said = push(tmp_path, "--wait", str(wait))
    assert (code, said["outcome"]) == (2, "bad-input")


def test_a_spec_nested_without_end_is_bad_input(tmp_path: Path) -> None:
    code, said = push(tmp_path, "announce", "--spec", "[" * 100_000)
    assert (code, said["outcome"]) == (2, "bad-input")


@pytest.fixture
def script() -> ModuleType:
    """The program as a module."""
    loader = SourceFileLoader("rad_push", str(HELPER))
    made = module_from_spec(spec_from_loader("rad_push", loader) or pytest.fail("no spec"))
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(made)
    finally:
        sys.dont_write_bytecode = written
    return made


FULL = [(OSError(number, "full"), "disk-full") for number in (errno.ENOSPC, errno.EDQUOT)]
WRONG = [(kind("x"), "error") for kind in (OSError, TypeError, IndexError, AttributeError, RecursionError)]


@pytest.mark.parametrize(("error", "outcome"), [*FULL, *WRONG])
def test_whatever_goes_wrong_is_one_line_and_a_full_disk_has_its_own_outcome(
    script: ModuleType, capsys: pytest.CaptureFixture[str], error: Exception, outcome: str
) -> None:
    def wrong(_: object) -> None:
        raise error

    script.perform = wrong  # type: ignore[attr-defined]
    code = script.main(["status", "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["outcome"] == outcome
    assert code == script.CODES.index(outcome)
