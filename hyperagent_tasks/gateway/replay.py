"""The replay back end: answers from a scenario file, so that a real CLI runs the same way every time."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

from hyperagent_common.errors import BadInput, HyperagentError
from hyperagent_tasks.gateway import scenario
from hyperagent_tasks.gateway.config import Provider
from hyperagent_tasks.gateway.dialects.base import Said, ToolCall, Usage
from hyperagent_tasks.gateway.exchange import Exchange
from hyperagent_tasks.gateway.failures import Failure, classify

SIDE_ANSWER = "Scripted title"
MALFORMED = b'data: {"oops": \n\n'


class Dropped(ConnectionResetError):
    """A scripted end of the connection before or in the middle of an answer."""


class Scripted(Exception):
    """A scripted refusal, with the headers it is to be given with."""

    def __init__(self, failure: Failure, headers: dict[str, str]) -> None:
        super().__init__(failure.message)
        self.failure, self.headers = failure, headers


async def answer(x: Exchange, provider: Provider, model: str) -> web.StreamResponse:
    """Answer one request. Raises `Scripted` and, where the script ends the connection, `Dropped`."""
    if not x.asked.tools:  # a side request such as a title: no turn of the script
        return await _say(x, provider, model, Said(x.asked.model, x.number, SIDE_ANSWER, usage=Usage(10, 3)), {})
    try:
        script = _script(x, model)
        fault = await _fault(x, script)
        said = _said(x, script)
    except HyperagentError as error:
        x.run.observed.fail("scenario", str(error), 400)
        return x.refusal(400, f"scenario: {error}", "scenario")
    return await _say(x, provider, model, said, fault)


def _script(x: Exchange, model: str) -> scenario.Script:
    grant = x.run.grant
    return scenario.find(x.config.scenario_dirs, model, grant.step_key, grant.role, grant.run)


async def _fault(x: Exchange, script: scenario.Script) -> dict[str, Any]:
    key = (x.asked.turn, bool(x.asked.tools))
    x.run.attempts[key] = x.run.attempts.get(key, 0) + 1
    fault = script.fault(x.asked.turn, x.run.attempts[key]) or {}
    await asyncio.sleep(fault.get("delay_s", 0) or fault.get("hang_s", 0))
    if fault.get("drop") or fault.get("hang_s"):
        raise Dropped("the provider closed the connection")
    if status := fault.get("status"):
        told = fault["message"] or f"scripted fault {status}"
        raise Scripted(Failure(classify(status, told), told, status), fault.get("headers", {}))
    return fault


def _said(x: Exchange, script: scenario.Script) -> Said:
    """This turn's answer. Raises `BadInput`."""
    turn = script.turn(x.asked.turn)
    if turn is None:
        raise BadInput(f"the script has no turn {x.asked.turn}")
    unmet = scenario.unmet(turn["expect"], x.asked)
    if unmet:
        raise BadInput(f"turn {x.asked.turn}: {unmet}")
    calls = tuple(scenario.resolve(call, x.asked) for call in turn["calls"])
    finish = turn.get("finish") or ("tool_calls" if calls else "stop")
    return Said(x.asked.model, x.number, scenario.words(turn, x.asked), calls, finish, Usage(**turn["usage"]))


async def _say(x: Exchange, provider: Provider, model: str, said: Said, fault: dict[str, Any]) -> web.StreamResponse:
    x.text = said.text
    x.said = json.dumps({"text": said.text, "calls": [_shown(call) for call in said.calls]}, ensure_ascii=False)
    if x.asked.stream:
        response = await _stream(x, said, fault)
    else:
        response = web.json_response(x.dialect.whole(said))
    x.book(said.usage, provider, model)
    return response


def _shown(call: ToolCall) -> list[Any]:
    return [call.name, dict(call.args)]


async def _stream(x: Exchange, said: Said, fault: dict[str, Any]) -> web.StreamResponse:
    """The events as they come, but for calls: the outlet keeps them until the answer has ended."""
    x.outlet.patience = 0
    for index, event in enumerate(x.dialect.events(said)):
        if index == fault.get("stall_at"):
            await asyncio.sleep(fault["stall_s"])
        if index == fault.get("cut_after"):
            raise Dropped("the stream was cut")
        garbage = index == fault.get("malformed")
        await x.outlet.put(MALFORMED if garbage else event.block(), call=event.call and not garbage)
    return await x.outlet.end()
