"""Triggers: rules in a project's settings by which an event on the forge starts a workflow. Pure, standard library and `plan`.

A rule: `on` (`patch_comment` or `push`), `match` (a regular expression, for comments), `branch` (for pushes), `from` (DIDs),
`per_hour`, `name`, and the `plan` that is submitted. What an event says reaches the plan only through a named placeholder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hyperagent_common import plan as plans
from hyperagent_common.errors import BadInput, Fault

COMMENT, PUSH = "patch_comment", "push"
KINDS = (COMMENT, PUSH)
KNOWN = ("name", "on", "match", "branch", "from", "per_hour", "plan")
MOST_RULES, MOST_AUTHORS, MOST_PER_HOUR, PER_HOUR = 20, 100, 60, 6
LONGEST_MATCH, LOOKED_AT, QUOTED = 200, 2000, 4000
"""Characters: of a regular expression, of a comment that it is applied to, of a comment that is quoted into a plan."""
FACTS = ("patch", "author", "commit", "branch")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
_BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+-]{0,199}\Z")
_DID = re.compile(r"did:key:z6Mk[1-9A-HJ-NP-Za-km-z]{44}\Z")
_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_SLOW = re.compile(r"[*+}]\)+[*+{]|\([^()]*\|[^()]*\)[*+{]")
_REPEATS = re.compile(r"(?<!\\)(?:[*+]|\{\d*,\d*\})")


@dataclass(frozen=True)
class Rule:
    """One rule without faults. `authors` empty: the repository's delegates."""

    name: str
    on: str
    plan: Mapping[str, Any]
    match: str = ""
    branch: str = ""
    authors: Sequence[str] = ()
    per_hour: int = PER_HOUR


@dataclass(frozen=True)
class Happened:
    """An event on the forge. `subject` names it for ever; `authors` are DIDs, of which any may be the one allowed."""

    on: str
    subject: str
    authors: Sequence[str]
    text: str = ""
    patch: str = ""
    branch: str = ""
    commit: str = ""


def read(value: object, default_branch: str = "") -> list[Rule]:
    """The rules of a project's `triggers`, which have no faults."""
    return [
        Rule(
            name=entry.get("name") or f"trigger-{i + 1}",
            on=entry["on"],
            plan=entry["plan"],
            match=entry.get("match", ""),
            branch=entry.get("branch") or default_branch,
            authors=tuple(entry.get("from", ())),
            per_hour=entry.get("per_hour", PER_HOUR),
        )
        for i, entry in enumerate(value if isinstance(value, list) else [])
    ]


def faults(value: object, path: str) -> list[Fault]:
    """Everything that is wrong with `triggers`."""
    if not isinstance(value, list) or len(value) > MOST_RULES:
        return [Fault(path, f"must be a list of at most {MOST_RULES} rules")]
    found = [fault for i, entry in enumerate(value) for fault in _rule_faults(entry, f"{path}[{i}]")]
    names = [entry["name"] for entry in value if isinstance(entry, dict) and entry.get("name")]
    if len({str(name) for name in names}) != len(names):
        found.append(Fault(path, "names two rules alike"))
    return found


def _rule_faults(entry: object, path: str) -> list[Fault]:
    if not isinstance(entry, Mapping):
        return [Fault(path, "must be a mapping with on and plan")]
    found = [Fault(f"{path}.{k}", f"unknown field; known are {', '.join(KNOWN)}") for k in entry if k not in KNOWN]
    looks = {"name": _name, "on": _on, "match": _match, "branch": _branch, "from": _from, "per_hour": _per_hour}
    found += [Fault(f"{path}.{key}", told) for key, look in looks.items() if (told := look(entry.get(key), entry))]
    return found + _plan_faults(entry.get("plan"), f"{path}.plan", str(entry.get("on")))


def _name(value: object, entry: Mapping[str, Any]) -> str:
    good = value is None or (isinstance(value, str) and _NAME.match(value))
    return "" if good else "must be 1 to 63 of a-z 0-9 _ - and start with a letter or digit"


def _on(value: object, entry: Mapping[str, Any]) -> str:
    return "" if value in KINDS else f"must be one of {', '.join(KINDS)}"


def _match(value: object, entry: Mapping[str, Any]) -> str:
    if entry.get("on") != COMMENT:
        return "" if value is None else f"is only for {COMMENT}"
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_MATCH:
        return f"must be a regular expression of 1 to {LONGEST_MATCH} characters that the comment must hold"
    if len(_REPEATS.findall(value)) > 3:
        return "has more than three repeats without an end (*, +, {n,}), which can take for ever"
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        return f"is no regular expression: {error}"
    return "repeats a repeat or a choice, such as (a+)+ or (a|b)*, which can take for ever" if _SLOW.search(value) else ""


def _branch(value: object, entry: Mapping[str, Any]) -> str:
    if entry.get("on") != PUSH:
        return "" if value is None else f"is only for {PUSH}"
    good = value is None or (isinstance(value, str) and _BRANCH.match(value) and ".." not in value)
    return "" if good else "must name a branch; leave it out for the default branch"


def _from(value: object, entry: Mapping[str, Any]) -> str:
    listed = value if isinstance(value, list) else []
    if value is None or (0 < len(listed) <= MOST_AUTHORS and all(isinstance(v, str) and _DID.match(v) for v in listed)):
        return ""
    return f"must list 1 to {MOST_AUTHORS} DIDs (did:key:z6Mk...); leave it out for the repository's delegates"


def _per_hour(value: object, entry: Mapping[str, Any]) -> str:
    good = value is None or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_PER_HOUR)
    return "" if good else f"must be a whole number from 1 to {MOST_PER_HOUR}"


def _plan_faults(document: object, path: str, on: str) -> list[Fault]:
    found = _placeholder_faults(document, path, "", on)
    if found:
        return found
    sample = Happened(on, "", ("did:key:z",), "c" * QUOTED, "0" * 40, "main", "0" * 40)
    try:
        plans.parse(filled(document, sample))
    except BadInput as error:
        return [Fault(path if f.field == "plan" else f"{path}.{f.field}", f.message) for f in error.faults]
    return []


def _placeholder_faults(value: object, path: str, key: str, on: str) -> list[Fault]:
    """Placeholders where they may not be: what an event says is never a title's, a check's or a choice's business."""
    if isinstance(value, Mapping):
        return [f for k, inner in value.items() for f in _placeholder_faults(inner, f"{path}.{k}", str(k), on)]
    if isinstance(value, list):
        return [f for i, inner in enumerate(value) for f in _placeholder_faults(inner, f"{path}[{i}]", key, on)]
    if not isinstance(value, str):
        return []
    known = {COMMENT: ("patch", "author", "comment"), PUSH: ("author", "commit", "branch")}.get(on, ())
    taken = {"instructions": known, "title": tuple(k for k in known if k != "comment")}.get(key, ())
    wrong = [name for name in _PLACEHOLDER.findall(value) if name not in taken]
    if not wrong:
        return []
    told = f"takes {', '.join(taken)}" if taken else "takes none"
    return [Fault(path, f"holds the placeholder {wrong[0]}; it {told}")]


def filled(value: Any, event: Happened) -> Any:
    """A plan with its placeholders replaced; the comment comes as one quoted line of data, bounded, every control escaped."""
    if isinstance(value, Mapping):
        return {key: filled(inner, event) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, event) for inner in value]
    if not isinstance(value, str):
        return value
    facts = {name: getattr(event, name, "") for name in FACTS}
    facts |= {"author": event.authors[0] if event.authors else "", "comment": json.dumps(event.text[:QUOTED])}
    return _PLACEHOLDER.sub(lambda found: str(facts.get(found[1], found[0])), value)


def matching(rules: Sequence[Rule], event: Happened) -> list[Rule]:
    """The rules that this event is for, whoever it is from."""
    return [rule for rule in rules if rule.on == event.on and _fits(rule, event)]


def _fits(rule: Rule, event: Happened) -> bool:
    if rule.on == PUSH:
        return rule.branch == event.branch
    return re.search(rule.match, event.text[:LOOKED_AT]) is not None


def allowed(rule: Rule, event: Happened, delegates: Sequence[str], own: Sequence[str]) -> list[str]:
    """The authors of an event that may fire the rule; never ourselves, or our own comments would go round in circles."""
    return [author for author in event.authors if author in (rule.authors or delegates) and author not in own]
