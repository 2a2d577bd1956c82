"""The documentation names what the code has, and nothing it has not."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import click
import pytest

from hyperagent_api.cli import output
from hyperagent_api.cli.main import main
from hyperagent_common import errors, events, states
from hyperagent_common.models import Base
from hyperagent_common.settings import Settings, env_name
from hyperagent_tasks.failpoints import NAMES, PUSH_NAMES, WATCH_NAMES
from hyperagent_tasks.radicle import outcomes

ROOT = Path(__file__).resolve().parents[2]


def text(name: str) -> str:
    """A document."""
    return (ROOT / name).read_text()


def test_every_setting_is_documented_with_its_help() -> None:
    told = text("docs/settings.md")
    for field in fields(Settings):
        row = next((line for line in told.splitlines() if line.startswith(f"| `{env_name(field)}` |")), "")
        assert field.metadata["help"] in row, field.name


def test_every_command_is_documented() -> None:
    told = text("docs/cli.md")
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        if isinstance(command, click.Group):
            for inner in command.list_commands(context):
                assert f"hyperagent {name} {inner}" in told
        else:
            assert f"hyperagent {name}" in told


def test_every_exit_code_is_documented() -> None:
    told = text("docs/cli.md")
    for code in (output.DONE, output.FAILED, output.USAGE, output.NOT_FOUND, output.REFUSED, output.UNREACHABLE):
        assert f"| {code} |" in told


def test_every_table_and_state_is_in_the_glossary() -> None:
    told = text("docs/glossary.md").lower()
    for table in Base.metadata.tables:
        assert table in told, table
    for enum in (states.ProjectState, states.WorkflowState, states.StepState, states.AttemptState):
        for word in enum:
            assert f"`{word}`" in told, word


def test_every_kind_of_event_has_its_sentence() -> None:
    assert set(output.SENTENCES) >= {kind.value for kind in events.EventKind} - {"step.refused"}


@pytest.mark.parametrize("name", ["README.md", *[f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md"))]])
def test_every_link_leads_somewhere(name: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text(name)):
        assert (ROOT / name).parent.joinpath(target).exists(), target


def test_the_readmes_first_two_blocks_are_the_two_commands() -> None:
    blocks = re.findall(r"^```\n(.*?)^```$", text("README.md"), re.M | re.S)
    assert blocks[:2] == ["bash ops/demo\n", "bash ops/test\n"]
    for block in blocks[:2]:
        assert (ROOT / block.split()[1]).exists()


def test_the_failpoints_are_those_the_code_passes() -> None:
    code = "".join(p.read_text() for p in (ROOT / "hyperagent_tasks").glob("*.py"))
    assert set(re.findall(r'failpoint\("(\w+)"\)', code)) == {*NAMES, *WATCH_NAMES}


def test_the_points_inside_rad_push_are_those_it_passes() -> None:
    assert set(re.findall(r'point\("(\w+)"\)', text("images/radicle/rad-push"))) == set(PUSH_NAMES)


def test_every_outcome_of_rad_push_is_documented_with_its_class_and_retry_rule() -> None:
    codes = re.search(r"^CODES = \((.*?)^\)", text("images/radicle/rad-push"), re.M | re.S)
    assert codes
    names = re.findall(r'"([a-z-]+)"', codes[1])
    assert set(names) == {"ok", "error", *outcomes.OUTCOMES}
    rows = []
    for name, kind in outcomes.OUTCOMES.items():
        kept = name in outcomes.KEPT and name != "node-down"
        rule = "the push is kept, and announced again by itself" if kept else outcomes.retry_rule(kind)
        rows.append(f"| `{name}` | {names.index(name)} | {kind.__name__} | `{kind.type}` | {rule} |")
    told = text("docs/radicle.md").splitlines()
    assert [row for row in rows if row not in told] == []
    for name in names[2:]:
        assert name.partition("-")[0] in re.search(r"Exit codes:.*?storage\.", text("images/radicle/rad-push"), re.S)[0]  # type: ignore[index]


def test_every_error_is_in_the_tree_of_its_docstring() -> None:
    tree = str(errors.__doc__)
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.HyperagentError):
            assert re.search(rf"\b{name}\b", tree), name


def test_git_is_spawned_nowhere_but_in_the_git_gateway() -> None:
    for path in (ROOT / "hyperagent_tasks").rglob("*.py"):
        if "gitgate" not in path.parts and path.name != "mock_opencode.py":
            assert not re.search(r"""\[\s*["']git["']""", path.read_text()), path
    for room in ("hyperagent_api", "hyperagent_common"):
        for path in (ROOT / room).rglob("*.py"):
            assert not re.search(r"""["']git["']\s*,""", path.read_text()), path
