"""A verdict: what a verifier's own final words say of a coder's work. Pure: text and nonce in, verdict or fault out.

It is read from the final text of the verifier's run and from nowhere else. It must echo the nonce of that run, which only the
verifier was told: words a coder planted in a file, a diff or a tool's output cannot hold it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import jsonschema

MAX_TEXT = 64 << 10
MAX_FINDINGS = 50
FENCED = re.compile(r"^```(?:json)?[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


class Decision(StrEnum):
    """What a verifier can decide."""

    APPROVED = "approved"
    CHANGES_REQUESTED = "changes_requested"
    REJECTED = "rejected"


SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "required": ["nonce", "decision", "summary"],
    "additionalProperties": False,
    "properties": {
        "nonce": {"type": "string", "maxLength": 64},
        "decision": {"enum": [str(decision) for decision in Decision]},
        "summary": {"type": "string", "minLength": 1, "maxLength": 4000},
        "findings": {
            "type": "array",
            "maxItems": MAX_FINDINGS,
            "items": {
                "type": "object",
                "required": ["message"],
                "additionalProperties": False,
                "properties": {
                    "path": {"type": ["string", "null"], "maxLength": 1024},
                    "line": {"type": ["integer", "null"], "minimum": 0, "maximum": 10**8},
                    "severity": {"enum": ["info", "minor", "major", "blocker"]},
                    "message": {"type": "string", "minLength": 1, "maxLength": 2000},
                },
            },
        },
    },
}
_VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


class Malformed(ValueError):
    """The verifier's words are no verdict; the message says why."""


@dataclass(frozen=True)
class Finding:
    """One thing the verifier found; `path` and `line` are None where it concerns no one place."""

    message: str
    severity: str = "minor"
    path: str | None = None
    line: int | None = None


@dataclass(frozen=True)
class Verdict:
    """A verifier's decision with its reasons."""

    decision: Decision
    summary: str
    findings: Sequence[Finding] = ()

    def document(self) -> list[dict[str, Any]]:
        """The findings as JSON values."""
        return [asdict(finding) for finding in self.findings]

    def words(self) -> str:
        """The verdict for a person or for the next coder."""
        lines = [self.summary]
        for finding in self.findings:
            place = f"{finding.path or ''}{f':{finding.line}' if finding.line else ''}"
            lines.append(f"- [{finding.severity}] {place + ': ' if place else ''}{finding.message}")
        return "\n".join(lines)


def read(text: str, nonce: str) -> Verdict:
    """The one verdict in a verifier's final text. Raises `Malformed`."""
    if len(text) > MAX_TEXT:
        raise Malformed(f"it has {len(text)} characters; at most {MAX_TEXT} are taken")
    value = only_object(text)
    error = jsonschema.exceptions.best_match(_VALIDATOR.iter_errors(value))
    if error is not None:
        where = ".".join(str(part) for part in error.absolute_path)
        raise Malformed(f"{where or 'the verdict'}: {error.message[:300]}")
    if value["nonce"] != nonce:
        raise Malformed("its nonce is not the one this verifier was given")
    findings = tuple(Finding(**{k: _plain(v) for k, v in each.items()}) for each in value.get("findings", ()))
    decision = Decision(value["decision"])
    if decision is Decision.APPROVED and any(finding.severity == "blocker" for finding in findings):
        raise Malformed("it approves and names a blocker")
    return Verdict(decision, str(_plain(value["summary"])), findings)


def heard(text: str, said: str | None) -> str:
    """A CLI's final text, where it is what its model `said` at the gateway last (None: it has no model). Raises `Malformed`:
    whatever the CLI runs could write to its output, the nonce too."""
    if said is not None and "".join(text.split()) not in "".join(said.split()):
        raise Malformed("its words are not those of its model")
    return text


def only_object(text: str) -> dict[str, Any]:
    """The JSON object a text consists of, or the only one it holds in a fenced block. Raises `Malformed`."""
    if not text.strip():
        raise Malformed("it is empty")
    whole = _decoded(text.strip())
    if whole is not None:
        return whole
    found = [value for block in FENCED.findall(text) if (value := _decoded(block)) is not None]
    if len(found) != 1:
        raise Malformed("it holds no JSON object" if not found else f"it holds {len(found)} JSON objects, not one")
    return found[0]


def _decoded(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _plain(value: Any) -> Any:
    """A string without NULs and lone surrogates, which no database takes; anything else as it is."""
    if not isinstance(value, str):
        return value
    return "".join("\ufffd" if c == "\x00" or "\ud800" <= c <= "\udfff" else c for c in value)
