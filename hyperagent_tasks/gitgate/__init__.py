"""The git gateway: the only room of the host that spawns git."""

from __future__ import annotations

from hyperagent_tasks.gitgate.gate import GitGate, new_repository
from hyperagent_tasks.gitgate.relation import Relation, canonical, relation
from hyperagent_tasks.gitgate.source import open_source
from hyperagent_tasks.gitgate.values import (
    HOST,
    ChangedFile,
    CommitInfo,
    CommitResult,
    Limits,
    Person,
    Sealed,
    SourceInfo,
    TreePolicy,
)

__all__ = [
    "HOST",
    "ChangedFile",
    "CommitInfo",
    "CommitResult",
    "GitGate",
    "Limits",
    "Person",
    "Relation",
    "Sealed",
    "SourceInfo",
    "TreePolicy",
    "canonical",
    "new_repository",
    "open_source",
    "relation",
]
