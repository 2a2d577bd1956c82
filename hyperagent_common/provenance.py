"""The statement of what produced a commit: in-toto Statement v1 with SLSA Provenance v1 as predicate. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://hyperagent.dev/buildtypes/agent-step/v1"
EXTENSION = "https://hyperagent.dev/ext/agent-step/v1"


@dataclass(frozen=True)
class Byproduct:
    """A stored file, by digest; `trust` is `observed` or `claimed`."""

    name: str
    sha256: str
    media_type: str
    trust: str
    location: str


@dataclass(frozen=True)
class StepFacts:
    """What is known of a finished step. Digests are hex; `external` is what was asked, `extension` what was seen."""

    subject: str
    commit: str
    tree: str | None
    base: str
    builder: str
    version: str
    invocation: str
    started_at: datetime
    finished_at: datetime
    external: Mapping[str, Any]
    internal: Mapping[str, Any]
    dependencies: Sequence[Mapping[str, Any]]
    extension: Mapping[str, Any]
    byproducts: Sequence[Byproduct] = field(default_factory=tuple)


def statement(facts: StepFacts) -> dict[str, Any]:
    """The statement as JSON values. It is a record, not yet an envelope: nothing here is signed."""
    digest = {"gitCommit": facts.commit} | ({"gitTree": facts.tree} if facts.tree else {})
    return {
        "_type": STATEMENT,
        "subject": [{"name": facts.subject, "digest": digest}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": dict(facts.external),
                "internalParameters": dict(facts.internal),
                "resolvedDependencies": [dict(entry) for entry in facts.dependencies],
            },
            "runDetails": {
                "builder": {"id": facts.builder, "version": {"hyperagent": facts.version}},
                "metadata": {
                    "invocationId": facts.invocation,
                    "startedOn": facts.started_at.isoformat(),
                    "finishedOn": facts.finished_at.isoformat(),
                },
                "byproducts": [_byproduct(entry) for entry in facts.byproducts],
            },
            EXTENSION: dict(facts.extension),
        },
    }


def _byproduct(entry: Byproduct) -> dict[str, Any]:
    return {
        "name": entry.name,
        "uri": entry.location,
        "mediaType": entry.media_type,
        "digest": {"sha256": entry.sha256},
        "annotations": {"trust": entry.trust},
    }


def encode(value: Mapping[str, Any]) -> bytes:
    """The bytes that are stored and hashed: sorted keys, two spaces, one line feed at the end."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
