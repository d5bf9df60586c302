"""Settings, read once from the environment and ``.env`` (prefix ``TURNSTONE_``, nested by ``__``)."""

from __future__ import annotations

import base64
import difflib
import ipaddress
import json
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    SettingsConfigDict,
    SettingsError,
)

from app.core.errors import StartupError


def is_loopback(host: str) -> bool:
    """Whether ``host`` (a name or an address, without a port) can only be this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def without_secrets(url: str) -> str:
    """An address as it may be shown: a user, a password and a query are left out."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _url_with_scheme(*schemes: str, needs_host: bool = False) -> AfterValidator:
    def check(value: str) -> str:
        if not value.startswith(tuple(f"{scheme}://" for scheme in schemes)):
            raise ValueError(f"must start with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise ValueError("is not a URL: its host or its port cannot be read") from None
        if needs_host and not host:
            raise ValueError("names no host")
        return value

    return AfterValidator(check)


def _check_key(key: SecretStr) -> SecretStr:
    """A key travels in a header, where a line break, such as a file's last one, cannot."""
    value = key.get_secret_value()
    if not value or not value.isascii() or not value.isprintable():
        raise ValueError("must be of printable ASCII characters, without a line break")
    return key


def _check_signing_secret(secret: SecretStr) -> SecretStr:
    before, prefix, encoded = secret.get_secret_value().rpartition("whsec_")
    try:
        key = base64.b64decode(encoded, validate=True)
    except ValueError:
        key = b""
    if before or not prefix or not key:
        raise ValueError("must be a Standard Webhooks secret: whsec_ and then 24 to 64 random bytes in base64")
    return secret


def _read_list(example: str) -> BeforeValidator:
    """Reads a list from an environment variable; with `NoDecode`, so that an error names the variable."""

    def read(value: Any) -> Any:
        try:
            found = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            found = None
        if not isinstance(found, list | tuple):
            raise ValueError(f"must be a JSON list, such as {example}")  # noqa: TRY004  # pydantic reports no TypeError
        return found

    return BeforeValidator(read)


HttpUrl = Annotated[str, _url_with_scheme("http", "https", needs_host=True)]
PostgresUrl = Annotated[str, _url_with_scheme("postgresql", "postgres")]
RedisUrl = Annotated[str, _url_with_scheme("redis", "rediss", "unix")]
Key = Annotated[SecretStr, AfterValidator(_check_key)]
SigningSecret = Annotated[SecretStr, AfterValidator(_check_signing_secret)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Delay = Annotated[float, Field(ge=0, le=31_536_000)]
"""Seconds; none, or a year at most."""


class _Section(BaseModel):
    """A part of the settings. What may hold a password, as an address does, is not shown with the others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DatabaseSettings(_Section):
    """PostgreSQL; without a URL an embedded one runs in the data directory."""

    url: PostgresUrl | None = Field(None, repr=False)
    pool_size: int = Field(10, ge=1, le=200, description="connections one process holds for its work at most")
    timeout_s: Seconds = Field(5.0, description="longest wait for a connection")
    statement_s: Seconds = Field(
        30.0, description="longest time for one statement; migrations and commands have no limit"
    )
    migrate: bool = Field(True, description="run missing migrations at start")


class RedisSettings(_Section):
    """Redis mirrors running turns for other processes; without a URL live state stays in this process."""

    url: RedisUrl | None = Field(None, repr=False)
    timeout_s: Seconds = Field(0.5, description="longest wait for one command")


class LlmSettings(_Section):
    """The model candidates talk to."""

    model: str = Field("local", min_length=1)
    base_url: HttpUrl | None = Field(None, repr=False)
    api_key: Key | None = None
    max_output_tokens: int = Field(1024, ge=1)
    timeout_s: Seconds = Field(60.0, description="silence of the provider that ends a turn")
    history_tokens: int = Field(12_000, ge=256, description="budget for the conversation sent along")


class JudgeSettings(_Section):
    """The model that judges candidates' prompts. Without one nothing is judged unless an exam names one."""

    model: str | None = Field(None, min_length=1)
    base_url: HttpUrl | None = None
    api_key: Key | None = None
    timeout_s: Seconds = Field(60.0, description="longest wait for one answer")
    concurrency: int = Field(4, ge=1, le=64, description="calls at once")
    max_output_tokens: int = Field(1200, ge=256, description="cap for one answer")
    trials: Literal["suspicious", "always"] = Field(
        "suspicious", description="which prompts the judge is tried with first"
    )


class CallbackSettings(_Section):
    """Where and how Core is told. With the profile ``vibecode`` paths are appended to ``url``."""

    profile: Literal["standard", "vibecode"] = "standard"
    url: HttpUrl | None = Field(None, repr=False)
    api_key: Key | None = None
    signing_secret: SigningSecret | None = None
    previous_secret: SigningSecret | None = Field(None, description="signs too, while Core changes over to a new one")
    retry_delays_s: Annotated[tuple[Delay, ...], _read_list("[1, 2, 4]"), NoDecode] = (
        1, 2, 4, 15, 60, 300, 1800, 7200, 21600, 43200,
    )  # fmt: skip
    timeout_s: Seconds = 15.0
    concurrency: int = Field(16, ge=1, description="deliveries at once, besides those that Core keeps waiting")

    @model_validator(mode="after")
    def _paths_can_be_appended(self) -> CallbackSettings:
        if self.profile == "vibecode" and self.url is not None and ("?" in self.url or "#" in self.url):
            raise ValueError("with the profile vibecode the URL is what paths are appended to, so it has no ? and no #")
        return self


class AuthSettings(_Section):
    """Who may call: everybody on this machine (``open``), or whoever bears a token."""

    mode: Literal["open", "token"] = "open"
    api_key: Key | None = None
    ticket_secret: Key | None = Field(None, description="reserved: candidates' tickets are not taken yet")
    jwks: str | None = Field(None, description="reserved, like ticket_secret")


class WorkerSettings(_Section):
    """Background jobs."""

    embedded: bool = True
    alone: bool = Field(False, description="`turnstone worker` uses every CPU: no `serve` is on its machine")


class SubmissionSettings(_Section):
    """The evaluation of submissions, wherever the background jobs run."""

    concurrency: int = Field(4, ge=1, le=64, description="submissions one process evaluates at once")


class GuardSettings(_Section):
    """What the guard does about messages it has labelled, in exams that do not say; by default it only flags."""

    refuse: Annotated[
        tuple[
            Literal["PROMPT_EXFILTRATION", "JUDGE_MANIPULATION", "JAILBREAK", "OFF_TOPIC", "UNSAFE", "SUBMISSION"],
            ...,
        ],
        _read_list('["PROMPT_EXFILTRATION", "JUDGE_MANIPULATION"]'),
        NoDecode,
    ] = ()


class RunnerSettings(_Section):
    """What runs candidates' programs. ``auto`` is bubblewrap on this machine, where it works."""

    backend: Literal["auto", "bubblewrap", "go-judge", "judge0", "none"] = "auto"
    url: HttpUrl | None = Field(None, repr=False, description="where go-judge or Judge0 answers")
    api_key: Key | None = None
    concurrency: int | None = Field(
        None, ge=1, le=256, description="programs at once; as many as there are CPUs for them by default"
    )
    isolation: Literal["best", "cgroup2", "cgroup1", "rlimits"] = Field(
        "best", description="how bubblewrap holds limits: the best way there is, or only this one"
    )
    cgroup: Path | None = Field(None, description="a cgroup (v2) that was made over to this service")


class LimitSettings(_Section):
    """Sizes beyond which input is refused, and what one process takes on at most."""

    message_chars: int = Field(32_000, ge=1)
    frame_bytes: int = Field(4_194_304, ge=1024)
    problem_bytes: int = Field(33_554_432, ge=1024, description="body of a `PUT /api/problems/{spec_id}`")
    connections: int = Field(10_000, ge=1, description="WebSockets one process serves; a further one is closed (4503)")
    code_chars: int = Field(65_536, ge=1, le=1_000_000, description="longest code of a submission, in characters")
    turns: int = Field(1_000, ge=1, description="turns one process runs; a further one is refused (`overloaded`)")


class ModelPrice(_Section):
    """What a million tokens cost. Cached prompt tokens cost what others do where nothing is said of them."""

    prompt: float = Field(ge=0, allow_inf_nan=False)
    completion: float = Field(ge=0, allow_inf_nan=False)
    cached: float | None = Field(None, ge=0, allow_inf_nan=False)

    def cost(self, *, prompt: int, cached: int, completion: int) -> float:
        """Of so many tokens, in the prices' currency. Cached tokens are part of the prompt's."""
        of_cached = self.prompt if self.cached is None else self.cached
        return ((prompt - cached) * self.prompt + cached * of_cached + completion * self.completion) / 1_000_000


class PriceSettings(_Section):
    """What models cost, by their names in the ledger."""

    currency: str = Field("USD", min_length=1, max_length=8)
    per_million: dict[str, ModelPrice] = Field({}, description="by the model's name in the ledger")


class Settings(BaseSettings):
    """Everything that can be set. Frozen: a changed setting wants a restart."""

    model_config = SettingsConfigDict(
        env_prefix="TURNSTONE_",
        env_nested_delimiter="__",
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,  # `NAME=` in a compose file or .env means that it is not set
        extra="ignore",
        frozen=True,
    )

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    data_dir: Path = Path(".turnstone")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "json"
    shutdown_grace_s: float = Field(10.0, ge=0, le=86_400, description="how long running turns may go on after SIGTERM")
    flush_interval_s: float = Field(0.25, gt=0, le=5)
    lease_s: float = Field(6.0, gt=0, le=15, description="an owner unheard of for this long has lost its turns")

    database: DatabaseSettings = DatabaseSettings()
    redis: RedisSettings = RedisSettings()
    llm: LlmSettings = LlmSettings()
    judge: JudgeSettings = JudgeSettings()
    callbacks: CallbackSettings = CallbackSettings()
    auth: AuthSettings = AuthSettings()
    worker: WorkerSettings = WorkerSettings()
    submissions: SubmissionSettings = SubmissionSettings()
    prices: PriceSettings = PriceSettings()
    guard: GuardSettings = GuardSettings()
    runner: RunnerSettings = RunnerSettings()
    limits: LimitSettings = LimitSettings()

    @model_validator(mode="after")
    def _open_mode_stays_at_home(self) -> Settings:
        if self.auth.mode == "open" and not is_loopback(self.host):
            raise ValueError(
                f"TURNSTONE_AUTH__MODE=open lets everybody in, so it is refused on the host {self.host!r}; "
                "set TURNSTONE_AUTH__MODE=token and TURNSTONE_AUTH__API_KEY, or listen on 127.0.0.1"
            )
        if self.auth.mode == "token" and self.auth.api_key is None:
            raise ValueError("TURNSTONE_AUTH__MODE=token needs TURNSTONE_AUTH__API_KEY")
        return self


_REMEDY = "Mend the environment or .env and start again."


def load_settings(**overrides: object) -> Settings:
    """Read the settings; ``overrides`` win over the environment.

    Raises:
        StartupError: a variable is unusable or misspelt. The message names it, says why, and never repeats its value.
    """
    try:
        _refuse_misspelt_variables()
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        lines = []
        for item in error.errors(include_input=False, include_url=False):
            # A place within a list is no part of the variable's name.
            name = "__".join(str(part).upper() for part in item["loc"] if not isinstance(part, int))
            said = "is not a setting" if item["type"] == "extra_forbidden" else item["msg"]
            lines.append(f"TURNSTONE_{name}: {said}" if name else said)
        problem = "; ".join(lines).replace("Value error, ", "").replace("Input should be", "must be")
        raise StartupError(f"{problem}.", _REMEDY) from None
    except SettingsError as error:
        # What it says of the value stays out; the section's name is all that it knows besides.
        section = next((name for name in Settings.model_fields if f'"{name}"' in str(error)), None)
        name = "A variable" if section is None else f"TURNSTONE_{section.upper()}"
        raise StartupError(
            f"{name} cannot be read; a section's settings are variables of their own.", _REMEDY
        ) from None
    except UnicodeDecodeError:
        raise StartupError("The file .env is not UTF-8.", "Save it as UTF-8 and start again.") from None


def strange_variables() -> list[str]:
    """Variables with our prefix that are no settings nor like one: somebody's (Kubernetes makes some) or a slip."""
    known = _variables()
    return [name for name in _unknown_variables(known) if not _is_meant(name, known)]


def _refuse_misspelt_variables() -> None:
    """A misspelt variable that is passed over leaves its default in force, and nobody knows why."""
    known = _variables()
    misspelt = [name for name in _unknown_variables(known) if _is_meant(name, known)]
    if misspelt:
        remedy = "docs/operations.md lists the settings; mend or remove it in the environment or .env."
        problem = "; ".join(f"{name} is not a setting{_meant(name, known)}" for name in misspelt)
        raise StartupError(f"{problem}.", remedy)


def _unknown_variables(known: set[str]) -> list[str]:
    names = [
        variable.upper()
        for source in (EnvSettingsSource(Settings), DotEnvSettingsSource(Settings))
        for variable in source.env_vars
    ]
    return [name for name in dict.fromkeys(names) if name.startswith("TURNSTONE_") and name not in known]


def _is_meant(name: str, known: set[str]) -> bool:
    return "__" in name or bool(_meant(name, known))


def _variables() -> set[str]:
    names = set()
    for name, field in Settings.model_fields.items():
        names.add(f"TURNSTONE_{name}".upper())
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Section):
            names |= {f"TURNSTONE_{name}__{inner}".upper() for inner in field.annotation.model_fields}
    return names


def _meant(name: str, known: set[str]) -> str:
    prefix = "TURNSTONE_"  # what all have in common would make anything seem close
    choices = [choice.removeprefix(prefix) for choice in known]
    close = difflib.get_close_matches(name.removeprefix(prefix), choices, n=1, cutoff=0.8)
    return f"; {prefix}{close[0]} is meant" if close else ""
