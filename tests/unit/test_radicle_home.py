"""A Radicle home, without Radicle: what is wrong with it and whether that may pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperagent_common.errors import DependencyDown, DiskFull
from hyperagent_tasks.radicle import home


def test_a_disk_that_is_nearly_full_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.room(tmp_path)
    monkeypatch.setattr(home, "MIN_FREE", 1 << 62)
    with pytest.raises(DiskFull) as full:
        home.room(tmp_path)
    assert isinstance(full.value, DependencyDown)
    assert full.value.mend
