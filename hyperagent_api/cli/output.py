"""How commands speak: errors with their mend, exit codes, events as sentences."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn

import click
import requests

from hyperagent_common.errors import BadInput, DependencyDown, HyperagentError, NotFound, NotReady, Refused

DONE, FAILED, USAGE, NOT_FOUND, REFUSED, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object (or one a line) on stdout.")


def exit_code(error: HyperagentError) -> int:
    """The exit code that stands for an error."""
    if isinstance(error, NotFound):
        return NOT_FOUND
    if isinstance(error, Refused):
        return REFUSED
    if isinstance(error, (NotReady, DependencyDown)):
        return UNREACHABLE
    return USAGE if isinstance(error, BadInput) else FAILED


def fail(error: HyperagentError, *, as_json: bool) -> NoReturn:
    """Say an error and leave with its code."""
    if as_json:
        faults = [{"field": f.field, "message": f.message} for f in error.faults]
        emit({"error": error.type, "title": error.message, "errors": faults, "mend": error.mend})
    else:
        words(str(error))
    sys.exit(exit_code(error))


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose errors are said, never shown as tracebacks."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except HyperagentError as error:
            fail(error, as_json=bool(kwargs.get("as_json")))
        except requests.RequestException:
            fail(DependencyDown("The API's answer broke off.", mend="Ask again."), as_json=bool(kwargs.get("as_json")))
        except BrokenPipeError:  # whoever reads us has enough: click ends quietly
            raise
        except OSError as error:
            fail(_system(error), as_json=bool(kwargs.get("as_json")))
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    return run


def _system(error: OSError) -> HyperagentError:
    """What the system refused: a file that was named wrongly is wrong input, anything else is our failing."""
    return BadInput(f"{error.filename}: {error.strerror}") if error.filename else HyperagentError(str(error))


def emit(value: Any) -> None:
    """One JSON value on one line of stdout."""
    click.echo(json.dumps(value, ensure_ascii=False))


def plain(text: object) -> str:
    """Text from elsewhere on one line, control characters shown and not obeyed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def first_line(text: str) -> str:
    """The first line of a text."""
    return text.strip().partition("\n")[0]


def words(text: str) -> None:
    """Sentences for a person, on stderr; a reason in them may be an agent's."""
    click.echo("\n".join(plain(line) for line in text.splitlines()), err=True)


SENTENCES: dict[str, str] = {
    "workflow.submitted": "submitted with {steps} steps",
    "step.queued": "queued",
    "step.claimed": "claimed by {worker} after {latency}",
    "agent.started": "{agent} began with {model} in {sandbox}",
    "agent.ended": "agent ended: {reason} ({requests} requests, {tokens} tokens, {latency})",
    "step.sealed": "sealed: {files} files, +{insertions} -{deletions}",
    "step.checked": "checks ended: passed={passed} ({latency})",
    "step.verdict": "round {round}: the verifier says {decision}: {summary}",
    "verdict.malformed": "round {round}: the verifier's answer is no verdict: {fault}",
    "agent.fallback": "{why}; {agent} goes on with {model}",
    "budget.spent": "paused: {reason}",
    "budget.granted": "the budget of this {scope} counts once more",
    "step.committed": "committed {commit}",
    "patch.opened": "patch opened: {patch}",
    "patch.revised": "patch revised: {patch}",
    "patch.found": "patch found as it should be: {patch}",
    "patch.reviewed": "the verifier's verdict is on the patch: {verdict} by {reviewer}",
    "patch.review_waits": "the verifier's verdict is not on the patch yet and will be tried again: {reason}",
    "patch.review_refused": "the verifier's verdict cannot be put on the patch: {reason}",
    "patch.waits": "the patch is kept here and announced again by itself: {reason}",
    "patch.held": "the patch is held by {synced_with} peer(s)",
    "patch.skipped": "no patch: {reason}",
    "step.done": "done in {latency}",
    "step.retry": "failed and will be tried again ({attempts_left} attempts left): {reason}",
    "step.failed": "given up: {reason}",
    "step.expired": "its worker {worker} went silent; queued again",
    "step.resent": "sent again",
    "step.heartbeat": "still runs after {latency}",
    "step.waiting": "waits for a dependency, at no cost of its attempts: {reason}",
    "step.timed_out": "its worker {worker} held it too long; queued again",
    "step.handed_over": "its worker was stopped; queued for another",
    "step.forwarded": "committed; goes to the host that publishes this project",
    "step.cancelled": "cancelled",
    "step.retried": "is retried",
    "dead_letter.resolved": "dead letter {resolution}",
    "trigger.fired": "started by the trigger {rule} of {project}: {subject}",
    "trigger.refused": "{count} events of {project} started nothing: {reason}",
    "workflow.paused": "paused {reason}",
    "workflow.resumed": "resumed",
    "workflow.cancelled": "cancelled {reason}",
    "workflow.ended": "workflow {state}",
}


class _Gaps(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "?"


def sentence(event: dict[str, Any], keys: dict[str, str]) -> str:
    """An event as one line: time, step, what happened. `keys` maps step ids to their keys."""
    latency = event.get("latency_ms")
    facts = _Gaps({**event, **event.get("data", {})})
    facts["latency"] = "?" if latency is None else f"{latency / 1000:.1f} s"
    text = SENTENCES.get(event["kind"], event["kind"]).format_map(facts)
    step = keys.get(event.get("step_id") or "", "")
    return plain(f"{event['at'][11:19]}  {step:16} {' '.join(text.split())}")


def patch_lines(workflow: dict[str, Any]) -> list[str]:
    """The patch, who holds it and what the verifier said on it; or why there is none."""
    patch, skip = workflow["patch"], workflow["patch_skip"]
    if not patch or not patch["patch_id"]:
        return [f"no patch: {' '.join(skip['reason'].split())}" if skip else "no patch"]
    lines = [f"patch {patch['patch_id']} on {patch['rid']} ({patch['forge']})"]
    delivery = patch["delivery"]
    if delivery:
        waits = f"; announced again by itself: {delivery['reason']}" if delivery["reason"] else ""
        lines.append(f"  {delivery['state']}, synced with {delivery['synced_with']} peer(s){waits}")
    for review in patch["reviews"]:
        why = f": {review['reason']}" if review["reason"] else f" by {review['reviewer']}"
        lines.append(f"  review of {review['revision_id'][:12]} {review['state']}{why}")
    return lines
