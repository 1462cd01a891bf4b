"""How often a wrong secret may be tried."""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from deskwire.common.v1.error_reason_pb2 import ErrorReason
from deskwire_common.clock import Clock
from deskwire_common.errors import ResourceExhausted, Unauthenticated

PEER_BURST, PEER_SECONDS = 20, 3.0
"""A peer may be wrong so often at once, and then once in so many seconds."""
NAME_BURST, NAME_SECONDS = 10, 6.0
"""The same for one name, whoever tries."""
_KEPT: Final = 10_000
_PROVED_SECONDS: Final = 86_400.0


class Guesses:
    """Bounds wrong secrets by the peer who tries them and by the name that they are tried on, within one process.

    Nobody's guesses lock the owner out: a secret that was right here within a day is always let through to be checked,
    and a peer who wasn't wrong lately has a try at every name. Memory is bounded: of 10,000 peers, names and proved
    secrets each, the one that was used longest ago is forgotten.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._peers = _Buckets(PEER_BURST, PEER_SECONDS)
        self._names = _Buckets(NAME_BURST, NAME_SECONDS)
        self._proved: OrderedDict[str, tuple[bytes, float]] = OrderedDict()

    @contextmanager
    def one(self, name: str, peer: str, secret: bytes) -> Iterator[None]:
        """Check a secret during the block, which raises Unauthenticated when it is wrong.

        `name` says what the secret is tried on; "": nothing that could exist. Raises ResourceExhausted (RATE_LIMITED)
        with the seconds to wait, before the block, when peer or name have had too many.
        """
        digest = hashlib.sha256(secret).digest()
        if counted := not self._is_proved(name, digest):
            # Before the check: tries at the same time would all pass otherwise.
            self._take(name, peer)
        try:
            yield
        except Unauthenticated:
            if not counted:
                # It was right once: its key is revoked.
                self._proved.pop(name, None)
            raise
        except BaseException:
            self._give_back(name, peer, counted=counted)
            raise
        self._give_back(name, peer, counted=counted)
        self._proved[name] = digest, self._clock.monotonic() + _PROVED_SECONDS
        self._proved.move_to_end(name)
        if len(self._proved) > _KEPT:
            self._proved.popitem(last=False)

    def _is_proved(self, name: str, digest: bytes) -> bool:
        known, until = self._proved.get(name, (b"", 0.0))
        return hmac.compare_digest(known, digest) and self._clock.monotonic() < until

    def _take(self, name: str, peer: str) -> None:
        now = self._clock.monotonic()
        wait = self._peers.wait(peer, now)
        if name and not self._peers.is_full(peer, now):
            wait = max(wait, self._names.wait(name, now))
        if wait > 0:
            raise ResourceExhausted(
                "too many wrong secrets were tried; try again later",
                reason=ErrorReason.ERROR_REASON_RATE_LIMITED,
                retry_after=wait,
            )
        self._peers.add(peer, -1, now)
        if name:
            self._names.add(name, -1, now)

    def _give_back(self, name: str, peer: str, *, counted: bool) -> None:
        if not counted:
            return
        now = self._clock.monotonic()
        self._peers.add(peer, 1, now)
        if name:
            self._names.add(name, 1, now)


class _Buckets:
    """Token buckets by key: `burst` tokens, and one more every `seconds`."""

    def __init__(self, burst: int, seconds: float) -> None:
        self._burst = burst
        self._seconds = seconds
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def _level(self, key: str, now: float) -> float:
        level, at = self._levels.get(key, (float(self._burst), now))
        return min(self._burst, level + (now - at) / self._seconds)

    def is_full(self, key: str, now: float) -> bool:
        return self._level(key, now) >= self._burst

    def wait(self, key: str, now: float) -> float:
        """Return the seconds until there is a token."""
        return max(0.0, (1 - self._level(key, now)) * self._seconds)

    def add(self, key: str, tokens: int, now: float) -> None:
        """Add tokens, or take them, down to none."""
        self._levels[key] = max(0.0, self._level(key, now) + tokens), now
        self._levels.move_to_end(key)
        if len(self._levels) > _KEPT:
            self._levels.popitem(last=False)
