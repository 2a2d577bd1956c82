"""What a choice of agent and model needs: told before anything is spent, in a sentence that says what to do."""

from __future__ import annotations

import errno
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from hyperagent_api import serve
from hyperagent_common import settings
from hyperagent_common.choices import Choice
from hyperagent_common.errors import DependencyDown, HyperagentError
from hyperagent_tasks import requirements
from hyperagent_tasks.agents import versions
from hyperagent_tasks.parts import Chosen, Parts

PROVIDERS = {
    "paid": {"kind": "openai", "base_url": "http://x", "api_key": "k", "api_key_file": ""},
    "claudes": {"kind": "anthropic", "base_url": "http://x", "api_key": "k", "api_key_file": ""},
    "lost": {"kind": "gemini", "base_url": "http://x", "api_key": "", "api_key_file": "/nowhere/key"},
    "blank": {"kind": "gemini", "base_url": "http://x", "api_key": "", "api_key_file": "/dev/null"},
    "keyless": {"kind": "gemini", "base_url": "http://x", "api_key": "", "api_key_file": ""},
}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """A host without a sandbox; `codex` is on its PATH in a version that the adapter reads, `claude` in one it does not."""
    for name, version in {"codex": "codex-cli 0.169.4", "claude": "3.0.1 (Claude Code)", "gemini": "0.61.0"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{version}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    loaded = settings.load({"HYPERAGENT_HOME": str(tmp_path / "home")})
    return Parts(replace(loaded, providers=PROVIDERS), chosen=Chosen("process", "mock", "stand-in"))


@pytest.mark.parametrize(
    "choice",
    [("codex", "paid/m"), ("codex", "replay/demo"), ("mock", "paid/m"), ("null", "nobody/m"), ("auto", "replay/demo")],
)
def test_what_is_there_is_enough(host: Parts, choice: tuple[str, str]) -> None:
    requirements.require(host, Choice(*choice))


@pytest.mark.parametrize(
    ("choice", "told", "mend"),
    [
        (("clod", "paid/m"), "no agent 'clod'", "claude, codex, gemini"),
        (("claude", "claudes/m"), "claude on the PATH is 3.0.1; its adapter reads 2.1", "Install claude 2.1"),
        (("opencode", "paid/m"), "opencode is not on the PATH", "Install opencode 1.18"),
        (("codex", "nobody/m"), "'nobody' is not configured", "[providers.nobody]"),
        (("codex", "claudes/m"), "codex speaks openai_responses", "kind openai or openai-responses"),
        (("mock", "claudes/m"), "mock speaks openai_chat", "kind openai"),
        (("gemini", "keyless/m"), "'keyless' has no key", "api_key"),
        (("gemini", "lost/m"), "The key of the provider 'lost' cannot be read", "providers.lost.api_key_file"),
        (("gemini", "blank/m"), "'blank' has no key", "api_key_file"),
    ],
)
def test_what_is_lacking_is_said_with_its_mend(host: Parts, choice: tuple[str, str], told: str, mend: str) -> None:
    with pytest.raises(HyperagentError) as caught:
        requirements.require(host, Choice(*choice))
    assert told in caught.value.message
    assert mend in caught.value.mend


def test_a_host_lacks_nothing_or_says_of_any_role_what(host: Parts) -> None:
    assert requirements.lacking(host) is None
    verifier = Parts(replace(host.settings, verifier_provider="claude"), chosen=host.chosen)
    assert "3.0.1" in (requirements.lacking(verifier) or "")
    fallback = Parts(replace(host.settings, agent_fallback=["gemini:paid/m"]), chosen=host.chosen)
    assert "gemini speaks gemini" in (requirements.lacking(fallback) or "")


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"WORKFLOW_AGENT_MODEL": "nonesuch/m"}, "The model provider 'nonesuch' is not configured"),
        ({"HYPERAGENT_AGENT_FALLBACK": "opencode:nonesuch/m"}, "The model provider 'nonesuch' is not configured"),
        ({"WORKFLOW_AGENT_PROVIDER": "null", "WORKFLOW_AGENT_MODEL": "nonesuch/m", "HYPERAGENT_VERIFY": "off"}, None),
    ],
)
def test_the_api_does_not_start_for_a_model_without_a_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], told: str | None
) -> None:
    for name, value in {**env, "HYPERAGENT_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    started: list[object] = []
    monkeypatch.setattr(serve, "Server", lambda loaded: Mock(run=lambda: started.append(loaded)))
    if told is None:
        serve.main()
    else:
        with pytest.raises(SystemExit, match=told):
            serve.main()
    assert bool(started) == (told is None)


@pytest.mark.parametrize(
    "trouble",
    [
        BlockingIOError(errno.EAGAIN, "no process left"),
        subprocess.TimeoutExpired("codex", 20),
        subprocess.CompletedProcess([], -9, ""),
    ],
)
def test_a_cli_that_could_not_be_asked_now_is_asked_again(host: Parts, monkeypatch: pytest.MonkeyPatch, trouble: object) -> None:
    choice, answers = Choice("codex", "paid/m"), [trouble]
    really = subprocess.run

    def run(argv: list[str], **how: Any) -> Any:
        return really(argv, **how) if not answers else Mock(side_effect=[answers.pop()])()

    versions._said.cache_clear()
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DependencyDown):
        requirements.require(host, choice)
    requirements.require(host, choice)
    versions._said.cache_clear()
    answers.append(trouble)
    asked = Parts(replace(host.settings, agent_provider="codex", agent_model="paid/m"), chosen=host.chosen)
    assert requirements.lacking(asked) is None  # the worker starts: it may be asked later
    assert answers == []
