"""Names that may reach git's command line: projects, branches, commits and paths, each checked by a rule of its own."""

from __future__ import annotations

import re

from hyperagent_common.errors import BadInput

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_BAD_IN_BRANCH = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
_TRAILER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")


def commit(value: str) -> str:
    """`value` where it is a whole commit id. Raises `BadInput`."""
    if not _COMMIT.fullmatch(value):
        raise BadInput(f"{value[:80]!r} is not a commit id.", mend="Give all 40 hexadecimal digits.")
    return value


def project(value: str) -> str:
    """`value` where it can name a directory. Raises `BadInput`."""
    if not _PROJECT.fullmatch(value) or ".." in value or value.endswith((".git", ".lock", ".")):
        raise BadInput(f"{value[:80]!r} cannot name a project.", mend="Use letters, digits, `.`, `-` and `_`.")
    return value


def branch(value: str) -> str:
    """`value` where git takes it as a branch name. Raises `BadInput`."""
    parts = value.split("/")
    odd = any(not part or part.startswith(".") or part.endswith((".lock", ".")) for part in parts)
    if odd or value.startswith("-") or value in ("@", "HEAD") or len(value) > 200 or _BAD_IN_BRANCH.search(value):
        raise BadInput(f"{value[:80]!r} cannot name a branch.", mend="Use a name that `git check-ref-format` takes.")
    return value


def path(value: str) -> str:
    """`value` where it can name a file of a tree. Raises `BadInput`."""
    if not value or value.startswith("/") or "\x00" in value or {"", ".", ".."} & set(value.split("/")):
        raise BadInput(f"{value[:80]!r} is not the path of a file in a repository.")
    return value


def trailer(key: str, value: str) -> str:
    """The trailer's line. Raises `BadInput`."""
    if not _TRAILER.fullmatch(key) or not value.strip() or not value.isprintable() or len(value) > 500:
        raise BadInput(f"{key[:80]!r}: {value[:80]!r} cannot be a trailer of a commit.")
    return f"{key}: {value.strip()}"
