"""Personas are files: `ROLE.md`, the persona above `<!-- output -->`, the form of the answer below it.

A project may set its own persona (`prompts: {coder: ...}`); the form of the answer is always ours.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from string import Template

MARK = "<!-- output -->"


@dataclass(frozen=True)
class Persona:
    """What a role is told besides its task; `digest` is the sha256 (hex) of both halves."""

    text: str
    output: str
    digest: str

    def answer(self, **values: str) -> str:
        """The form of the answer with its values filled in."""
        return Template(self.output).safe_substitute(values)


def persona(role: str, overrides: Mapping[str, str]) -> Persona:
    """The persona of a role, the project's own where it has one."""
    text, _, output = resources.files(__name__).joinpath(f"{role}.md").read_text("utf-8").partition(MARK)
    mine = overrides.get(role, text).strip()
    digest = hashlib.sha256(f"{mine}\n{MARK}\n{output}".encode()).hexdigest()
    return Persona(mine, output.strip(), digest)


def new_nonce() -> str:
    """A word nobody can guess."""
    return secrets.token_hex(12)


def fenced(name: str, text: str, fence: str, limit: int) -> str:
    """Untrusted text between lines it cannot contain, at most `limit` characters of it."""
    shown = text[:limit].replace(fence, "") + ("\n[cut]" if len(text) > limit else "")
    return f"----- begin {name} {fence} -----\n{shown}\n----- end {name} {fence} -----"
