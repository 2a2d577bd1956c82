"""Agents of a role tried in order: where one fails by quota, outage or crash, the next goes on with the work so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hyperagent_common import events
from hyperagent_common.errors import BudgetSpent
from hyperagent_common.events import EventKind
from hyperagent_common.models import StepAttempt
from hyperagent_tasks import claims, conversing, fallback, judging, prompts, spending
from hyperagent_tasks.agents.base import AgentRole, EndReason
from hyperagent_tasks.claims import Lease
from hyperagent_tasks.conversing import Ran, Turn
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.spec import Place, StepSpec, Workdir

TOOK_OVER = "Another agent began this and could not go on. Its work so far is in the files; look at it first, then go on."


class Bench:
    """Who may run for one attempt of a step, and how many runs of each role there were."""

    def __init__(self, parts: Parts, step: StepSpec, work: Workdir, lease: Lease) -> None:
        self.parts, self.step, self.work, self.lease = parts, step, work, lease
        self._runs: dict[str, int] = {}
        self._used: dict[str, int] = {}

    def ask(self, role: AgentRole, number: int, prompt: str, ws: Path) -> Ran:
        """One answer of a role, by the first agent that can give it. Raises the last agent's failure."""
        choices = self.step.choices.of(role)
        used = self._used.setdefault(role, 1)
        while True:
            turn = self._turn(role, number, prompt, ws, used)
            ran = conversing.run(self.parts, self.step, turn, self.lease)
            self._used[role] = used = used + len(ran.observed.switches)  # the gateway has tried these
            if judging.answered(ran.outcome, role):
                return ran
            self._budgets_hold(turn, ran)
            self._used[role] = used = used + 1
            following = fallback.decide(str(ran.outcome.reason), choices, used - 1)
            if isinstance(following, fallback.Stop):
                told = f"The {role} {ran.agent} did not do its work: {ran.outcome.sentence}"
                raise judging.failure(ran.outcome.reason)(told)
            self._record(role, number, ran, following)
            prompt = prompt if prompt.startswith(TOOK_OVER) or role != "coder" else f"{TOOK_OVER}\n\n{prompt}"

    def _budgets_hold(self, turn: Turn, ran: Ran) -> None:
        """A spent budget asks a person, it is no failure of the agent, though it was given anew since. Raises `BudgetSpent`."""
        spending.left(self.parts, self.step)
        failure = ran.observed.failure or {}
        scope = failure.get("scope") or turn.left.scopes.get(str(failure.get("of")))
        if ran.outcome.reason is EndReason.BUDGET and scope:
            raise BudgetSpent(f"The rest of the budget of this {scope} is spent.", scope=scope, mend=spending.MEND)

    def _turn(self, role: AgentRole, number: int, prompt: str, ws: Path, used: int) -> Turn:
        self._runs[role] = run = self._runs.get(role, 0) + 1
        name = f"{role}-{run}"
        place = Place.of(self.work.root / "runs" / name)
        choices = self.step.choices.of(role)
        digest = prompts.persona(role, self.step.choices.prompts).digest
        left, others = spending.left(self.parts, self.step), fallback.of_same_cli(choices, used - 1)
        return Turn(role, number, run, choices[used - 1], prompt, digest, ws, place, left, others)

    def _record(self, role: str, number: int, ran: Ran, following: fallback.Next) -> None:
        with claims.fenced(self.parts.settings.db_url, self.step.claim) as (session, row):
            attempt = session.get_one(StepAttempt, self.step.claim.attempt_id)
            said: dict[str, Any] = {"role": role, "round": number, "why": following.why}
            said |= {"agent": following.choice.provider, "model": following.choice.model, "by": "step"}
            said |= {"from": f"{ran.agent}:{ran.model}", "to": f"{following.choice.provider}:{following.choice.model}"}
            events.record(session, EventKind.AGENT_FALLBACK, step=row, attempt=attempt, **said)


def prompt(step: StepSpec, feedback: str) -> str:
    """What the coder is told: its persona, the task, and what was said of its last round."""
    persona = prompts.persona("coder", step.choices.prompts)
    again = f"## What was said of your work so far\n\nIt is in the files. Go on with it.\n\n{feedback}" if feedback else ""
    return "\n\n".join(filter(None, [persona.text, step.prompt(), again, persona.answer()]))
