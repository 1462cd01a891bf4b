"""The directory store's HTTP side: signed PUT and GET, and nothing else.

An ingress in front ends TLS. URLs are never logged, as whoever has one may use it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from aiohttp import ClientError, web

from deskwire_chat.attachments.directory import Folder, NotAsDeclared, Upload
from deskwire_chat.attachments.signing import PATH, Signatures
from deskwire_chat.domain.attachments import disposition
from deskwire_common.ids import is_uuid
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS

IDLE_SECONDS: Final = 30.0
"""An upload that sends nothing for this long is ended."""
_WRITE_BYTES: Final = 512 * 1024
"""How many bytes are gathered before a thread writes them, and so how many an upload holds in memory."""
_READ_BYTES: Final = 256 * 1024
_CORS_SECONDS: Final = 600


class FilesSide:
    """The HTTP server of one process."""

    def __init__(
        self,
        folder: Folder,
        signatures: Signatures,
        *,
        max_transfers: int,
        transfer_seconds: float,
        cors_origins: Sequence[str] = (),
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        """`max_transfers` bounds uploads, and downloads, at once; `cors_origins`: whose pages may use it, `*` all."""
        self._folder = folder
        self._signatures = signatures
        self._max_transfers = max_transfers
        self._transfer_seconds = transfer_seconds
        self._idle_seconds = idle_seconds
        self._origins = frozenset(each.strip() for each in cors_origins if each.strip())
        self._open = {"PUT": 0, "GET": 0}
        app = web.Application()
        app.router.add_put(f"{PATH}{{id}}", self._put)
        app.router.add_get(f"{PATH}{{id}}", self._get)
        app.router.add_route("OPTIONS", f"{PATH}{{id}}", self._options)
        app.on_response_prepare.append(self._add_headers)
        self._runner = web.AppRunner(app, access_log=None, keepalive_timeout=15, shutdown_timeout=5)

    async def listen(self, host: str, port: int) -> int:
        """Start serving; return the port. Raises OSError when the port is taken."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        """Take no new requests, give transfers some seconds to finish, and stop."""
        await self._runner.cleanup()

    # ------------------------------------------------------------------------------------ requests

    async def _put(self, request: web.Request) -> web.Response:
        attachment_id = self._checked("PUT", request)
        size, sha256 = int(request.query["size"]), request.query["sha256"]
        given = request.content_length
        if given is not None and given > size:
            raise web.HTTPRequestEntityTooLarge(
                size, given, text=f"{size} bytes were declared, {given} are coming\n"
            )
        if given is not None and given != size:
            raise web.HTTPBadRequest(text=f"{size} bytes were declared, {given} are coming\n")
        if request.headers.get("Content-Type", "") != request.query["type"]:
            raise web.HTTPBadRequest(text=f"send Content-Type: {request.query['type']}\n")
        if await self._folder.on_thread(self._folder.object_path(attachment_id).exists):
            raise web.HTTPConflict(text="the attachment is complete: its bytes stay as they are\n")
        with self._slot("PUT"):
            upload = self._folder.receive(attachment_id, size=size, sha256=sha256)
            try:
                async with asyncio.timeout(self._transfer_seconds):
                    await self._receive(request, upload)
            except NotAsDeclared as error:
                raise web.HTTPBadRequest(text=f"refused: {error}\n") from error
            except TimeoutError as error:
                raise web.HTTPRequestTimeout(text="too slow: begin again\n") from error
            except (ClientError, ConnectionError, web.RequestPayloadError) as error:
                raise web.HTTPBadRequest(text="the upload broke off\n") from error
            except OSError as error:
                get_logger().error("attachment_not_written", error=str(error))
                raise web.HTTPInsufficientStorage(text="it can't be written now\n") from error
            finally:
                upload.abort()  # does nothing after a commit
        METRICS.attachment_bytes.labels("in").inc(size)
        return web.Response(text="")

    async def _receive(self, request: web.Request, upload: Upload) -> None:
        waiting = bytearray()
        while True:
            async with asyncio.timeout(self._idle_seconds):
                chunk = await request.content.readany()
            waiting += chunk
            if len(waiting) >= _WRITE_BYTES or (waiting and not chunk):
                await upload.write(bytes(waiting))
                waiting.clear()
            if not chunk:
                break
        await upload.commit()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        attachment_id = self._checked("GET", request)
        path = self._folder.object_path(attachment_id)
        if not await self._folder.on_thread(path.is_file):
            raise web.HTTPNotFound(text="the attachment is gone\n")
        headers = {
            "Content-Type": request.query["type"],
            "Content-Disposition": disposition(request.query["name"]),
            "Cache-Control": "private, no-store",
        }
        response = web.FileResponse(path, chunk_size=_READ_BYTES, headers=headers)
        with self._slot("GET"):
            try:
                async with asyncio.timeout(self._transfer_seconds):
                    await response.prepare(request)
            except TimeoutError:
                # The response has begun: it can only be ended short of its Content-Length.
                if request.transport is not None:
                    request.transport.abort()
                return response
        if request.method == "GET":
            METRICS.attachment_bytes.labels("out").inc(response.content_length or 0)
        return response

    async def _options(self, request: web.Request) -> web.Response:
        if not self._allows(request):
            raise web.HTTPForbidden(text="not for pages of this origin\n")
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": "GET, HEAD, PUT",
                "Access-Control-Allow-Headers": "Content-Type",
                "Access-Control-Max-Age": str(_CORS_SECONDS),
            },
        )

    # --------------------------------------------------------------------------------------- rules

    def _checked(self, method: str, request: web.Request) -> str:
        """Return the attachment of a URL that is valid for the method."""
        attachment_id = request.match_info["id"]
        query = dict(request.query)
        refusal = self._signatures.refusal(method, attachment_id, query)
        if refusal or len(query) != len(request.query) or not is_uuid(attachment_id):
            raise web.HTTPForbidden(text=f"{refusal or 'no such URL is signed here'}\n")
        return attachment_id

    @contextmanager
    def _slot(self, method: str) -> Iterator[None]:
        if self._open[method] >= self._max_transfers:
            raise web.HTTPServiceUnavailable(
                text="too many at a time: try again\n", headers={"Retry-After": "1"}
            )
        self._open[method] += 1
        try:
            yield
        finally:
            self._open[method] -= 1

    def _allows(self, request: web.Request) -> bool:
        return "*" in self._origins or request.headers.get("Origin", "") in self._origins

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add headers to every response: browsers must neither run it nor guess its type."""
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
        response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers.pop("Server", None)
        if self._origins:
            response.headers["Vary"] = "Origin"
            if self._allows(request):
                response.headers["Access-Control-Allow-Origin"] = request.headers.get("Origin", "*")
