"""Who goes on after a failed agent run: pure. Failure class, ordered list and budget in, the next choice or a stop out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hyperagent_common.choices import Choice

PASSED_ON = frozenset({"quota", "auth", "rate_limit", "provider", "crashed", "model_not_found", "timed_out"})
"""Ends that another provider or CLI may not share. A refusal, a spent budget or doing nothing is no outage."""


@dataclass(frozen=True)
class Next:
    """Go on with this choice, in the same workspace."""

    choice: Choice
    why: str


@dataclass(frozen=True)
class Stop:
    """Nobody goes on, and why."""

    why: str


def of_same_cli(choices: Sequence[Choice], at: int) -> tuple[str, ...]:
    """The models that the CLI at this place of the list may be moved to without being started again: those right after it
    in the list that are for the same CLI. The gateway moves it; what follows in the list is the step's."""
    following = []
    for choice in choices[at + 1 :]:
        if choice.provider != choices[at].provider:
            break
        following.append(choice.model)
    return tuple(following)


def decide(reason: str, choices: Sequence[Choice], tried: int, *, budget_left: bool = True) -> Next | Stop:
    """What follows a run that ended for `reason`; `choices` begins with the first choice, `tried` counts those used."""
    if reason not in PASSED_ON:
        return Stop(f"{reason} is no failure another agent would mend")
    if not budget_left:
        return Stop("the budget is spent")
    if tried >= len(choices):
        return Stop("the list has no further agent" if len(choices) > 1 else "no fallback is set")
    return Next(choices[tried], f"{choices[tried - 1]} ended: {reason}")
