"""The way in for what a sandbox made: bundle, quarantine repository, fsck, second fetch, tree policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hyperagent_common.errors import Fault, IntakeRefused
from hyperagent_tasks import intake, scratch, trouble
from hyperagent_tasks.gitgate import names, policy
from hyperagent_tasks.gitgate.commands import GitFailed, git
from hyperagent_tasks.gitgate.values import ChangedFile, Limits, Sealed, TreePolicy

QUARANTINE = ".quarantine"
"""Where sealed bundles are looked at, beside the trusted repositories."""
CHANGES = {"A": "added", "M": "modified", "D": "deleted", "T": "retyped"}


def import_seal(
    repo: Path, base_bundle: Path, out_bundle: Path, base: str, ref: str, rules: TreePolicy, limits: Limits
) -> Sealed:
    """Bring a sealed bundle into `repo` under `ref`. Raises `IntakeRefused` naming every fault, `DependencyDown`."""
    names.commit(base)
    with scratch.directory(repo.parent / QUARANTINE) as quarantine:
        taken = quarantine / "out.bundle"
        intake.copy_file(out_bundle.parent, out_bundle.name, taken, limit=limits.bundle_bytes)
        git(None, "init", "-q", "--bare", "--template=", str(quarantine))
        with _refused():
            sealed = _quarantined(quarantine, base_bundle, taken, base, limits)
            source = f"file://{quarantine}"
            spec = f"refs/heads/out:{ref}"
            git(repo, "-c", "fetch.fsckObjects=true", "fetch", "-q", "--no-tags", "--force", source, spec, protocols="file",
                timeout=limits.seconds)  # fmt: skip
    return _judged(repo, base, sealed, rules)


@contextmanager
def _refused() -> Iterator[None]:
    """What git does not take here is the bundle's fault, but where it met trouble of this host."""
    try:
        yield
    except GitFailed as error:
        if trouble.told_by(error.ended.code, error.ended.err):
            raise
        raise IntakeRefused(f"The sealed bundle is not sound: {error.ended.reason}") from error


def _quarantined(quarantine: Path, base_bundle: Path, out_bundle: Path, base: str, limits: Limits) -> str:
    """The sealed commit, alone on top of base, in a repository of its own that passed fsck."""
    for bundle, spec in (
        (base_bundle, "refs/heads/base:refs/heads/base"),
        (out_bundle, "refs/heads/out:refs/heads/out"),
    ):
        git(quarantine, "fetch", "-q", "--no-tags", str(bundle), spec, protocols="file", timeout=limits.seconds,
            memory=limits.memory)  # fmt: skip
    git(quarantine, "fsck", "--strict", "--no-dangling", "--no-progress", "refs/heads/out", timeout=limits.seconds)
    said = git(quarantine, "rev-parse", "refs/heads/base", "refs/heads/out", "refs/heads/out^@").text.split()
    if len(said) != 3 or said[0] != base or said[2] != base:
        raise IntakeRefused("The sealed bundle is not one commit on the base it was given.")
    return said[1]


def _judged(repo: Path, base: str, sealed: str, rules: TreePolicy) -> Sealed:
    tree = policy.entries(git(repo, "ls-tree", "-r", "-z", "--long", sealed).out)
    known = {entry.path: entry for entry in policy.entries(git(repo, "ls-tree", "-r", "-z", "--long", base).out)}
    changed = changed_files(repo, base, sealed)
    found = policy.faults(tree, changed, known, rules)
    for entry in tree:
        if known.get(entry.path) == entry:
            continue
        if entry.mode == policy.LINK:
            target = git(repo, "cat-file", "blob", entry.oid, limit=4096, cut=True).out.decode("utf-8", "replace")
            fault = policy.link_fault(entry.path, target)
            found += [Fault(policy.printable(entry.path), fault)] if fault else []
        if entry.path.rpartition("/")[2] == ".gitmodules" and entry.mode != policy.LINK:
            found += [Fault(policy.printable(entry.path), reason) for reason in _module_faults(repo, entry)]
    if found:
        raise IntakeRefused("The agent's work breaks the tree policy.", faults=found[:50])
    return Sealed(base, git(repo, "rev-parse", f"{sealed}^{{tree}}").text, sealed, tuple(changed))


def _module_faults(repo: Path, entry: policy.Entry) -> list[str]:
    """The faults of a .gitmodules, read by git itself: its syntax has more ways to write `url` than a line has."""
    words = ("config", "--no-includes", f"--blob={entry.oid}", "--list", "-z")
    ended = git(repo, *words, ok=range(256), limit=1 << 20)
    if ended.code:
        return ["it cannot be read as git settings"]
    return policy.module_faults(ended.out.decode("utf-8", "replace"))


def changed_files(repo: Path, before: str, after: str) -> list[ChangedFile]:
    """What changed between two commits, without renames, drivers or filters."""
    options = ("-r", "-z", "--no-renames", "--no-ext-diff", "--no-textconv")
    raw = git(repo, "diff-tree", *options, "--raw", before, after).out.decode("utf-8", "surrogateescape").split("\0")
    stat = git(repo, "diff-tree", *options, "--numstat", before, after).out.decode("utf-8", "surrogateescape").split("\0")
    counts: dict[str, tuple[int | None, int | None]] = {}
    for record in filter(None, stat):
        added, removed, path = record.split("\t", 2)
        counts[path] = (None, None) if added == "-" else (int(added), int(removed))
    found = []
    for meta, path in zip(raw[0::2], raw[1::2], strict=False):
        _, mode, _, _, kind = meta.lstrip(":").split()
        insertions, deletions = counts.get(path, (None, None))
        found.append(ChangedFile(path, CHANGES[kind[0]], mode, insertions, deletions))  # type: ignore[arg-type]
    return found
