"""Command lines, the choice of an agent, and the classes of provider errors."""

from __future__ import annotations

import json

import pytest

from hyperagent_common.errors import BadInput
from hyperagent_tasks.agents.base import AgentTask, EndReason
from hyperagent_tasks.agents.choose import agent
from hyperagent_tasks.agents.classify import classify
from hyperagent_tasks.agents.opencode import OpencodeAgent, ascii_title

TOKEN = "hap-phantom-0123456789abcdef"
BASE = f"http://127.0.0.1:3128/t/{TOKEN}"


def asked(prompt: str = "Mend add.", title: str = "Mend add", model: str = "replay/demo") -> AgentTask:
    """A task for an agent."""
    return AgentTask(title=title, prompt=prompt, model=model, base_url=BASE, token=TOKEN)


def test_the_prompt_travels_as_a_file_and_never_as_an_argument() -> None:
    prompt = '--help "quotes"\n$HOME `x` \u00e9\u6f22 ' + "x" * (1 << 20)
    command = OpencodeAgent().command(asked(prompt))
    assert command.files == {"prompt.txt": prompt.encode()}
    assert all(len(text) < 100_000 for text in [*command.argv, *command.env.values()])
    assert "/in/prompt/prompt.txt" in command.argv


def test_the_command_line_is_opencodes_own() -> None:
    argv = list(OpencodeAgent().command(asked()).argv)
    start = argv.index("opencode", argv.index("/in/prompt/prompt.txt"))
    assert argv[start:] == ["opencode", "run", "--format", "json", "--title", "Mend add", "-m", "gateway/demo"]
    assert argv[0] == "sh"
    assert OpencodeAgent(wrapped=True).command(asked()).argv[0] == "ha-agent"


def test_nothing_can_ask_a_question_and_no_key_is_there_but_the_phantom() -> None:
    env = OpencodeAgent().command(asked()).env
    config = json.loads(env["OPENCODE_CONFIG_CONTENT"])
    assert config["permission"] == {"*": "allow", "question": "deny", "external_directory": "deny"}
    assert config["provider"]["gateway"]["options"]["baseURL"] == f"{BASE}/v1"
    assert config["provider"]["gateway"]["options"]["apiKey"] == TOKEN
    assert not [name for name in env if "KEY" in name or "SECRET" in name]


def test_a_model_name_with_slashes_keeps_them() -> None:
    command = OpencodeAgent().command(asked(model="router/vendor/big-1"))
    assert command.argv[-1] == "gateway/vendor/big-1"
    assert "vendor/big-1" in json.loads(command.env["OPENCODE_CONFIG_CONTENT"])["provider"]["gateway"]["models"]


@pytest.mark.parametrize(
    ("title", "plain"),
    [
        ("--help me", "help me"),
        ("M\u00fctze \u2013 \u6f22", "Mutze"),
        ("a\nb\x00c", "a b c"),
        ("\u6f22\u5b57", "step"),
        ("x" * 300, "x" * 80),
        ("'; rm -rf /", "rm -rf /"),
    ],
)
def test_a_title_becomes_plain_ascii(title: str, plain: str) -> None:
    assert ascii_title(title) == plain


def test_a_hopeless_task_is_refused_with_every_fault() -> None:
    with pytest.raises(BadInput) as caught:
        OpencodeAgent().command(asked(prompt=" \n", model="demo"))
    assert {fault.field for fault in caught.value.faults} == {"model", "prompt"}


def test_an_unknown_agent_is_refused_naming_the_setting_and_the_known_ones() -> None:
    with pytest.raises(BadInput) as caught:
        agent("clod")
    assert "clod" in caught.value.message
    assert "WORKFLOW_AGENT_PROVIDER" in caught.value.mend
    assert "mock" in caught.value.mend
    assert "opencode" in caught.value.mend


def test_in_docker_an_agent_runs_under_the_forwarder_and_elsewhere_plain() -> None:
    assert agent("mock", sandbox="docker").command(asked()).argv[0] == "ha-agent"
    assert list(agent("mock", sandbox="docker").probe()) == ["opencode-mock", "--version"]
    assert agent("opencode").command(asked()).argv[0] == "sh"


@pytest.mark.parametrize(
    ("status", "message", "code", "reason"),
    [
        (401, "no", "", EndReason.AUTH),
        (403, "no", "", EndReason.AUTH),
        (404, "The model m1 does not exist", "", EndReason.MODEL_NOT_FOUND),
        (402, "pay", "", EndReason.QUOTA),
        (429, "You exceeded your current quota", "insufficient_quota", EndReason.QUOTA),
        (429, "slow down", "", EndReason.RATE_LIMIT),
        (400, "provider failed: server after 3 tries", "server", EndReason.PROVIDER),
        (400, "provider failed", "throttled", EndReason.RATE_LIMIT),
        (400, "step request budget exhausted", "budget", EndReason.BUDGET),
        (400, "step request budget exhausted", "invalid_request_error", EndReason.BUDGET),
        (400, "This model's maximum context length is 1000 tokens", "", EndReason.CONTEXT),
        (400, "scenario: the script has no turn 3", "scenario", EndReason.REFUSED),
        (503, "Service unavailable", "", EndReason.PROVIDER),
        (None, "Cannot connect to API: ECONNREFUSED", "APIError", EndReason.PROVIDER),
        (None, "Unexpected server error. Check server logs", "UnknownError", EndReason.CRASHED),
        (400, "what?", "", EndReason.PROVIDER),
    ],
)
def test_an_error_has_the_reason_its_code_words_and_status_say(
    status: int | None, message: str, code: str, reason: EndReason
) -> None:
    assert classify(status, message, code) is reason
