"""Scenario files: what the replay provider answers, turn by turn, and which failures it injects."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from hyperagent_common.errors import BadInput, Fault, NotFound
from hyperagent_tasks.gateway.dialects.base import Asked, ToolCall, mapping

MAX_FILE = 4 << 20
SHELL_TOOLS = {
    "bash": "command",
    "Bash": "command",
    "run_shell_command": "command",
    "exec_command": "cmd",
    "shell_command": "command",
    "shell": "command",
    "execute_command": "command",
}
WRITE_TOOLS = {
    "write": ("filePath", "content"),
    "write_file": ("file_path", "content"),
    "write_to_file": ("path", "content"),
    "create": ("path", "file_text"),
}
LAST_WRITE_TOOL = ("Write", "file_path", "content")
"""It refuses a file that is there and was not read first: a shell does not."""


class CallSchema(Schema):
    """One tool call: a canonical `op` (write, shell, read) or a raw `name` with `args`."""

    op = fields.String(validate=validate.OneOf(["write", "shell", "read"]))
    path = fields.String()
    content = fields.String()
    command = fields.String()
    name = fields.String()
    args = fields.Dict()

    @validates_schema
    def _whole(self, data: dict[str, Any], **_: Any) -> None:
        needs = {"write": {"path", "content"}, "shell": {"command"}, "read": {"path"}}.get(data.get("op", ""), {"name"})
        missing = needs - data.keys()
        if missing:
            raise ValidationError(f"needs {', '.join(sorted(missing))}")


class UsageSchema(Schema):
    """Tokens the answer claims."""

    input = fields.Integer(load_default=100)
    output = fields.Integer(load_default=20)
    cached = fields.Integer(load_default=0)


class ExpectSchema(Schema):
    """What the request must hold for this turn."""

    user_contains = fields.String()
    tool_result_contains = fields.String()
    tools_include = fields.List(fields.String())


class TurnSchema(Schema):
    """One answer."""

    text = fields.String(load_default="")
    calls = fields.List(fields.Nested(CallSchema), load_default=list)
    finish = fields.String(validate=validate.OneOf(["stop", "length", "tool_calls", "content_filter"]))
    usage = fields.Nested(UsageSchema, load_default=lambda: {"input": 100, "output": 20, "cached": 0})
    expect = fields.Nested(ExpectSchema, load_default=dict)
    take = fields.Dict(keys=fields.String(), values=fields.String(), load_default=dict)


class FaultSchema(Schema):
    """One injected failure, at a turn (every turn where none is named), for the first `attempts` tries."""

    turn = fields.Integer()
    attempts = fields.Integer(load_default=1 << 30)
    status = fields.Integer(validate=validate.Range(400, 599))
    message = fields.String(load_default="")
    headers = fields.Dict(keys=fields.String(), values=fields.String(), load_default=dict)
    drop = fields.Boolean(load_default=False)
    delay_s = fields.Float(load_default=0.0, validate=validate.Range(0, 600))
    hang_s = fields.Float(load_default=0.0, validate=validate.Range(0, 3600))
    cut_after = fields.Integer()
    stall_at = fields.Integer()
    stall_s = fields.Float(load_default=3600.0, validate=validate.Range(0, 3600))
    malformed = fields.Integer()


class ScriptSchema(Schema):
    """One conversation."""

    turns = fields.List(fields.Nested(TurnSchema), required=True, validate=validate.Length(min=1))
    faults = fields.List(fields.Nested(FaultSchema), load_default=list)
    loop = fields.Boolean(load_default=False)


class ScenarioSchema(Schema):
    """A scenario file: for each planner task id (or `*`) and role (`verifier.2`: its second run, `verifier`, or `*`) a script."""

    scenario = fields.String(required=True)
    scripts = fields.Dict(
        keys=fields.String(),
        values=fields.Dict(keys=fields.String(), values=fields.Nested(ScriptSchema)),
        required=True,
    )


@dataclass(frozen=True)
class Script:
    """A checked script."""

    turns: list[dict[str, Any]]
    faults: list[dict[str, Any]]
    loop: bool

    def fault(self, turn: int, attempt: int) -> dict[str, Any] | None:
        """The failure to inject at this turn and try (from 1), or None."""
        return next((f for f in self.faults if f.get("turn", turn) == turn and attempt <= f["attempts"]), None)

    def turn(self, number: int) -> dict[str, Any] | None:
        """The answer of this turn, or None where the script is exhausted."""
        if self.loop:
            return self.turns[number % len(self.turns)]
        return self.turns[number] if number < len(self.turns) else None


def load(path: Path) -> dict[str, dict[str, Script]]:
    """A scenario file's scripts by planner task and role. Raises `BadInput` naming every fault."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise BadInput(f"The scenario {path} is larger than {MAX_FILE} bytes.")
        data = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"The scenario {path} cannot be read: {error}") from error
    try:
        loaded = ScenarioSchema().load(data if isinstance(data, dict) else {})
    except ValidationError as error:
        faults = [Fault(k, str(v)) for k, v in dict(error.normalized_messages()).items()]  # type: ignore[no-untyped-call]
        raise BadInput(f"The scenario {path} is wrong.", faults=faults) from error
    return {
        key: {role: Script(s["turns"], s["faults"], s["loop"]) for role, s in roles.items()}
        for key, roles in loaded["scripts"].items()
    }


def find(dirs: tuple[Path, ...], name: str, step_key: str, role: str, run: int = 1) -> Script:
    """The script for a step and role. Raises `NotFound` naming what there is, `BadInput` for a broken file."""
    for directory in dirs:
        for suffix in (".yaml", ".yml", ".json"):
            path = directory / f"{name}{suffix}"
            if "/" not in name and path.is_file():
                return _pick(load(path), name, step_key, role, run)
    there = sorted({p.stem for d in dirs if d.is_dir() for p in d.iterdir() if p.suffix in (".yaml", ".yml", ".json")})
    raise NotFound(f"There is no scenario {name!r}.", mend=f"Known are: {', '.join(there) or 'none'}.")


def _pick(scripts: dict[str, dict[str, Script]], name: str, step_key: str, role: str, run: int) -> Script:
    for key in (step_key, "*"):
        roles = scripts.get(key) or {}
        script = roles.get(f"{role}.{run}") or roles.get(role) or roles.get("*")
        if script is not None:
            break
    else:
        script = None
    if script is None:
        raise NotFound(f"The scenario {name!r} has no script for {step_key} as {role}.")
    return script


def unmet(expect: dict[str, Any], asked: Asked) -> str | None:
    """Which expectation the request does not meet, or None."""
    if expect.get("user_contains", "") not in asked.user_text:
        return f"the user text does not hold {expect['user_contains']!r}"
    if expect.get("tool_result_contains", "") not in asked.last_tool_result:
        return f"the last tool result does not hold {expect['tool_result_contains']!r}"
    lacking = [name for name in expect.get("tools_include", []) if name not in asked.tools]
    return f"the tools {lacking} are not offered" if lacking else None


def words(turn: dict[str, Any], asked: Asked) -> str:
    """The text of a turn; `take` maps a name to a pattern whose first group in the user's text replaces `{{name}}`."""
    text = str(turn["text"])
    for name, pattern in turn["take"].items():
        found = re.search(pattern, asked.user_text)
        text = text.replace("{{" + name + "}}", found[1] if found else "")
    return text


def resolve(call: dict[str, Any], asked: Asked) -> ToolCall:
    """A canonical operation as a call of a tool this client offers; a raw call stays as it is."""
    if "name" in call:
        return ToolCall(call["name"], call.get("args", {}), call["name"] in asked.custom)
    if call["op"] == "write":
        for tool, (path_key, content_key) in WRITE_TOOLS.items():
            if tool in asked.tools:
                return ToolCall(tool, {path_key: _absolute(call["path"], asked), content_key: call["content"]})
    for tool, key in SHELL_TOOLS.items():
        if tool in asked.tools:
            return ToolCall(tool, _shell(_command(call), key, asked.tools[tool]))
    tool, path_key, content_key = LAST_WRITE_TOOL
    if call["op"] == "write" and tool in asked.tools:
        return ToolCall(tool, {path_key: _absolute(call["path"], asked), content_key: call["content"]})
    raise BadInput(f"The client offers no tool for {call['op']}: {', '.join(sorted(asked.tools))}")


def _absolute(path: str, asked: Asked) -> str:
    return path if path.startswith("/") else f"{asked.cwd.rstrip('/')}/{path}"


def _command(call: dict[str, Any]) -> str:
    if call["op"] == "write":
        parent = call["path"].rpartition("/")[0]
        made = f"mkdir -p {shlex.quote(parent)} && " if parent else ""
        return f"{made}printf %s {shlex.quote(call['content'])} > {shlex.quote(call['path'])}"
    return str(call["command"]) if call["op"] == "shell" else f"cat {shlex.quote(call['path'])}"


def _shell(command: str, key: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a shell tool as its schema has them: one name for the command or another, a text or a list."""
    known = mapping(schema.get("properties"))
    key = next((each for each in (key, "command", "cmd") if each in known), key)
    said: dict[str, Any] = {key: ["bash", "-lc", command] if mapping(known.get(key)).get("type") == "array" else command}
    return said | ({"description": "scripted"} if "description" in known else {})
