"""Every error HyperAgent raises on purpose, in one tree.

HyperagentError
├── Transient                  Celery retries with backoff and jitter; budget spent -> dead letter
│   ├── DependencyDown         a service we need does not answer (engine, database, broker, gateway, storage)
│   │   ├── NodeDown           the Radicle node does not answer
│   │   └── DiskFull           the disk of a repository or of the forge is full
│   ├── ProviderDown           the model provider failed in a way that may pass (429, 5xx, cut stream)
│   ├── RunnerTimeout          a container exceeded its deadline
│   ├── PushFailed             the forge did not take the commit, for a reason that may pass
│   │   ├── PushTimedOut       a command of the forge did not end in time
│   │   ├── PublisherBusy      another publisher holds the repository
│   │   ├── NoPeer             the push is kept, and no peer is there to hold it too
│   │   └── SyncTimedOut       the push is kept, and no peer took it in time
│   └── MergeConflict          another step of the workflow changed the same lines; run again on the new tip
├── Permanent                  dead letter at once
│   ├── BadInput               the request or plan is wrong; `faults` names every field
│   │   ├── BadSettings        the settings are wrong
│   │   └── NotFound           the thing asked for does not exist
│   ├── AgentFailed            the agent ended without doing its work
│   ├── ChecksFailed           the project's own checks refuse the agent's work
│   ├── WorkRejected           the verifier refuses the coder's work, or said nothing that can be believed
│   ├── RoundsSpent            the last round ended without an approval
│   ├── IntakeRefused          what came out of the sandbox breaks the tree policy or a limit
│   ├── ForgeRefused           the forge will never take this
│   │   ├── NotRegistered      the repository or the identity is not registered here
│   │   ├── PushRejected       the forge rejects it (wrong key, wrong object, a name git refuses)
│   │   ├── Diverged           a person's history is there that this push does not hold
│   │   ├── KeyLocked          the forge's key has a passphrase, and the right one is not given
│   │   ├── PatchClosed        a person merged or archived the patch
│   │   └── NothingToPropose   the default branch holds every commit already
│   └── NotReady               a part that is needed is missing on this host
│       └── OtherVersion       the database's schema is another version's
└── Refused                    policy, approval, cancelled, lost lease: ends quietly in a state, no alarm
    ├── LeaseLost              somebody else holds the step now
    ├── BudgetSpent            a budget is used up: the workflow pauses and asks
    ├── Conflict               the thing is in a state that does not allow this
    └── Cancelled              a person asked to stop

The docstring of a class is its default message. `status` and `type` are what the API answers (RFC 9457);
`faults` is a list of `Fault`, each naming a field and its mend; `mend` is the next thing to do.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: `field` is a path such as `tasks[2].depends_on`, `message` one clear sentence."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class HyperagentError(Exception):
    """Something went wrong in HyperAgent."""

    status = 500
    type = "internal"

    def __init__(self, message: str = "", *, faults: tuple[Fault, ...] | list[Fault] = (), mend: str = "") -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        self.faults = tuple(faults)
        self.mend = mend
        super().__init__(self.message)

    def __str__(self) -> str:
        parts = [self.message, *(f"  - {fault}" for fault in self.faults)]
        if self.mend:
            parts.append(f"Mend: {self.mend}")
        return "\n".join(parts)

    def __reduce__(self) -> tuple[object, ...]:  # Celery pickles nothing, but multiprocessing does
        return (_rebuild, (type(self), self.message, self.faults, self.mend))

    @property
    def sentence(self) -> str:
        """The message with its mend on one line, for a row or a log."""
        return f"{self.message} {self.mend}".strip()


def _rebuild(cls: type[HyperagentError], message: str, faults: tuple[Fault, ...], mend: str) -> HyperagentError:
    return cls(message, faults=faults, mend=mend)


class Transient(HyperagentError):
    """A fault that may pass: the step is tried again after a pause."""

    status = 503
    type = "transient"


class DependencyDown(Transient):
    """A service that is needed does not answer."""

    type = "dependency-down"


class ProviderDown(Transient):
    """The model provider failed in a way that may pass."""

    type = "provider-down"


class RunnerTimeout(Transient):
    """A container exceeded its deadline and was stopped."""

    type = "runner-timeout"


class PushFailed(Transient):
    """The forge did not take the commit, for a reason that may pass."""

    type = "push-failed"


class NodeDown(DependencyDown):
    """The Radicle node does not answer."""

    type = "node-down"


class DiskFull(DependencyDown):
    """The disk is full."""

    type = "disk-full"


class PushTimedOut(PushFailed):
    """A command of the forge did not end in time."""

    type = "push-timed-out"


class PublisherBusy(PushFailed):
    """Another publisher holds this repository."""

    type = "publisher-busy"


class NoPeer(PushFailed):
    """The push is kept here, and no peer is connected to hold it too."""

    type = "no-peer"


class SyncTimedOut(PushFailed):
    """The push is kept here, and no peer took it in time."""

    type = "sync-timed-out"


class MergeConflict(Transient):
    """Another step of this workflow changed the same lines; the step runs again on the new tip."""

    type = "merge-conflict"


class Permanent(HyperagentError):
    """A fault that will not pass by itself."""

    type = "permanent"


class BadInput(Permanent):
    """The request is wrong."""

    status = 422
    type = "bad-input"


class BadSettings(BadInput):
    """The settings are wrong."""

    type = "bad-settings"


class NotFound(BadInput):
    """There is no such thing."""

    status = 404
    type = "not-found"


class AgentFailed(Permanent):
    """The agent ended without doing its work."""

    type = "agent-failed"


class ChecksFailed(Permanent):
    """The project's own checks refuse the agent's work."""

    type = "checks-failed"


class WorkRejected(Permanent):
    """The verifier refuses the coder's work."""

    type = "work-rejected"


class RoundsSpent(Permanent):
    """The last round ended without an approval."""

    type = "rounds-spent"


class IntakeRefused(Permanent):
    """What came out of the sandbox breaks the tree policy or a limit."""

    type = "intake-refused"


class ForgeRefused(Permanent):
    """The forge will not take this, now or later."""

    type = "forge-refused"


class NotRegistered(ForgeRefused):
    """The repository or the identity is not registered here."""

    type = "not-registered"


class PushRejected(ForgeRefused):
    """The forge rejects this push."""

    type = "push-rejected"


class Diverged(ForgeRefused):
    """A person's history is there that this push does not hold."""

    type = "diverged"


class KeyLocked(ForgeRefused):
    """The forge's key has a passphrase, and the right one is not given."""

    type = "key-locked"


class PatchClosed(ForgeRefused):
    """A person merged or archived the patch."""

    type = "patch-closed"


class NothingToPropose(ForgeRefused):
    """The default branch holds every commit already."""

    type = "nothing-to-propose"


class NotReady(Permanent):
    """A part that is needed is missing on this host."""

    status = 503
    type = "not-ready"


class OtherVersion(NotReady):
    """The database's schema is another version's: this program must not write to it."""

    type = "other-version"


class Refused(HyperagentError):
    """This is not allowed now."""

    status = 409
    type = "refused"


class LeaseLost(Refused):
    """Somebody else holds this step now; nothing was written."""

    type = "lease-lost"


class BudgetSpent(Refused):
    """A budget is used up."""

    type = "budget-spent"

    def __init__(self, message: str = "", *, scope: str = "step", **rest: object) -> None:
        self.scope = scope
        super().__init__(message, **rest)  # type: ignore[arg-type]


class Conflict(Refused):
    """The thing is in a state that does not allow this."""

    type = "conflict"


class Cancelled(Refused):
    """A person asked to stop this."""

    type = "cancelled"
