"""A plan document becomes a Plan, or one answer naming every fault: pure, standard library only but for the errors.

The document: `kind` (`hyperagent/plan`), `title`, optional `description`, and `tasks`, each with `id`, `title`,
`instructions`, and optionally `agent_type`, `depends_on`, `checks`, `metadata`. `settings` (and a task's `metadata`)
may hold choices such as `agent_model`, see `choices.KEYS`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hyperagent_common import choices, states
from hyperagent_common.errors import BadInput, Fault

KIND = "hyperagent/plan"
AGENT_TYPES = ("coder",)
MAX_TASKS = 500
MAX_TEXT = 100_000
MAX_TITLE = 200
MAX_CHECKS = 20
MAX_METADATA = 16_384
MAX_CYCLES = 20
_ID = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class PlannedTask:
    """One planner task as the plan says it; `checks` are shell commands run on the sealed commit."""

    id: str
    title: str
    instructions: str
    agent_type: str = "coder"
    depends_on: Sequence[str] = ()
    checks: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A plan without faults, its tasks in an order in which each comes after what it depends on."""

    title: str
    tasks: Sequence[PlannedTask]
    kind: str = KIND
    description: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The plan as JSON values, defaults filled in; its kind first, as people write it."""
        document: dict[str, Any] = json.loads(json.dumps({"kind": self.kind, **asdict(self)}))
        if not self.settings:
            del document["settings"]  # as plans were before they could have any
        return document

    def digest(self) -> str:
        """sha256 (hex) of the canonical document."""
        text = json.dumps(self.document(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


class _Reader:
    """Reads fields of one mapping and collects faults under its path."""

    def __init__(self, faults: list[Fault], path: str, value: Mapping[str, Any], known: Sequence[str]) -> None:
        self.faults, self.path, self.value = faults, path, value
        for name in value:
            if name not in known:
                self.fault(str(name), f"unknown field; known are {', '.join(known)}")

    def fault(self, name: str, message: str) -> None:
        """Note a fault of field `name`."""
        self.faults.append(Fault(f"{self.path}{name}" if self.path else name, message))

    def text(self, name: str, limit: int, *, required: bool = True) -> str:
        """A string of at most `limit` characters without control characters."""
        value = self.value.get(name, "" if not required else None)
        if not isinstance(value, str) or (required and not value.strip()):
            self.fault(name, "must be a string" if value is not None and not isinstance(value, str) else "is missing")
        elif len(value) > limit:
            self.fault(name, f"has {len(value)} characters; at most {limit} are taken")
        elif _CONTROL.search(value):
            self.fault(name, "holds a control character; only tab and line feed are taken")
        else:
            return value
        return ""

    def strings(self, name: str, most: int, limit: int) -> list[str]:
        """A list of non-empty strings."""
        value = self.value.get(name, [])
        if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
            self.fault(name, "must be a list of non-empty strings")
        elif len(value) > most:
            self.fault(name, f"has {len(value)} entries; at most {most} are taken")
        elif any(len(v) > limit or _CONTROL.search(v) for v in value):
            self.fault(name, f"has an entry over {limit} characters or with a control character")
        else:
            return value
        return []


def parse(document: object) -> Plan:
    """A plan from a decoded document. Raises `BadInput` naming every fault."""
    faults: list[Fault] = []
    if not isinstance(document, Mapping):
        raise BadInput("The plan is wrong.", faults=[Fault("plan", "must be a mapping with kind, title and tasks")])
    reader = _Reader(faults, "", document, ("kind", "title", "description", "settings", "tasks"))
    if document.get("kind") != KIND:
        reader.fault("kind", f"must be {KIND}")
    title = reader.text("title", MAX_TITLE)
    description = reader.text("description", MAX_TEXT, required=False)
    chosen = _settings(document.get("settings", {}), faults)
    tasks = _tasks(document.get("tasks"), faults)
    _references(tasks, faults)
    if faults:
        raise BadInput("The plan is wrong.", faults=faults, mend="Mend every field named and submit again.")
    by_id = {task.id: task for task in tasks}
    ordered = states.order({task.id: task.depends_on for task in tasks})
    return Plan(title, tuple(by_id[key] for key in ordered), KIND, description, chosen)


def _settings(value: object, faults: list[Fault]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or _size(value) > MAX_METADATA:
        faults.append(Fault("settings", f"must be a mapping of at most {MAX_METADATA} bytes as JSON"))
        return {}
    known = [key for key in choices.KEYS if key != "prompts"]
    told = f"unknown field; known are {', '.join(known)}"
    faults += [Fault(f"settings.{key}", told) for key in value if key not in choices.KEYS]
    faults += choices.faults(value, "settings.", verify=("on", "off"))
    return value


def _tasks(value: object, faults: list[Fault]) -> list[PlannedTask]:
    if not isinstance(value, list) or not value:
        faults.append(Fault("tasks", "must be a list with at least one planner task"))
        return []
    if len(value) > MAX_TASKS:
        faults.append(Fault("tasks", f"has {len(value)} entries; at most {MAX_TASKS} are taken"))
        return []
    return [_task(entry, f"tasks[{i}]", faults) for i, entry in enumerate(value)]


def _task(entry: object, path: str, faults: list[Fault]) -> PlannedTask:
    if not isinstance(entry, Mapping):
        faults.append(Fault(path, "must be a mapping with id, title and instructions"))
        return PlannedTask("", "", "")
    known = ("id", "title", "instructions", "agent_type", "depends_on", "checks", "metadata")
    reader = _Reader(faults, path + ".", entry, known)
    key = reader.text("id", 63)
    if key and not _ID.match(key):
        reader.fault("id", f"{key!r} must be 1 to 63 of a-z 0-9 _ . - and start with a letter or digit")
    agent_type = entry.get("agent_type", "coder")
    if agent_type not in AGENT_TYPES:
        reader.fault("agent_type", f"{agent_type!r} is unknown; known are {', '.join(AGENT_TYPES)}")
    metadata = entry.get("metadata", {})
    if not isinstance(metadata, Mapping) or _size(metadata) > MAX_METADATA:
        reader.fault("metadata", f"must be a mapping of at most {MAX_METADATA} bytes as JSON")
    else:
        faults += choices.faults(metadata, f"{path}.metadata.", verify=("on", "off"))
    return PlannedTask(
        key,
        reader.text("title", MAX_TITLE),
        reader.text("instructions", MAX_TEXT),
        "coder",
        tuple(reader.strings("depends_on", MAX_TASKS, 63)),
        tuple(reader.strings("checks", MAX_CHECKS, 4096)),
        metadata if isinstance(metadata, Mapping) else {},
    )


def _size(value: object) -> int:
    try:
        return len(json.dumps(value, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError):
        return MAX_METADATA + 1


def _references(tasks: Sequence[PlannedTask], faults: list[Fault]) -> None:
    seen: dict[str, int] = {}
    for i, task in enumerate(tasks):
        if task.id and task.id in seen:
            faults.append(Fault(f"tasks[{i}].id", f"{task.id!r} is the id of tasks[{seen[task.id]}] already"))
        seen.setdefault(task.id, i)
    for i, task in enumerate(tasks):
        for need in task.depends_on:
            if need == task.id:
                faults.append(Fault(f"tasks[{i}].depends_on", f"{need!r} is the planner task itself"))
            elif need not in seen:
                faults.append(Fault(f"tasks[{i}].depends_on", f"{need!r} is the id of no planner task"))
        if len(set(task.depends_on)) != len(task.depends_on):
            faults.append(Fault(f"tasks[{i}].depends_on", "names a planner task twice"))
    needs: dict[str, list[str]] = {}
    for task in tasks:
        needs.setdefault(task.id, []).extend(n for n in task.depends_on if n != task.id)
    faults += [Fault("tasks", f"depend on each other in a cycle: {' -> '.join([*loop, loop[0]])}") for loop in _cycles(needs)]


def _cycles(needs: Mapping[str, list[str]]) -> list[list[str]]:
    """Cycles without a need in common: `MAX_CYCLES`, or so many that each other cycle has a need of one of them."""
    found: list[list[str]] = []
    while len(found) < MAX_CYCLES and (loop := states.cycle(needs)):
        found.append(loop)
        for here, there in zip(loop, [*loop[1:], loop[0]], strict=True):
            needs[here][:] = [need for need in needs[here] if need != there]
    return found
