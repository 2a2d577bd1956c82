"""Health in constant time: how long `GET /api/health/workflows` takes with a short and with a long history.

`.venv/bin/python -m tests.bench.health --json` fills SQLite and PostgreSQL with workflows that ended and their events, asks
in between, and prints one JSON object last: for each database the medians in milliseconds and their `ratio`. Exit code 0 only
where the long history costs less than three times the short one and no query walks the history.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import event, insert, text

from hyperagent_api.app import create_app
from hyperagent_common import db, queue, settings
from hyperagent_common.ids import new_id
from hyperagent_common.models import (
    DeadLetter,
    Plan,
    PlannerTask,
    Project,
    RunnerEvent,
    Workflow,
    WorkflowStep,
)
from tests import servers

STEPS = 4
OPEN = 20
ASKED = 30
LARGE = ("runner_event", "workflow_step", "workflow", "step_attempt", "dead_letter")
MOST = 3.0


def fill(url: str, workflows: int, events: int, *, state: str = "done") -> None:
    """Workflows of `STEPS` steps in a state, and as many events, by plain inserts."""
    now, project, plan = datetime.now(UTC), new_id(), new_id()
    with db.transaction(url) as session:
        session.add(
            Project(id=project, name=f"p{project[-12:]}", source="/x", default_branch="main", state="ready", created_at=now)
        )
        session.add(Plan(id=plan, kind="k", title="t", document={}, digest="0" * 64, created_at=now))
        session.flush()
        ids = [new_id() for _ in range(workflows)]
        task = {"plan_id": plan, "title": "t", "instructions": "", "agent_type": "coder", "depends_on": [], "checks": []}
        tasks = [{"id": new_id(), "position": n, "key": f"s{n}", "details": {}, **task} for n in range(STEPS)]
        session.execute(insert(PlannerTask), tasks)
        rows = {"project_id": project, "plan_id": plan, "title": "t", "state": state, "branch": "b", "created_at": now}
        session.execute(insert(Workflow), [{"id": key, **rows} for key in ids])
        steps = list(_steps(ids, tasks, state, now))
        session.execute(insert(WorkflowStep), steps)
        if state == "done":  # every tenth step was given up once
            session.execute(insert(DeadLetter), [_letter(step["id"], now) for step in steps[::10]])
        for at in range(0, events, 20_000):
            session.execute(insert(RunnerEvent), [_event(ids, n, now) for n in range(at, min(events, at + 20_000))])


def _steps(ids: list[str], tasks: list[dict[str, Any]], state: str, now: datetime) -> Iterator[dict[str, Any]]:
    for key in ids:
        for n, task in enumerate(tasks):
            mine = {"running": ["running", "queued", "queued", "pending"][n]}.get(state, state)
            yield {
                "id": new_id(), "workflow_id": key, "planner_task_id": task["id"], "position": n, "key": f"s{n}", "state": mine,
                "max_attempts": 5, "queued_at": now - timedelta(seconds=n), "sent_at": now,
                "lease_until": now + timedelta(hours=1) if mine == "running" else None,
                "blocked_since": now if mine == "queued" and n == 1 else None,
            }  # fmt: skip


def _letter(step_id: str, now: datetime) -> dict[str, Any]:
    said = {"error_type": "permanent", "reason": "no", "created_at": now, "resolved_at": now, "resolution": "replayed"}
    return {"id": new_id(), "step_id": step_id, **said}


def _event(ids: list[str], n: int, now: datetime) -> dict[str, Any]:
    return {"at": now, "kind": "step.heartbeat", "workflow_id": ids[n % len(ids)], "latency_ms": n % 1000, "data": {"n": n}}


def ask(url: str, home: Path, seen: list[Any]) -> float:
    """Median milliseconds of one answer; the statements go to `seen`."""
    loaded = settings.load({"HYPERAGENT_HOME": str(home), "HYPERAGENT_DATABASE_URL": url})
    client = create_app(loaded, celery=queue.make(loaded)).test_client()
    took = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    for number in range(ASKED):
        if number == 1:
            event.listen(db.engine(url), "before_cursor_execute", note)
        began = time.perf_counter()
        answer = client.get("/api/health/workflows")
        took.append((time.perf_counter() - began) * 1000)
        if number == 1:
            event.remove(db.engine(url), "before_cursor_execute", note)
        assert answer.status_code == 200, answer.json
        assert answer.json["queue"] == {"queued": 2 * OPEN, "running": OPEN}, answer.json
    return statistics.median(took)


def walks(url: str, seen: list[Any]) -> list[str]:
    """Plans that read a large table without an index."""
    found = []
    explain = "EXPLAIN QUERY PLAN " if url.startswith("sqlite") else "EXPLAIN "
    bad = r"\bSCAN (\w+)(?! USING)" if url.startswith("sqlite") else r"Seq Scan on (\w+)"
    with db.engine(url).connect() as connection:
        for statement, parameters in seen:
            if statement.lstrip().upper().startswith("SELECT"):
                plan = "\n".join(str(row) for row in connection.exec_driver_sql(explain + statement, parameters))
                newest_first = "SCAN runner_event" in plan and "TEMP B-TREE" not in plan  # by rowid, and it stops at the limit
                found += [f"{name}: {plan}" for name in re.findall(bad, plan) if name in LARGE and not newest_first]
    return found


def measure(url: str, home: Path, workflows: int, events: int) -> dict[str, Any]:
    """One database: short history, then long."""
    db.upgrade(url)
    fill(url, OPEN, 100, state="running")
    fill(url, 50, 2_000)
    short = ask(url, home, [])
    fill(url, workflows, events)
    if not url.startswith("sqlite"):
        with db.engine(url).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE"))
    seen: list[Any] = []
    long = ask(url, home, seen)
    return {"short_ms": round(short, 2), "long_ms": round(long, 2), "ratio": round(long / short, 2), "walks": walks(url, seen)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workflows", type=int, default=5_000)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    os.environ.setdefault("CI", "true")
    with tempfile.TemporaryDirectory() as scratch, servers.postgres_server() as postgres:
        urls = {"sqlite": f"sqlite:///{Path(scratch) / 'h.db'}", "postgres": postgres}
        told = {name: measure(url, Path(scratch), asked.workflows, asked.events) for name, url in urls.items()}
    print(json.dumps({"workflows": asked.workflows, "events": asked.events, **told}))
    sys.exit(0 if all(found["ratio"] < MOST and not found["walks"] for found in told.values()) else 1)


if __name__ == "__main__":
    main()
