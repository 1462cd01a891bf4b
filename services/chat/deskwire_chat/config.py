"""Settings of the chat service."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, field_validator

from deskwire_chat.attachments.bucket import Place
from deskwire_common.config import (
    Address,
    DatabaseSettings,
    KafkaSettings,
    OptionalAddress,
    ServiceSettings,
    is_wildcard,
    reachable,
    split_address,
)

_FILE_TYPES: Final = (
    "image/png,image/jpeg,image/gif,image/webp,image/heic,image/avif,audio/*,video/*,"
    "application/pdf,text/plain,text/csv,application/zip,application/json,"
    "application/msword,application/vnd.ms-*,application/vnd.openxmlformats-officedocument.*,"
    "application/vnd.oasis.opendocument.*"
)
"""The types that people send each other, without HTML and SVG, which can contain programs."""


class Settings(DatabaseSettings, KafkaSettings, ServiceSettings):
    """From the environment, with the prefix DESKWIRE_."""

    shard_name: str = Field(default_factory=socket.gethostname, min_length=1, max_length=64)
    """Name of this process (its pod), by default the host's name; a process that restarts under it takes its
    partitions over at once. No two processes that live at the same time may have the same name."""
    max_streams: int = Field(default=5_000, ge=1)
    """How many StreamMessages and WatchConversation calls may be open in this process."""
    max_tenant_streams: int = Field(default=1_000, ge=1)
    """How many StreamMessages and WatchConversation calls of one tenant may be open in this process."""
    advertise: OptionalAddress = ""
    """host:port at which gateways and other chat processes reach this one; empty: where it listens, with the host's
    name for a wildcard address."""
    peer_name: str = ""
    """With TLS: the name in the certificates of other chat processes; empty: the host of their address."""
    bot_away_seconds: float = Field(default=10.0, gt=0, le=3_600)
    """Seconds that a bot may be without an open connection before its conversations go to the queue for people."""
    agent_away_seconds: float = Field(default=120.0, ge=0, le=86_400)
    """Seconds that a person at the desk may be without an open connection before their conversations go to the queue;
    0: they keep them. It must be the same for all processes."""
    visitor_max_open: int = Field(default=3, ge=0, le=10_000)
    """How many open conversations one visitor (a token's subject) may have; 0: any number. It must be the same for all
    processes."""
    visitor_openings_per_minute: int = Field(default=5, ge=0, le=10_000)
    """How many conversations one visitor may open within a minute; 0: any number. It must be the same for all
    processes."""
    offer_seconds: float = Field(default=0.0, ge=0, le=600)
    """Seconds that an offer to an agent stands before the next agent gets one; 0: agents get conversations without
    offers. It must be the same for all processes."""
    default_region: str = Field(default="", pattern="^([A-Z]{2})?$")
    """Region of mobile numbers without a leading +: `CN`, `DE` …; empty: they stay as given."""

    attachments_url: str = ""
    """Where attachments are stored: `file:///folder`, or `s3://bucket/prefix?endpoint=https://…&region=…`; empty:
    attachments are refused."""
    attachments_listen: Address = "127.0.0.1:7406"
    """With a folder: host:port that serves the signed URLs, over HTTP; TLS ends at the ingress."""
    attachments_public_url: str = Field(default="", pattern="^(https?://[^\\s?#]+)?$")
    """URL at which clients reach the folder (or the bucket), if it isn't its address: `https://files.example.com`."""
    attachments_access_key: str = ""
    """Access key of the bucket; empty: found in the ways of AWS."""
    attachments_secret_key: SecretStr = SecretStr("")
    """Secret key of the bucket, with `attachments_access_key`."""
    attachments_max_bytes: int = Field(default=26_214_400, ge=1, le=2**32 - 1)
    """Most bytes of a file."""
    attachments_types: str = Field(default=_FILE_TYPES, min_length=1)
    """Media types that are taken, separated by commas; a `*` at the end stands for any rest: `image/*`."""
    attachments_max_unsent: int = Field(default=20, ge=1)
    """How many attachments of one user may be without a message that carries them."""
    attachments_upload_seconds: int = Field(default=900, ge=1, le=86_400)
    """Seconds that a signed URL for an upload is valid."""
    attachments_download_seconds: int = Field(default=300, ge=1, le=86_400)
    """Seconds that a signed URL for a download is valid."""
    attachments_transfer_seconds: float = Field(default=300.0, gt=0)
    """With a folder: seconds that one upload or download may take; an upload that sends nothing for 30 s ends too."""
    attachments_max_transfers: int = Field(default=64, ge=1)
    """With a folder: uploads, and downloads, that this process serves at once; others get HTTP 503 with Retry-After."""
    attachments_cors_origins: str = ""
    """With a folder: origins whose pages may use it, separated by commas; `*`: all; empty: none."""

    @field_validator("attachments_url")
    @classmethod
    def _attachments_url(cls, text: str) -> str:
        parts = urlsplit(text)
        if parts.scheme == "s3":
            Place.of(text)
        elif text and (parts.scheme != "file" or parts.netloc or len(parts.path) < 2):
            raise ValueError("use file:///absolute/folder or s3://bucket?endpoint=…&region=…")
        return text

    @property
    def attachments_folder(self) -> Path | None:
        """The folder of a `file://` URL; None: attachments are in a bucket, or off."""
        parts = urlsplit(self.attachments_url)
        return Path(unquote(parts.path)) if parts.scheme == "file" else None

    @property
    def attachments_bucket(self) -> Place | None:
        """The bucket of an `s3://` URL; None: attachments are in a folder, or off."""
        is_one = self.attachments_url.startswith("s3://")
        return Place.of(self.attachments_url) if is_one else None

    def attachments_base(self, port: int) -> str:
        """Return where clients on this network reach a folder's signed URLs when no public URL is set."""
        host, _ = split_address(self.attachments_listen)
        if is_wildcard(host):
            host = socket.gethostname()
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def address(self, port: int) -> str:
        """Return where others reach this process, which listens on `port`."""
        return reachable(self.advertise, self.grpc_listen, port)
