"""What a sealed tree may hold, read from git's own listings of a bare repository: pure, so that it can be fuzzed."""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hyperagent_common.errors import Fault
from hyperagent_tasks.gitgate.values import ChangedFile, TreePolicy

LINK, GITLINK = "120000", "160000"
SUBMODULE_URLS = re.compile(r"(https|rad)://\S+|rad:[A-Za-z0-9]+|\.{1,2}/\S+")


@dataclass(frozen=True)
class Entry:
    """One file of a tree. `size` in bytes, 0 for a gitlink."""

    mode: str
    oid: str
    size: int
    path: str


def entries(listing: bytes) -> list[Entry]:
    """`git ls-tree -r -z --long` as entries; a path that is not UTF-8 shows its odd bytes as surrogates."""
    found = []
    for record in filter(None, listing.split(b"\x00")):
        meta, _, path = record.partition(b"\t")
        mode, _kind, oid, size = meta.decode("ascii").split()
        found.append(Entry(mode, oid, int(size) if size.isdigit() else 0, path.decode("utf-8", "surrogateescape")))
    return found


def faults(tree: Sequence[Entry], changed: Sequence[ChangedFile], known: Mapping[str, Entry], policy: TreePolicy) -> list[Fault]:
    """Every way in which the tree breaks the policy. `known` is the base's tree: what it had is not the step's doing."""
    found: list[Fault] = []
    fresh = [entry for entry in tree if known.get(entry.path) != entry]
    for entry in fresh:
        found += [Fault(printable(entry.path), reason) for reason in _entry(entry, policy)]
    touched = {file.path for file in changed} | {entry.path for entry in fresh}
    for path in sorted(touched):
        if any(fnmatch.fnmatchcase(path, glob) for glob in policy.refused_paths):
            found.append(Fault(printable(path), "no step may change this path"))
    found += _whole(fresh, policy)
    found += _colliding(tree, {entry.path for entry in fresh})
    return found


def _entry(entry: Entry, policy: TreePolicy) -> Iterable[str]:
    parts = entry.path.split("/")
    if any(_like_git(part) for part in parts):
        yield "a part of its name stands for .git on some system"
    if parts[0].casefold() == ".hyperagent":
        yield "the directory .hyperagent is not part of the project"
    if any(not c.isprintable() or c == "\\" for c in entry.path) or ".." in parts:
        yield "its name holds a character that is not printable, a backslash or `..`"
    if entry.mode == GITLINK:
        yield "it is a repository inside the repository (a submodule), which no step may add or move"
    if entry.size > policy.file_bytes:
        yield f"it has {entry.size} bytes; at most {policy.file_bytes} are taken"


def link_fault(path: str, target: str) -> str | None:
    """Why a symbolic link is refused, or None where it stays inside the tree. Only leading `..` are taken: after a name,
    `..` means the parent of wherever that name leads, and another link can make that lie outside."""
    parts = [part for part in target.split("/") if part not in ("", ".")]
    ups = next((count for count, part in enumerate(parts) if part != ".."), len(parts))
    if not target or target.startswith("/") or "\x00" in target or "\\" in target or ups > path.count("/"):
        return f"it links to {printable(target)!r}, outside the repository"
    if ".." in parts[ups:]:
        return f"it links to {printable(target)!r}: `..` after a name may lead outside the repository"
    if any(_like_git(part) for part in parts):
        return f"it links to {printable(target)!r}, into git's own directory"
    return None


def module_faults(listing: str) -> list[str]:
    """What is wrong with a .gitmodules file, as `git config --list -z` reads it: a url that is no plain https, rad or
    relative one, a command as `update`."""
    found = []
    for setting in filter(None, listing.split("\x00")):
        key, _, value = setting.partition("\n")
        name = key.rpartition(".")[2].lower()
        if name == "url" and not SUBMODULE_URLS.fullmatch(value):
            found.append(f"its url {printable(value)[:100]!r} is neither https, rad nor relative")
        if name == "update" and value.startswith("!"):
            found.append("it names a command to update a submodule with")
    return found


def _like_git(part: str) -> bool:
    plain = "".join(c for c in unicodedata.normalize("NFKC", part) if unicodedata.category(c) != "Cf").casefold()
    plain = plain.split(":")[0].rstrip(" .")
    return plain == ".git" or re.fullmatch("git~[0-9]+", plain) is not None


def _whole(fresh: Sequence[Entry], policy: TreePolicy) -> list[Fault]:
    found = []
    if len(fresh) > policy.files:
        found.append(Fault("tree", f"{len(fresh)} files are new or changed; at most {policy.files} are taken"))
    total = sum(entry.size for entry in fresh)
    if total > policy.total_bytes:
        found.append(Fault("tree", f"new and changed files have {total} bytes; at most {policy.total_bytes} are taken"))
    return found


def _colliding(tree: Sequence[Entry], fresh: set[str]) -> list[Fault]:
    """Fresh paths of which a part is there twice for a file system that knows no case; directories count."""
    seen: dict[str, tuple[str, bool]] = {}
    found: dict[str, Fault] = {}
    for entry in tree:
        new, cut = entry.path in fresh, 0
        while cut != len(entry.path):
            cut = (entry.path.find("/", cut + 1) + 1 or len(entry.path) + 1) - 1
            prefix = entry.path[:cut]
            other, other_new = seen.setdefault(unicodedata.normalize("NFC", prefix).casefold(), (prefix, new))
            if other != prefix and (new or other_new):
                said = f"its name differs from {printable(other)!r} only in case"
                found.setdefault(entry.path, Fault(printable(entry.path), said))
    return list(found.values())


def printable(text: str) -> str:
    """The text with everything that could fool a reader escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
