"""Settings of the event hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from deskwire_common.config import (
    DatabaseSettings,
    KafkaSettings,
    OptionalAddress,
    ServiceSettings,
    TargetRules,
)
from deskwire_common.sealing import load_sealer
from deskwire_events.secret_refs import parse_secret_rules


def _secrets(text: str) -> str:
    parse_secret_rules(text)
    return text


SecretRules = Annotated[str, AfterValidator(_secrets)]


class Settings(DatabaseSettings, KafkaSettings, ServiceSettings):
    """From the environment, with the prefix DESKWIRE_."""

    advertise: OptionalAddress = ""
    """host:port where the other hubs reach this one, for streams of subscriptions that it has; empty: where it
    listens, with the host's name for a wildcard address."""
    peer_name: str = ""
    """With TLS: the name in the certificates of other hubs; empty: the host of their address."""
    dead_letter_limit: int = Field(default=100, ge=1)
    """Dead letters in a row, without a success between them, that stop an adapter."""
    delivery_attempts: int = Field(default=20, ge=1)
    """How often an adapter may refuse one event before it is a dead letter."""
    delivery_age_seconds: float = Field(default=86_400.0, gt=0)
    """Seconds after an event's first refusal after which it is a dead letter."""
    lease_seconds: float = Field(default=4.0, ge=1, le=300)
    """How long after its last sign of life a dead hub's subscriptions wait for another; the same for all hubs."""
    adapter_targets: TargetRules = "public:*"
    """Addresses that adapters may have: `HOST:PORT` rules with commas, see addresses.md."""
    python_adapters: str = ""
    """Adapters that tenants may have this service run, as `python:NAME`: names of entry points, with commas; `file`,
    `sql` and `odata` come with it."""
    adapter_memory_mib: int = Field(default=512, ge=64)
    """Memory that the process of such an adapter may take beside its program."""
    adapter_root: Path | None = None
    """Folder in which files of `python:file` and `python:sql` lie, in one folder for each tenant; unset: none."""
    adapter_secrets: SecretRules = ""
    """Secrets that adapters may get: `TENANT=env:VARIABLE` and `TENANT=file:/path` with commas, see addresses.md."""
    max_adapters: int = Field(default=50, ge=1)
    """Adapters of one tenant."""
    max_registrations: int = Field(default=4, ge=1)
    """RegisterAdapter, CheckWebhook or CreateSource calls of one tenant that one process works on at a time."""
    webhook_targets: TargetRules = "public:*"
    """Addresses that webhooks may have: `HOST:PORT` rules with commas, see addresses.md."""
    webhook_allow_http: bool = False
    """Whether webhooks may have URLs with http, whose events everybody on the way can read."""
    webhook_ca_file: Path | None = None
    """PEM file of authorities that certificates of webhooks may have, beside the system's own."""
    webhook_parallel: int = Field(default=16, ge=1, le=64)
    """Events of different subjects that one webhook is sent at a time."""
    webhook_seconds: float = Field(default=15.0, gt=0, le=120)
    """Seconds that a webhook may take for one event, from the look-up of its name to the end of its answer's head."""
    sealing_file: Path | None = None
    """Keys that encrypt credentials of adapters and secrets of webhooks in the database, see keys.md; unset: they are
    stored as they are."""
    max_subscriptions: int = Field(default=100, ge=1)
    """Open Subscribe streams of one tenant, of one process."""
    max_named_subscriptions: int = Field(default=200, ge=1)
    """Subscriptions of one tenant, adapters and webhooks included."""

    @model_validator(mode="after")
    def _files_are_there(self) -> Settings:
        load_sealer(self.sealing_file)
        if self.webhook_ca_file is not None and not self.webhook_ca_file.is_file():
            raise ValueError(f"no such file: {self.webhook_ca_file}")
        return self
