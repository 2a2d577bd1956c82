"""A desk for unit tests of agent runs: SQLite, a runner that plays, and the gateway's own books without its servers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from celery import Celery

from hyperagent_common import db
from hyperagent_common.choices import Choice
from hyperagent_common.models import AgentRun, Artifact
from hyperagent_common.settings import Settings
from hyperagent_tasks import spec
from hyperagent_tasks.budget import Left
from hyperagent_tasks.claims import Claim, Lease
from hyperagent_tasks.conversing import Turn
from hyperagent_tasks.gateway.book import Entry, Gateway
from hyperagent_tasks.gateway.client import Grant, Observed
from hyperagent_tasks.gateway.config import from_settings
from hyperagent_tasks.parts import Chosen, Parts
from hyperagent_tasks.runners.base import RunSpec
from hyperagent_tasks.runners.fake import FakeRunner, Play
from hyperagent_tasks.spec import Place, StepSpec, Workdir

SAID = "I did it."


def lines(text: str = SAID, *, tool: bool = True) -> bytes:
    """What opencode prints of a run that ends well."""
    call = {"type": "tool", "tool": "write", "callID": "c", "state": {"status": "completed", "input": {}, "output": "ok"}}
    told: list[dict[str, Any]] = [{"type": "tool_use", "part": call}] if tool else []
    told += [{"type": "text", "part": {"type": "text", "text": text, "messageID": "m"}}] if text else []
    told += [{"type": "step_finish", "part": {"reason": "stop", "tokens": {}}}]
    return "".join(json.dumps({"sessionID": "ses_1", **line}) + "\n" for line in told).encode()


class Books:
    """The worker's side of a gateway in this process."""

    data_socket = Path("/nowhere/llm.sock")

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.restart()

    def restart(self) -> None:
        """All grants and books are gone."""
        self.gateway = Gateway(from_settings(self._settings))

    def base_url(self, *, sandbox: str) -> str:
        """Nobody asks there."""
        return f"http://{sandbox}.invalid"

    def fault(self, provider: str, model: str, dialect: str = "", *, priced: bool = False) -> str | None:
        """As the gateway says."""
        return self.gateway.fault(provider, model.partition("/")[2], dialect, priced=priced)

    def open(self, grant: Grant) -> None:
        """Put a grant in force."""
        self.gateway.put(grant)

    def grants(self) -> dict[str, str]:
        """Those in force."""
        return self.gateway.in_force()

    def close(self, agent_run_id: str) -> Observed | None:
        """End a grant."""
        entry = self.gateway.of_run(agent_run_id)
        if entry is None:
            return None
        entry.run.ended = True
        return entry.run.observed

    def now(self) -> Entry:
        """The run under way."""
        (run_id,) = self.grants()
        entry = self.gateway.of_run(run_id)
        assert entry
        return entry


def host(url: str, app: Celery, behaviour: Callable[[RunSpec], Play], home: Path | None = None, **settings: Any) -> Parts:
    """Parts whose agents are played by `behaviour`, as opencode's mock; `home` is beside an SQLite database by default."""
    home = home or Path(url.removeprefix("sqlite:///")).parent
    loaded = Settings(home=home, database_url=url, broker_url="redis://127.0.0.1:1", **settings)
    parts = Parts(loaded, app, Chosen("process", "mock", "stand-in"))
    (home / "work").mkdir(exist_ok=True)
    parts.__dict__.update(runner=FakeRunner(behaviour, work_root=home / "work"), gateway=Books(loaded))
    return parts


def claimed(parts: Parts, claim: Claim) -> tuple[StepSpec, Workdir, Lease]:
    """A claimed step's spec, its directories, and a lease that nobody renews."""
    with db.transaction(parts.settings.db_url, reading=True) as session:
        step = spec.read(session, claim, parts.settings)
    work = Workdir(parts.settings.home / "work" / claim.attempt_id)
    work.make()
    return step, work, Lease(parts.settings.db_url, claim, 60, 10)


def turn(work: Workdir, **changes: Any) -> Turn:
    """The coder's first run."""
    place = Place(work.root / "runs" / "coder-1", "")
    made = Turn("coder", 1, 1, Choice("mock", "replay/demo"), "Do it.", "", work.ws, place, Left())
    return replace(made, **changes)


def runs(parts: Parts) -> list[AgentRun]:
    """Every agent run."""
    with db.transaction(parts.settings.db_url, reading=True) as session:
        return list(session.query(AgentRun).order_by(AgentRun.id))


def artifacts(parts: Parts) -> dict[str, str]:
    """Name to key of everything stored."""
    with db.transaction(parts.settings.db_url, reading=True) as session:
        return {row.name: row.key for row in session.query(Artifact)}
