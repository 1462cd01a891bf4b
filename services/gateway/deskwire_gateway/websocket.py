"""The WebSocket side: picows as the transport of sessions.

Sizes are chosen for many idle connections: a read buffer of 2 KiB and no TLS here keep one below 10 KB.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import socket
import time
from http import HTTPStatus
from typing import Any, Final

import picows
from picows.picows import WSProtocol  # type: ignore[attr-defined] # as picows itself does

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_common.errors import InvalidArgument, ResourceExhausted
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_gateway.admission import Bucket
from deskwire_gateway.arrivals import Acceptor
from deskwire_gateway.frames import slow_reader
from deskwire_gateway.protocol import READABLE, Protocol
from deskwire_gateway.session import Session
from deskwire_wire.codes import Close
from deskwire_wire.limits import SUBPROTOCOL

PATH: Final = "/ws"
_READ_BUFFER: Final = 2_048
_LAST_WORDS: Final = 10.0
"""Seconds for which a connection that ends waits for its client to read what was sent."""
_UPGRADE_SECONDS: Final = 5.0
"""Seconds in which the upgrade request has to be complete."""
_BACKLOG: Final = 4_096
"""Connections that wait in the kernel until they are accepted."""


class _Connection(picows.WSListener):
    """One WebSocket; also the Transport of its session."""

    __slots__ = ("_max_buffered", "_parts", "_protocol", "_resting", "_ws", "session")

    name = "websocket"

    def __init__(self, protocol: Protocol, max_buffered: int) -> None:
        super().__init__()
        self._protocol = protocol
        self._max_buffered = max_buffered
        self._ws: Any = None
        self.session: Session | None = None
        self._parts: bytearray | None = None
        self._resting = False

    # picows calls these

    def on_ws_connected(self, transport: Any) -> None:
        self._ws = transport
        self._protocol.registry.open(self)

    def on_ws_disconnected(self, _transport: Any) -> None:
        self._ws = None
        self._protocol.registry.disconnected(self)

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        session = self.session
        if session is None:
            return
        try:
            self._frame(session, transport, frame)
        except Exception:  # noqa: BLE001 - whatever it is, only this connection ends
            get_logger().exception("frame_failed", session_id=session.session_id)
            transport.send_close(Close.GOING_AWAY)
            transport.disconnect()

    def _frame(self, session: Session, transport: Any, frame: Any) -> None:
        kind = frame.msg_type
        if kind == picows.WSMsgType.BINARY and frame.fin:
            self._protocol.receive(session, frame.get_payload_as_bytes())
        elif kind == picows.WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code() or picows.WSCloseCode.OK)
            transport.disconnect()
        elif kind in {picows.WSMsgType.BINARY, picows.WSMsgType.CONTINUATION}:
            self._fragment(session, kind, frame)
        elif kind == picows.WSMsgType.TEXT:
            self._protocol.fault(
                session,
                InvalidArgument(
                    "text frames are not spoken here: send an encoded Batch as a binary frame",
                    reason=reasons.ERROR_REASON_MALFORMED_FRAME,
                ),
            )

    def _fragment(self, session: Session, kind: Any, frame: Any) -> None:
        if kind == picows.WSMsgType.BINARY:
            self._parts = bytearray()
        if self._parts is None:
            return
        self._parts += frame.get_payload_as_bytes()
        if len(self._parts) > READABLE * self._protocol.registry.limits.max_message_bytes:
            self._parts = None
            self._protocol.refuse_large(session)
        elif frame.fin:
            data, self._parts = bytes(self._parts), None
            self._protocol.receive(session, data)

    # as the transport of a session

    def send(self, data: bytes) -> None:
        """Send one encoded Batch; a reader that is too slow is closed instead."""
        ws = self._ws
        if ws is None:
            return
        if ws.underlying_transport.get_write_buffer_size() > self._max_buffered:
            METRICS.gateway_dropped.labels("slow_reader").inc()
            METRICS.gateway_closed.labels("slow_reader").inc()
            # The Goodbye goes behind what waits, for a reader that is slow and not gone.
            ws.send(picows.WSMsgType.BINARY, slow_reader())
            self.close(Close.SLOW_READER, "slow reader")
            return
        ws.send(picows.WSMsgType.BINARY, data)

    def close(self, code: int, text: str) -> None:
        """Close after the batches that were sent."""
        ws, self._ws = self._ws, None
        if ws is not None:
            # A control frame's payload has at most 125 bytes (RFC 6455, 5.5), two of them the code.
            ws.send_close(code, text.encode()[:120].decode(errors="ignore").encode())
            if ws.underlying_transport.get_write_buffer_size():
                # A half-open connection would last until the kernel gives up, after a quarter of an hour.
                loop = asyncio.get_running_loop()
                loop.call_later(_LAST_WORDS, ws.underlying_transport.abort)
            ws.disconnect()

    def rest(self, seconds: float) -> None:
        """Read nothing more of the client for a while."""
        ws = self._ws
        if ws is None or self._resting:
            return
        self._resting = True
        ws.underlying_transport.pause_reading()
        asyncio.get_running_loop().call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._resting = False
        if self._ws is not None:
            self._ws.underlying_transport.resume_reading()


def listen(
    protocol: Protocol,
    host: str,
    port: int,
    *,
    max_buffered: int,
    accept_rate: float = 0.0,
    reuse_port: bool = False,
) -> Acceptor:
    """Serve WebSockets at /ws, and GET /health. Raises OSError when the port is taken.

    `accept_rate`: new connections a second; others are told when to come back. 0: no limit.
    `reuse_port`: other processes listen on it too, and the kernel spreads connections over them.
    """
    # picows logs clients' mistakes as errors; this service logs its own.
    logger = logging.getLogger("picows.server")
    logger.setLevel(logging.CRITICAL)
    upgrades = _Upgrades(protocol, max_buffered, accept_rate)

    def made() -> WSProtocol:
        # As picows.ws_create_server does, which accepts all that wait at once.
        return WSProtocol(
            None,  # host and port,
            None,  # and path: of a client
            False,
            upgrades.answer,
            logger,
            True,  # disconnect_on_exception
            _UPGRADE_SECONDS,
            False,  # automatic pings: none
            0.0,
            0.0,
            picows.WSAutoPingStrategy.PING_WHEN_IDLE,
            True,  # automatic pongs
            READABLE * protocol.registry.limits.max_message_bytes,
            None,  # more headers: of a client
            _READ_BUFFER,
        )

    listening = socket.create_server(
        (host, port),
        family=socket.AF_INET6 if ":" in host else socket.AF_INET,
        backlog=_BACKLOG,
        reuse_port=reuse_port,
    )
    acceptor = Acceptor(listening, made)
    acceptor.start()
    return acceptor


class _Upgrades:
    """Answers to the requests with which connections begin."""

    def __init__(self, protocol: Protocol, max_buffered: int, accept_rate: float) -> None:
        self._protocol = protocol
        self._max_buffered = max_buffered
        self._rate = Bucket(accept_rate, time.monotonic()) if accept_rate else None

    def answer(self, request: Any) -> Any:
        """Return picows' response to a request; None: 404."""
        registry = self._protocol.registry
        path = request.path.decode("ascii", "replace").partition("?")[0]
        if path == "/health":
            return _answer(
                HTTPStatus.OK, {"status": "SERVING", "connections": registry.connections}
            )
        if path != PATH:
            return None
        offered = {
            part.strip() for part in request.headers.get("sec-websocket-protocol", "").split(",")
        }
        if SUBPROTOCOL not in offered:
            return _answer(
                HTTPStatus.BAD_REQUEST, {"error": f"offer the WebSocket subprotocol {SUBPROTOCOL}"}
            )
        try:
            registry.check_room()
        except ResourceExhausted as error:
            return _later(error.message, error.retry_after or 1.0)
        wait = self._rate.take(time.monotonic()) if self._rate is not None else 0.0
        if wait:
            METRICS.gateway_refused.labels("accept_rate").inc()
            return _later("too many connections are opened at once", wait)
        response = picows.WSUpgradeResponse.create_101_response(
            extra_headers={"Sec-WebSocket-Protocol": SUBPROTOCOL}
        )
        return picows.WSUpgradeResponseWithListener(
            response, _Connection(self._protocol, self._max_buffered)
        )


def _later(why: str, seconds: float) -> Any:
    again = {"Retry-After": str(math.ceil(seconds))}
    return _answer(HTTPStatus.SERVICE_UNAVAILABLE, {"error": why}, again)


def _answer(status: HTTPStatus, body: dict[str, Any], headers: dict[str, str] | None = None) -> Any:
    encoded = json.dumps(body).encode()
    if status is HTTPStatus.OK:
        response = picows.WSUpgradeResponse.create_ok_response(encoded)
    else:
        response = picows.WSUpgradeResponse.create_error_response(status, encoded, headers)
    return picows.WSUpgradeResponseWithListener(response, None)
