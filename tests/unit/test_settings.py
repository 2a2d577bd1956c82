"""Settings: all faults at once, unknown keys refused, secrets never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperagent_common import queue
from hyperagent_common.errors import BadSettings
from hyperagent_common.settings import load

CANARY = "canary-secret-55aa"


def faults(**env: str) -> dict[str, str]:
    """Faults by field."""
    with pytest.raises(BadSettings) as refused:
        load(env)
    return {fault.field: fault.message for fault in refused.value.faults}


def test_defaults_need_no_setting() -> None:
    loaded = load({})
    assert loaded.db_url.startswith("sqlite:///")
    assert loaded.broker.startswith("redis+socket://")
    assert loaded.url == "http://127.0.0.1:8440"


def test_every_fault_is_told_at_once() -> None:
    told = faults(
        HYPERAGENT_API_PORT="x",
        HYPERAGENT_NOPE="1",
        HYPERAGENT_HEARTBEAT_SECONDS="50",
        HYPERAGENT_API_HOST="0.0.0.0",
        WORKFLOW_AGENT_MODEL="no-slash",
        HYPERAGENT_BROKER_URL_FILE="/nonexistent",
    )
    assert set(told) == {
        "HYPERAGENT_API_PORT",
        "HYPERAGENT_NOPE",
        "HYPERAGENT_HEARTBEAT_SECONDS",
        "HYPERAGENT_API_TOKEN",
        "WORKFLOW_AGENT_MODEL",
        "HYPERAGENT_BROKER_URL_FILE",
    }


@pytest.mark.parametrize("url", ["amqp://127.0.0.1//", "amqps://broker//", "sentinel://a:26379", "memory://"])
def test_a_broker_that_is_no_redis_is_refused_with_what_it_must_be(url: str) -> None:
    assert "redis://" in faults(HYPERAGENT_BROKER_URL=url)["HYPERAGENT_BROKER_URL"]


def test_a_broker_on_a_socket_is_asked_in_the_database_that_celery_uses() -> None:
    pool = queue.client("redis+socket:///run/redis.sock?virtual_host=3", seconds=1).connection_pool
    assert (pool.connection_kwargs["path"], pool.connection_kwargs["db"]) == ("/run/redis.sock", 3)


@pytest.mark.parametrize("url", ["", "redis://h:6379/0", "rediss://u:p@h:1/0", "redis+socket:///run/redis.sock"])
def test_every_way_to_a_redis_is_taken(url: str) -> None:
    assert load({"HYPERAGENT_BROKER_URL": url}).broker_url == url


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('api_port = 1111\nagent_model = "a/b"\n[providers.a]\nkind = "openai"\nbase_url = "http://x"\n')
    loaded = load({"HYPERAGENT_CONFIG": str(path), "HYPERAGENT_API_PORT": "2222"})
    assert (loaded.api_port, loaded.agent_model) == (2222, "a/b")
    assert loaded.providers["a"]["base_url"] == "http://x"


@pytest.mark.parametrize("text", ["api_prot = 1\n", "= broken", '[providers.a]\nkind = "openai"\n', "[providers.a]\nx = 1\n"])
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    assert faults(HYPERAGENT_CONFIG=str(path))


@pytest.mark.parametrize(
    ("provider", "where"),
    [
        ('"p": {"kind": "azure", "base_url": "http://x"}', "p.kind"),
        ('"p": {"kind": "anthropic"}', "p.base_url"),
        ('"p": {"kind": "gemini", "base_url": "ftp://x"}', "p.base_url"),
        ('"p": {"kind": "openai", "base_url": "http://x", "api_key": "a\\nb"}', "p.api_key"),
        ('"p": {"kind": "replay", "prices": {"m": {"input": -1, "output": 1}}}', "p.prices.m.input"),
        ('"p": {"kind": "replay", "prices": {"m": {"input": 1}}}', "p.prices.m.output"),
        ('"a/b": {"kind": "replay"}', "a/b.key"),
    ],
)
def test_a_wrong_provider_is_refused_by_what_is_wrong_with_it(provider: str, where: str) -> None:
    assert list(faults(HYPERAGENT_PROVIDERS="{" + provider + "}")) == [f"HYPERAGENT_PROVIDERS.{where}"]


@pytest.mark.parametrize("kind", ["openai", "openai-responses", "anthropic", "gemini"])
def test_a_provider_has_its_prices_by_model(kind: str) -> None:
    prices = '{"m": {"input": 1.25, "cached": 0.1, "output": 10}}'
    loaded = load({"HYPERAGENT_PROVIDERS": f'{{"p": {{"kind": "{kind}", "base_url": "http://x", "prices": {prices}}}}}'})
    assert loaded.providers["p"]["prices"]["m"] == {"input": 1.25, "cached": 0.1, "output": 10.0}


def test_a_missing_file_that_was_named_is_a_fault(tmp_path: Path) -> None:
    assert "HYPERAGENT_CONFIG" in faults(HYPERAGENT_CONFIG=str(tmp_path / "none"))


def test_a_secret_comes_from_a_file_and_is_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(CANARY + "\n")
    providers = '{"p": {"kind": "openai", "base_url": "http://x", "api_key": "' + CANARY + '"}}'
    loaded = load({"HYPERAGENT_API_TOKEN_FILE": str(path), "HYPERAGENT_PROVIDERS": providers})
    assert loaded.api_token.reveal() == CANARY
    assert CANARY not in repr(loaded.api_token)
    assert CANARY not in str(loaded.shown())


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        load({}).api_port = 1  # type: ignore[misc]


@pytest.mark.parametrize("url", ["sqlite:///rel.db", "sqlite://", "sqlite:///:memory:", "sqlite+pysqlite:///./x.db"])
def test_an_sqlite_file_that_each_process_would_look_for_elsewhere_is_refused(url: str) -> None:
    assert "absolute path" in faults(HYPERAGENT_DATABASE_URL=url)["HYPERAGENT_DATABASE_URL"]


@pytest.mark.parametrize("url", ["sqlite:////tmp/h.db", "sqlite:///file:/tmp/h.db?uri=true", "postgresql://u@h/d", ""])
def test_a_database_that_every_process_finds_is_taken(url: str) -> None:
    assert load({"HYPERAGENT_DATABASE_URL": url}).database_url == url
