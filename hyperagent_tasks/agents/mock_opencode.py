#!/usr/bin/env python3
"""A MOCK of the opencode CLI, bundled with HyperAgent: same flags, same JSON events, no intelligence of its own.

It asks the model server of its configuration what to do, as opencode does, or plays `OPENCODE_MOCK_SCRIPT`: JSON
`{"turns": [{"text": "..", "calls": [{"name": "write", "args": {..}}], "finish": "stop", "sleep": 0,
"error": {"status": 401, "message": ".."}}]}`. It says everywhere that it is a mock: version, every event, every log
line. Standard library only: this one file is copied into the runner image as `opencode-mock`.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

VERSION = "mock-1.18.33"
MAX_TURNS, MAX_ATTEMPTS = 50, 3
MAX_LINE, MAX_ANSWER, MAX_PROMPT, MAX_TOOL_OUTPUT = 8 << 20, 64 << 20, 16 << 20, 50_000
REQUEST_SECONDS, TOOL_SECONDS = 600, 120


Json = dict[str, Any]
Messages = list[Json]
Model = Callable[[Messages, "Out"], Json]
PARAMETERS = {"write": ["filePath", "content"], "bash": ["command"], "read": ["filePath"]}


def tool(name: str, required: list[str]) -> Json:
    """One tool in the words of an OpenAI chat request."""
    schema = {"type": "object", "properties": {key: {"type": "string"} for key in required}, "required": required}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}


class ModelError(Exception):
    """The model server failed: `name`, `status` and the answer's body go into the error event."""

    def __init__(self, message: str, *, name: str = "APIError", status: int | None = None, body: str = "") -> None:
        super().__init__(message)
        self.name, self.status, self.body = name, status, body
        self.passing = name == "APIError" and (status is None or status == 429 or status >= 500)


class Out:
    """Events on stdout and the structured log in $OPENCODE_LOG_DIR."""

    def __init__(self, session: str) -> None:
        self.session, self.parts, self.message = session, 0, 0
        where = Path(os.environ.get("OPENCODE_LOG_DIR") or Path.home() / ".local/share/opencode/log")
        where.mkdir(parents=True, exist_ok=True)
        self._log = (where / "opencode-mock.jsonl").open("a", encoding="utf-8")

    def log(self, message: str, level: str = "INFO", **fields: object) -> None:
        """One line of the structured log."""
        line = {"time": round(time.time(), 3), "level": level, "mock": True, "session": self.session}
        self._log.write(json.dumps({**line, "message": message, **fields}) + "\n")
        self._log.flush()

    def event(self, kind: str, **fields: object) -> None:
        """One event of the stream."""
        head = {"type": kind, "timestamp": int(time.time() * 1000), "sessionID": self.session, "mock": True}
        print(json.dumps({**head, **fields}), flush=True)

    def part(self, kind: str, what: str, **fields: object) -> None:
        """One event with a part of the current message; ids count, so that a run repeats them."""
        self.parts += 1
        ids = {"id": f"prt_mock{self.parts:04d}", "messageID": f"msg_mock{self.message:04d}", "sessionID": self.session}
        self.event(kind, part={**ids, "type": what, **fields})


def main() -> int:
    """Parse the command line as opencode does and run; 0 where the conversation ended by itself, else 1."""
    args = options().parse_intermixed_args()
    prompt = " ".join(args.message)
    if not sys.stdin.isatty():
        prompt = "\n".join(filter(None, [prompt, sys.stdin.buffer.read(MAX_PROMPT).decode("utf-8", "replace")]))
    if args.command != "run" or not prompt.strip():
        print("opencode-mock: say `run`, with a prompt as argument or on standard input", file=sys.stderr)
        return 1
    out = Out("ses_mock" + hashlib.sha256(f"{args.title}\0{args.model}\0{prompt}".encode()).hexdigest()[:20])
    out.log("this is the mock of opencode, not opencode", version=VERSION, cwd=os.getcwd(), model=args.model)
    try:
        return converse(out, model_of(args.model), prompt)
    except ModelError as error:
        out.log(str(error), level="ERROR", status=error.status)
        data = {"message": str(error), "statusCode": error.status, "isRetryable": False, "responseBody": error.body}
        out.event("error", error={"name": error.name, "data": data})
        return 1


def options() -> argparse.ArgumentParser:
    """The flags of `opencode run` that HyperAgent uses."""
    parser = argparse.ArgumentParser(prog="opencode-mock", description="A mock of opencode.", allow_abbrev=False)
    parser.add_argument("-v", "--version", action="version", version=VERSION)
    parser.add_argument("command", nargs="?")
    parser.add_argument("message", nargs="*")
    for flag in ("--format", "--title", "--agent"):
        parser.add_argument(flag, default="")
    parser.add_argument("-m", "--model", default="gateway/mock")
    return parser


def model_of(name: str) -> Model:
    """Who says what to do: the script in the environment, or the configured model server."""
    if script := os.environ.get("OPENCODE_MOCK_SCRIPT"):
        turns = list(json.loads(script)["turns"])
        return lambda messages, out: scripted(turns, out)
    provider, _, model = name.partition("/")
    try:
        given = json.loads(os.environ["OPENCODE_CONFIG_CONTENT"])["provider"][provider]["options"]
        base, key = str(given["baseURL"]), str(given["apiKey"])
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(f"OPENCODE_CONFIG_CONTENT has no provider {provider}", name="UnknownError") from error
    return lambda messages, out: ask(f"{base}/chat/completions", key, model, messages)


def converse(out: Out, model: Model, prompt: str) -> int:
    """Ask, do what is asked, answer, until the model stops."""
    where = f"You are a mock coding agent. Working directory: {os.getcwd()}"
    messages: Messages = [{"role": "system", "content": where}, {"role": "user", "content": prompt}]
    for _ in range(MAX_TURNS):
        answer = patiently(model, messages, out)
        finish = say(out, messages, answer)
        if finish == "content-filter":
            raise ModelError("The response was blocked by the provider's content filter", name="ContentFilterError")
        if finish != "tool-calls":
            return 0
    raise ModelError(f"the mock stops after {MAX_TURNS} turns", name="UnknownError")


def patiently(model: Model, messages: Messages, out: Out) -> Json:
    """The model's answer, asked for again where the fault may pass."""
    for attempt in range(1, MAX_ATTEMPTS):
        try:
            return model(messages, out)
        except ModelError as error:
            if not error.passing:
                raise
            out.log(str(error), level="WARN", attempt=attempt, status=error.status)
            time.sleep(0.1 * attempt)
    return model(messages, out)


def say(out: Out, messages: Messages, answer: Json) -> str:
    """Emit one step: text, the tools it calls, and its end; returns the finish reason in opencode's words."""
    out.message += 1
    out.part("step_start", "step-start")
    if answer["text"]:
        out.part("text", "text", text=answer["text"])
    calls = [{"id": call.pop("id"), "type": "function", "function": call} for call in answer["calls"]]
    messages.append({"role": "assistant", "content": answer["text"], **({"tool_calls": calls} if calls else {})})
    for call in calls:
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": act(out, call)})
    finish = "tool-calls" if calls else str(answer["finish"]).replace("_", "-")
    out.part("step_finish", "step-finish", reason=finish, tokens=tokens_of(answer["usage"]), cost=0)
    return finish


def tokens_of(usage: Json) -> Json:
    """An OpenAI usage in opencode's words: input excludes what the cache gave."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    asked = usage.get("prompt_tokens") or 0
    return {"input": max(0, asked - cached), "output": usage.get("completion_tokens") or 0, "cache": {"read": cached, "write": 0}}


def act(out: Out, call: Json) -> str:
    """Do one tool call and tell about it, as opencode does: errors go back to the model."""
    name, args, began = call["function"]["name"], {}, int(time.time() * 1000)
    state: Json
    try:
        args = json.loads(call["function"]["arguments"])
        state = {"status": "completed", "output": ACTIONS[name](**args)}
    except KeyError:
        said = f"Model tried to call unavailable tool '{name}'. Available tools: bash, read, write."
        name, args, state = "invalid", {"tool": name, "error": said}, {"status": "completed", "output": said}
    except (ValueError, TypeError, OSError, subprocess.SubprocessError) as error:
        state = {"status": "error", "error": str(error)}
    state |= {"input": args, "time": {"start": began, "end": int(time.time() * 1000)}}
    out.log("tool", tool=name, status=state["status"])
    out.part("tool_use", "tool", tool=name, callID=call["id"], state=state)
    return str(state.get("output", state.get("error")))


def inside(name: str) -> Path:
    """The path called `name`, refused outside the working directory."""
    root = Path.cwd().resolve()
    if (path := (root / name).resolve()).is_relative_to(root):
        return path
    raise PermissionError(f"The user has specified a rule which prevents you from using {name}: outside {root}")


def write(filePath: str, content: str, **_: object) -> str:
    """Write a file below the working directory."""
    path = inside(filePath)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8", newline="")
    return "Wrote file successfully."


def read(filePath: str, **_: object) -> str:
    """Read a file below the working directory."""
    return inside(filePath).read_bytes()[:MAX_TOOL_OUTPUT].decode("utf-8", "replace")


def bash(command: str, **_: object) -> str:
    """Run a shell command in the working directory."""
    argv = ["sh", "-c", f"exec 2>&1 </dev/null\n{command}"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, timeout=TOOL_SECONDS, check=False)
    return f"{done.stdout[-MAX_TOOL_OUTPUT:].decode('utf-8', 'replace')}\n(exit code {done.returncode})"


ACTIONS: dict[str, Callable[..., str]] = {"write": write, "bash": bash, "read": read}


def scripted(turns: list[Json], out: Out) -> Json:
    """The next turn of the script."""
    if not turns:
        raise ModelError("OPENCODE_MOCK_SCRIPT has no further turn", name="UnknownError")
    turn = turns.pop(0)
    time.sleep(min(float(turn.get("sleep", 0)), 3600))
    if fault := turn.get("error"):
        raise ModelError(str(fault.get("message", "scripted")), status=fault.get("status"), body=fault.get("body", ""))
    calls = [
        {"id": f"call_{out.message}_{i}", "name": call["name"], "arguments": json.dumps(call.get("args", {}))}
        for i, call in enumerate(turn.get("calls", []))
    ]
    return {"text": turn.get("text", ""), "calls": calls, "finish": turn.get("finish", "stop"), "usage": {}}


def ask(url: str, key: str, model: str, messages: Messages) -> Json:
    """One streamed OpenAI chat request."""
    body = {
        "model": model,
        "messages": messages,
        "tools": [tool(*each) for each in PARAMETERS.items()],
        "tool_choice": "auto",
        "stream": True,
    }
    body |= {"stream_options": {"include_usage": True}, "max_tokens": 16384}
    headers = {
        "content-type": "application/json",
        "authorization": f"Bearer {key}",
        "user-agent": f"opencode/{VERSION}",
    }
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as reply:
            return listen(reply)
    except urllib.error.HTTPError as error:
        told = error.read(65536).decode("utf-8", "replace")
        raise ModelError(told[:400], status=error.code, body=told) from error
    except (OSError, http.client.HTTPException) as error:
        raise ModelError(f"Cannot connect to API: {error}") from error


def listen(reply: http.client.HTTPResponse) -> Json:
    """Put a streamed answer together. A stream that ends early leaves `finish` unknown, as opencode has it."""
    answer: Json = {"text": "", "calls": [], "finish": None, "usage": {}}
    size = 0
    while (line := reply.readline(MAX_LINE)) and (size := size + len(line)) < MAX_ANSWER:
        data = line.strip().removeprefix(b"data:").strip()
        if data == b"[DONE]":
            break
        if line.startswith(b"data:"):
            try:
                merge(answer, json.loads(data))
            except (ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
                raise ModelError(f"JSON parsing failed: {error}", name="UnknownError") from error
    if answer["finish"] is None:
        raise ModelError("the model's stream was cut off: connection lost")
    return answer


def merge(answer: Json, chunk: Json) -> None:
    """Add one chunk to the answer."""
    if chunk.get("error"):
        raise ModelError(f"the stream told of an error: {chunk['error']}", name="UnknownError", body=json.dumps(chunk))
    answer["usage"].update(chunk.get("usage") or {})
    for choice in chunk.get("choices") or []:
        delta = choice.get("delta") or {}
        answer["text"] += delta.get("content") or ""
        answer["finish"] = choice.get("finish_reason") or answer["finish"]
        for piece in delta.get("tool_calls") or []:
            if piece["index"] == len(answer["calls"]):
                answer["calls"].append({"id": piece["id"], "name": "", "arguments": ""})
            for key in ("name", "arguments"):
                answer["calls"][piece["index"]][key] += piece.get("function", {}).get(key) or ""


if __name__ == "__main__":
    sys.exit(main())
