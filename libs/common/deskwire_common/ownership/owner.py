"""This process among the others of its service: it lives as long as it renews its lease, and owns its share of slots.

The database decides, and no clock is trusted with more than when to begin: a slot is claimed by compare-and-set as
its next term, and a write proves the term. Leases are ends in microseconds that each process writes by its own clock
and others read by theirs. While clocks differ by less than two thirds of a lease, no living process is taken for
dead; when they differ by more, slots change hands that needn't, and nothing is lost. A dead one is replaced when its
lease has ended, at the next look: lease + difference of the clocks + look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common import loops
from deskwire_common.clock import Clock
from deskwire_common.db import AWAY, Database
from deskwire_common.db import metadata as new_metadata
from deskwire_common.logging import get_logger
from deskwire_common.ownership.lease import Lease
from deskwire_common.ownership.members import Member, Members
from deskwire_common.ownership.shares import Duties, IdsOf, Share
from deskwire_common.ownership.slots import SlotT, slot_rows, slots_table
from deskwire_common.ownership.workers import Work, Workers

LEASE_SECONDS: Final = 9.0
"""A dead process is replaced within 15 s."""
LOOK_SECONDS: Final = 0.5
PATIENCE: Final = 2.0
_WAITING_SECONDS: Final = 0.1
"""Between two looks while a slot of ours is still another's."""
_STUCK_LEASES: Final = 3
"""Leases after which a look that has not ended counts as stuck; handing over takes seconds, never so long."""
_FORGET_LEASES: Final = 20
"""Leases after whose end a dead process is forgotten."""


class Owner:
    """This process, its lease, and its shares of all kinds of slots."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        instance: str,
        *,
        lease_seconds: float = LEASE_SECONDS,
        look_seconds: float = LOOK_SECONDS,
        alone: bool = False,
    ) -> None:
        """`instance`: an id of this life of the process. `alone`: nobody else can be, something else sees to that."""
        self.db = db
        self.clock = clock
        self.live: dict[str, Member] = {}
        """The living ones by name, as of the last look."""
        metadata = new_metadata()
        self._members = Members(metadata)
        self._slots = slots_table(metadata)
        self._lease = Lease(db, self._members, clock, instance, lease_seconds)
        self._look_seconds = lease_seconds / 3 if alone else look_seconds
        self._alone = alone
        self._shares: list[Share[Any]] = []
        self._workers: list[Workers] = []
        self._listeners: list[Callable[[], None]] = []
        self._planned: list[str] = []
        self._superseded = False
        self._closing = False
        self._crash: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._looking = asyncio.Lock()
        self._looking_since: float | None = None
        self.wake = asyncio.Event()
        """Set: look now."""
        self._changed = asyncio.Event()

    @property
    def name(self) -> str:
        """The name of this process; "" until it has started."""
        return self._lease.me.name

    @property
    def address(self) -> str:
        """Where others reach this process; "" until it has started."""
        return self._lease.me.address

    # ---------------------------------------------------------------------------------------- slots

    def add(self, share: Share[SlotT], duties: Duties[SlotT]) -> None:
        """Own a share of one more kind, before `start`."""
        share.bind(self, duties)
        self._shares.append(share)

    def employ(
        self,
        kind: str,
        work: Work,
        *,
        ids: Collection[str] | IdsOf = ("all",),
        outlast: tuple[type[Exception], ...] = AWAY,
        patience: float = PATIENCE,
    ) -> None:
        """Have `work` done for each slot of a kind while this process owns it, before `start`.

        It begins again when it raises of `outlast`; what else it raises ends `run`. When the slot is given up, it has
        `patience` seconds to end by itself, then it is cancelled.
        """
        rows = slot_rows(self._slots, kind)
        workers = Workers(self, kind, rows, work, outlast=outlast, patience=patience)
        self._workers.append(workers)
        self.add(Share(kind, rows, ids), workers)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call this whenever who lives or who owns what is another than before. It must not block."""
        self._listeners.append(callback)

    async def wait_for_change(self, seconds: float) -> None:
        """Return when who owns what is another than before, or after a while."""
        await loops.wait(self._changed, seconds)

    def lease_holds(self) -> bool:
        """Whether nobody can have taken this process for dead, by its own clock."""
        return self._lease.left > 0

    def crashed(self, error: Exception) -> None:
        """Have `run` raise this: what happened is no outage."""
        if not self._crash.done():
            self._crash.set_exception(error)

    # ----------------------------------------------------------------------------------------- life

    async def start(self, name: str, address: str) -> None:
        """Be there for others, and claim what is to be had at once. Raises Unavailable.

        `name` is the place of this process: its next life, with the same name, takes over at once.
        """
        await self._lease.take(name, address)
        await self.look(first=True)

    async def run(self) -> None:
        """Keep the lease and this process's shares until cancelled; outlasts a database that is away."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_lease())
                group.create_task(self._watch_lease())
                group.create_task(self._keep_shares())
                # It ends with an exception, or not at all: who has left goes on until the process is stopped.
                await self._crash
        finally:
            self._drop(self._shares)
            for each in self._workers:
                await each.close()

    async def leave(self) -> None:
        """Give everything up to the others, or to the next life, and be gone."""
        self._closing = True
        async with self._looking:
            try:
                for share in reversed(self._shares):
                    await share.give_up(set(share.owned))
                await self._lease.end()
            except AWAY as error:
                # The lease ends by itself.
                get_logger().warning("slots_not_given_up", error=str(error))
            self._drop(self._shares)
        self.live.pop(self.name, None)
        self.changed()

    async def _keep_lease(self) -> None:
        seconds = self._lease.seconds
        pauses = loops.Backoff(seconds / 30, seconds / 3)
        pause = seconds / 3
        while not self._closing:
            await asyncio.sleep(pause)
            if self._closing:
                return
            if self._is_stuck():
                # Others may have connections that answer: let them take over.
                get_logger().error("lease_given_up", member=self.name)
                continue
            try:
                await self._renew_lease()
            except AWAY as error:
                pause = pauses.next()
                get_logger().warning("lease_not_renewed", error=str(error))
                continue
            pauses.reset()
            pause = seconds / 3

    async def _watch_lease(self) -> None:
        """Stop what must not outlive the lease, also when the database doesn't answer at all."""
        while not self._closing:
            left = self._lease.left
            if left <= 0:
                self._lapse()
            await asyncio.sleep(left if left > 0 else self._lease.seconds / 30)

    async def _keep_shares(self) -> None:
        while not self._closing:
            missing = any(each.missing for each in self._shares)
            await loops.wait(self.wake, _WAITING_SECONDS if missing else self._look_seconds)
            self.wake.clear()
            try:
                await self.look()
            except AWAY as error:
                get_logger().warning("slots_not_shared", error=str(error))

    async def _renew_lease(self) -> None:
        if not await self._lease.renew():
            self._step_aside()

    # ----------------------------------------------------------------------------------------- look

    async def look(self, *, first: bool = False) -> None:
        """See who lives and who has what; give up what is too much, claim what is missing."""
        async with self._looking:
            if self._closing:
                return
            self._looking_since = self.clock.monotonic()
            try:
                await self._look(first=first)
            finally:
                self._looking_since = None

    async def _look(self, *, first: bool) -> None:
        if not self.lease_holds():
            # It stood still, or the database was away: others may have taken it for dead.
            await self._renew_lease()
        everybody = await self._see_all()
        # Somebody new is told of first, and gets slots at the next look.
        names = [each for each in sorted(self.live) if first or each in self._planned]
        self._planned = sorted(self.live)
        for share in self._shares:
            await share.settle([] if self._superseded else names)
        long_ago = self._lease.now() - int(self._lease.seconds * _FORGET_LEASES * 1_000_000)
        dead = [each for each in everybody if each.lease_until < long_ago]
        if dead:
            await self._lease.forget(dead)

    def _is_stuck(self) -> bool:
        """Whether a look doesn't end: its connection may be one that nobody answers any more."""
        since = self._looking_since
        return (
            since is not None
            and self.clock.monotonic() - since > _STUCK_LEASES * self._lease.seconds
        )

    async def _see_all(self) -> list[Member]:
        async with self.db.read() as c:
            everybody = await self._members.load(c)
            found = [await share.load(c) for share in self._shares]
        live = self._living(everybody)
        for number, (share, rows) in enumerate(zip(self._shares, found, strict=True)):
            if await share.create(rows, live):
                async with self.db.read() as c:
                    found[number] = await share.load(c)
        self._see(live, found)
        return everybody

    def _living(self, everybody: Iterable[Member]) -> dict[str, Member]:
        now = self._lease.now()
        return {
            each.name: each
            for each in everybody
            if each.lease_until > now or each.instance == self._lease.me.instance
        }

    def _see(self, live: dict[str, Member], found: Sequence[Sequence[Any]]) -> None:
        before = self._picture()
        other_life = live.get(self.name)
        self.live = {self.name: self._lease.me} if self._alone else live
        if other_life is not None and other_life.instance != self._lease.me.instance:
            self._step_aside()
        else:
            self._superseded = False
        for share, rows in zip(self._shares, found, strict=True):
            share.see(rows)
        if self._picture() != before:
            self.changed()

    def _picture(self) -> tuple[dict[str, str], list[dict[Any, tuple[str, int]]]]:
        """Who lives and who owns what."""
        lives = {each.name: each.instance for each in self.live.values()}
        return lives, [each.owners() for each in self._shares]

    async def may_claim(self, c: AsyncConnection) -> Callable[[str], bool] | None:
        """Return which owners' slots are to be had; None while this process itself isn't a living member."""
        now = self._lease.now()
        living = [each for each in await self._members.load(c) if each.lease_until > now]
        if not any(each.instance == self._lease.me.instance for each in living):
            return None
        live = {each.name for each in living}
        return lambda owner: self._alone or owner in {"", self.name} or owner not in live

    def _step_aside(self) -> None:
        """Another process has this one's name: a newer life."""
        if not self._superseded:
            get_logger().error("superseded", member=self.name)
        self._superseded = True
        self._drop(self._shares)

    def _lapse(self) -> None:
        """Others may have this process's slots by now."""
        self._drop([each for each in self._shares if not each.outlives_lease])

    def _drop(self, shares: Iterable[Share[Any]]) -> None:
        for each in shares:
            each.drop(set(each.owned))

    def changed(self) -> None:
        """Tell all who want to know that who lives or who owns what is another than before."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for each in self._listeners:
            each()
