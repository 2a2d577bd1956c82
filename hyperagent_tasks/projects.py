"""Registration of a project: its repository is read through the git gateway and registered on the forge."""

from __future__ import annotations

from pathlib import Path

from hyperagent_common import db
from hyperagent_common.errors import BadInput, HyperagentError, Transient
from hyperagent_common.models import Project
from hyperagent_common.states import ProjectState
from hyperagent_tasks import handover
from hyperagent_tasks.gitgate import open_source
from hyperagent_tasks.parts import Parts, instance


def register(parts: Parts, project_id: str) -> None:
    """Register a project and write how it went. A `Transient` goes on to Celery, the row still registering."""
    url = parts.settings.db_url
    with db.transaction(url, reading=True) as session:
        project = session.get(Project, project_id)
    if project is None or project.state == ProjectState.READY:
        return
    try:
        rid, branch, head = _register(parts, project)
    except Transient as error:
        _write(url, project_id, faults=[fault(error)])
        raise
    except HyperagentError as error:
        _write(url, project_id, state=ProjectState.FAILED, faults=[fault(error), *map(_plain, error.faults)])
        return
    handover.keep_default(parts, project_id, project.name, head)
    _write(
        url,
        project_id,
        state=ProjectState.READY,
        faults=[],
        rid=rid,
        default_branch=branch,
        forge=parts.forge.name,
        publisher=instance(parts.settings),
    )


def _register(parts: Parts, project: Project) -> tuple[str, str, str]:
    path = Path(project.source)
    if not path.is_absolute():
        raise BadInput(f"The repository path {project.source} is not absolute.", mend="Give the whole path.")
    info = open_source(path)
    branch = project.default_branch or info.default_branch
    parts.forge.check()
    head = parts.gitgate.refresh(project.name, str(path), branch)
    registered = parts.forge.register(
        parts.gitgate.trusted(project.name),
        name=project.name,
        description=project.description or project.name,
        default_branch=branch,
    )
    return registered.rid, branch, head


def fault(error: HyperagentError) -> dict[str, str]:
    """An error as a fault of the project's row."""
    return {"field": "path" if isinstance(error, BadInput) else error.type, "message": error.sentence}


def _plain(entry: object) -> dict[str, str]:
    return {"field": getattr(entry, "field", "path"), "message": getattr(entry, "message", str(entry))}


def _write(url: str, project_id: str, **values: object) -> None:
    with db.transaction(url) as session:
        project = session.get(Project, project_id)
        if project is not None:
            for name, value in values.items():
                setattr(project, name, value)
