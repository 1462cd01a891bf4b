"""Settings: environment variables with the prefix DESKWIRE_, all checked at the start.

A service's Settings combines the parts here:
`class Settings(DatabaseSettings, KafkaSettings, ServiceSettings)`.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from deskwire_common import auth
from deskwire_common.errors import InvalidArgument
from deskwire_common.logging import redact_text
from deskwire_common.targets import parse_rules

PREFIX: Final = "DESKWIRE_"
_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of `host:port`. Raises ValueError that says what is wrong."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not host:port")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Whether `host` means all addresses: a server can listen on it, but nobody can call it there."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _address(text: str) -> str:
    split_address(text)
    return text


def _addresses(text: str) -> str:
    for part in text.split(","):
        split_address(part.strip())
    return text


def _optional_address(text: str) -> str:
    return _address(text) if text else ""


def _targets(text: str) -> str:
    parse_rules(text)
    return text


def _database(text: str) -> str:
    from deskwire_common.db import normalize_url  # noqa: PLC0415 (an optional part of this library)

    try:
        normalize_url(text)
    except InvalidArgument as error:
        raise ValueError(error.message) from None
    return text


def reachable(advertise: str, listen: str, port: int) -> str:
    """Return where others reach a process: as it advertises itself, else at the port where it listens."""
    host, given = split_address(advertise or listen)
    if advertise:
        port = given
    elif is_wildcard(host):
        host = socket.gethostname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


Address = Annotated[str, AfterValidator(_address)]
Addresses = Annotated[str, AfterValidator(_addresses)]
OptionalAddress = Annotated[str, AfterValidator(_optional_address)]
TargetRules = Annotated[str, AfterValidator(_targets)]
"""Rules of `targets`: which addresses of others may be called."""
DatabaseUrl = Annotated[str, AfterValidator(_database)]


class _Part(BaseSettings):
    """The base of all parts. The string below a field is its description, in docs/operations/settings.md too."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="ignore", frozen=True, use_attribute_docstrings=True
    )


class ServiceSettings(_Part):
    """Settings of every service."""

    grpc_listen: Address
    """host:port of the gRPC server."""
    metrics_listen: OptionalAddress = ""
    """host:port of Prometheus metrics over HTTP; empty: off."""
    keys_file: Path
    """JWK set that signs and verifies tokens; it is read again when it changes."""
    otlp_endpoint: str = ""
    """OpenTelemetry collector (gRPC) to which spans are sent; empty: off."""
    trace_sample_ratio: float = 1.0
    """Share of traces that make spans; every event has a trace_id anyway."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR; the log is JSON lines on stderr."""
    grpc_max_connections: int = Field(default=10_000, ge=1)
    """gRPC connections at a time; more are refused."""
    grpc_max_streams: int = Field(default=1_000, ge=1)
    """Calls and streams at a time on one gRPC connection; a client waits with more."""
    grpc_idle_seconds: float = Field(default=120.0, ge=1)
    """Seconds after which a gRPC connection without a call is closed, also before its first; clients reconnect by
    themselves."""
    grpc_compression: bool = False
    """Whether gRPC requests may be compressed (gzip, deflate): a few KB may unpack to the largest request."""
    drain_seconds: float = Field(default=15.0, gt=0, le=600)
    """Seconds that work in progress may take after SIGTERM."""
    tls_cert: Path | None = None
    """PEM file of the server's certificate; `tls_cert`, `tls_key` and `tls_ca` are set together or not at all."""
    tls_key: Path | None = None
    """PEM file of the certificate's private key."""
    tls_ca: Path | None = None
    """PEM file of the authorities that other services' certificates are checked against."""
    tls_require_client_certificate: bool = False
    """Mutual TLS: refuse clients without a certificate of `tls_ca`."""
    allow_plaintext: bool = False
    """Allow gRPC without TLS on other addresses than loopback."""

    @property
    def listens(self) -> tuple[str, ...]:
        """The addresses that clients connect to: plaintext is refused on them unless they are loopback."""
        return (self.grpc_listen,)

    @model_validator(mode="after")
    def _consistent(self) -> ServiceSettings:
        if self.log_level.upper() not in _LEVELS:
            raise ValueError(f"log_level must be one of {', '.join(_LEVELS)}")
        if not 0 <= self.trace_sample_ratio <= 1:
            raise ValueError("trace_sample_ratio must be between 0 and 1")
        tls = (self.tls_cert, self.tls_key, self.tls_ca)
        if any(tls) and not all(tls):
            raise ValueError("tls_cert, tls_key and tls_ca belong together: set all or none")
        for file in tls:
            if file is not None and not file.is_file():
                raise ValueError(f"no such file: {file}")
        if not any(tls) and not self.allow_plaintext:
            for listen in self.listens:
                if not is_loopback(split_address(listen)[0]):
                    raise ValueError(
                        f"{listen} is not loopback: set tls_cert, tls_key and tls_ca, or allow_plaintext=true"
                    )
        try:
            auth.KeySet.load(self.keys_file)
        except auth.KeysError as error:
            raise ValueError(str(error)) from None
        return self


class DatabaseSettings(_Part):
    """For services with a database."""

    database_url: DatabaseUrl
    """The service's own database: `sqlite:///path`, `postgresql://…`, `mysql://…` or `mariadb://…`."""
    lease_seconds: float = Field(default=9.0, ge=1, le=300)
    """How long after its last sign of life a dead process's work waits for another; the same for all processes of a
    service."""


class KafkaSettings(_Part):
    """For services on the spine."""

    kafka: Addresses
    """Kafka's bootstrap servers: host:port, with commas."""
    outbox_keep_seconds: float = Field(default=0.0, ge=0)
    """Seconds that published events stay in the table `outbox_published`, for a broker that forgets."""


def redacted(settings: ServiceSettings) -> dict[str, Any]:
    """Return the settings as JSON values, without passwords."""
    values = json.loads(settings.model_dump_json())
    return {
        name: redact_text(value) if isinstance(value, str) else value
        for name, value in values.items()
    }


def problems(error: ValidationError) -> list[str]:
    """Return one line per mistake, naming the environment variable."""
    lines = []
    for mistake in error.errors(include_url=False, include_input=False):
        name = "_".join(str(part) for part in mistake["loc"])
        text = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "missing":
            text = "is not set"
        lines.append(f"{PREFIX}{name.upper()}: {text}" if name else text)
    return lines
