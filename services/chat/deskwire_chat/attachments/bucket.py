"""Attachments in an S3-compatible bucket, with presigned URLs. Calls of botocore block, so they run on threads.

The presigned PUT writes `incoming/<id>`; CompleteAttachment checks that object and copies it to `objects/<id>`, where
no signed URL can change it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, urlsplit

from deskwire_chat.attachments.base import Signed
from deskwire_chat.domain.attachments import Attachment, disposition, not_uploaded
from deskwire_common.errors import DeskwireError, Unavailable
from deskwire_common.logging import get_logger

T = TypeVar("T")

_THREADS: Final = 8
_CONNECT_SECONDS: Final = 3
_READ_SECONDS: Final = 20
_READ_BYTES: Final = 256 * 1024
_GONE: Final = frozenset({"404", "NoSuchKey", "NotFound"})
_CHANGED: Final = frozenset({"412", "PreconditionFailed"})


@dataclass(frozen=True, slots=True)
class Place:
    """`s3://bucket/prefix?endpoint=https://…&region=…`; without an endpoint the bucket is at AWS."""

    bucket: str
    prefix: str
    endpoint: str
    region: str

    @classmethod
    def of(cls, url: str) -> Place:
        """Parse a URL. Raises ValueError."""
        parts = urlsplit(url)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        unknown = sorted(set(query) - {"endpoint", "region"})
        if not parts.netloc or unknown:
            raise ValueError("use s3://bucket?endpoint=https://host:port&region=NAME")
        endpoint = query.get("endpoint", "")
        if endpoint and urlsplit(endpoint).scheme not in {"http", "https"}:
            raise ValueError("the endpoint of the bucket is a URL: http://… or https://…")
        prefix = parts.path.strip("/")
        return cls(
            parts.netloc, f"{prefix}/" if prefix else "", endpoint, query.get("region", "us-east-1")
        )


class BucketStore:
    """The AttachmentStore of a bucket; see the module."""

    def __init__(
        self, place: Place, *, access_key: str = "", secret_key: str = "", public_url: str = ""
    ) -> None:
        """Without keys botocore looks for them where AWS puts them; `public_url`: the endpoint as clients reach it."""
        self._place = place
        self._keys = {
            "aws_access_key_id": access_key or None,
            "aws_secret_access_key": secret_key or None,
        }
        self._public_url = public_url
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="attachments")
        self._client: Any = None
        self._signing: Any = None

    async def open(self) -> None:
        """Load botocore, and log when the bucket doesn't answer, as it may later."""
        await self._on_thread(self._open)
        try:
            await self._call(self._client.head_bucket, Bucket=self._place.bucket)
        except DeskwireError as error:
            get_logger().warning(
                "attachments_bucket_unreachable", bucket=self._place.bucket, error=error.message
            )

    def close(self) -> None:
        """Let the threads finish."""
        self._pool.shutdown()
        for client in {self._client, self._signing} - {None}:
            client.close()

    def _open(self) -> None:
        # The import costs half a second and 20 MB, so only those who have a bucket pay for it.
        from botocore.config import Config  # noqa: PLC0415
        from botocore.session import Session  # noqa: PLC0415

        session = Session()
        place = self._place

        def client(endpoint: str) -> Any:
            return session.create_client(
                "s3",
                region_name=place.region,
                endpoint_url=endpoint or None,
                config=Config(
                    signature_version="s3v4",
                    # Only AWS has its buckets as host names.
                    s3={"addressing_style": "path" if endpoint else "virtual"},
                    connect_timeout=_CONNECT_SECONDS,
                    read_timeout=_READ_SECONDS,
                    retries={"total_max_attempts": 3, "mode": "standard"},
                    max_pool_connections=_THREADS,
                    # Other makers' servers don't know these checksums.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
                **self._keys,
            )

        self._client = client(place.endpoint)
        self._signing = client(self._public_url) if self._public_url else self._client

    async def upload(
        self,
        attachment_id: str,
        *,
        content_type: str,
        size: int,
        sha256: str,  # noqa: ARG002 - `promote` checks it, as few makers' servers do
        seconds: int,
    ) -> Signed:
        """See AttachmentStore. Type and length are signed: the bucket refuses others."""
        declared = {
            "Bucket": self._place.bucket,
            "Key": self._incoming(attachment_id),
            "ContentType": content_type,
            "ContentLength": size,
        }
        url = await self._call(
            self._signing.generate_presigned_url, "put_object", Params=declared, ExpiresIn=seconds
        )
        headers = {"Content-Type": content_type, "Content-Length": str(size)}
        return Signed("PUT", url, headers)

    async def download(self, item: Attachment, *, seconds: int) -> Signed:
        """See AttachmentStore."""
        wanted = {
            "Bucket": self._place.bucket,
            "Key": self._object(item.attachment_id),
            "ResponseContentDisposition": disposition(item.file_name),
            "ResponseContentType": item.content_type,
            "ResponseCacheControl": "private, no-store",
        }
        url = await self._call(
            self._signing.generate_presigned_url, "get_object", Params=wanted, ExpiresIn=seconds
        )
        return Signed("GET", url)

    async def promote(self, item: Attachment) -> None:
        """See AttachmentStore."""
        await self._call(self._promote, item)

    async def remove(self, item: Attachment) -> None:
        """See AttachmentStore."""
        for key in (self._incoming(item.attachment_id), self._object(item.attachment_id)):
            await self._call(self._client.delete_object, Bucket=self._place.bucket, Key=key)

    async def sweep(self, *, before: float) -> int:
        """See AttachmentStore."""
        return await self._call(self._sweep, before)

    def _incoming(self, attachment_id: str) -> str:
        return f"{self._place.prefix}incoming/{attachment_id}"

    def _object(self, attachment_id: str) -> str:
        return f"{self._place.prefix}objects/{attachment_id}"

    def _promote(self, item: Attachment) -> None:
        bucket, source = self._place.bucket, self._incoming(item.attachment_id)
        done = self._head(self._object(item.attachment_id))
        if done is not None and done["ContentLength"] == item.size_bytes:
            self._client.delete_object(Bucket=bucket, Key=source)
            return
        found = self._head(source)
        if found is None:
            raise not_uploaded("nothing was uploaded")
        if found["ContentLength"] != item.size_bytes:
            raise not_uploaded(f"{found['ContentLength']} bytes were uploaded")
        if item.sha256 and not hmac.compare_digest(
            self._digest(source, found["ETag"]), item.sha256
        ):
            raise not_uploaded("what was uploaded has another SHA-256")
        # Copy the bytes that were checked, not others that may have been uploaded since.
        self._client.copy_object(
            Bucket=bucket,
            Key=self._object(item.attachment_id),
            CopySource={"Bucket": bucket, "Key": source},
            CopySourceIfMatch=found["ETag"],
        )
        self._client.delete_object(Bucket=bucket, Key=source)

    def _head(self, key: str) -> Any:
        from botocore.exceptions import ClientError  # noqa: PLC0415

        try:
            return self._client.head_object(Bucket=self._place.bucket, Key=key)
        except ClientError as error:
            if _code(error) in _GONE:
                return None
            raise

    def _digest(self, key: str, etag: str) -> str:
        """Read an object and return its SHA-256, as few makers' servers tell one."""
        digest = hashlib.sha256()
        found = self._client.get_object(Bucket=self._place.bucket, Key=key, IfMatch=etag)
        with closing(found["Body"]) as body:
            for chunk in body.iter_chunks(_READ_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def _sweep(self, before: float) -> int:
        bucket, removed = self._place.bucket, 0
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=f"{self._place.prefix}incoming/"
        )
        for page in pages:
            for entry in page.get("Contents", ()):
                if entry["LastModified"].timestamp() < before:
                    self._client.delete_object(Bucket=bucket, Key=entry["Key"])
                    removed += 1
        return removed

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def _call(self, work: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Run a call of botocore. Raises Unavailable for any failure of the bucket."""
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            return await self._on_thread(lambda: work(*arguments, **named))
        except (BotoCoreError, ClientError, OSError) as error:
            if isinstance(error, ClientError) and _code(error) in _CHANGED:
                raise not_uploaded("other bytes came while these were checked") from error
            why = _code(error) if isinstance(error, ClientError) else type(error).__name__
            get_logger().warning("attachments_bucket_failed", error=why)
            raise Unavailable(
                f"the bucket of attachments doesn't answer as it should ({why}); try again",
                retry_after=1.0,
            ) from error


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
