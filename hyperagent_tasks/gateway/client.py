"""The worker's side of the gateway: open a grant, end it, ask whether a model can be used."""

from __future__ import annotations

import http.client
import json
import secrets
import socket
from pathlib import Path
from typing import Any

from hyperagent_common.errors import DependencyDown, NotReady
from hyperagent_tasks.gateway.grants import Grant, Observed

__all__ = ["GatewayClient", "Grant", "Observed", "new_token"]
MEND = "Start it: `hyperagent up`, or `hyperagent gateway` on this host."
INSIDE = "http://127.0.0.1:3128"
MOST_TOLD = 8 << 20
"""Bytes of an answer of the gateway: a run's books hold its model's last words, six bytes a character at the worst."""


def new_token() -> str:
    """A phantom token for one agent run: long and unusual, worth nothing outside this host."""
    return "hap-" + secrets.token_urlsafe(32)


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("gateway", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class GatewayClient:
    """Talks to the gateway that serves `run_dir`."""

    def __init__(self, run_dir: Path, *, timeout: float = 10.0) -> None:
        self.data_socket = run_dir / "gateway" / "llm.sock"
        self._control = run_dir / "gateway-control" / "control.sock"
        self._timeout = timeout

    def base_url(self, *, sandbox: str) -> str:
        """The gateway as an agent sees it: the forwarder in its container, or loopback for a plain process."""
        if sandbox == "docker":
            return INSIDE
        try:
            return f"http://127.0.0.1:{(self._control.parent / 'port').read_text().strip()}"
        except OSError as error:
            raise DependencyDown(f"The gateway does not answer: {error}", mend=MEND) from error

    def health(self) -> dict[str, Any]:
        """What the gateway says of itself. Raises `DependencyDown`."""
        return self._ask("GET", "/health")

    def fault(self, provider: str, model: str, dialect: str = "", *, priced: bool = False) -> str | None:
        """Why `provider/model` cannot be used (by a CLI that speaks `dialect`; within a budget in dollars), or None.
        Raises `DependencyDown`."""
        name = model.partition("/")[2] if model.startswith(f"{provider}/") else model
        asked = {"provider": provider, "model": name, "dialect": dialect, "priced": priced}
        found = self._ask("POST", "/check", asked)["fault"]
        return None if found is None else str(found)

    def open(self, grant: Grant) -> None:
        """Put a grant in force; again is no error. Raises `DependencyDown`, `NotReady`."""
        self._ask("POST", "/grants", grant.to_json())

    def grants(self) -> dict[str, str]:
        """The grants in force: agent run id to attempt id. Raises `DependencyDown`."""
        return {str(run): str(attempt) for run, attempt in self._ask("GET", "/grants").items()}

    def observed(self, agent_run_id: str) -> Observed | None:
        """What the gateway saw so far; None where it does not know the run: it was started anew since."""
        return self._observed("GET", agent_run_id)

    def close(self, agent_run_id: str) -> Observed | None:
        """End a grant: its requests are cut, its token is dead. Returns what was seen, again too; None as above."""
        return self._observed("DELETE", agent_run_id)

    def _observed(self, method: str, agent_run_id: str) -> Observed | None:
        said = self._ask(method, f"/grants/{agent_run_id}", missing={})
        return Observed(**said) if said else None

    def _ask(self, method: str, path: str, body: object = None, *, missing: dict[str, Any] | None = None) -> dict[str, Any]:
        connection = _Connection(self._control, self._timeout)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said: dict[str, Any] = json.loads(answer.read(MOST_TOLD) or b"{}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DependencyDown(f"The gateway does not answer: {error}", mend=MEND) from error
        finally:
            connection.close()
        if answer.status == 404 and missing is not None:
            return missing
        if answer.status >= 400:
            raise NotReady(str(said.get("error", f"The gateway answered {answer.status}.")))
        return said
