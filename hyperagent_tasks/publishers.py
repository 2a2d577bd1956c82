"""The host that publishes a project: does it work, and what goes to it and to no other?"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from hyperagent_common import db, forge_state
from hyperagent_common.models import Worker, Workflow, WorkflowStep
from hyperagent_common.settings import Settings


def works(session: Session, settings: Settings, publisher: str) -> bool:
    """Whether a worker of this host reported lately: then it takes what is for it, however busy it is now."""
    since = db.now(session) - forge_state.patience(settings)
    alive = session.scalars(select(Worker).where(Worker.last_seen > since, Worker.stopped_at.is_(None)))
    return any((worker.parts or {}).get("instance") == publisher for worker in alive)  # None: what older workers wrote


def only(session: Session, settings: Settings, workflow: Workflow, step: WorkflowStep) -> str:
    """The host whose queue the step goes to: that of the publisher, where the commit is made and it works; else none."""
    publisher = workflow.project.publisher
    return publisher if publisher and step.commit and works(session, settings, publisher) else ""
