"""What a project's patches still wait for: verdicts to be posted, peers to be told. Runs on the host that publishes it."""

from __future__ import annotations

from hyperagent_common import db, patches
from hyperagent_common.errors import HyperagentError
from hyperagent_common.models import Patch
from hyperagent_tasks import delivery, reviews
from hyperagent_tasks.parts import Parts
from hyperagent_tasks.radicle.base import Announced


def catch_up(parts: Parts, project_id: str) -> None:
    """Try again what is not done; what fails again is noted with when it is due next."""
    with db.transaction(parts.settings.db_url, reading=True) as session:
        unreviewed, alone = patches.unfinished(session, project_id)
    for patch in unreviewed:
        reviews.post(parts, patch.id)
    for rid in dict.fromkeys(patch.rid for patch in alone):
        _announce(parts, rid, [patch.id for patch in alone if patch.rid == rid])


def _announce(parts: Parts, rid: str, patch_ids: list[str]) -> None:
    """One announcement tells peers of every patch of a repository."""
    try:
        spread = parts.forge.announce(rid)
    except HyperagentError as error:
        spread = Announced(False, 0, error)
    with db.transaction(parts.settings.db_url) as session:
        for patch_id in patch_ids:
            delivery.note(session, parts.settings, session.get_one(Patch, patch_id), spread, db.now(session))
