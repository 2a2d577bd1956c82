"""The CLI's way to the API: every refusal becomes one of our errors again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import requests

from hyperagent_common.errors import BadInput, DependencyDown, Fault, HyperagentError, NotFound, NotReady, Refused
from hyperagent_common.settings import Settings

KINDS: dict[int, type[HyperagentError]] = {404: NotFound, 409: Refused, 401: Refused, 403: Refused, 503: NotReady}
KINDS |= {502: DependencyDown, 504: DependencyDown}  # a proxy's word for an API that is away


class ApiClient:
    """Calls the API at the address of the settings."""

    def __init__(self, settings: Settings, *, timeout: float = 60.0) -> None:
        self.url, self._timeout = settings.url, timeout
        self._session = requests.Session()
        self._session.trust_env = False
        if settings.api_token:
            self._session.headers["Authorization"] = f"Bearer {settings.api_token.reveal()}"

    def get(self, path: str, **query: Any) -> Any:
        """GET, decoded."""
        return self._decoded(self._ask("GET", path, params=query))

    def post(self, path: str, body: Any, **headers: str) -> Any:
        """POST JSON, decoded."""
        return self._decoded(self._ask("POST", path, json=body, headers=headers))

    def patch(self, path: str, body: Any) -> Any:
        """PATCH JSON, decoded."""
        return self._decoded(self._ask("PATCH", path, json=body))

    def delete(self, path: str, **headers: str) -> None:
        """DELETE."""
        self._ask("DELETE", path, headers=headers)

    def raw(self, path: str, **query: Any) -> requests.Response:
        """GET, streamed."""
        return self._ask("GET", path, params=query, stream=True)

    def events(self, path: str, after: int = 0) -> Iterator[dict[str, Any]]:
        """Server-sent events and pings as dictionaries, `{"kind": "end", ...}` last.

        Raises `DependencyDown` where the stream ends before: come back with the last id.
        """
        answer = self._ask("GET", path, params={"after": after}, stream=True)
        kind = ""
        try:
            for line in lines(answer, 1):
                if line.startswith("event: "):
                    kind = line[7:]
                elif line.startswith(":"):
                    yield {"kind": "ping"}
                elif line.startswith("data: "):
                    yield {**json.loads(line[6:]), **({"kind": "end"} if kind == "end" else {})}
        except requests.RequestException as error:
            raise self._down() from error
        if kind != "end":
            raise self._down()

    def _ask(self, method: str, path: str, **more: Any) -> requests.Response:
        try:
            answer = self._session.request(method, self.url + path, timeout=self._timeout, **more)
        except (UnicodeError, requests.exceptions.InvalidHeader) as error:
            told = "A word of the request, the idempotency key or the token holds characters that cannot be sent."
            raise BadInput(told, mend="Use plain letters and digits there.") from error
        except requests.RequestException as error:
            raise self._down() from error
        if answer.status_code >= 400:
            raise _error(answer)
        return answer

    def _decoded(self, answer: requests.Response) -> Any:
        try:
            return answer.json()
        except ValueError as error:
            raise DependencyDown(f"What answers at {self.url} is not HyperAgent.", mend="Mend HYPERAGENT_API_URL.") from error

    def _down(self) -> DependencyDown:
        return DependencyDown(f"The API at {self.url} does not answer.", mend="Start it: `hyperagent up`.")


def lines(answer: requests.Response, size: int) -> Iterator[str]:
    """The lines of an answer as they come: a line feed ends one and nothing else does, whatever a text in it holds."""
    for line in answer.iter_lines(chunk_size=size, delimiter=b"\n"):
        yield line.decode("utf-8", "replace")


def _error(answer: requests.Response) -> HyperagentError:
    try:
        said = answer.json()
    except ValueError:
        said = None
    said = said if isinstance(said, dict) else {}
    kind = KINDS.get(answer.status_code, BadInput if answer.status_code < 500 else HyperagentError)
    faults = [Fault(entry["field"], entry["message"]) for entry in said.get("errors", [])]
    return kind(said.get("title", f"The API answered {answer.status_code}."), faults=faults, mend=said.get("mend", ""))
