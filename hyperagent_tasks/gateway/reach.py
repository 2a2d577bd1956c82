"""Whether a request has its provider fetch something by URL: that would be a way out of a sandbox without network. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SOURCES = frozenset({"image_url", "file_url", "video_url", "audio_url", "fileUri", "file_uri"})
NOT_LOOKED_INTO = frozenset(
    {"arguments", "args", "parameters", "parametersJsonSchema", "input_schema", "response", "functionCall"}
)
"""What tools are called with and answer is read by the model, not by the provider."""


def named(body: Mapping[str, Any]) -> str | None:
    """The first URL that a provider would fetch, None where there is none."""
    found: list[Any] = [body]
    while found:
        value = found.pop()
        if isinstance(value, list):
            found.extend(value)
        elif isinstance(value, dict):
            url = next((told for key, each in value.items() if (told := _url(key, each, value))), None)
            if url:
                return url
            found.extend(each for key, each in value.items() if not _passed_over(key, value))
    return None


def _passed_over(key: str, value: Mapping[str, Any]) -> bool:
    return key in NOT_LOOKED_INTO or (key == "input" and value.get("type") in ("tool_use", "custom_tool_call"))


def _url(key: str, each: object, value: Mapping[str, Any]) -> str | None:
    if key == "url" and value.get("type") == "url":
        return str(each)
    if key not in SOURCES:
        return None
    told = each.get("url") if isinstance(each, dict) else each
    return told if isinstance(told, str) and told and not told.startswith("data:") else None
