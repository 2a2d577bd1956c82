"""The CLI against servers that break off, restart, or are somebody else's: a sentence and an exit code, never a traceback."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hyperagent_api.cli import follow, output
from hyperagent_api.cli.main import main
from hyperagent_api.stream import LOG_PAGE

PLAN = "kind: hyperagent/plan\ntitle: t\ntasks: [{id: a, title: a, instructions: x}]\n"
WORKFLOW = {
    "id": "0199aaaa", "title": "t", "state": "done", "project": "p", "branch": "b", "steps": [], "patch": None,
    "patch_skip": None, "reason": None,
}  # fmt: skip
keys: list[str] = []
"""The idempotency key of each request."""
Answers = Callable[[str], tuple[int, bytes, bool]]
"""For a path: the status, the body, and whether the connection is cut before the body has ended."""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Answers], list[str]]]:
    """Answer the CLI from a function; gives the list of paths asked for."""
    servers: list[ThreadingHTTPServer] = []
    keys.clear()

    def start(answers: Answers) -> list[str]:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None: ...

            def do_GET(self) -> None:
                asked.append(self.path)
                keys.append(self.headers.get("Idempotency-Key", ""))
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, body, cut = answers(self.path)
                self.send_response(status)
                if "/log?" in self.path and body[:5] in (b"", b'{"id"'):
                    self.send_header("X-Log", "live")
                self.send_header("X-Attempt", "7")
                self.send_header("Transfer-Encoding", "chunked")
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body) + (b"" if cut else b"0\r\n\r\n"))
                self.close_connection = True

            do_POST = do_GET

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("HYPERAGENT_API_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HYPERAGENT_HOME", str(tmp_path / "home"))
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def call(*words: str) -> Result:
    """Run a command; it must not end in a traceback."""
    done = CliRunner().invoke(main, list(words))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done


def event(number: int, kind: str) -> bytes:
    """One server-sent event."""
    told = {"id": number, "kind": kind, "at": "2026-01-01T00:00:00", "step_id": None, "latency_ms": None, "data": {}}
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(told)}\n\n".encode()


def test_watch_waits_for_an_api_that_restarts_and_goes_on_where_it_was(
    serve: Callable[[Answers], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "RECONNECT_SECONDS", 0.01)
    end = b'event: end\ndata: {"state": "done"}\n\n'
    streams = [
        (200, b"retry: 2000\n\n" + event(7, "workflow.submitted"), True),
        (503, b'{"title": "The database does not answer."}', False),
        (502, b"<html>bad gateway</html>", False),
        (200, b": ping\n\n", True),
        (200, event(8, "workflow.resumed") + end, False),
    ]
    busy = {f"/api/v1/workflows/{WORKFLOW['id']}": b"{}"}  # the database is away for all but the first look
    first = json.dumps(WORKFLOW).encode()

    def answers(path: str) -> tuple[int, bytes, bool]:
        if "/stream" in path:
            return streams.pop(0)
        return (503, busy[path], False) if path in busy and len(streams) == 3 else (200, first, False)

    asked = serve(answers)
    done = call("watch", "0199")
    assert (done.exit_code, streams) == (output.DONE, [])
    assert [path.partition("after=")[2] for path in asked if "/stream" in path] == ["0", "7", "7", "7", "7"]
    assert (done.stderr.count("submitted"), done.stderr.count("resumed")) == (1, 1)


def test_watch_gives_up_on_an_api_that_stays_away_and_does_not_say_that_the_workflow_failed(
    serve: Callable[[Answers], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "RECONNECT_SECONDS", 0.01)
    monkeypatch.setattr(follow, "PATIENCE_SECONDS", 0.1)
    body = json.dumps(WORKFLOW).encode()
    serve(lambda path: (200, b"retry: 2000\n\n", True) if "/stream" in path else (200, body, False))
    done = call("watch", "0199")
    assert done.exit_code == output.UNREACHABLE
    assert "does not answer" in done.stderr


def test_watch_reads_the_events_page_by_page_where_no_stream_is_free(
    serve: Callable[[Answers], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "RECONNECT_SECONDS", 0.01)
    states = ["running", "running", "done", "done"]
    pages = [
        [json.loads(event(number, kind).split(b"data: ")[1])] for number, kind in ((7, "step.resent"), (8, "workflow.resumed"))
    ]
    pages = [pages[0], [], pages[1], pages[1], []]

    def answers(path: str) -> tuple[int, bytes, bool]:
        if "/stream" in path:
            return 503, b'{"title": "48 event streams are open."}', False
        found = pages.pop(0) if "/events" in path else {**WORKFLOW, "state": states.pop(0)}
        return 200, json.dumps(found).encode(), False

    asked = serve(answers)
    done = call("watch", "0199")
    assert (done.exit_code, states, pages) == (output.DONE, [], [])
    assert [path.partition("?")[2] for path in asked if "/events" in path] == [f"after={n}" for n in (0, 7, 7, 8, 8)]
    assert (done.stderr.count("sent again"), done.stderr.count("resumed")) == (1, 2)


@pytest.mark.parametrize(
    ("words", "env", "code", "told"),
    [
        (["run", "PLAN", "--project", "p", "--idempotency-key", "k-\u20ac"], {}, output.USAGE, "cannot be sent"),
        (["run", "PLAN", "--project", "p", "--idempotency-key", "k\nX: y"], {}, output.USAGE, "cannot be sent"),
        (["list"], {"HYPERAGENT_API_TOKEN": "\u20ac" * 20}, output.USAGE, "cannot be sent"),
        (["list"], {}, output.UNREACHABLE, "is not HyperAgent"),
        (["show", "x"], {}, output.NOT_FOUND, "404"),
        (["logs", "cut"], {}, output.UNREACHABLE, "broke off"),
        (["artifact", "x", "-o", "/nonexistent/d/f"], {}, output.USAGE, "/nonexistent/d/f.partial: No such file"),
        (["db", "upgrade"], {"HYPERAGENT_HOME": "/proc/x"}, output.USAGE, "/proc/x: No such file"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    serve: Callable[[Answers], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    env: dict[str, str],
    code: int,
    told: str,
) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    cut = json.dumps({**WORKFLOW, "steps": [{"key": "a", "attempts": [1], "state": "done"}]}).encode()

    def answers(path: str) -> tuple[int, bytes, bool]:
        if path.endswith("/cut"):
            return 200, cut, False
        if "/log" in path:
            return 200, b"{", True
        return (404, b"[1]", False) if path.endswith("workflows/x") else (200, b"<html>hello</html>", False)

    serve(answers)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    done = call(*[str(tmp_path / "plan.yaml") if word == "PLAN" else word for word in words])
    assert (done.exit_code, told in done.stderr) == (code, True), (done.exit_code, done.output)


EVIL = "x\x1b]0;owned\x07\x1b[2J\x9b2J"


def test_what_an_agent_wrote_is_shown_to_the_terminal_and_not_obeyed(serve: Callable[[Answers], list[str]]) -> None:
    run = {"id": "r", "round": 1, "role": EVIL, "provider": EVIL, "model": EVIL, "end_reason": EVIL, "cost_usd": None}
    run |= {"input_tokens": 1, "output_tokens": 1}
    found = {"severity": EVIL, "path": EVIL, "message": EVIL + "\n  done      forged"}
    verdict = {"agent_run_id": "r", "decision": "rejected", "summary": EVIL, "findings": [found]}
    step = {"id": "s", "key": "a", "state": "failed", "commit": None, "attempt_count": 1, "reason": f"{EVIL}\n{EVIL}"}
    step |= {"attempts": [{"agent_runs": [run], "verdicts": [verdict]}]}
    workflow = {**WORKFLOW, "title": EVIL, "reason": EVIL, "patch_skip": {"reason": EVIL}, "steps": [step]}
    letter = {"id": "l", "workflow_id": "w", "step": "a", "error_type": EVIL, "reason": EVIL}
    answers = {
        "/api/v1/workflows/0199": workflow,
        "/api/v1/workflows": [workflow],
        "/api/v1/dead-letters": [letter],
        "/api/v1/drafts/d": {"id": "d", "state": "failed", "reason": EVIL},
    }
    serve(lambda path: (200, json.dumps(answers[path.partition("?")[0]]).encode(), False))
    assert call("plan", "show", "d").exit_code == output.FAILED
    for words in (["show", "0199"], ["list"], ["dead-letters", "list"], ["plan", "show", "d"]):
        done = call(*words)
        assert "x\\x1b]0;owned\\x07\\x1b[2J\\x9b2J" in done.output, done.output
        assert all(char.isprintable() or char == "\n" for char in done.output), words
    assert not any(line.startswith("  done      forged") for line in call("show", "0199").output.splitlines())


def test_a_log_is_printed_whole_and_a_line_of_it_ends_with_a_line_feed_only(serve: Callable[[Answers], list[str]]) -> None:
    odd = "one\u2028two\u0085three"
    entries = [json.dumps({"id": f"{n}-0", "data": {"text": odd}}, ensure_ascii=False) for n in range(1, 2 * LOG_PAGE + 1)]
    shown = json.dumps({**WORKFLOW, "steps": [{"key": "a", "attempts": [1], "state": "running"}]}).encode()

    def answers(path: str) -> tuple[int, bytes, bool]:
        if "/log?" not in path:
            return 200, shown, False
        after = int(path.partition("after=")[2].partition("-")[0])
        return 200, "".join(f"{entry}\n" for entry in entries[after : after + LOG_PAGE]).encode(), False

    asked = serve(answers)
    assert call("logs", "0199", "--json").stdout.split("\n")[:-1] == entries
    pages = [path for path in asked if "/log?" in path]
    assert [path.partition("attempt=")[2] for path in pages] == ["", "7", "7"]  # a retry's log is another one


def test_an_event_is_one_line_whatever_its_words_hold(serve: Callable[[Answers], list[str]]) -> None:
    told = {"id": 7, "kind": "workflow.paused", "at": "2026-01-01T00:00:00", "data": {"reason": "a\u2028b\u0085c"}}
    sent = f"event: workflow.paused\ndata: {json.dumps(told, ensure_ascii=False)}\n\nevent: end\ndata: {{}}\n\n".encode()
    serve(lambda path: (200, sent if "/stream" in path else json.dumps(WORKFLOW).encode(), False))
    done = call("watch", "0199")
    assert (done.exit_code, "paused a" in done.stderr) == (output.DONE, True)


def test_a_draft_the_planner_is_still_at_is_not_ready(serve: Callable[[Answers], list[str]]) -> None:
    serve(lambda _: (200, b'{"id": "d", "state": "running"}', False))
    assert call("plan", "show", "d").exit_code == output.UNREACHABLE


@pytest.mark.parametrize("words", [("show",), ("watch",), ("logs",), ("artifact", "-o", "OUT")])
def test_an_id_is_asked_for_as_it_is_and_leads_nowhere_else(
    serve: Callable[[Answers], list[str]], tmp_path: Path, words: tuple[str, ...]
) -> None:
    asked = serve(lambda _: (404, b'{"title": "There is none."}', False))
    done = call(*[str(tmp_path / "out") if word == "OUT" else word for word in words], "../projects?x")
    assert (done.exit_code, "There is none." in done.stderr) == (output.NOT_FOUND, True)
    assert [path.rpartition("/")[2] for path in asked] == ["..%2Fprojects%3Fx"]


def test_a_submission_whose_answer_broke_off_is_sent_once_more_under_its_own_key(
    serve: Callable[[Answers], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    told = json.dumps({**WORKFLOW, "warnings": []}).encode()
    answers = [(200, told, True), (200, told, False), (502, b"", False), (502, b"", False)]
    serve(lambda _: answers.pop(0))
    done = call("run", str(tmp_path / "plan.yaml"), "--project", "p")
    assert (done.exit_code, done.stdout) == (output.DONE, f"{WORKFLOW['id']}\n")
    lost = call("run", str(tmp_path / "plan.yaml"), "--project", "p")
    assert (lost.exit_code, answers) == (output.UNREACHABLE, [])
    assert (keys[0] == keys[1] != keys[2] == keys[3], f"--idempotency-key {keys[3]}" in lost.stderr) == (True, True)


def test_a_submission_that_may_have_been_taken_tells_its_key(serve: Callable[[Answers], list[str]], tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    asked = serve(lambda _: (503, b'{"title": "The database does not answer."}', False))
    lost = call("run", str(tmp_path / "plan.yaml"), "--project", "p")
    assert (lost.exit_code, len(asked), f"--idempotency-key {keys[0]}" in lost.stderr) == (output.UNREACHABLE, 1, True)


def test_a_letter_without_a_reason_is_listed(serve: Callable[[Answers], list[str]]) -> None:
    letter = {"id": "l", "workflow_id": "w", "step": "a", "error_type": "internal", "reason": ""}
    serve(lambda path: (200, json.dumps([letter]).encode(), False))
    assert call("dead-letters", "list").output.startswith("l  w  a")


def test_an_empty_step_is_no_wish_to_retry_all_of_them(serve: Callable[[Answers], list[str]]) -> None:
    asked = serve(lambda _: (200, json.dumps(WORKFLOW).encode(), False))
    done = call("retry", "0199", "")
    assert (done.exit_code, asked, "STEP is empty" in done.stderr) == (output.USAGE, [], True)
