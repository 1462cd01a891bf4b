"""Offers: a conversation is asked around among people, one after the other, until somebody takes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from deskwire.chat.v1 import (
    agent_pb2,
    agent_service_pb2,
    agent_service_pb2_grpc,
    conversation_pb2,
    conversation_service_pb2_grpc,
)
from deskwire.chat.v1 import conversation_service_pb2 as pb
from deskwire.gateway.v1 import frame_pb2
from deskwire_chat.domain.agents import Agent, OfferEnd, Status
from deskwire_chat.domain.conversations import partition_of
from deskwire_chat.domain.work import waiting_conversation
from deskwire_chat.routing.offers import Offer
from deskwire_chat.routing.router import Router
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.clock import ManualClock, to_micros
from support import eventually
from support.refusals import refused
from support.servers import DatabaseServer
from support.suite import Desk, desk, new_id, owner_of_two, second_process
from support.talks import conversation, opened, operator

QUEUED = conversation_pb2.CONVERSATION_STATE_QUEUED
ACTIVE = conversation_pb2.CONVERSATION_STATE_ACTIVE
ACCEPTED = frame_pb2.OFFER_END_REASON_ACCEPTED
EXPIRED = frame_pb2.OFFER_END_REASON_EXPIRED
DECLINED = frame_pb2.OFFER_END_REASON_DECLINED
WITHDRAWN = frame_pb2.OFFER_END_REASON_WITHDRAWN


@pytest.fixture
async def d(
    database_url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> AsyncIterator[Desk]:
    options = {"offer_seconds": 60.0}
    async with desk(database_url, kafka, valkey, keys_file, signer, chat=options) as found:
        yield found


@pytest.fixture
async def hasty(
    tmp_path: Path, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> AsyncIterator[Desk]:
    """A desk whose offers don't stand long."""
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    options = {"offer_seconds": 0.5}
    async with desk(url, kafka, valkey, keys_file, signer, chat=options) as found:
        yield found


class Person:
    """A person at the desk with one device, and what it was shown."""

    def __init__(self, d: Desk, name: str) -> None:
        self.name = name
        self.client: Any = None
        self.pushes: list[frame_pb2.Push] = []
        self._desk = d
        self.stub = agent_service_pb2_grpc.AgentServiceStub(
            d.channel(Role.AGENT, name, name=name.title())
        )

    @property
    def offers(self) -> list[str]:
        return [
            each.offer.conversation.conversation_id
            for each in self.pushes
            if each.HasField("offer")
        ]

    @property
    def ends(self) -> list[tuple[str, int]]:
        return [
            (each.offer_ended.conversation_id, each.offer_ended.reason)
            for each in self.pushes
            if each.HasField("offer_ended")
        ]

    async def accept(self, talk: str, request_id: str = "") -> Any:
        request = agent_service_pb2.AcceptOfferRequest(
            request_id=request_id or new_id(), conversation_id=talk
        )
        return (await self.stub.AcceptOffer(request)).conversation

    async def decline(self, talk: str, request_id: str = "") -> None:
        request = agent_service_pb2.DeclineOfferRequest(
            request_id=request_id or new_id(), conversation_id=talk
        )
        await self.stub.DeclineOffer(request)

    async def away(self) -> None:
        request = agent_service_pb2.SetAgentStatusRequest(
            request_id=new_id(), status=agent_pb2.AGENT_STATUS_AWAY
        )
        await self.stub.SetAgentStatus(request)


async def agent(d: Desk, name: str, *, capacity: int = 5) -> Person:
    """Somebody who is there and takes conversations."""
    found = await device(d, name)
    await d.available(name, capacity=capacity)

    async def is_seen() -> bool:
        request = agent_service_pb2.GetAgentRequest(agent_id=name)
        return bool((await found.stub.GetAgent(request)).agent.connected)

    await eventually(is_seen)
    return found


async def device(d: Desk, name: str) -> Person:
    found = Person(d, name)
    found.client = await d.client(Role.AGENT, name, on_push=found.pushes.append)
    return found


async def test_who_accepts_has_it_and_all_their_devices_know(d: Desk) -> None:
    ann, desktop = await agent(d, "ann"), await device(d, "ann")
    talk = await opened(d)
    await eventually(lambda: ann.offers == desktop.offers == [talk])
    offer = next(each.offer for each in ann.pushes if each.HasField("offer"))
    assert offer.conversation.state == QUEUED
    assert offer.customer.identities[0].value == "1001"
    assert offer.expire_time.seconds > offer.conversation.create_time.seconds
    assert (await conversation(d, talk)).state == QUEUED

    stranger = await agent(d, "bob")
    assert (await refused(stranger.accept(talk))).reason_name == "OFFER_NOT_FOUND"
    assert (await refused(stranger.decline(talk))).reason_name == "OFFER_NOT_FOUND"

    request_id = new_id()
    # The same request twice at the same time, as after a lost answer.
    first, again = await asyncio.gather(ann.accept(talk, request_id), ann.accept(talk, request_id))
    assert first == again
    assert (first.agent_id, first.state) == ("ann", ACTIVE)
    assert await ann.accept(talk, request_id) == first
    await eventually(lambda: ann.ends == desktop.ends == [(talk, ACCEPTED)])
    assert (await refused(ann.accept(talk))).reason_name == "OFFER_NOT_FOUND"
    # As with any assignment: greeted, pushed to all, counted.
    history = await operator(d).ListMessages(pb.ListMessagesRequest(conversation_id=talk))
    assert [each.content.text for each in history.messages] == [
        "hello",
        "Ann is here to help you.",
    ]
    found = await ann.stub.GetAgent(agent_service_pb2.GetAgentRequest(agent_id="ann"))
    assert found.agent.active_conversations == 1
    assert stranger.offers == []


async def test_who_declines_is_followed_by_the_next_and_not_asked_again(d: Desk) -> None:
    ann = await agent(d, "ann")
    talk = await opened(d)
    await eventually(lambda: ann.offers == [talk])
    bob = await agent(d, "bob")
    request_id = new_id()
    await ann.decline(talk, request_id)
    await ann.decline(talk, request_id)
    await eventually(lambda: bob.offers == [talk])
    assert ann.ends == [(talk, DECLINED)]
    # Nobody is left: it waits, also for who comes later.
    await bob.decline(talk)
    other = await opened(d, "1002")
    await eventually(lambda: other in ann.offers + bob.offers)
    assert (await conversation(d, talk)).state == QUEUED
    carol = await agent(d, "carol")
    await eventually(lambda: carol.offers == [talk])
    assert (await carol.accept(talk)).agent_id == "carol"
    assert ann.offers.count(talk) == bob.offers.count(talk) == 1


async def test_an_offer_counts_as_a_conversation(d: Desk) -> None:
    ann = await agent(d, "ann", capacity=1)
    first = await opened(d, "1001")
    await eventually(lambda: ann.offers == [first])
    second = await opened(d, "1002")
    await ann.accept(first)
    assert ann.offers == [first]
    close = pb.CloseConversationRequest(request_id=new_id(), conversation_id=first)
    await operator(d).CloseConversation(close)
    await eventually(lambda: ann.offers == [first, second])
    # Full meanwhile, by somebody else's hand: it is found out, and asked around again.
    third = await opened(d, "1003")
    await d.available("ann", capacity=2)
    await eventually(lambda: ann.offers == [first, second, third])
    await ann.accept(second)
    await d.available("ann", capacity=1)
    assert (await refused(ann.accept(third))).reason_name == "AGENT_UNAVAILABLE"
    await eventually(lambda: ann.ends[-1] == (third, WITHDRAWN))
    await d.available("ann", capacity=2)
    await eventually(lambda: ann.offers.count(third) == 2)
    assert (await ann.accept(third)).agent_id == "ann"


async def test_who_goes_away_and_what_is_closed(d: Desk) -> None:
    ann = await agent(d, "ann")
    talk, closed = await opened(d, "1001"), await opened(d, "1002")
    await eventually(lambda: sorted(ann.offers) == sorted([talk, closed]))
    await operator(d).CloseConversation(
        pb.CloseConversationRequest(request_id=new_id(), conversation_id=closed)
    )
    await eventually(lambda: ann.ends == [(closed, WITHDRAWN)])
    assert (await refused(ann.accept(closed))).reason_name == "OFFER_NOT_FOUND"
    bob = await agent(d, "bob")
    await ann.away()
    await eventually(lambda: bob.offers == [talk])
    assert ann.ends[-1] == (talk, WITHDRAWN)
    # Given to somebody by hand.
    await d.available("ann")
    await operator(d).TransferConversation(
        pb.TransferConversationRequest(request_id=new_id(), conversation_id=talk, agent_id="ann")
    )
    await eventually(lambda: bob.ends == [(talk, WITHDRAWN)])
    assert (await conversation(d, talk)).agent_id == "ann"


async def test_who_comes_back_is_told_again(d: Desk) -> None:
    ann = await agent(d, "ann")
    talk = await opened(d)
    await eventually(lambda: ann.offers == [talk])
    await ann.client.close()
    again = await device(d, "ann")
    await eventually(lambda: again.offers == [talk])
    assert (await again.accept(talk)).agent_id == "ann"
    await eventually(lambda: again.ends == [(talk, ACCEPTED)])


async def test_who_lets_an_offer_pass_is_asked_nothing_until_they_speak(hasty: Desk) -> None:
    d = hasty
    ann = await agent(d, "ann")
    talk = await opened(d)
    await eventually(lambda: ann.ends == [(talk, EXPIRED)])
    assert (await refused(ann.accept(talk))).reason_name == "OFFER_NOT_FOUND"
    second = await opened(d, "1002")
    bob = await agent(d, "bob")
    await eventually(lambda: sorted(bob.offers[:2]) == sorted([talk, second]))
    assert ann.offers == [talk]
    # Still available, they say: what is new comes at once, and what they let pass after a while.
    await d.available("ann")
    third = await opened(d, "1003")
    await eventually(lambda: third in ann.offers)
    await eventually(lambda: ann.offers.count(talk) == 2, timeout=20)


async def test_bots_are_assigned_at_once(d: Desk) -> None:
    await d.client(Role.BOT, "helper")
    stub = agent_service_pb2_grpc.AgentServiceStub(d.channel(Role.BOT, "helper"))
    await stub.SetAgentStatus(
        agent_service_pb2.SetAgentStatusRequest(
            request_id=new_id(), status=agent_pb2.AGENT_STATUS_AVAILABLE
        )
    )
    ann = await agent(d, "ann")
    talk = await opened(d)

    async def has_it() -> bool:
        return bool((await conversation(d, talk)).agent_id == "helper")

    await eventually(has_it)
    assert ann.offers == []
    bot = conversation_service_pb2_grpc.ConversationServiceStub(d.channel(Role.BOT, "helper"))
    await bot.TransferConversation(
        pb.TransferConversationRequest(request_id=new_id(), conversation_id=talk)
    )
    await eventually(lambda: ann.offers == [talk])
    assert (await ann.accept(talk)).human_wanted


async def test_the_next_owner_offers_anew_and_any_process_takes_the_answer(
    postgres: DatabaseServer, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> None:
    url = postgres.fresh()
    options = {"offer_seconds": 60.0, "lease_seconds": 1.0}
    async with desk(url, kafka, valkey, keys_file, signer, chat=options) as d:
        theirs = [
            each
            for each in (new_id() for _ in range(200))
            if owner_of_two(partition_of(each)) == "chat-1"
        ]
        talk, other, left = theirs[:3]
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(second_process(url, kafka, keys_file, **options))
            ann = await agent(d, "ann")
            for number, each in enumerate((talk, other, left)):
                await opened(d, f"v-{number}", each)
            await eventually(lambda: sorted(ann.offers) == sorted([talk, other, left]))
            # chat-0 is asked, and the offers are chat-1's.
            request_id = new_id()
            found = await ann.accept(talk, request_id)
            assert found.agent_id == "ann"
            assert await ann.accept(talk, request_id) == found
            await ann.decline(other)
            await eventually(
                lambda: sorted(ann.ends) == sorted([(talk, ACCEPTED), (other, DECLINED)])
            )
        # chat-1 is gone, and its offers with it: the next owner knows of no refusals.
        await eventually(
            lambda: (ann.offers.count(left), ann.offers.count(other)) == (2, 2), timeout=30
        )
        assert (await ann.accept(left)).agent_id == "ann"
    postgres.drop(url)


class Round:
    """A router on a clock that stands still."""

    def __init__(self, *agents: str) -> None:
        self.clock = ManualClock()
        self.asked: list[tuple[str, str]] = []
        self.over: list[tuple[str, str, OfferEnd]] = []
        self.router = Router(self, now=lambda: to_micros(self.clock.now()), offer_seconds=20)
        self.router.start(
            [
                Agent("t", each, each, Status.AVAILABLE, 1, 0, place, 1)
                for place, each in enumerate(agents)
            ],
            lambda _waiting, _agent: None,
        )
        for each in agents:
            self.router.agent_connected("t", each, False)

    def offered(self, offer: Offer) -> None:
        self.asked.append((offer.item.id, offer.agent_id))

    def offer_ended(self, offer: Offer, end: OfferEnd) -> None:
        self.over.append((offer.item.id, offer.agent_id, end))

    def passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.router.expire_offers()


def test_the_round_begins_again_after_a_pause() -> None:
    r = Round("ann", "bob")
    r.router.enqueue(waiting_conversation("t", "c", 1))
    r.passes(19)
    assert r.asked == [("c", "ann")]
    r.passes(1)
    assert r.over == [("c", "ann", OfferEnd.EXPIRED)]
    assert r.asked[1:] == [("c", "bob")]
    r.router.decline_offer("t", "c", "bob")
    r.passes(59)
    assert len(r.asked) == 2
    r.passes(1)
    # Whoever let it pass first, and who was silent, is asked again.
    assert r.asked[2:] == [("c", "ann")]
    assert r.router.waiting_count() == 1


def test_who_is_silent_is_asked_when_they_speak_and_not_for_what_they_let_pass() -> None:
    r = Round("ann")
    r.router.enqueue(waiting_conversation("t", "c", 1))
    r.passes(20)
    r.router.enqueue(waiting_conversation("t", "d", 2))
    assert r.asked == [("c", "ann")]
    r.router.agent_active("t", "ann")
    assert r.asked[1:] == [("d", "ann")]


def test_a_partition_that_goes_takes_its_offers_along() -> None:
    r = Round("ann")
    talk = new_id()
    r.router.enqueue(waiting_conversation("t", talk, 1))
    r.router.drop_partitions([partition_of(talk)])
    assert r.over == [(talk, "ann", OfferEnd.WITHDRAWN)]
    assert r.router.waiting_count() == 0
    assert r.router.claim_offer("t", talk, "ann") is None
