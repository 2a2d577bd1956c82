"""Chaos in the gate: 300 faulted steps without damage, and damage as soon as a guard is switched off."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from hyperagent_tasks.runners import leftovers
from tests import parts
from tests.harness import ROOT, until

pytestmark = pytest.mark.timeout(1800)  # chaos ends by itself where nothing moves; a busy machine makes it slow
DAMAGE = ("lost", "duplicated", "leaked", "stuck")


def chaos(*argv: str, timeout: float = 1700) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON object printed last, and stderr of one run."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--json", *argv], capture_output=True, text=True, timeout=timeout, cwd=ROOT
    )
    return done.returncode, json.loads(done.stdout.strip().splitlines()[-1]), done.stderr[-3000:]


def test_three_hundred_steps_through_faults_lose_nothing_and_do_nothing_twice() -> None:
    code, told, said = chaos("--steps", "300", "--seed", "11")
    assert {kind: told[kind] for kind in DAMAGE} == dict.fromkeys(DAMAGE, 0), (told, said)
    assert (code, told["steps"]) == (0, 300)
    assert told["faulted"] >= 60, told["faults"]


def test_restarting_the_engine_in_the_middle_loses_nothing() -> None:
    parts.require_runner_image()
    code, told, said = chaos("--steps", "30", "--seed", "5", "--sandbox", "docker", "--every", "3")
    assert {kind: told[kind] for kind in DAMAGE} == dict.fromkeys(DAMAGE, 0), (told, said)
    assert code == 0
    assert told["faults"]["restart_engine"] >= 1


@pytest.mark.parametrize("guard", ["lease", "fencing", "reconciler"])
def test_with_a_guard_switched_off_the_damage_shows(guard: str) -> None:
    code, told, _ = chaos("--steps", "50", "--seed", "2", f"--without-{guard}")
    assert code == 1
    assert sum(told[kind] for kind in DAMAGE) > 0
    assert told["without"] == [guard]


def test_a_run_of_nothing_is_no_run() -> None:
    for argv in (["--steps", "-3"], ["--steps", "0"], ["--stall", "-1"], ["--seed", "x"]):
        done = subprocess.run([sys.executable, "-m", "tests.chaos", "--json", *argv], capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, done.stdout, argv[0] in done.stderr) == (2, "", True), done.stderr


def test_a_run_that_is_told_to_end_leaves_nothing() -> None:
    argv = [sys.executable, "-m", "tests.chaos", "--steps", "200", "--seed", "3", "--every", "0.5", "--json"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT) as run:
        try:
            home = until(lambda: next(iter(homes(run.pid)), None), 300)
            time.sleep(5)  # faults are under way
        finally:
            run.send_signal(signal.SIGTERM)
    assert run.returncode == 128 + signal.SIGTERM
    assert not Path(home).parent.exists()
    left = [word for _, said in leftovers.environments() for word in said if word.endswith(home.encode())]
    assert left == []
    assert [p.pid for p in psutil.process_iter(["cmdline"]) if str(Path(home).parent) in " ".join(p.info["cmdline"] or [])] == []


def homes(pid: int) -> set[str]:
    """The homes that the children of a process work in."""
    found = set()
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):
            found.add(child.environ().get("HYPERAGENT_HOME", ""))
    return found - {""}
