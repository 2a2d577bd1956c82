"""Fixtures every test may use: real servers, each test with a database of its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg
import pytest

from hyperagent_common import db
from tests import servers


@pytest.fixture(scope="session")
def _postgres() -> Iterator[str]:
    with servers.postgres_server() as url:
        yield url


@pytest.fixture
def postgres_url(_postgres: str) -> Iterator[str]:
    """A fresh database on a real PostgreSQL."""
    name = f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(_postgres, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    url = _postgres.rsplit("/", 1)[0] + f"/{name}"
    yield url
    db.engine(url).dispose()
    with psycopg.connect(_postgres, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A fresh real Redis."""
    with servers.redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url
