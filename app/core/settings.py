"""Settings, read once from the environment and ``.env`` (prefix ``TURNSTONE_``, nested by ``__``)."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.core.errors import StartupError


def is_loopback(host: str) -> bool:
    """Whether ``host`` (a name or an address, without a port) can only be this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _url_with_scheme(*schemes: str) -> AfterValidator:
    def check(value: str) -> str:
        if not value.startswith(tuple(f"{scheme}://" for scheme in schemes)):
            raise ValueError(f"must start with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return value

    return AfterValidator(check)


HttpUrl = Annotated[str, _url_with_scheme("http", "https")]
PostgresUrl = Annotated[str, _url_with_scheme("postgresql", "postgres")]
RedisUrl = Annotated[str, _url_with_scheme("redis", "rediss", "unix")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatabaseSettings(_Section):
    """PostgreSQL; without a URL an embedded one runs in the data directory."""

    url: PostgresUrl | None = None
    pool_size: int = Field(10, ge=1, le=200, description="connections one process holds at most")
    timeout_s: float = Field(5.0, gt=0, description="longest wait for a connection")
    migrate: bool = Field(True, description="run missing migrations at start")


class RedisSettings(_Section):
    """Redis mirrors running turns for other processes; without a URL live state stays in this process."""

    url: RedisUrl | None = None
    timeout_s: float = Field(0.5, gt=0, description="longest wait for one command")


class LlmSettings(_Section):
    """The model candidates talk to."""

    model: str = Field("local", min_length=1)
    base_url: HttpUrl | None = None
    api_key: SecretStr | None = None
    max_output_tokens: int = Field(1024, ge=1)
    timeout_s: float = Field(60.0, gt=0, description="silence of the provider that ends a turn")
    history_tokens: int = Field(12_000, ge=256, description="budget for the conversation sent along")


class CallbackSettings(_Section):
    """Where and how Core is told."""

    url: HttpUrl | None = None
    api_key: SecretStr | None = None
    signing_secret: SecretStr | None = None
    retry_delays_s: tuple[Annotated[float, Field(ge=0)], ...] = (
        1, 2, 4, 15, 60, 300, 1800, 7200, 21600, 43200,
    )  # fmt: skip
    timeout_s: float = Field(15.0, gt=0)
    concurrency: int = Field(16, ge=1, description="deliveries at once")


class AuthSettings(_Section):
    """Who may call: everybody on this machine (``open``), or whoever bears a token."""

    mode: Literal["open", "token"] = "open"
    api_key: SecretStr | None = None


class WorkerSettings(_Section):
    """Background jobs."""

    embedded: bool = True


class GuardSettings(_Section):
    """What the guard does about messages it has labelled; by default it only flags."""

    refuse: tuple[Literal["PROMPT_EXFILTRATION", "JUDGE_MANIPULATION"], ...] = ()


class LimitSettings(_Section):
    """Sizes beyond which input is refused."""

    message_chars: int = Field(32_000, ge=1)
    frame_bytes: int = Field(4_194_304, ge=1024)


class Settings(BaseSettings):
    """Everything that can be set. Frozen: a changed setting wants a restart."""

    model_config = SettingsConfigDict(
        env_prefix="TURNSTONE_",
        env_nested_delimiter="__",
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
    )

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    data_dir: Path = Path(".turnstone")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "json"
    shutdown_grace_s: float = Field(10.0, ge=0, description="how long running turns may go on after SIGTERM")
    flush_interval_s: float = Field(0.25, gt=0, le=5)
    lease_s: float = Field(8.0, gt=0, le=20, description="an owner unheard of for this long has lost its turns")

    database: DatabaseSettings = DatabaseSettings()
    redis: RedisSettings = RedisSettings()
    llm: LlmSettings = LlmSettings()
    callbacks: CallbackSettings = CallbackSettings()
    auth: AuthSettings = AuthSettings()
    worker: WorkerSettings = WorkerSettings()
    guard: GuardSettings = GuardSettings()
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


def load_settings(**overrides: object) -> Settings:
    """Read the settings; ``overrides`` win over the environment.

    Raises:
        StartupError: a variable is unusable. The message names it and says why, and never repeats its value.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        lines = []
        for item in error.errors(include_input=False, include_url=False):
            name = "TURNSTONE_" + "__".join(str(part).upper() for part in item["loc"]) if item["loc"] else ""
            lines.append(f"{name}: {item['msg']}".lstrip(": ").replace("Value error, ", ""))
        raise StartupError("; ".join(lines) + ".", "Mend the environment or .env and start again.") from None
