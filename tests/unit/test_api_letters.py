"""Dead letters over the API: found by a beginning, replayed and discarded as strictly as anything else is steered."""

from __future__ import annotations

from typing import Any

import flask
import pytest
from sqlalchemy import select

from hyperagent_common import db
from hyperagent_common.errors import AgentFailed
from hyperagent_common.models import WorkflowStep
from hyperagent_tasks import claims
from tests.unit.test_api_edges import app, client, submit

__all__ = ["app", "client"]


@pytest.fixture
def letter(app: flask.Flask, client: Any) -> dict[str, Any]:
    """An open dead letter."""
    workflow_id = submit(client).json["id"]
    url, celery = app.extensions["settings"].db_url, app.extensions["queue"]
    with db.transaction(url, reading=True) as session:
        step = session.scalars(select(WorkflowStep).where(WorkflowStep.workflow_id == workflow_id)).one()
    claims.fail(url, celery, claims.take(url, celery, step.id, step.generation, "w", 60), AgentFailed("no"))
    found: dict[str, Any] = client.get("/api/v1/dead-letters").json[0]
    return found


@pytest.mark.parametrize("action", ["replay", "discard"])
def test_a_letter_is_closed_only_at_the_version_that_was_named(client: Any, letter: dict[str, Any], action: str) -> None:
    path, version = f"/api/v1/dead-letters/{letter['id']}/{action}", letter["workflow_version"]
    for refused, status in (
        ({"headers": {"If-Match": '"999"'}}, 409),
        ({"json": {"version": 999}}, 409),
        ({"json": {"version": version, "nonsense": 1}}, 422),
        ({"json": {"version": "x"}}, 422),
        ({"headers": {"If-Match": "x"}}, 422),
        ({"json": {"version": version - 1}, "headers": {"If-Match": f'"{version}"'}}, 422),
        ({"data": b"{", "content_type": "application/json"}, 400),
    ):
        assert client.post(path, **refused).status_code == status, refused
    assert client.get("/api/v1/dead-letters").json == [letter]
    assert client.post(path, headers={"If-Match": f'"{version}"'}).json["resolution"] == f"{action}ed"


@pytest.mark.parametrize("action", ["replay", "discard"])
def test_a_letter_is_found_by_a_beginning_of_its_id(client: Any, letter: dict[str, Any], action: str) -> None:
    assert client.post(f"/api/v1/dead-letters/{letter['id'][:13]}/{action}").json["id"] == letter["id"]
    missing = client.post(f"/api/v1/dead-letters/zzzz/{action}")
    assert (missing.status_code, missing.json["title"]) == (404, "There is no dead letter 'zzzz'.")
