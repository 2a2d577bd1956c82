"""Follow a workflow from the command line, across restarts of the API and without a stream where none is free."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from hyperagent_api.cli.output import sentence, words
from hyperagent_api.client import ApiClient
from hyperagent_common.errors import DependencyDown, NotReady
from hyperagent_common.states import WORKFLOW_ENDED

PATIENCE_SECONDS, RECONNECT_SECONDS = 60.0, 2.0


def watched(client: ApiClient, workflow_id: str) -> dict[str, Any]:
    """Say every event on stderr until the workflow has ended; returns it.

    An API that is away for less than `PATIENCE_SECONDS` is waited for. Raises `DependencyDown`, `NotReady`.
    """
    workflow: dict[str, Any] = client.get(f"/api/v1/workflows/{quote(workflow_id, safe='')}")
    path = f"/api/v1/workflows/{workflow['id']}"
    keys, after, heard = {step["id"]: step["key"] for step in workflow["steps"]}, 0, time.monotonic()
    while True:
        try:
            for event in _events(client, path, after):
                if event["kind"] == "end":
                    ended: dict[str, Any] = client.get(path)
                    return ended
                after, heard = event.get("id", after), time.monotonic()
                if event["kind"] not in ("ping", "step.heartbeat"):
                    words(sentence(event, keys))
        except (DependencyDown, NotReady):
            if time.monotonic() - heard > PATIENCE_SECONDS:
                raise
        time.sleep(RECONNECT_SECONDS)


def _events(client: ApiClient, path: str, after: int) -> Iterator[dict[str, Any]]:
    """The stream; where the API has none free, pages of events until one is empty. Raises `DependencyDown`, `NotReady`."""
    try:
        yield from client.events(f"{path}/stream", after)
    except NotReady:
        ended = client.get(path)["state"] in WORKFLOW_ENDED  # asked first: no event comes after its end
        while page := client.get(f"{path}/events", after=after):
            yield from page
            after = page[-1]["id"]
        yield {"kind": "end" if ended else "ping"}
