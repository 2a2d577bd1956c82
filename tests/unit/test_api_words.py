"""What the API says of a refused word: which one it is, and what is taken instead."""

from __future__ import annotations

from typing import Any

from tests.unit.test_api_edges import app, client, submit

__all__ = ["app", "client"]


def test_a_reason_may_hold_joined_emoji_and_a_refused_one_names_the_character(client: Any) -> None:
    path = f"/api/v1/workflows/{submit(client).json['id']}/pause"
    for reason, named in (("a\r\nb", "U+000D"), ("\u202ea", "U+202E")):
        assert named in client.post(path, json={"reason": reason}).json["errors"][0]["message"]
    family = "\U0001f468\u200d\U0001f469\u00a0ok"
    assert client.post(path, json={"reason": family}).json["reason"] == family


def test_a_wrong_agent_is_told_every_right_one(client: Any) -> None:
    answer = client.patch("/api/v1/projects/p", json={"settings": {"agent_provider": "poet"}})
    message = answer.json["errors"][0]["message"]
    assert (answer.status_code, all(name in message for name in ("auto", "claude", "codex", "gemini", "null"))) == (422, True)
