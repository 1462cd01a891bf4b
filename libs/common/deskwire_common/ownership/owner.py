"""The owner: this process as one of its service. It lives while it renews its lease, and owns its share of the slots.

The database decides, and clocks only decide when to try: a slot is claimed by compare-and-set as its next term, and a
write proves the term. A lease is its end in microseconds, which each process writes by its own clock and others read by
theirs. While clocks differ by less than two thirds of a lease, no living process is taken for dead; when they differ by
more, slots change owners needlessly, and nothing is lost. A dead process is replaced at the first look after the end of
its lease: lease + difference of the clocks + look.
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
from deskwire_common.ownership.shares import Duties, Holdings, IdsOf, Share
from deskwire_common.ownership.slots import SlotT, slot_rows, slots_table
from deskwire_common.ownership.workers import Work, Workers

LEASE_SECONDS: Final = 9.0
"""Seconds of a lease: a dead process is replaced within 15 s."""
LOOK_SECONDS: Final = 0.5
PATIENCE: Final = 2.0
_WAITING_SECONDS: Final = 0.1
"""Seconds between two looks while another process still has a slot that should be this one's."""
_STUCK_LEASES: Final = 3
"""A look that lasts longer than this many leases counts as stuck; a handover takes seconds, never so long."""
_FORGET_LEASES: Final = 20
"""A dead process is forgotten this many leases after the end of its own."""


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
        """`instance`: an id of this life of the process. `alone`: something else ensures that there is no other."""
        self.db = db
        self.clock = clock
        self.live: dict[str, Member] = {}
        """The living members by name, as of the last look."""
        metadata = new_metadata()
        self._members = Members(metadata)
        self._slots = slots_table(metadata)
        self._lease = Lease(db, self._members, clock, instance, lease_seconds)
        self._look_seconds = lease_seconds / 3 if alone else look_seconds
        self._alone = alone
        self._shares: dict[str, Share[Any]] = {}
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
        """The address at which others reach this process; "" until it has started."""
        return self._lease.me.address

    # ---------------------------------------------------------------------------------------- slots

    def add(
        self,
        holdings: Holdings[SlotT],
        duties: Duties[SlotT],
        ids: Collection[Any] | IdsOf,
        *,
        outlives_lease: bool = False,
    ) -> None:
        """Own a share of one more kind of slots, and do `duties` for it; see Share. Call this before `start`."""
        share = Share(self, holdings, duties, ids, outlives_lease=outlives_lease)
        self._shares[holdings.kind] = share

    def adopt(
        self,
        kind: str,
        found: Iterable[SlotT],
        keep: Callable[[SlotT, SlotT], None] | None = None,
    ) -> None:
        """Drop the slots of a kind that another has claimed. Calls `keep` with (our slot, the row) for the others."""
        self._shares[kind].adopt(found, keep)

    def employ(
        self,
        kind: str,
        work: Work,
        *,
        ids: Collection[str] | IdsOf = ("all",),
        outlast: tuple[type[Exception], ...] = AWAY,
        patience: float = PATIENCE,
    ) -> None:
        """Do `work` for each slot of a kind while this process owns it. Call this before `start`.

        Work that raises one of `outlast` begins again; any other error ends `run`. When the slot is given up, the work
        has `patience` seconds to end by itself, then it is cancelled.
        """
        rows = slot_rows(self._slots, kind)
        workers = Workers(self, kind, rows, work, outlast=outlast, patience=patience)
        self._workers.append(workers)
        self.add(Holdings(kind, rows), workers, ids)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever the living members or the owners have changed. It must not block."""
        self._listeners.append(callback)

    async def wait_for_change(self, seconds: float) -> None:
        """Return when the owners have changed, or after a while."""
        await loops.wait(self._changed, seconds)

    def lease_holds(self) -> bool:
        """Whether, by its own clock, nobody can have taken this process for dead."""
        return self._lease.left > 0

    def crashed(self, error: Exception) -> None:
        """Make `run` raise this error, which is no outage."""
        if not self._crash.done():
            self._crash.set_exception(error)

    # ----------------------------------------------------------------------------------------- life

    async def start(self, name: str, address: str) -> None:
        """Become a member, and claim the free slots at once. Raises Unavailable.

        `name` identifies this process across its lives: the next one, with the same name, takes over at once.
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
                # It ends with an exception, or not at all: after leaving it goes on until the process is stopped.
                await self._crash
        finally:
            self._drop(self._shares.values())
            for workers in self._workers:
                await workers.close()

    async def leave(self) -> None:
        """Give all slots up to the others, or to the next life, and leave."""
        self._closing = True
        async with self._looking:
            try:
                for share in reversed(self._shares.values()):
                    await share.give_up(set(share.holdings.owned))
                await self._lease.end()
            except AWAY as error:
                # The lease ends by itself.
                get_logger().warning("slots_not_given_up", error=str(error))
            self._drop(self._shares.values())
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
                # Other processes may have working connections: let them take over.
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
        """Stop the work that must not outlive the lease, also when the database doesn't answer at all."""
        while not self._closing:
            left = self._lease.left
            if left <= 0:
                self._lapse()
            await asyncio.sleep(left if left > 0 else self._lease.seconds / 30)

    async def _keep_shares(self) -> None:
        while not self._closing:
            missing = any(each.missing for each in self._shares.values())
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
        """Read who lives and who owns what; give up the slots that are too many, claim those that are missing."""
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
            # This process stood still, or the database was away: others may have taken it for dead.
            await self._renew_lease()
        everybody = await self._see_all()
        # A new member is only announced at this look, and gets slots at the next one.
        names = [each for each in sorted(self.live) if first or each in self._planned]
        self._planned = sorted(self.live)
        for share in self._shares.values():
            await share.settle([] if self._superseded else names)
        long_ago = self._lease.now() - int(self._lease.seconds * _FORGET_LEASES * 1_000_000)
        dead = [each for each in everybody if each.lease_until < long_ago]
        if dead:
            await self._lease.forget(dead)

    def _is_stuck(self) -> bool:
        """Whether a look doesn't end: perhaps nobody answers on its connection any more."""
        since = self._looking_since
        return (
            since is not None
            and self.clock.monotonic() - since > _STUCK_LEASES * self._lease.seconds
        )

    async def _see_all(self) -> list[Member]:
        async with self.db.read() as c:
            everybody = await self._members.load(c)
            found = [await share.load(c) for share in self._shares.values()]
        live = self._living(everybody)
        for number, (share, rows) in enumerate(zip(self._shares.values(), found, strict=True)):
            if await share.create(rows, live):
                async with self.db.read() as c:
                    found[number] = await share.load(c)
        self._see(live, found)
        return everybody

    def _living(self, everybody: Iterable[Member]) -> dict[str, Member]:
        now = self._lease.now()
        return {
            member.name: member
            for member in everybody
            if member.lease_until > now or member.instance == self._lease.me.instance
        }

    def _see(self, live: dict[str, Member], found: Sequence[Sequence[Any]]) -> None:
        before = self._picture()
        other_life = live.get(self.name)
        self.live = {self.name: self._lease.me} if self._alone else live
        if other_life is not None and other_life.instance != self._lease.me.instance:
            self._step_aside()
        else:
            self._superseded = False
        for share, rows in zip(self._shares.values(), found, strict=True):
            share.see(rows)
        if self._picture() != before:
            self.changed()

    def _picture(self) -> tuple[dict[str, str], list[dict[Any, tuple[str, int]]]]:
        """Who lives and who owns what."""
        lives = {each.name: each.instance for each in self.live.values()}
        return lives, [each.holdings.owners() for each in self._shares.values()]

    async def may_claim(self, c: AsyncConnection) -> Callable[[str], bool] | None:
        """Return the test for owners whose slots may be claimed; None while this process isn't a living member."""
        now = self._lease.now()
        living = [each for each in await self._members.load(c) if each.lease_until > now]
        if not any(each.instance == self._lease.me.instance for each in living):
            return None
        live = {each.name for each in living}
        return lambda owner: self._alone or owner in {"", self.name} or owner not in live

    def _step_aside(self) -> None:
        """Another process, a newer life, has the name of this one."""
        if not self._superseded:
            get_logger().error("superseded", member=self.name)
        self._superseded = True
        self._drop(self._shares.values())

    def _lapse(self) -> None:
        """Others may already have this process's slots."""
        self._drop([each for each in self._shares.values() if not each.outlives_lease])

    def _drop(self, shares: Iterable[Share[Any]]) -> None:
        for share in shares:
            share.drop(set(share.holdings.owned))

    def changed(self) -> None:
        """Tell all listeners that the living members or the owners have changed."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for listener in self._listeners:
            listener()
