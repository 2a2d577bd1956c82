"""A Radicle home, without Radicle: what is wrong with it and whether that may pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperagent_common import base58
from hyperagent_common.errors import DependencyDown, DiskFull
from hyperagent_tasks.radicle import home


def test_a_disk_that_is_nearly_full_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.room(tmp_path)
    monkeypatch.setattr(home, "MIN_FREE", 1 << 62)
    with pytest.raises(DiskFull) as full:
        home.room(tmp_path)
    assert isinstance(full.value, DependencyDown)
    assert full.value.mend


@given(st.binary(max_size=40))
def test_what_is_written_in_base58_is_read_back(raw: bytes) -> None:
    assert base58.decode(base58.encode(raw)) == raw
    assert base58.is_rid(f"rad:z{base58.encode(raw)}") == (len(raw) == base58.RID_BYTES)
