"""Fixtures of the contract suites."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.rad_home import bare, home  # noqa: F401
from tests.contract.runner_bench import ALL, Bench, make


@pytest.fixture
def swept() -> Iterator[None]:
    """Unclosed sockets show up in the test that made them, not in a later one."""
    yield
    gc.collect()


@pytest.fixture(params=ALL)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Each runner in turn; nothing may be left when the test ends."""
    made = make(request.param, tmp_path)
    yield made
    made.runner.reap(lambda labels: False)
    assert made.left() == []
