"""Arrivals: new connections are accepted, and their Hellos read, a few at a time.

When a server has restarted, all of its clients come at once. Each costs a millisecond until it is connected; in the
pauses between portions everybody else's messages go on.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final

from deskwire_common.logging import get_logger
from deskwire_gateway.session import Session

ACCEPTS: Final = 4
"""Connections that are accepted between two pauses."""
HELLOS: Final = 2
"""Hellos that are read between two pauses; checking a token costs most."""
_SHORTEST: Final = 0.004
_LONGEST: Final = 0.016
"""Seconds of a pause, in which the loop turns several times."""
_LATE: Final = 0.004
"""Seconds by which a pause may be longer than it should before the next ones get longer."""
_REST: Final = 0.25
"""Seconds for which nothing more is read of a client whose Hello waits."""
_NO_DESCRIPTORS: Final = 0.1
"""Seconds until the next try when the process has no descriptor left."""


class Portions:
    """How many of a kind may begin now.

    A pause is as long as the loop needs: one that ends late, as the loop has much to do, is followed by a longer one.
    """

    def __init__(self, size: int, go_on: Callable[[], None]) -> None:
        """`size` of them begin in a portion; `go_on` is called when a pause is over for which `take` returned False."""
        self._size = size
        self._go_on = go_on
        self._left = size
        self._is_wanted = False
        self._pause = _SHORTEST
        self._due = 0.0

    def take(self) -> bool:
        """Return whether one more may begin."""
        if not self._left:
            self._is_wanted = True
            return False
        if self._left == self._size:
            loop = asyncio.get_running_loop()
            self._due = loop.time() + self._pause
            loop.call_at(self._due, self._over)
        self._left -= 1
        return True

    def _over(self) -> None:
        late = asyncio.get_running_loop().time() - self._due
        longer = min(_LONGEST, self._pause * 2)
        self._pause = longer if late > _LATE else max(_SHORTEST, self._pause * 0.9)
        self._left = self._size
        if self._is_wanted:
            self._is_wanted = False
            self._go_on()


class Hellos:
    """What clients have sent before their Hello was read, the longest waiting first."""

    def __init__(self, receive: Callable[[Session, bytes], None]) -> None:
        """`receive` handles a message."""
        self._receive = receive
        self._waiting: dict[Session, list[bytes]] = {}
        self._portions = Portions(HELLOS, self._go_on)

    def receive(self, session: Session, data: bytes) -> None:
        """Handle a message of a client that isn't connected yet, now or when it is its turn."""
        waiting = self._waiting.get(session)
        if waiting is not None:
            waiting.append(data)
        elif not self._waiting and self._portions.take():
            self._receive(session, data)
            return
        else:
            self._waiting[session] = [data]
            session.is_waiting = True
        session.transport.rest(_REST)

    def _go_on(self) -> None:
        while self._waiting:
            session = next(iter(self._waiting))
            if not session.closed and not self._portions.take():
                return
            session.is_waiting = False
            for data in self._waiting.pop(session):
                # Its Hello may resume an earlier session, which handles the rest.
                target = session.transport.session if session.closed else session
                if target is not None:
                    self._receive(target, data)


class Acceptor:
    """Accepts connections of a listening socket, a few at a time; the others wait in the kernel's queue."""

    def __init__(
        self, listening: socket.socket, protocol: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        """`protocol` makes the protocol of a connection."""
        self._socket = listening
        self._protocol = protocol
        self._portions = Portions(ACCEPTS, self._go_on)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        """Begin to accept."""
        self._socket.setblocking(False)
        self._go_on()

    def close(self) -> None:
        """Accept no more connections; those that are open stay."""
        if not self._is_closed:
            self._is_closed = True
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()

    def _go_on(self) -> None:
        if not self._is_closed:
            asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while self._portions.take():
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                get_logger().error("not_accepted", error=error.strerror)
                loop.remove_reader(self._socket)
                loop.call_later(_NO_DESCRIPTORS, self._go_on)
                return
            task = loop.create_task(self._open(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        loop.remove_reader(self._socket)

    async def _open(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        except OSError:
            connection.close()  # its client has gone
