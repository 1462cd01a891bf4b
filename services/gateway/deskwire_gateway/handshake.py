"""The handshake: Hello and Welcome, Resume of an earlier session, and the Refresh of a token."""

from __future__ import annotations

from typing import Final

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire_common.auth import Principal, Role, TokenVerifier
from deskwire_common.errors import DeskwireError, PermissionDenied, ResourceExhausted
from deskwire_common.metrics import METRICS
from deskwire_common.validation import Validator
from deskwire_gateway.registry import Registry
from deskwire_gateway.session import Session, same_user
from deskwire_wire.batches import encoded
from deskwire_wire.codes import Close
from deskwire_wire.errors import error_batch

_MAY_CONNECT: Final = frozenset({Role.VISITOR, Role.AGENT, Role.BOT})
_FETCH_SECONDS: Final = 1.0
"""After how long who came with an expired token may come with a new one."""


class Handshake:
    """Lets users in by their tokens."""

    def __init__(self, registry: Registry, verifier: TokenVerifier, validator: Validator) -> None:
        self._registry = registry
        self._verifier = verifier
        self._validator = validator

    def hello(self, session: Session, hello: frame_pb2.Hello) -> None:
        """Let a user in, or say Goodbye."""
        try:
            self._validator.check(hello)
            principal, expires = self._verifier.verify_with_expiry(hello.token)
            if principal.role not in _MAY_CONNECT:
                raise PermissionDenied(f"role {principal.role.value} connects over gRPC calls only")
        except DeskwireError as error:
            self._turn_away(session, error)
            return
        if hello.HasField("resume"):
            earlier = self._registry.resumable(hello.resume, principal)
            if earlier is not None:
                _set_token(earlier, hello.token, principal, expires)
                self._resume(earlier, session, hello.resume.last_number)
                return
        try:
            self._registry.check_tenant(principal.tenant)
        except DeskwireError as error:
            self._turn_away(session, error)
            return
        _set_token(session, hello.token, principal, expires)
        session.client = hello.client
        session.device_id = hello.device_id
        self._registry.enter(session, principal)
        self._welcome(session)
        if hello.HasField("resume"):
            session.transport.send(encoded(resumed=frame_pb2.Resumed(reset=True)))
        self._registry.announce(session)

    def _turn_away(self, session: Session, error: DeskwireError) -> None:
        """Say Goodbye: for good only when neither time nor a new token of the same kind can help."""
        METRICS.gateway_refused.labels(error.reason_name).inc()
        session.transport.send(error_batch(error))
        expired = error.reason == reasons.ERROR_REASON_TOKEN_EXPIRED
        if isinstance(error, ResourceExhausted):
            code = Close.NO_ROOM
        elif expired or error.temporary:
            code = Close.TOKEN_EXPIRED
        else:
            code = Close.TOKEN_REFUSED
        self._registry.goodbye(
            session,
            code,
            error.reason,
            error.message,
            after=error.retry_after or (_FETCH_SECONDS if expired else 0.0),
        )

    def _welcome(self, session: Session) -> None:
        limits = self._registry.limits
        welcome = frame_pb2.Welcome(
            session_id=session.session_id,
            max_message_bytes=limits.max_message_bytes,
            max_unacked_sends=limits.max_unacked_sends,
            max_calls=limits.max_calls,
            user=session.actor(),
        )
        welcome.ping_interval.FromMilliseconds(int(self._registry.ping_interval(session) * 1000))
        welcome.token_expire_time.FromSeconds(int(session.expires))
        welcome.backoff.initial.FromMilliseconds(int(limits.backoff_initial * 1000))
        welcome.backoff.max.FromMilliseconds(int(limits.backoff_max * 1000))
        welcome.resume_window.FromMilliseconds(int(limits.resume_window * 1000))
        session.transport.send(encoded(welcome=welcome))

    def _resume(self, session: Session, fresh: Session, last: int) -> None:
        """Move an earlier session to the connection on which its client has come back."""
        presence = self._registry.presence
        fresh.closed = True
        before, session.transport = session.transport, fresh.transport
        session.transport.session = session
        session.seen = fresh.seen
        # The client sends again whatever it sent on the broken connection without an answer.
        session.unacked = 0
        parked, session.parked = session.parked, 0.0
        if not parked:
            # The server hadn't noticed yet that the connection was broken.
            before.close(Close.SILENT, "resumed on another connection")
        missed = session.ring.after(last) if session.ring is not None else []
        if session.ring is None and last != session.sent:
            missed = None
        self._welcome(session)
        session.transport.send(encoded(resumed=frame_pb2.Resumed(lossless=missed is not None)))
        METRICS.gateway_resumes.labels("lossless" if missed is not None else "lossy").inc()
        if missed is None:
            # A session that is attached again gets the Heads.
            presence.detach(session)
            presence.attach(session)
        elif parked:
            presence.unpark(session)
        if missed:
            session.transport.send(b"".join(missed))

    def refresh(self, session: Session, refresh: frame_pb2.Refresh) -> None:
        """Take a new token of the same user; a refused one changes nothing."""
        self._validator.check(refresh)
        try:
            principal, expires = self._verifier.verify_with_expiry(refresh.token)
            if not same_user(session.principal, principal):
                raise PermissionDenied("the new token is another user's; connect with it instead")
        except DeskwireError as error:
            METRICS.gateway_refused.labels(error.reason_name).inc()
            session.transport.send(error_batch(error))
            return
        _set_token(session, refresh.token, principal, expires)
        refreshed = frame_pb2.Refreshed()
        refreshed.token_expire_time.FromSeconds(int(expires))
        session.transport.send(encoded(refreshed=refreshed))


def _set_token(session: Session, token: str, principal: Principal, expires: float) -> None:
    """Use this token for the session from now on. A visitor's token isn't kept, as there are so many visitors."""
    session.principal = principal
    session.expires = expires
    session.token = token if principal.role is not Role.VISITOR else ""
