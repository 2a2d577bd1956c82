"""Settings: one frozen dataclass, filled from defaults, a TOML file and the environment, in that order.

Every field says what it means in its `help`; `docs/settings.md` is checked against them. A field `x` is read from
`HYPERAGENT_X` (or the name in `env`), or from the file named by that name + `_FILE`; in TOML it is the key `x`.
All faults are told at once as `BadSettings`; an unknown key is a fault; a secret never shows in a repr.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from marshmallow import ValidationError

from hyperagent_common import choices, settings_schema
from hyperagent_common.choices import Choice, Choices
from hyperagent_common.errors import BadSettings, Fault

PREFIX = "HYPERAGENT_"
AROUND_SECONDS = 600.0
"""What an attempt, and each of its rounds, may take beside agents and checks: clones, seals, commit, publish."""
NOT_SETTINGS = {"HYPERAGENT_CONFIG", "HYPERAGENT_FAILPOINT", "HYPERAGENT_FAILPOINT_ONCE", "HYPERAGENT_PARTS"}
"""Names with our prefix that are read elsewhere."""


class Secret(str):
    """A string that does not show itself in a repr or a traceback; `str()` and `reveal()` give the value."""

    def __repr__(self) -> str:
        return "'***'" if self else "''"

    def reveal(self) -> str:
        """The value itself."""
        return str.__str__(self)


def setting(default: Any, help: str, *, env: str = "", secret: bool = False) -> Any:
    """A settings field with its help, its environment name (default `HYPERAGENT_<NAME>`) and secrecy."""
    meta = {"help": help, "env": env, "secret": secret}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=meta)
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Settings:
    """Everything HyperAgent can be told. Times in seconds, sizes in bytes."""

    home: Path = setting(Path("~/.local/share/hyperagent"), "Directory that holds the state of this host.")
    database_url: str = setting("", "SQLAlchemy URL, an SQLite file by its absolute path; empty: SQLite in `home`.", secret=True)
    broker_url: str = setting("", "Redis URL of the broker; empty: `hyperagent up` runs a Redis in `home`.", secret=True)
    storage_url: str = setting("", "Where artifacts go: a directory or `s3://bucket/prefix`; empty: `home`/storage.")
    api_host: str = setting("127.0.0.1", "Address the API listens on; any but loopback needs `api_token`.")
    api_port: int = setting(8440, "Port the API listens on.")
    api_url: str = setting("", "Address under which people and the CLI reach the API; empty: from host and port.")
    api_token: Secret = setting(Secret(""), "Bearer token every API call must carry; empty: none.", secret=True)
    api_body_limit: int = setting(2 << 20, "Largest request body the API takes.")
    agent_provider: str = setting(
        "auto",
        "Agent CLI: `auto`, `opencode`, `claude`, `codex`, `gemini`, `mock`, or `null` (benchmarks).",
        env="WORKFLOW_AGENT_PROVIDER",
    )
    agent_model: str = setting(
        "replay/demo", "Model as `provider/model`, provider being one of `providers`.", env="WORKFLOW_AGENT_MODEL"
    )
    agent_max_rounds: int = setting(3, "Most rounds of coder and verifier in one attempt.", env="WORKFLOW_AGENT_MAX_ROUNDS")
    agent_fallback: list[str] = setting([], "Agents that go on where one fails, in order, each `CLI:provider/model`.")
    verifier_provider: str = setting("", "Agent CLI of the verifier; empty: the coder's.")
    verifier_model: str = setting("", "Model of the verifier; empty: the coder's.")
    planner_provider: str = setting("", "Agent CLI of the planner; empty: the coder's.")
    planner_model: str = setting("", "Model of the planner; empty: the coder's.")
    verify: str = setting("on", "Verifier: `always`, `on` (a project, plan or planner task may say no) or `off` (may say yes).")
    budgets: dict[str, Any] = setting({}, "Limits of agent runs by scope: `step`, `workflow`, `project`; see agents.md.")
    agent_max_requests: int = setting(200, "Most model requests of one agent run.")
    providers: dict[str, Any] = setting({}, "Model providers: `[providers.NAME]` with `kind`, `base_url`, `api_key`.")
    scenario_dirs: list[str] = setting([], "Directories with scenarios of the replay provider, besides the bundled.")
    sandbox: str = setting("auto", "Where agents run: `docker`, `process` (no sandbox at all), or `auto`.")
    runner_image: str = setting("hyperagent/runner:dev", "Image of agent, sealer and check containers.")
    container_runtime: str = setting("", "OCI runtime such as `runsc`; empty: the engine's default.")
    forge: str = setting("auto", "Where patches go: `radicle`, `stand-in`, or `auto`.")
    radicle_image: str = setting("hyperagent/radicle:dev", "Image of the Radicle node.")
    radicle_home: str = setting("", "RAD_HOME of this host; empty: `home`/radicle.")
    radicle_alias: str = setting("hyperagent", "Alias of this host's Radicle node.")
    radicle_passphrase: Secret = setting(Secret(""), "Passphrase of the Radicle key; empty: none.", secret=True)
    radicle_network: str = setting("test", "Radicle network: `test` (isolated) or `main`.")
    radicle_container_network: str = setting("bridge", "Docker network of the Radicle node's container.")
    radicle_listen: str = setting("0.0.0.0:8776", "Address the Radicle node listens on, in its container.")
    radicle_connect: list[str] = setting([], "Peers, each `NID@host:port`.")
    step_timeout: float = setting(1800.0, "Longest an agent may run.")
    check_timeout: float = setting(600.0, "Longest the checks of a step may run.")
    lease_seconds: float = setting(60.0, "How long a claim holds without a heartbeat.")
    heartbeat_seconds: float = setting(10.0, "How often a running step and a worker report.")
    max_attempts: int = setting(5, "Attempts a step may use before it becomes a dead letter.")
    retry_backoff: int = setting(5, "First pause before a retry; doubles each time, with jitter.")
    retry_backoff_max: int = setting(300, "Longest pause before a retry.")
    dependency_patience: float = setting(
        3600.0, "How long a step waits for a dependency that is down (engine, gateway, forge) without using up attempts."
    )
    outage_patience: float = setting(
        900.0, "How long at least a step is tried again, whatever attempts are left, where model provider or forge fail it."
    )
    drain_seconds: float = setting(30.0, "How long a stopped worker lets its steps run on before it hands them over.")
    visibility_timeout: float = setting(
        0.0,
        "After how long Redis delivers an unacknowledged message again; 0: longer than most steps. Harmless when short.",
    )
    worker_concurrency: int = setting(2, "Steps one worker runs at once.")
    reconcile_seconds: float = setting(10.0, "How often the reconciler looks.")
    requeue_after: float = setting(60.0, "Age at which a queued step nobody claimed is sent again.")
    sentry_dsn: Secret = setting(Secret(""), "Sentry DSN; empty: nothing is reported.", secret=True)
    log_level: str = setting("INFO", "Lowest level that is logged.")

    @property
    def db_url(self) -> str:
        """The database's URL, the embedded default filled in."""
        return self.database_url or f"sqlite:///{self.home / 'hyperagent.db'}"

    @property
    def broker(self) -> str:
        """The broker's URL, the embedded default filled in."""
        return self.broker_url or f"redis+socket://{self.run_dir / 'redis.sock'}"

    @property
    def storage(self) -> str:
        """Where artifacts go, the default filled in."""
        return self.storage_url or str(self.home / "storage")

    @property
    def url(self) -> str:
        """The API's address for people and the CLI."""
        return self.api_url or f"http://{self.api_host}:{self.api_port}"

    def attempt_seconds(self, chosen: Choices | None = None) -> float:
        """Longest one attempt of a step may take, by what is chosen for it; without that, by the deployment's own choices."""
        chosen = chosen or choices.settle(self.choices())
        return chosen.longest * self.step_timeout + chosen.rounds * (self.check_timeout + AROUND_SECONDS) + AROUND_SECONDS

    @property
    def longest_attempt(self) -> float:
        """Longest an attempt may take whatever a project, plan or planner task chooses."""
        most = max(choices.MAX_FALLBACK, len(self.agent_fallback))
        others = tuple(Choice("any", f"any/{number}") for number in range(most))
        nobody = Choice("none", "none/none")
        return self.attempt_seconds(Choices(nobody, nobody, nobody, fallback=others, rounds=choices.MAX_ROUNDS))

    @property
    def run_dir(self) -> Path:
        """Sockets and pid files."""
        return self.home / "run"

    @property
    def rad_home(self) -> Path:
        """RAD_HOME of this host."""
        return Path(self.radicle_home) if self.radicle_home else self.home / "radicle"

    def choices(self) -> dict[str, Any]:
        """The deployment's choices, the outermost layer."""
        return {key: getattr(self, key) for key in choices.KEYS if key not in ("prompts", "publish")}

    def shown(self) -> dict[str, Any]:
        """Every field by name, secrets as `***`: safe to print."""
        return {f.name: _shown(f, getattr(self, f.name)) for f in fields(self)}


def _shown(f: Any, value: Any) -> Any:
    if f.metadata["secret"]:
        return "***" if value else ""
    if f.name == "providers":
        return {n: {k: "***" if k == "api_key" else v for k, v in p.items()} for n, p in value.items()}
    return str(value) if isinstance(value, Path) else value


def env_name(f: Any) -> str:
    """The environment name of a settings field."""
    return str(f.metadata["env"] or PREFIX + f.name.upper())


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings. Raises `BadSettings` with every fault."""
    environ = os.environ if environ is None else environ
    faults: list[Fault] = []
    values = _from_toml(environ, faults)
    values.update(_from_environ(environ, faults))
    try:
        loaded = settings_schema.SCHEMA.load(values)
    except ValidationError as error:
        faults += settings_schema.faults(error, {f.name: env_name(f) for f in fields(Settings)})
        loaded = error.valid_data if isinstance(error.valid_data, dict) else {}
    faults += settings_schema.cross_faults(loaded)
    if faults:
        raise BadSettings("The settings are wrong.", faults=faults, mend="See docs/settings.md for every setting.")
    return _build(loaded)


def _build(loaded: dict[str, Any]) -> Settings:
    for f in fields(Settings):
        if f.type == "Secret" and f.name in loaded:
            loaded[f.name] = Secret(loaded[f.name])
    home = Path(loaded.get("home", Settings.home)).expanduser().absolute()
    return Settings(**{**loaded, "home": home})


def _from_toml(environ: Mapping[str, str], faults: list[Fault]) -> dict[str, Any]:
    named = environ.get("HYPERAGENT_CONFIG")
    home = Path(environ.get("HYPERAGENT_HOME", str(Settings.home))).expanduser()
    path = Path(named).expanduser() if named else home / "config.toml"
    if not named and not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        faults.append(Fault("HYPERAGENT_CONFIG", f"{path} cannot be read: {error}"))
        return {}


def _from_environ(environ: Mapping[str, str], faults: list[Fault]) -> dict[str, Any]:
    known = {env_name(f): f for f in fields(Settings)}
    values: dict[str, Any] = {}
    for name, raw in environ.items():
        plain = name.removesuffix("_FILE")
        if name in known:
            values[known[name].name] = settings_schema.split(known[name].name, raw)
        elif name != plain and plain in known:
            values.setdefault(known[plain].name, _from_file(name, raw, faults))
        elif name.startswith(PREFIX) and name not in NOT_SETTINGS:
            faults.append(Fault(name, "there is no such setting; remove it or mend its name"))
    return values


def _from_file(name: str, path: str, faults: list[Fault]) -> str:
    try:
        return Path(path).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        faults.append(Fault(name, f"the file cannot be read: {error}"))
        return ""
