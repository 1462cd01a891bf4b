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
    split_address,
)

_FILE_TYPES: Final = (
    "image/png,image/jpeg,image/gif,image/webp,image/heic,image/avif,audio/*,video/*,"
    "application/pdf,text/plain,text/csv,application/zip,application/json,"
    "application/msword,application/vnd.ms-*,application/vnd.openxmlformats-officedocument.*,"
    "application/vnd.oasis.opendocument.*"
)
"""What people send each other. Not HTML and SVG, which can hold programs."""


class Settings(DatabaseSettings, KafkaSettings, ServiceSettings):
    """From the environment, with the prefix DESKWIRE_."""

    shard_name: str = Field(default_factory=socket.gethostname, min_length=1, max_length=64)
    """The place of this process (its pod), by default the host's name; its next life takes its partitions over at
    once. No two processes that live at the same time may have the same."""
    max_streams: int = Field(default=5_000, ge=1)
    """StreamMessages and WatchConversation calls that may be open in this process."""
    max_tenant_streams: int = Field(default=1_000, ge=1)
    """StreamMessages and WatchConversation calls of one tenant that may be open in this process."""
    advertise: OptionalAddress = ""
    """host:port at which gateways and other chat processes reach this one; empty: where it listens, with the host's
    name for a wildcard address."""
    peer_name: str = ""
    """With TLS: the name in the certificates of other chat processes; empty: the host of their address."""
    bot_away_seconds: float = Field(default=10.0, gt=0, le=3_600)
    """Seconds that a bot may be without an open connection before its conversations go to people's queue."""
    offer_seconds: float = Field(default=0.0, ge=0, le=600)
    """Seconds that a conversation is offered to an agent before the next one is asked; 0: it is theirs at once. The
    same for all processes."""
    default_region: str = Field(default="", pattern="^([A-Z]{2})?$")
    """How mobile numbers without a leading + are read: `CN`, `DE` …; empty: they stay as given."""

    attachments_url: str = ""
    """Where attachments are: `file:///folder`, or `s3://bucket/prefix?endpoint=https://…&region=…`; empty: attachments
    are refused."""
    attachments_listen: Address = "127.0.0.1:7406"
    """Of a folder: host:port of the signed URLs, over HTTP; TLS ends at the ingress."""
    attachments_public_url: str = Field(default="", pattern="^(https?://[^\\s?#]+)?$")
    """How clients reach the folder (or the bucket), where that isn't the address itself: `https://files.example.com`."""
    attachments_access_key: str = ""
    """Of the bucket; empty: found in AWS's own ways."""
    attachments_secret_key: SecretStr = SecretStr("")
    """Of the bucket, with `attachments_access_key`."""
    attachments_max_bytes: int = Field(default=26_214_400, ge=1, le=2**32 - 1)
    """Largest file."""
    attachments_types: str = Field(default=_FILE_TYPES, min_length=1)
    """Media types that are taken, with commas; a `*` at the end stands for any rest: `image/*`."""
    attachments_max_unsent: int = Field(default=20, ge=1)
    """Attachments of one user that no message carries yet."""
    attachments_upload_seconds: int = Field(default=900, ge=1, le=86_400)
    """Seconds that a signed URL for an upload is good."""
    attachments_download_seconds: int = Field(default=300, ge=1, le=86_400)
    """Seconds that a signed URL for a download is good."""
    attachments_transfer_seconds: float = Field(default=300.0, gt=0)
    """Of a folder: seconds that one upload or download may take; one that brings nothing for 30 s ends, too."""
    attachments_max_transfers: int = Field(default=64, ge=1)
    """Of a folder: uploads, and downloads, of this process at a time; others get HTTP 503 with Retry-After."""
    attachments_cors_origins: str = ""
    """Of a folder: origins whose pages may use it, with commas; `*`: all; empty: none."""

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
        """The folder of `file://`; None: attachments are in a bucket, or there are none."""
        parts = urlsplit(self.attachments_url)
        return Path(unquote(parts.path)) if parts.scheme == "file" else None

    @property
    def attachments_bucket(self) -> Place | None:
        """The bucket of `s3://`."""
        is_one = self.attachments_url.startswith("s3://")
        return Place.of(self.attachments_url) if is_one else None

    def attachments_base(self, port: int) -> str:
        """Where clients on this network reach a folder's signed URLs, when no public URL is set."""
        host, _ = split_address(self.attachments_listen)
        if is_wildcard(host):
            host = socket.gethostname()
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def address(self, port: int) -> str:
        """Where others reach this process, which listens on `port`."""
        host, given = split_address(self.advertise or self.grpc_listen)
        if self.advertise:
            port = given
        elif is_wildcard(host):
            host = socket.gethostname()
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
