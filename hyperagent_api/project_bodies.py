"""What may be said of a project in a request, every field checked, every fault named."""

from __future__ import annotations

import posixpath
import re
from typing import Any

from marshmallow import ValidationError, fields, validate

from hyperagent_api import bodies
from hyperagent_common import base58, choices, settings_schema, triggers
from hyperagent_common.errors import BadInput, Fault

REGISTER_FIELDS = ("name", "source", "path", "description", "default_branch", "remote", "settings")
CHANGE_FIELDS = ("description", "default_branch", "remote", "settings", "version")
AGENT_PROVIDER: fields.Field[Any] = settings_schema.SCHEMA.fields["agent_provider"]
SETTINGS: dict[str, tuple[fields.Field[Any], str]] = {
    "agent_provider": (AGENT_PROVIDER, f"must be one of {', '.join(getattr(AGENT_PROVIDER.validate, 'choices', ()))}"),
    "checks": (fields.List(fields.String(validate=validate.Length(1, 4096))), "must be a list of non-empty strings"),
}
KNOWN_SETTINGS = tuple(dict.fromkeys([*SETTINGS, "triggers", *choices.KEYS]))
BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+-]{0,199}\Z")
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}\Z")
WRONG_RID = "must be a Radicle id: rad:z and 20 bytes in base58 (letters and digits, never 0, O, I or l); copy it whole"


def to_register(body: dict[str, Any]) -> dict[str, Any]:
    """A registration: `name`, `source` (a path or a Radicle id), and what `changes` takes. Raises `BadInput`."""
    found = bodies.unknown(body, REGISTER_FIELDS)
    name = body.get("name")
    if not isinstance(name, str) or not NAME.match(name):
        found.append(Fault("name", "must be 1 to 63 of a-z 0-9 _ . - and start with a letter or digit"))
    elif name.endswith((".git", ".lock", ".")) or ".." in name:
        found.append(Fault("name", "must not end in .git, .lock or a dot, nor hold two dots"))
    field = "source" if "source" in body else "path"
    if "source" in body and "path" in body:
        found.append(Fault("path", "is the older name of source; give one of them"))
    source = remote_name(body.get(field))
    found += [Fault(field, told) for told in [_source(source)] if told]
    found += _common(body)
    if isinstance(source, str) and source.startswith("rad:") and body.get("remote"):
        found.append(Fault("remote", "is the source itself where that is a Radicle id; leave it out"))
    if found:
        raise BadInput("The project is wrong.", faults=found, mend="Mend every field named and send it again.")
    spelt = source if source.startswith("rad:") else posixpath.normpath(f"/{source.lstrip('/')}")  # one path, one spelling
    return {**body, "source": spelt, "remote": remote_name(body.get("remote")) or None}


def to_change(body: dict[str, Any]) -> dict[str, Any]:
    """What is to change in a project, without `version`. Raises `BadInput`."""
    found = bodies.unknown(body, CHANGE_FIELDS)
    found += _common(body, changing=True)
    for key in ("default_branch", "remote"):
        if key in body and not body[key]:
            found.append(Fault(key, "must not be empty"))
    asked = {key: body[key] for key in CHANGE_FIELDS if key in body and key != "version"}
    if not asked:
        found.append(Fault("body", f"changes nothing; it may name {', '.join(CHANGE_FIELDS[:-1])}"))
    if found:
        raise BadInput("The change is wrong.", faults=found, mend="Mend every field named and send it again.")
    return {**asked, **({"remote": remote_name(asked["remote"])} if "remote" in asked else {})}


def remote_name(value: Any) -> Any:
    """A Radicle id, however it was written: rad://z... is what git calls it."""
    return f"rad:{value.removeprefix('rad://').rstrip('/')}" if isinstance(value, str) and value.startswith("rad://") else value


def _source(value: Any) -> str:
    """What is wrong with a source."""
    if isinstance(value, str) and value.startswith("rad:"):
        return "" if base58.is_rid(value) else WRONG_RID
    if isinstance(value, str) and re.match(r"[a-z][a-z0-9+.-]*:", value):
        return "must be an absolute path on the worker's host or a Radicle id; other addresses are not fetched"
    good = isinstance(value, str) and value.startswith("/") and len(value) <= 4096 and value.isprintable()
    return "" if good else "must be the absolute path of a git repository on the worker's host, or a Radicle id (rad:z...)"


def _common(body: dict[str, Any], *, changing: bool = False) -> list[Fault]:
    found: list[Fault] = []
    for key in ("description", "default_branch"):
        value = body.get(key, "")
        if not isinstance(value, str) or len(value.encode("utf-8", "replace")) > 255:  # Radicle counts bytes
            found.append(Fault(key, "must be a string of at most 255 bytes of UTF-8"))
    told = body.get("description")
    if isinstance(told, str) and not all(c.isprintable() or c in "\n\t" for c in told):
        found.append(Fault("description", "must hold no control characters"))
    branch = body.get("default_branch")
    if isinstance(branch, str) and branch and not _branch_fits(branch):
        found.append(Fault("default_branch", f"{branch!r} cannot name a branch"))
    remote = remote_name(body.get("remote"))
    if remote not in (None, "") and not base58.is_rid(remote):
        found.append(Fault("remote", WRONG_RID))
    given = body.get("settings", {})
    if not isinstance(given, dict):
        return [*found, Fault("settings", "must be a mapping")]
    settled = [(key, value) for key, value in given.items() if not (changing and value is None and key in KNOWN_SETTINGS)]
    return found + [fault for key, value in settled for fault in setting(key, value)]


def _branch_fits(name: str) -> bool:
    odd = any(not part or part.startswith(".") or part.endswith((".lock", ".")) for part in name.split("/"))
    return bool(BRANCH.match(name)) and ".." not in name and not odd and name != "HEAD"


def setting(key: str, value: Any) -> list[Fault]:
    """The faults of one of a project's settings."""
    if key not in KNOWN_SETTINGS:
        return [Fault(f"settings.{key}", f"unknown field; known are {', '.join(KNOWN_SETTINGS)}")]
    if key == "triggers":
        return triggers.faults(value, "settings.triggers")
    if key not in SETTINGS:
        return choices.faults({key: value}, "settings.", prompts=True)
    field, told = SETTINGS[key]
    try:
        field.deserialize(value)
    except ValidationError:
        return [Fault(f"settings.{key}", told)]
    return []
