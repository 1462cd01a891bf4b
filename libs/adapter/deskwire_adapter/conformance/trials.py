"""What is played. Each trial returns what it saw, or raises Fault, Warned or Skipped."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import grpc

from deskwire_adapter.conformance.peer import (
    GOOD,
    PUSH_SECONDS,
    Fault,
    Peer,
    Status,
    all_good,
    item,
    names,
)
from deskwire_adapter.conformance.subject import Subject
from deskwire_adapter.model import Outcome

_REFUSED: Final = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
_FLOOD: Final = 40
_LONGEST_WAIT: Final = 15.0
_SLOW: Final = 10.0
#: What breaks programs that take text for ASCII, numbers for doubles, or a line for a record.
_HOSTILE: Final = {
    "text": 'tab\t newline\n nul\u0000 quote" \u2028 \u202e עברית 客户 🧑‍💻',
    "whole": 2**63 - 1,
    "nested": {"a": [1, None, {"b": False}]},
}


class Warned(Exception):
    """Not wrong, and worth a look."""


class Skipped(Exception):
    """It can't be played; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial."""

    name: str
    play: Callable[[Subject], Awaitable[str]]


def about(what: str) -> str:
    """A subject that no run before had."""
    return f"conformance-{what}-{secrets.token_hex(4)}"


async def schema(subject: Subject) -> str:
    """Schema answers, with values that can be."""
    peer = Peer(subject)
    try:
        answer = await peer.schema()
    finally:
        await peer.__aexit__(None, None, None)
    if not answer.adapter:
        raise Warned("adapter is empty: say name and version of the program")
    if answer.max_batch > 1_000:
        raise Fault(f"max_batch is {answer.max_batch}: a Push has at most 1000 events")
    if answer.config_schema:
        try:
            parsed = json.loads(answer.config_schema)
        except ValueError as error:
            raise Fault(f"config_schema is no JSON: {error}") from error
        if not isinstance(parsed, dict):
            raise Fault("config_schema is no JSON object")
    return (
        f"{answer.adapter}, {len(answer.event_types) or 'all'} types, batches of {peer.max_batch}"
    )


async def sign_in(subject: Subject) -> str:
    """Auth opens a session, also a second one beside it."""
    async with Peer(subject) as one, Peer(subject) as two:
        for peer in (one, two):
            all_good(await peer.push([item(subject, about("auth"))]), "with a fresh session")
        return "two sessions side by side" if one.session else "it needs no session"


async def wrong_credentials(subject: Subject) -> str:
    """Wrong credentials are refused with the status that says so."""
    if not subject.credentials:
        raise Skipped("no credentials were given")
    async with Peer(subject) as peer:
        try:
            await peer.auth({name: f"{value}-wrong" for name, value in subject.credentials.items()})
        except Status as status:
            if status.code not in _REFUSED:
                raise Fault(f"answer UNAUTHENTICATED to wrong credentials: {status}") from status
            if any(value in status.details for value in subject.credentials.values()):
                raise Fault("its answer repeats the credentials") from status
            return status.code.name
    raise Fault("it took wrong credentials")


async def check(subject: Subject) -> str:
    """Check says that the system would take events."""
    async with Peer(subject) as peer:
        try:
            answer = await peer.check()
        except Status as status:
            if status.code is grpc.StatusCode.UNIMPLEMENTED:
                raise Warned("it has no Check: a registration can't tell a wrong one") from status
            raise
    if not answer.healthy:
        raise Fault(f"it isn't healthy: {answer.detail}")
    return "healthy"


async def delivery(subject: Subject) -> str:
    """One event is taken."""
    async with Peer(subject) as peer:
        results = await peer.push([item(subject, about("one"))])
    if Outcome(results[0].outcome) is Outcome.SKIPPED:
        raise Warned("it skips the kit's event: name another --event-type")
    all_good(results, "one event isn't taken: name another --event-type or --data")
    return names(results)


async def expiry(subject: Subject) -> str:
    """A session that is over is said to be, and the same event goes through with a fresh one."""
    async with Peer(subject) as peer:
        if not peer.session:
            raise Skipped("it needs no session")
        event = item(subject, about("expiry"))
        try:
            results = await peer.push([event], session=f"{peer.session}-over")
        except Status as status:
            if status.code not in _REFUSED:
                raise Fault(f"answer AUTH_EXPIRED to a session that is over: {status}") from status
            told = status.code.name
        else:
            told = names(results)
            if Outcome(results[0].outcome) is not Outcome.AUTH_EXPIRED:
                raise Fault(f"a session that it never gave was taken: {told}")
        await peer.auth()
        all_good(await peer.push([event], attempt=2), "after Auth")
    return f"{told}, then taken"


async def duplicates(subject: Subject) -> str:
    """The same event again does no harm."""
    async with Peer(subject) as peer:
        event = item(subject, about("again"))
        seen = []
        for attempt in (1, 2, 3):
            results = await peer.push([event], attempt=attempt)
            all_good(results, f"try {attempt} of the same event")
            seen.append(names(results))
    return ", ".join(seen)


async def time_out(subject: Subject) -> str:
    """A Push whose answer nobody hears may have been applied: its events come again."""
    async with Peer(subject) as peer:
        events = [item(subject, about(f"late-{n}")) for n in range(min(3, peer.max_batch))]
        for pause in (0.0, 0.02, 0.2):
            call = peer.begin_push(events)
            with suppress(TimeoutError, grpc.aio.AioRpcError):
                async with asyncio.timeout(pause):
                    await call
            call.cancel()
        all_good(await peer.push(events, attempt=4), "after three calls without an answer")
    return "taken after three calls without an answer"


async def batch(subject: Subject) -> str:
    """A full batch has one result for each event, in order, and in time."""
    async with Peer(subject) as peer:
        try:
            results = await peer.push(
                [item(subject, about(f"batch-{n}")) for n in range(peer.max_batch)]
            )
        except Status as status:
            if status.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise Fault(f"a full batch takes longer than {PUSH_SECONDS:g} s") from status
            raise
        all_good(results, "a full batch")
        if peer.longest > _SLOW:
            raise Warned(f"a full batch takes {peer.longest:.1f} s of {PUSH_SECONDS:g}")
        return f"{len(results)} in {peer.longest:.2f} s"


async def partial(subject: Subject) -> str:
    """An event that it can't take doesn't take others with it."""
    async with Peer(subject) as peer:
        if peer.max_batch < 3:
            raise Skipped("it takes fewer than three events at once")
        odd = item(
            subject, about("odd"), event_type="conformance_unheard_of", data={"number": None}
        )
        try:
            results = await peer.push(
                [item(subject, about("good")), odd, item(subject, about("good"))]
            )
        except Status as status:
            raise Fault(f"one odd event fails the whole batch: {status}") from status
        all_good([results[0], results[2]], "beside an odd event")
        return f"the odd one: {names([results[1]])}"


async def reordering(subject: Subject) -> str:
    """An older event after a newer one is an end: not something that is tried for ever."""
    async with Peer(subject) as peer:
        whom = about("order")
        older, newer = (item(subject, whom, sequence=n) for n in (1, 2))
        all_good(await peer.push([newer]), "the newer event")
        results = await peer.push([older])
        if Outcome(results[0].outcome) not in GOOD | {Outcome.CONFLICT}:
            raise Fault(f"an older event after a newer one: {names(results)}")
        all_good(await peer.push([newer], attempt=2), "the newer event again")
        return f"the older one: {names(results)}"


async def rate(subject: Subject) -> str:
    """Many at once: what it limits, it says so that the hub can wait."""
    async with Peer(subject) as peer:
        for number in range(_FLOOD):
            event = item(subject, about(f"rate-{number}"))
            try:
                results = await peer.push([event])
            except Status as status:
                if status.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise Fault("answer RATE_LIMITED for each event, not a status") from status
                raise
            if Outcome(results[0].outcome) is not Outcome.RATE_LIMITED:
                all_good(results, f"event {number + 1} of a flood")
                continue
            if not results[0].HasField("retry_after"):
                raise Warned("RATE_LIMITED without retry_after: the hub guesses")
            wait = results[0].retry_after.ToMicroseconds() / 1e6
            if wait > _LONGEST_WAIT:
                return f"limited for {wait:g} s after {number + 1}; not waited for"
            await asyncio.sleep(wait)
            all_good(await peer.push([event], attempt=2), f"after the {wait:g} s that it asked for")
            return f"limited after {number + 1}, taken {wait:g} s later"
    return f"{_FLOOD} in a row without a limit"


async def large(subject: Subject) -> str:
    """A large event is taken, or refused for good."""
    async with Peer(subject) as peer:
        event = item(subject, about("large"), data={"text": "x" * 900_000})
        try:
            results = await peer.push([event])
        except Status as status:
            if status.code in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OUT_OF_RANGE}:
                return f"refused: {status.code.name}"
            raise
        if Outcome(results[0].outcome) not in GOOD | {Outcome.REJECTED}:
            raise Fault(f"900 kB: {names(results)}")
        return names(results)


async def texts(subject: Subject) -> str:
    """Texts and numbers that break programs."""
    async with Peer(subject) as peer:
        results = await peer.push([item(subject, about("texts"), data=dict(_HOSTILE))])
        if Outcome(results[0].outcome) not in GOOD | {Outcome.REJECTED}:
            raise Fault(f"controls, emoji and large numbers: {names(results)}")
        return names(results)


async def reconnect(subject: Subject) -> str:
    """A session outlives its connection, or is said to be over."""
    async with Peer(subject) as one:
        session = one.session
    async with Peer(subject) as two:
        event = item(subject, about("reconnect"))
        results = await two.push([event], session=session)
        if Outcome(results[0].outcome) is not Outcome.AUTH_EXPIRED:
            all_good(results, "with a session of another connection")
        all_good(await two.push([event], attempt=2), "with a fresh session")
        return names(results)


async def restart(subject: Subject) -> str:
    """Killed under a Push and begun again, it takes the same events."""
    if not subject.ours:
        raise Skipped("give its --command, so that it can be killed")
    async with Peer(subject) as peer:
        events = [item(subject, about(f"restart-{n}")) for n in range(min(5, peer.max_batch))]
        session = peer.session
        call = peer.begin_push(events)
        await asyncio.sleep(0.01)
        await subject.kill()
        with suppress(grpc.aio.AioRpcError):
            await call
    await subject.begin()
    async with Peer(subject) as peer:
        with suppress(Status):
            old = await peer.push(events[:1], session=session, attempt=2)
            if Outcome(old[0].outcome) is not Outcome.AUTH_EXPIRED:
                all_good(old, "with a session of before")
        all_good(await peer.push(events, attempt=3), "after kill -9")
    return "taken after kill -9"


_ALL: Final[dict[str, Callable[[Subject], Awaitable[str]]]] = {
    "schema": schema,
    "auth": sign_in,
    "wrong credentials": wrong_credentials,
    "check": check,
    "delivery": delivery,
    "auth expiry": expiry,
    "duplicates": duplicates,
    "time-out after apply": time_out,
    "batch": batch,
    "partial batch": partial,
    "reordering": reordering,
    "rate limit": rate,
    "large event": large,
    "texts and numbers": texts,
    "reconnect": reconnect,
    "restart": restart,
}
TRIALS: Final = tuple(Trial(name, play) for name, play in _ALL.items())
