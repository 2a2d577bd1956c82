"""States of workflows and steps, and every decision about order: pure, standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class ProjectState(StrEnum):
    """How the registration of a project stands."""

    REGISTERING = "registering"
    READY = "ready"
    FAILED = "failed"


class WorkflowState(StrEnum):
    """The life of a workflow."""

    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepState(StrEnum):
    """The life of a step: `pending` waits for other steps, `queued` for a worker."""

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AttemptState(StrEnum):
    """How one try of a step stands."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ABANDONED = "abandoned"


STEP_ENDED = frozenset({StepState.DONE, StepState.FAILED, StepState.CANCELLED})
WORKFLOW_ENDED = frozenset({WorkflowState.DONE, WorkflowState.FAILED, WorkflowState.CANCELLED})


@dataclass(frozen=True)
class StepView:
    """What the decisions need to know of a step: its key, what it needs, how it stands."""

    key: str
    needs: Sequence[str]
    state: StepState


def ready(steps: Iterable[StepView]) -> list[str]:
    """Keys of pending steps whose needs are all done, in the given order."""
    steps = list(steps)
    done = {step.key for step in steps if step.state is StepState.DONE}
    return [s.key for s in steps if s.state is StepState.PENDING and done.issuperset(s.needs)]


def segment(steps: Iterable[StepView], head: str) -> list[str]:
    """The maximal linear segment from `head` on: each next step needs only the one before, which feeds only it."""
    steps = list(steps)
    by_key = {step.key: step for step in steps}
    feeds: dict[str, list[str]] = {}
    for step in steps:
        for need in step.needs:
            feeds.setdefault(need, []).append(step.key)
    keys = [head]
    while len(feeds.get(keys[-1], [])) == 1:
        following = by_key[feeds[keys[-1]][0]]
        if len(set(following.needs)) != 1 or following.state in STEP_ENDED:
            break
        keys.append(following.key)
    return keys


def workflow_state(steps: Iterable[StepView]) -> WorkflowState:
    """What the steps together say: failed waits until nothing more can move, so that independent branches finish."""
    steps = list(steps)
    states = {step.state for step in steps}
    if states <= {StepState.DONE}:
        return WorkflowState.DONE
    moving = {StepState.QUEUED, StepState.RUNNING} & states or ready(steps)
    if moving:
        return WorkflowState.RUNNING
    if StepState.FAILED in states:
        return WorkflowState.FAILED
    return WorkflowState.CANCELLED if StepState.CANCELLED in states else WorkflowState.RUNNING


def order(needs: Mapping[str, Sequence[str]]) -> list[str]:
    """Keys so that each comes after its needs, the given order kept where free. Raises `ValueError` on a cycle."""
    done: list[str] = []
    left = dict(needs)
    while left:
        free = [key for key, wants in left.items() if not set(wants) & left.keys()]
        if not free:
            raise ValueError("cycle")
        done.append(free[0])
        del left[free[0]]
    return done


def cycle(needs: Mapping[str, Sequence[str]]) -> list[str]:
    """The keys of one cycle in order, or an empty list; unknown needs are left out of account."""
    state: dict[str, int] = {}
    for start in needs:
        path: list[str] = []
        found = _walk(start, needs, state, path)
        if found:
            return found
    return []


def _walk(start: str, needs: Mapping[str, Sequence[str]], state: dict[str, int], path: list[str]) -> list[str]:
    stack = [(start, iter(needs[start]))] if start not in state else []
    if stack:
        state[start] = 1
        path.append(start)
    while stack:
        following = next((n for n in stack[-1][1] if n in needs), None)
        if following is None:
            state[path.pop()] = 2
            stack.pop()
        elif state.get(following) == 1:
            return path[path.index(following) :]
        elif following not in state:
            state[following] = 1
            path.append(following)
            stack.append((following, iter(needs[following])))
    return []
