"""Request bodies: JSON or YAML, strictly read. What is doubtful is refused, never guessed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import NoneType
from typing import Any, NoReturn

import flask
import yaml

from hyperagent_common.errors import BadInput, Fault

MAX_DEPTH = 64
YAML_TYPES = {"application/yaml", "application/x-yaml", "text/yaml"}


class UnsupportedMedia(BadInput):
    """The body must be JSON or YAML."""

    status = 415
    type = "unsupported-media-type"


class Malformed(BadInput):
    """The body cannot be read."""

    status = 400
    type = "malformed"


def mapping() -> dict[str, Any]:
    """The request's body as a mapping. Raises `BadInput`."""
    kind = flask.request.mimetype
    if kind != "application/json" and kind not in YAML_TYPES:
        raise UnsupportedMedia(f"The body is {kind or 'untyped'}.", mend="Send Content-Type: application/json.")
    value = decode(flask.request.get_data(cache=False), as_yaml=kind in YAML_TYPES)
    if not isinstance(value, dict):
        raise BadInput("The body must be a mapping.", faults=[Fault("body", "must be a mapping")])
    return value


def decode(raw: bytes, *, as_yaml: bool = False) -> Any:
    """Decode strictly: no duplicate keys, NaN, lone surrogates, NUL, deep nesting or YAML aliases."""
    try:
        text = raw.decode("utf-8")
        value = _yaml(text) if as_yaml else json.loads(text, object_pairs_hook=_once, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise Malformed(f"The body is not UTF-8 (byte {error.start}).") from error
    except json.JSONDecodeError as error:
        raise Malformed(f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from error
    except yaml.YAMLError as error:
        raise Malformed(f"The body is not YAML: {' '.join(str(error).split())}") from error
    except (RecursionError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise Malformed(f"The body cannot be read: {type(error).__name__}: {error}") from error
    _sane(value, 0)
    return value


def _yaml(text: str) -> Any:
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise Malformed("The body uses YAML aliases, which are not taken.")
    return yaml.load(text, Loader=_UniqueKeys)


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader that refuses a key written twice, and gives dates as the strings they were."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """A mapping, each key once."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = repr(self.construct_object(key_node, deep=True))
            if key in seen:
                raise Malformed(f"The body has the key {key} twice.")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _written(loader: yaml.SafeLoader, node: Any) -> Any:
    return loader.construct_scalar(node)


_UniqueKeys.add_constructor("tag:yaml.org,2002:timestamp", _written)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise Malformed(f"The body has the key {name!r} twice.")
        found[name] = value
    return found


def _constant(name: str) -> NoReturn:
    raise Malformed(f"The body holds {name}, which JSON does not have.")


def _sane(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Malformed(f"The body is nested deeper than {MAX_DEPTH} levels.")
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise Malformed(f"The key {name!r} is not a string.")
            _text(name)
            _sane(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _sane(inner, depth + 1)
    elif isinstance(value, str):
        _text(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise Malformed("The body holds a number that is not finite, which is not taken.")
    elif not isinstance(value, (bool, int, float, NoneType)):
        raise Malformed(f"The body holds a {type(value).__name__}, which JSON does not have.")


def _text(value: str) -> None:
    if "\x00" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise Malformed("The body holds a NUL or a lone surrogate, which is not text.")


def unknown(value: dict[str, Any], known: tuple[str, ...]) -> list[Fault]:
    """A fault for every field that is not known."""
    return [Fault(str(n), f"unknown field; known are {', '.join(known)}") for n in value if n not in known]


def version(body: Mapping[str, Any]) -> tuple[int | None, list[Fault]]:
    """The version that is named by the body or by If-Match, and what is wrong with it."""
    said, match = body.get("version"), flask.request.headers.get("If-Match")
    if said is not None and (not isinstance(said, int) or isinstance(said, bool)):
        return None, [Fault("version", "must be a whole number")]
    if match is None:
        return said, []
    plain = match.strip().removeprefix("W/").strip('"')
    if not (plain.isascii() and plain.isdigit() and len(plain) < 10):
        return None, [Fault("If-Match", "must be a version, a whole number")]
    if said not in (None, int(plain)):
        return None, [Fault("version", f"is {said}, and If-Match says {plain}: name one of them")]
    return int(plain), []
