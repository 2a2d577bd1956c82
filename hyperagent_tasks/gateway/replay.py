"""The replay back end: answers from a scenario file, so that a real CLI runs the same way every time."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

from hyperagent_common.errors import HyperagentError
from hyperagent_tasks.gateway import scenario
from hyperagent_tasks.gateway.config import GatewayConfig
from hyperagent_tasks.gateway.dialects import openai_chat as chat
from hyperagent_tasks.gateway.grants import Run, classify

SIDE_ANSWER = "Scripted title"


class Dropped(ConnectionResetError):
    """A scripted end of the connection."""


async def answer(request: web.Request, config: GatewayConfig, run: Run, body: dict[str, Any]) -> tuple[web.StreamResponse, str]:
    """Answer one request; returns the response and the text that was said."""
    asked = chat.read(body)
    number = run.observed.requests
    if not asked.tools:  # a side request such as a title: no turn of the script
        return await _say(request, asked, number, SIDE_ANSWER, [], "stop", chat.Usage(10, 3), run, {}), SIDE_ANSWER
    try:
        script = scenario.find(config.scenario_dirs, run.grant.model, run.grant.step_key, run.grant.role, run.grant.run)
        fault = await _fault(run, script, asked)
        if fault.get("status"):
            return _refuse(run, fault["status"], fault["message"] or f"scripted fault {fault['status']}", fault), ""
        turn = script.turn(asked.turn)
        if turn is None:
            raise scenario.BadInput(f"the script has no turn {asked.turn}")
        unmet = scenario.unmet(turn["expect"], asked)
        if unmet:
            raise scenario.BadInput(f"turn {asked.turn}: {unmet}")
        calls = [scenario.resolve(call, asked) for call in turn["calls"]]
    except HyperagentError as error:
        run.observed.fail("scenario", str(error), 400)
        return web.json_response(chat.error(f"scenario: {error}", "scenario"), status=400), ""
    finish = turn.get("finish") or ("tool_calls" if calls else "stop")
    used = chat.Usage(**turn["usage"])
    text = scenario.words(turn, asked)
    said = json.dumps({"text": text, "calls": calls}, ensure_ascii=False)
    return await _say(request, asked, number, text, calls, finish, used, run, fault), said


async def _fault(run: Run, script: scenario.Script, asked: chat.Asked) -> dict[str, Any]:
    key = (asked.turn, bool(asked.tools))
    run.attempts[key] = run.attempts.get(key, 0) + 1
    fault = script.fault(asked.turn, run.attempts[key]) or {}
    await asyncio.sleep(fault.get("delay_s", 0) or fault.get("hang_s", 0))
    if fault.get("drop") or fault.get("hang_s"):
        run.observed.fail("transport", "the provider closed the connection", None)
        raise Dropped
    return fault


def _refuse(run: Run, status: int, message: str, fault: dict[str, Any]) -> web.Response:
    kind = classify(status, message)
    run.observed.fail(kind, message, status)
    return web.json_response(chat.error(message, kind), status=status, headers=fault.get("headers", {}))


async def _say(
    request: web.Request,
    asked: chat.Asked,
    number: int,
    text: str,
    calls: list[tuple[str, dict[str, Any]]],
    finish: str,
    used: chat.Usage,
    run: Run,
    fault: dict[str, Any],
) -> web.StreamResponse:
    if not asked.stream:
        _meter(run, used)
        return web.json_response(chat.whole(asked.model, number, text, calls, finish, used))
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    response.force_close()
    await response.prepare(request)
    for index, data in enumerate(chat.chunks(asked.model, number, text, calls, finish, used)):
        if index == fault.get("cut_after"):
            run.observed.fail("transport", "the stream was cut", None)
            raise Dropped
        if index == fault.get("stall_at"):
            await asyncio.sleep(fault["stall_s"])
        sent = '{"oops": ' if index == fault.get("malformed") else data
        await response.write(f"data: {sent}\n\n".encode())
    _meter(run, used)
    await response.write_eof()
    return response


def _meter(run: Run, used: chat.Usage) -> None:
    run.observed.input += used.input
    run.observed.output += used.output
    run.observed.cached += used.cached
