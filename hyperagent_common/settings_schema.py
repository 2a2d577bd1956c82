"""What each setting may hold, as a marshmallow schema: types, ranges, choices, and rules across settings."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate

from hyperagent_common import choices
from hyperagent_common.errors import Fault

KEY = r"^[\x21-\x7e]*\Z"
PROVIDER_KINDS = ("openai", "openai-responses", "anthropic", "gemini", "replay")


class PriceSchema(Schema):
    """US dollars for a million tokens of a model; without `cached`, cached input costs as other input does."""

    input = fields.Float(required=True, validate=validate.Range(0, 1e6))
    output = fields.Float(required=True, validate=validate.Range(0, 1e6))
    cached = fields.Float(validate=validate.Range(0, 1e6))


class ProviderSchema(Schema):
    """One model provider. `api_key_file` names a file that holds the key; `prices` are by our name of a model."""

    kind = fields.String(required=True, validate=validate.OneOf(PROVIDER_KINDS))
    base_url = fields.String(load_default="", validate=validate.Regexp(r"^(https?://.*)?$", error="must be a http(s) URL"))
    api_key = fields.String(load_default="", validate=validate.Regexp(KEY, error="must be printable and without spaces"))
    api_key_file = fields.String(load_default="")
    models = fields.Dict(keys=fields.String(), values=fields.String(), load_default=dict)
    prices = fields.Dict(keys=fields.String(), values=fields.Nested(PriceSchema), load_default=dict)


def _seconds(low: float = 0.1, high: float = 7 * 86400) -> fields.Float:
    return fields.Float(validate=validate.Range(min=low, max=high))


def _count(low: int, high: int) -> fields.Integer:
    return fields.Integer(strict=False, validate=validate.Range(min=low, max=high))


def _choice(*names: str) -> fields.String:
    return fields.String(validate=validate.OneOf(names))


def _name() -> fields.String:
    return fields.String(validate=validate.Regexp(r"^[^/\s]+\Z", error="must be a name without spaces and slashes"))


def _model() -> fields.String:
    return fields.String(validate=validate.Regexp(r"^([^/\s]+/\S+)?$", error="must read provider/model"))


def _fallback(value: str) -> None:
    found = choices.faults({"agent_fallback": [value]}, "")
    if found:
        raise ValidationError("must read CLI:provider/model")


def _budgets(value: Any) -> None:
    told = choices.budgets_fault(value)
    if told:
        raise ValidationError(told)


SCHEMA = Schema.from_dict(
    {
        "home": fields.String(validate=validate.Length(min=1)),
        "database_url": fields.String(
            validate=validate.Regexp(
                r"(?!sqlite)|sqlite(\+\w+)?:///(file:)?/", error="must name an SQLite file by its absolute path: sqlite:////path"
            )
        ),
        "broker_url": fields.String(
            validate=validate.Regexp(
                r"^((rediss?|redis\+socket)://.+)?$",
                error="must be a URL of Redis (redis://, rediss:// or redis+socket://): health and live logs are in it too",
            )
        ),
        "storage_url": fields.String(),
        "api_host": fields.String(validate=validate.Length(min=1)),
        "api_port": _count(1, 65535),
        "api_url": fields.String(validate=validate.Regexp(r"^(https?://.*)?$", error="must be a http(s) URL")),
        "api_token": fields.String(),
        "api_body_limit": _count(1024, 1 << 30),
        "agent_provider": _choice("auto", "opencode", "claude", "codex", "gemini", "mock", "null"),
        "agent_model": fields.String(validate=validate.Regexp(r"^[^/\s]+/\S+$", error="must read provider/model")),
        "agent_max_rounds": _count(1, 50),
        "agent_fallback": fields.List(fields.String(validate=_fallback)),
        "verifier_provider": fields.String(),
        "verifier_model": _model(),
        "planner_provider": fields.String(),
        "planner_model": _model(),
        "verify": _choice(*choices.VERIFY),
        "budgets": fields.Dict(validate=_budgets),
        "agent_max_requests": _count(1, 100_000),
        "providers": fields.Dict(keys=_name(), values=fields.Nested(ProviderSchema)),
        "scenario_dirs": fields.List(fields.String()),
        "sandbox": _choice("auto", "docker", "process"),
        "runner_image": fields.String(validate=validate.Length(min=1)),
        "container_runtime": fields.String(),
        "forge": _choice("auto", "radicle", "stand-in"),
        "radicle_image": fields.String(validate=validate.Length(min=1)),
        "radicle_home": fields.String(),
        "radicle_alias": fields.String(
            validate=validate.Regexp(r"^[^\s\x00-\x1f]{1,32}$", error="must be 1 to 32 characters without spaces")
        ),
        "radicle_passphrase": fields.String(),
        "radicle_network": _choice("test", "main"),
        "radicle_container_network": fields.String(),
        "radicle_listen": fields.String(),
        "radicle_connect": fields.List(
            fields.String(validate=validate.Regexp(r"^z6Mk\w+@.+:\d+$", error="must read NID@host:port"))
        ),
        "step_timeout": _seconds(1),
        "check_timeout": _seconds(1),
        "lease_seconds": _seconds(1, 86400),
        "heartbeat_seconds": _seconds(0.2, 3600),
        "max_attempts": _count(1, 100),
        "retry_backoff": _count(1, 3600),
        "retry_backoff_max": _count(1, 3600),
        "dependency_patience": _seconds(0),
        "outage_patience": _seconds(0),
        "drain_seconds": _seconds(0.1, 3600),
        "visibility_timeout": _seconds(0),
        "worker_concurrency": _count(1, 256),
        "reconcile_seconds": _seconds(0.2, 3600),
        "requeue_after": _seconds(1, 86400),
        "sentry_dsn": fields.String(),
        "log_level": _choice("DEBUG", "INFO", "WARNING", "ERROR"),
    },
    name="SettingsSchema",
)()


def split(name: str, raw: str) -> Any:
    """An environment string as what the schema expects: lists are split at commas, `providers` is JSON."""
    kind = SCHEMA.fields.get(name)
    if isinstance(kind, fields.List):
        return [part.strip() for part in raw.split(",") if part.strip()]
    if isinstance(kind, fields.Dict):
        try:
            return json.loads(raw or "{}")
        except ValueError:
            return raw
    return raw


def faults(error: ValidationError, env_names: Mapping[str, str]) -> list[Fault]:
    """marshmallow's messages as faults that name the environment variable."""
    found: list[Fault] = []

    def walk(path: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(f"{path}.{key}" if path else str(key), value)
            return
        head, _, rest = path.replace(".value", "").partition(".")  # marshmallow's word for what a key stands for
        label = f"{env_names.get(head, head)}{'.' + rest if rest else ''}"
        found.extend(Fault(label, _say(str(message))) for message in (node if isinstance(node, list) else [node]))

    walk("", error.messages)
    return found


def _say(message: str) -> str:
    return "there is no such setting; remove it or mend its name" if message == "Unknown field." else message


def cross_faults(values: Mapping[str, Any]) -> list[Fault]:
    """Rules that concern more than one setting."""
    found: list[Fault] = []
    lease, beat = values.get("lease_seconds", 60.0), values.get("heartbeat_seconds", 10.0)
    if beat * 2 > lease:
        found.append(Fault("HYPERAGENT_HEARTBEAT_SECONDS", f"{beat} must be at most half of lease_seconds ({lease})"))
    if not values.get("api_token") and not _loopback(str(values.get("api_host", "127.0.0.1"))):
        found.append(Fault("HYPERAGENT_API_TOKEN", "must be set where api_host is not a loopback address"))
    for name, provider in values.get("providers", {}).items():
        kind = provider.get("kind", "replay")
        if kind != "replay" and not provider.get("base_url"):
            found.append(Fault(f"HYPERAGENT_PROVIDERS.{name}.base_url", f"must be set for a provider of kind {kind}"))
    return found


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
