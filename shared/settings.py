"""Every setting of every process, read from the environment as `LLMOS_*`.

One vocabulary for all services: a name that is not here is a mistake and stops the start.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NoReturn

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "LLMOS_"
SECRETS = Path("/run/secrets")
"""Where Docker and Kubernetes put secrets: a file for each, named like its variable."""
EXAMPLE = "change-me"
"""What every secret of .env.example contains."""
ADDRESS = r"^([A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9]+)?)?$"
"""A host's name or its IPv4 or IPv6 address; or nothing."""
TEST_PREFIX = f"{PREFIX}TEST_"
"""Where the tests find servers; no process reads them."""


class Settings(BaseSettings):
    """The settings. The defaults are those of `llmos up`, which fills in the addresses of what it starts."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    # Where things are
    home: Path = Field(Path.home() / ".llmos", description="Folder of the embedded system: data, logs, sockets, key.")
    bus_url: str = Field(
        "memory://",
        description="valkey+unix:///path, valkey://host:port, kafka://host:port[,host:port]; with TLS valkeys, kafkas.",
    )
    redis_url: str = Field("memory://", description="Doorbells and replies: unix:///path or redis://host:port/0")
    requests_url: str = Field("", description="Inference requests; by default `redis_url`. kafka://… also works.")
    store_url: str = Field("", description="file:///folder or s3://host:port/bucket; by default a folder in `home`.")
    s3_access_key: str = Field("", description="Credentials of the S3 store.")
    s3_secret_key: str = ""
    s3_secure: bool = Field(False, description="TLS to the S3 store.")
    s3_public_url: str = Field(
        "", description="https://host:port where clients reach the S3 store: large files are downloaded from there."
    )
    db_url: str = Field("", description="sqlite:///file or postgresql+psycopg://…; by default a file in `home`.")
    gateway_db_url: str = Field("", description="The gateway's database, where it is not `db_url`: for `llmos admin`.")
    scheduler_db_url: str = Field("", description="The scheduler's database, likewise.")
    registry_db_url: str = Field("", description="The registry's database, likewise.")
    backup_s3_access_key: str = Field("", description="Credentials of the S3 of backups; else the store's.")
    backup_s3_secret_key: str = ""
    backup_s3_secure: bool = Field(False, description="TLS to the S3 of backups.")
    url: str = Field("", description="The gateway's address, for the command and the client library.")
    init_timeout_s: float = Field(
        60, ge=0, description="How long a start waits for what `llmos admin init` makes: topics and bucket."
    )
    node: str = Field(socket.gethostname(), description="This machine's name; unique among the nodes.")

    dev: bool = Field(False, description="A trial: the secrets of .env.example are good enough.")

    # Logs and metrics
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal, else json")
    metrics_port: int = Field(
        0, ge=0, le=65535, description="/metrics, /healthz and /readyz of a service without HTTP; 0 serves none."
    )

    # Traces
    traces_url: str = Field(
        "", pattern=r"^(https?://\S+)?$", description="OpenTelemetry collector, http://host:4318; empty: no traces."
    )
    traces_ratio: float = Field(
        1, ge=0, le=1, description="Share of requests that are traced, of those that bring no trace of their own."
    )

    # Gateway
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    api_key: str = Field("", description="The first key; by default one is made and written to `home`/key.")
    max_upload_bytes: int = Field(16 * 2**30, ge=1, description="Largest file that can be uploaded.")
    max_body_bytes: int = Field(8 * 2**20, ge=1024, description="Largest JSON body of a request.")
    max_unpublished: int = Field(10_000, ge=1, description="Submissions kept while the bus is away; past that 503.")
    max_queued_jobs: int = Field(10_000, ge=1, description="Unfinished jobs per tenant.")
    max_storage_bytes: int = Field(2**50, ge=1, description="Bytes of artifacts per tenant.")
    request_timeout_s: float = Field(600, gt=0, description="Deadline of an inference request without one of its own.")
    replica_silence_s: float = Field(
        5, gt=0, description="Without a sign of life for so long, a replica is taken for dead."
    )

    # Scheduler
    heartbeat_timeout_s: float = Field(30, gt=0, description="Silence after which a node's runs are lost.")
    tick_s: float = Field(0.5, gt=0, description="Longest pause between two looks at what is due.")
    max_running_jobs: int = Field(1000, ge=1, description="Running jobs per tenant.")
    max_lost: int = Field(10, ge=0, description="Lost workers that a job survives without a new checkpoint.")
    max_crashes: int = Field(3, ge=0, description="Crashed children that a job survives without a new checkpoint.")
    backoff_s: float = Field(2, ge=0, description="First pause before a retry; it doubles, up to five minutes.")
    job_retention_days: float = Field(90, gt=0, description="Terminal jobs are forgotten after so long.")

    # Trainer and inference
    heartbeat_s: float = Field(5, gt=0, description="Seconds between a node's heartbeats.")
    slots: int = Field(1, ge=1, description="Attempts at once on a node without accelerators.")
    orphan_timeout_s: float = Field(900, gt=0, description="How long a run goes on while the bus or the store is away.")
    stop_grace_s: float = Field(30, ge=0, description="Between SIGTERM and SIGKILL: time for a checkpoint.")
    advertise_address: str = Field(
        "",
        pattern=ADDRESS,
        description="Where a job's ranks on other nodes reach this one; by default its address towards the bus.",
    )
    gang_timeout_s: float = Field(1800, gt=0, description="How long a rank of a job of several waits for the others.")
    gang_backend: Literal["auto", "gloo", "nccl"] = Field(
        "auto", description="How a job's ranks exchange gradients; auto: nccl between accelerators, else gloo."
    )
    cache_bytes: int = Field(100 * 2**30, ge=0, description="Size limit of a node's cache of artifacts.")
    cache_max_age_days: float = Field(30, gt=0, description="Unused entries of that cache go after so long.")
    replica_start_timeout_s: float = Field(900, gt=0, description="A replica that is not ready by then has failed.")
    replica_max_crashes: int = Field(3, ge=1, description="Crashes in a row after which a replica is left failed.")
    drain_timeout_s: float = Field(30, ge=0, description="Time for running requests when a replica stops.")
    allow_local_models: bool = Field(True, description="Let jobs name model folders on the trainer's own disk.")
    allow_hub: bool = Field(True, description="Let jobs name models of the Hugging Face hub.")

    @property
    def effective_requests_url(self) -> str:
        return self.requests_url or self.redis_url

    @property
    def effective_store_url(self) -> str:
        return self.store_url or f"file://{self.home / 'objects'}"

    def effective_db_url(self, service: str) -> str:
        own: str = getattr(self, f"{service}_db_url", "")
        return own or self.db_url or f"sqlite:///{self.home / 'db' / f'{service}.sqlite'}"


class SettingsError(Exception):
    """A setting is wrong or unknown; the message is one sentence that names it."""


class AddressError(SettingsError):
    """An address is written wrong; whoever knows which setting it came from names that: `naming`."""


@contextmanager
def naming(setting: str) -> Iterator[None]:
    """What is wrong with an address is said with the setting that it is in."""
    try:
        yield
    except AddressError as error:
        raise SettingsError(f"{setting}: {error}") from None


def shown(url: str) -> str:
    """All that an error may repeat of an address that is wrong: what follows its kind may hold a password."""
    kind = re.match(r"[a-z][a-z0-9+.-]*://", url)
    return f"{kind.group()}…" if kind else "an address without ://"


def load_settings(**overrides: object) -> Settings:
    """The settings of this process. Raises SettingsError."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and not name.startswith(TEST_PREFIX) and name not in known:
            raise SettingsError(f"{name} is no setting; `llmos config` lists those that there are")
    try:
        settings = Settings(_secrets_dir=SECRETS if SECRETS.is_dir() else None, **overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = PREFIX + ".".join(str(part) for part in first["loc"]).upper()
        raise SettingsError(f"{name}: {first['msg']} (it is {first['input']!r})") from error
    _refuse_examples(settings)
    return settings


def _refuse_examples(settings: Settings) -> None:
    if settings.dev:
        return
    for name, value in settings:
        if isinstance(value, str) and EXAMPLE in value:
            raise SettingsError(
                f"{PREFIX}{name.upper()} holds a secret of .env.example: set your own, or {PREFIX}DEV=1 for a trial"
            )


def die(error: Exception | str) -> NoReturn:
    """End the process with one sentence and exit code 2: for a start that cannot be."""
    print(f"llmos: {error}", file=sys.stderr)
    raise SystemExit(2)
