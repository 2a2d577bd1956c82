"""A Radicle home for tests of `rad-push`: an identity, one repository with three commits, no node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hyperagent_tasks.gitgate import GitGate, new_repository
from hyperagent_tasks.radicle.choose import HELPER
from tests import parts

WHEN = datetime(2026, 1, 1, 12, tzinfo=UTC)


@dataclass
class Home:
    """A Radicle home with one registered repository and three commits on a workflow's branch; no node runs."""

    top: Path
    env: dict[str, str]
    base: str = ""
    commits: tuple[str, ...] = ()
    rid: str = ""
    nid: str = ""

    def run(self, *argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """A command with this home's environment."""
        return subprocess.run(argv, env=self.env, cwd=cwd, capture_output=True, text=True, timeout=90, check=False)

    def push(self, command: str, **spec: object) -> tuple[int, dict[str, Any]]:
        """Exit code and answer of `rad-push`."""
        done = self.run(str(HELPER), command, "--json", "--spec", json.dumps(spec))
        return done.returncode, json.loads(done.stdout)

    def publish(self, count: int, **changes: object) -> tuple[int, dict[str, Any]]:
        """Publish the first `count` commits."""
        spec: dict[str, object] = {"rid": self.rid, "repo": str(self.repo), "key": "hyperagent/w", "base": self.base}
        spec |= {"heads": self.commits[:count], "title": "Mend it", "body": "b", "published_at": 1790000000}
        return self.push("publish", **{**spec, **changes})

    def register(self) -> tuple[int, dict[str, Any]]:
        """Register the repository."""
        return self.push("register", repo=str(self.repo), name="p", description="d", branch="main")

    @property
    def repo(self) -> Path:
        """The trusted repository."""
        return self.top / "repos" / "p.git"

    @property
    def storage(self) -> Path:
        """Radicle's own copy."""
        return self.top / "rad" / "storage" / self.rid.removeprefix("rad:")

    def own(self, name: str) -> Path:
        """The file of a ref in this key's namespace."""
        return self.storage / "refs" / "namespaces" / self.nid / "refs" / name

    def patch(self) -> dict[str, Any]:
        """The one patch there is."""
        argv = ("rad", "cob", "list", "--repo", self.rid, "--type", "xyz.radicle.patch")
        ids = self.run(*argv).stdout.split()
        assert len(ids) == 1, ids
        return self.push("show", rid=self.rid, patch=ids[0])[1]

    def heads(self) -> list[str]:
        """The heads of its revisions."""
        return [revision["head"] for revision in self.patch()["revisions"]]

    def cache_as_now(self) -> Callable[[], None]:
        """Keeps rad's cache of patches; the answer puts it back, as if rad was killed before it wrote there."""
        cobs, kept = self.top / "rad" / "cobs", self.top / f"cobs-{uuid.uuid4().hex}"
        shutil.copytree(cobs, kept)

        def put_back() -> None:
            shutil.rmtree(cobs)
            shutil.copytree(kept, cobs)

        return put_back

    def signed(self) -> str:
        """The signed refs, which is all that peers see."""
        name = f"refs/namespaces/{self.nid}/refs/rad/sigrefs:refs"
        return self.run("git", "-C", str(self.storage), "cat-file", "blob", name).stdout


@pytest.fixture
def bare() -> Iterator[Home]:
    """An identity and a repository that is not registered yet; the path is short, for sockets."""
    programs = parts.require_radicle()
    top = Path(f"/tmp/ha-push-{uuid.uuid4().hex[:6]}")
    path = f"{HELPER.parent}{os.pathsep}{programs}{os.pathsep}{os.environ['PATH']}"
    who = {f"GIT_{role}_{what}": "t@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    made = Home(top, {"PATH": path, "HOME": str(top), "RAD_HOME": str(top / "rad"), "RAD_PASSPHRASE": "", **who})
    (top / "rad").mkdir(parents=True)
    try:
        assert made.run("rad", "auth", "--alias", "t", "--stdin").returncode == 0
        gate = GitGate(top / "repos")
        gate.trusted("p")
        new_repository(top / "source", {"a": b"1\n"}, message="first")
        made.base = onto = gate.refresh("p", top / "source", "main")
        gate.follow("p", "hyperagent/w", onto)
        tree = gate._tree(gate.trusted("p"), onto)
        for step in ("s1", "s2", "s3"):
            onto = gate.commit("p", "hyperagent/w", onto, tree, message=step, trailers={}, when=WHEN).commit
            made.commits += (onto,)
        yield made
    finally:
        made.run("rad", "node", "stop")
        shutil.rmtree(top, ignore_errors=True)


@pytest.fixture
def home(bare: Home) -> Home:
    """The same, registered."""
    code, said = bare.register()
    assert code == 0, said
    bare.rid, bare.nid = said["rid"], said["nid"]
    return bare
