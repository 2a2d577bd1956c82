"""Bytes from outside become plain JSON values, or one clear answer: strict JSON, and YAML as far as it is JSON.

Refused: malformed text (with its position), a name used twice, NaN and infinities, numbers that no program reads alike,
nesting deeper than `MAX_DEPTH`, YAML aliases (a few lines of them make gigabytes), NUL and lone surrogates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

import yaml

from hyperagent_api.problems import Malformed
from hyperagent_common.errors import BadInput, Fault

MAX_DEPTH = 50
MAX_NODES = 200_000
MAX_DIGITS = 300
MAX_SHOWN = 100
_YamlBase: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Refused(ValueError):
    """Raised inside a decoder; its text is the whole complaint."""


def decode_json(data: bytes) -> Any:
    """JSON as values. Raises `Malformed` with the position, `BadInput` naming strings that cannot be kept."""
    try:
        value = json.loads(
            _text(data),
            object_pairs_hook=_pairs,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except json.JSONDecodeError as error:
        raise Malformed(f"The body is not JSON: {error.msg} at line {error.lineno} column {error.colno}.") from None
    except _Refused as error:
        raise Malformed(f"The body is refused: {error}.") from None
    except RecursionError:
        raise _deep() from None
    return _sound(value)


def decode_yaml(data: bytes) -> Any:
    """YAML as JSON values. Raises as `decode_json`."""
    text = _text(data)
    try:
        _bounded(text)
        value = yaml.load(text, Loader=_Yaml)  # a SafeLoader below
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1} column {mark.column + 1}" if mark else ""
        raise Malformed(f"The body is not YAML: {error.problem or error.context}{where}.") from None
    except yaml.YAMLError as error:
        raise Malformed(f"The body is not YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise _deep() from None
    except ValueError as error:
        raise Malformed(f"The body is refused: {error}.") from None
    return _sound(value)


def decode(data: bytes, media: str) -> Any:
    """Bytes of the media type `application/json` or one of YAML's as values."""
    return decode_yaml(data) if "yaml" in media else decode_json(data)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed(f"The body is not UTF-8: {error.reason} at byte {error.start}.") from None


def _deep() -> Malformed:
    return Malformed(f"The body is nested deeper than {MAX_DEPTH} levels.")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise _Refused(f"the name {twice[:MAX_SHOWN]!r} is used twice in one object")
    return made


def _constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is no JSON number")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Refused(f"the number {text[:40]} is too large")
    return number


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _Refused(f"a number has {len(text)} digits; at most {MAX_DIGITS} are taken")
    return int(text)


class _Yaml(_YamlBase):  # type: ignore[misc]
    """YAML without times (they stay strings), and with a fault for a name used twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping, its names being strings and each used once."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is None or name in seen:
                problem = "a name is no plain value" if name is None else f"the name {name[:MAX_SHOWN]!r} is used twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith((":timestamp", ":merge"))]
    for first, rules in _YamlBase.yaml_implicit_resolvers.items()
}


def _bounded(text: str) -> None:
    """Walk the events (which nothing expands) and refuse what would grow."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_YamlBase):
        nodes += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise _Refused(f"line {event.start_mark.line + 1} uses an alias (*{event.anchor}); write the value out")
        if depth > MAX_DEPTH:
            raise _deep()
        if nodes > MAX_NODES:
            raise _Refused(f"it holds more than {MAX_NODES} values")


def _sound(value: Any) -> Any:
    """`value`, every part of it plain JSON that both databases keep. Raises `Malformed`, `BadInput`."""
    faults: list[Fault] = []
    for path, depth, node in _walk(value):
        if depth > MAX_DEPTH:
            raise _deep()
        complaint = _complaint(node)
        if complaint:
            faults.append(Fault(path or "body", complaint))
        if isinstance(node, dict):
            faults += [Fault(path or "body", f"has a name that {bad}") for bad in map(_bad_name, node) if bad]
    if faults:
        raise BadInput("The body holds values that are not taken.", faults=faults[:MAX_SHOWN])
    return value


def _walk(value: Any) -> Iterator[tuple[str, int, Any]]:
    stack: list[tuple[str, int, Any]] = [("", 0, value)]
    while stack:
        path, depth, node = stack.pop()
        yield path, depth, node
        if isinstance(node, dict):
            stack += [(f"{path}.{_plain(k)}" if path else _plain(k), depth + 1, v) for k, v in node.items()]
        elif isinstance(node, list):
            stack += [(f"{path}[{i}]", depth + 1, v) for i, v in enumerate(node)]


def _plain(name: object) -> str:
    return str(name)[:MAX_SHOWN].encode("ascii", "backslashreplace").decode()


def _complaint(node: Any) -> str:
    if isinstance(node, str):
        return _bad_text(node)
    if isinstance(node, float) and not math.isfinite(node):
        return "is no JSON number"
    if isinstance(node, int) and not isinstance(node, bool) and abs(node) >= 10**MAX_DIGITS:
        return f"has more than {MAX_DIGITS} digits"
    if not isinstance(node, (dict, list, int, float, type(None))):
        return f"is a {type(node).__name__}, which JSON does not have"
    return ""


def _bad_name(name: object) -> str:
    return _bad_text(name) if isinstance(name, str) else "is no string"


def _bad_text(text: str) -> str:
    if "\x00" in text:
        return "holds a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair"
    return ""
