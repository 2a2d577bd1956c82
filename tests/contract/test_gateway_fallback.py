"""Who goes on at the gateway where a provider fails, and where a budget ends a run, in every dialect."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hyperagent_common.errors import NotReady
from hyperagent_tasks.gateway.client import Observed
from tests.providers import HEAD, Rig, Upstream
from tests.shapes import GOOD, KINDS, REFUSALS, scripts
from tests.wire import DIALECTS, HEADERS, Wire

USED = 950
"""Tokens of one good answer."""
PASSED_ON = ("auth", "quota", "rate_limit", "model_not_found", "server")


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """Providers of all dialects; `slow` ones take their time."""
    made = {f"{d}-slow": [HEAD + GOOD[d][0], 0.3, b"".join(GOOD[d][1:])] for d in DIALECTS}
    upstream = Upstream(made | {name: script for d in DIALECTS for name, script in scripts(d).items()})
    yield upstream
    upstream.close()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Rig]:
    """A gateway before them."""
    home = tmp_path_factory.mktemp("g")
    script = {"turns": [{"text": "From the script."}]}
    (home / "spare.yaml").write_text(yaml.safe_dump({"scenario": "spare", "scripts": {"*": {"*": script}}}))
    kinds = {name: next(KINDS[d] for d in DIALECTS if name.startswith(d)) for name in upstream.scripts}
    made = Rig(home, upstream, 20, kinds=kinds, suffix="")
    yield made
    made.stop()


class Asking:
    """One grant at the gateway, asked in one dialect."""

    def __init__(self, rig: Rig, dialect: str, name: str, *fallback: str, **grant: Any) -> None:
        self._rig, self._wire = rig, Wire(dialect)
        self._token, self._run = rig.grant(f"{dialect}-{name}", fallback=tuple(fallback), **grant)

    def once(self) -> tuple[int, str]:
        """One request."""
        body = json.dumps(self._wire.body()).encode()
        return self._rig.post(self._token, body, self._wire.path, **HEADERS[self._wire.dialect])

    def at_once(self, count: int) -> list[int]:
        """The sorted statuses of so many requests made together."""
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(self.once()[0])) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return sorted(found)

    def close(self) -> Observed:
        """What was seen."""
        return self._rig.client.close(self._run)


@pytest.mark.parametrize(("dialect", "kind"), [(d, k) for d in DIALECTS for k, _, _ in REFUSALS[d] if k in PASSED_ON])
def test_the_next_provider_goes_on_and_stays(rig: Rig, dialect: str, kind: str) -> None:
    asking = Asking(rig, dialect, kind, f"{dialect}-good/m1")
    good = b"".join(GOOD[dialect]).decode()
    assert asking.once() == (200, good)
    before = rig.upstream.asked[f"{dialect}-{kind}"]
    assert asking.once() == (200, good)
    assert rig.upstream.asked[f"{dialect}-{kind}"] == before
    seen = asking.close()
    assert seen.switches == [{"from": f"{dialect}-{kind}/m1", "to": f"{dialect}-good/m1", "why": kind, "request": 1}]
    assert seen.answered == {f"{dialect}-good/m1": 2}
    assert (seen.requests, seen.input) == (2, 1800)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_provider_whose_answers_break_is_left_too(rig: Rig, dialect: str) -> None:
    asking = Asking(rig, dialect, "cut", f"{dialect}-good/m1")
    assert asking.once() == (200, b"".join(GOOD[dialect]).decode())
    assert [switch["why"] for switch in asking.close().switches] == ["transport"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_conversation_too_long_for_the_model_is_nobodys_outage(rig: Rig, dialect: str) -> None:
    asking = Asking(rig, dialect, "context", f"{dialect}-good/m1")
    assert asking.once()[0] == 400
    assert asking.close().switches == []


@pytest.mark.parametrize("dialect", DIALECTS)
def test_where_all_fail_the_last_failure_is_told(rig: Rig, dialect: str) -> None:
    asking = Asking(rig, dialect, "quota", f"{dialect}-server/m1", f"{dialect}-auth/m1")
    status, text = asking.once()
    assert (400 <= status < 429, "provider failed: auth" in text) == (True, True)
    seen = asking.close()
    assert [(switch["why"], switch["to"]) for switch in seen.switches] == [
        ("quota", f"{dialect}-server/m1"),
        ("server", f"{dialect}-auth/m1"),
    ]
    assert seen.last_failure == "auth"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_requests_that_fail_together_switch_once(rig: Rig, dialect: str) -> None:
    asking = Asking(rig, dialect, "quota", f"{dialect}-good/m1", f"{dialect}-server/m1")
    assert asking.at_once(6) == [200] * 6
    assert len(asking.close().switches) == 1


def test_a_script_can_go_on_for_a_provider(rig: Rig) -> None:
    asking = Asking(rig, "openai_chat", "quota", "replay/spare")
    status, text = asking.once()
    assert (status, "From the script." in text) == (200, True)


def test_each_provider_of_a_grant_must_be_usable(rig: Rig) -> None:
    with pytest.raises(NotReady, match="not configured"):
        Asking(rig, "openai_chat", "good", "nobody/m1")
    with pytest.raises(NotReady, match="no price"):
        Asking(rig, "openai_chat", "good", "openai_chat-slow/m2", max_usd=1.0)
    assert "no price" in str(rig.client.fault("openai_chat-good", "m2", priced=True))
    assert rig.client.fault("openai_chat-good", "m1", priced=True) is None
    asking = Asking(rig, "openai_chat", "good", "gemini-good/m1")
    status, text = asking.once()
    assert (status, "does not speak openai_chat" in text) == (400, True)


@pytest.mark.parametrize("limit", [{"max_tokens": USED + 50}, {"max_usd": 0.0018}, {"max_requests": 2}], ids=str)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_budget_is_overshot_by_one_request_at_most(rig: Rig, dialect: str, limit: dict[str, Any]) -> None:
    asking = Asking(rig, dialect, "good", **limit)
    assert [asking.once()[0] for _ in range(4)] == [200, 200, 400, 400]
    seen = asking.close()
    assert (seen.requests, seen.input + seen.output, seen.last_failure) == (2, 2 * USED, "budget")
    assert "budget" in seen.failures[-1]["message"] or "used of" in seen.failures[-1]["message"] or seen.requests == 2


@pytest.mark.parametrize("limit", [{"max_tokens": USED + 50}, {"max_usd": 0.0018}, {"max_requests": 2}], ids=str)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_also_where_the_agent_asks_for_many_at_once(rig: Rig, dialect: str, limit: dict[str, Any]) -> None:
    asking = Asking(rig, dialect, "slow", **{"max_requests": 100, **limit})
    rig.upstream.most = 0
    assert asking.at_once(16) == [200] * 2 + [400] * 14
    assert rig.upstream.most <= (2 if "max_requests" in limit else 1)
    seen = asking.close()
    assert (seen.input + seen.output, seen.last_failure) == (2 * USED, "budget")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_requests_that_a_large_budget_surely_holds_run_side_by_side(rig: Rig, dialect: str) -> None:
    asking = Asking(rig, dialect, "slow", max_tokens=100_000_000, max_usd=10_000.0)
    rig.upstream.most = 0
    assert asking.at_once(10) == [200] * 10
    assert rig.upstream.most > 1
    assert asking.close().input == 9000


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_answer_whose_tokens_nobody_told_is_estimated_so_that_it_cannot_dodge_the_budget(rig: Rig, dialect: str) -> None:
    asking = Asking(rig, dialect, "cut", max_tokens=50)
    assert asking.once()[0] == 400
    seen = asking.close()
    assert seen.input > 0
    assert (seen.estimated > 0) is (dialect in ("openai_chat", "openai_responses"))
    assert seen.last_failure == "budget"


def test_a_cost_nobody_knows_is_none_and_not_nought(rig: Rig) -> None:
    asking = Asking(rig, "openai_chat", "good", model="m2")
    asking._wire = Wire("openai_chat", model="m2")
    assert asking.once()[0] == 200
    seen = asking.close()
    assert (seen.input, seen.cost) == (900, None)


def test_the_call_log_names_who_really_answered(rig: Rig) -> None:
    asking = Asking(rig, "gemini", "quota", "gemini-good/m1")
    asking.once()
    asking.close()
    line = json.loads((Path(rig.home) / f"{asking._run}.jsonl").read_text())
    assert (line["provider"], line["cost"]) == ("gemini-good", pytest.approx(0.0017))
