"""SearchMessages finds the same on three databases, in the caller's tenant only, and catches up after a restart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

import deskwire_chat.app
from deskwire.chat.v1 import conversation_pb2, conversation_service_pb2_grpc
from deskwire.chat.v1 import conversation_service_pb2 as pb
from deskwire_chat.domain import words
from deskwire_chat.domain.conversations import partition_of
from deskwire_chat.store import messages, search
from deskwire_chat.views.content import text_content
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import from_rpc_error
from deskwire_common.lifecycle import Runtime, running
from deskwire_common.migrations import migrate
from deskwire_common.rpc import make_channel
from support import eventually
from support.pages import forged
from support.servers import DatabaseServer
from support.suite import a_message, chat_settings, new_id

Start = Callable[[], AbstractAsyncContextManager[Runtime[Any]]]


@pytest.fixture
async def start(database_url: str, kafka: str, keys_file: Path) -> Start:
    """Starts a chat process on the test's database."""
    await migrate(database_url, "deskwire_chat")
    settings = partial(chat_settings, database_url, kafka, keys_file)
    return lambda: running("chat", settings(), deskwire_chat.app.build)


class Searcher:
    """A caller of chat who writes and searches."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.calls = conversation_service_pb2_grpc.ConversationServiceStub(channel)

    async def say(self, talk: str, *texts: str) -> None:
        for text in texts:
            await self.calls.SendMessage(
                pb.SendMessageRequest(
                    conversation_id=talk,
                    client_msg_id=new_id(),
                    content=conversation_pb2.Content(text=text),
                )
            )

    async def page(self, query: str, **more: Any) -> pb.SearchMessagesResponse:
        found: pb.SearchMessagesResponse = await self.calls.SearchMessages(
            pb.SearchMessagesRequest(query=query, **more)
        )
        return found

    async def find(self, query: str, **more: Any) -> list[str]:
        """The texts that are found."""
        return [each.message.content.text for each in (await self.page(query, **more)).hits]

    async def finds(self, query: str, count: int = 1, **more: Any) -> bool:
        return len(await self.find(query, **more)) == count

    async def refused(self, query: str, **more: Any) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.page(query, **more)
        return from_rpc_error(caught.value).reason_name


@asynccontextmanager
async def somebody(
    chat: Runtime[Any], signer: TokenSigner, role: Role, subject: str, tenant: str = "acme"
) -> AsyncIterator[Searcher]:
    token = signer.mint(tenant=tenant, role=role, subject=subject)
    async with make_channel(f"127.0.0.1:{chat.port}", token=lambda: token) as channel:
        yield Searcher(channel)


async def test_words_phrases_beginnings_and_scripts(start: Start, signer: TokenSigner) -> None:
    texts = [
        "My REFUND, please! Order-4711",
        "the of a in",
        "please refund my order 4711",
        "我要退款，订单还没有到。",
        "退货 款到",
        "приветствую",
        "ｆｕｌｌ width",
        "50% 'quoted' \\ back; DROP TABLE & | ! ( ) : * -minus +plus ~not <b>",
        "\u2764\ufe0fUn caf\u00e9 \u00e0 \u0130stanbul",
        "un cafe a istanbul",
        "Call +86 138 0013 8000",
        "\u7535\u8bdd13800138000",
    ]
    async with (
        start() as chat,
        somebody(chat, signer, Role.VISITOR, "me") as me,
        somebody(chat, signer, Role.OPERATOR, "olga") as desk,
    ):
        talk = new_id()
        await me.say(talk, *texts, "last one")
        await eventually(lambda: desk.finds('"last one"'))

        async def found(query: str) -> list[int]:
            return sorted(texts.index(each) for each in await desk.find(query))

        assert await found("refund") == [0, 2]
        assert await found("refund please order") == [0, 2]
        assert await found('"please refund"') == [2]
        assert await found('"my refund" 4711') == [0]
        assert await found("refund nothing") == []
        assert await found("ref* ord*") == [0, 2]
        assert await found("efund") == []
        assert await found("order-4711") == [0, 2]
        assert await found("the") == [1]
        assert await found("a in") == [1]
        assert await found("退款") == [3]
        assert await found("退") == [3, 4]
        assert await found("款") == [3, 4]
        assert await found("订单 退款") == [3]
        assert await found("要退款") == [3]
        assert await found("退货款") == []
        assert await found("ПРИВЕТ*") == [5]
        assert await found("привет") == []
        assert await found("full") == [6]
        assert await found("50% -minus +plus ~not <b>") == [7]
        assert await found("drop & table | ( ) : \\ '") == [7]
        for query in (
            "cafe",
            "CAF\u00c9",
            "un cafe",
            "caf\u00e9*",
            "istanbul",
            "\u0130stanbul caf*",
        ):
            assert await found(query) == [8, 9], query
        assert await found('"un caf\u00e9 \u00e0"') == [8]
        assert await found('"un cafe a"') == [9]
        for query in ("13800138000", "138 0013 8000", "138-0013-8000", "1380013*"):
            assert await found(query) == [10, 11], query
        assert await found("138 0013 call") == [10]
        assert await found("+8613800138000") == [10]
        for query in ("!?", "\U0001f600", "\u2764\ufe0f"):
            assert await found(query) == [], query
        for query in (" ", 'a "b', "a*", " ".join(f"w{each}" for each in range(17)), "x" * 257):
            assert await desk.refused(query) == "INVALID_FIELD"
        assert await desk.refused("x", page_size=101) == "INVALID_FIELD"


async def test_who_finds_what_and_page_by_page(start: Start, signer: TokenSigner) -> None:
    async with (
        start() as chat,
        somebody(chat, signer, Role.VISITOR, "me") as me,
        somebody(chat, signer, Role.VISITOR, "other") as other,
        somebody(chat, signer, Role.VISITOR, "me", "rivals") as rival,
        somebody(chat, signer, Role.OPERATOR, "olga") as desk,
        somebody(chat, signer, Role.OPERATOR, "olga", "rivals") as theirs,
    ):
        mine, second, others = new_id(), new_id(), new_id()
        await me.say(mine, *(f"needle {number}" for number in range(5)))
        await me.say(second, "needle in another talk")
        await other.say(others, "needle of somebody else")
        await rival.say(new_id(), "needle of another tenant")
        await eventually(lambda: desk.finds("needle", 7))
        await eventually(lambda: theirs.finds("needle", 1))
        assert await me.find("needle") == [
            "needle in another talk",
            *(f"needle {number}" for number in range(4, -1, -1)),
        ]
        assert await other.find("needle") == ["needle of somebody else"]
        assert await rival.find("needle") == ["needle of another tenant"]
        assert await desk.find("needle", conversation_id=second.upper()) == [
            "needle in another talk"
        ]
        customer = (
            await desk.calls.GetConversation(pb.GetConversationRequest(conversation_id=mine))
        ).conversation.customer_id
        assert len(await desk.find("needle", customer_id=customer)) == 6
        assert await desk.find("needle", customer_id=new_id()) == []
        assert await theirs.find("needle", customer_id=customer) == []
        for stranger in (other, theirs):
            assert (
                await stranger.refused("needle", conversation_id=mine) == "CONVERSATION_NOT_FOUND"
            )
        pages: list[list[str]] = []
        token = ""
        while token or not pages:
            page = await desk.page("needle", page_size=3, page_token=token)
            pages.append([each.message.content.text for each in page.hits])
            token = page.next_page_token
        assert [len(each) for each in pages] == [3, 3, 1]
        assert [text for page in pages for text in page] == await desk.find("needle")
        first = await desk.page("needle", page_size=3)
        assert await me.refused("needle", page_token=first.next_page_token) == "INVALID_PAGE_TOKEN"
        for bad in forged(first.next_page_token, 2):
            assert await desk.refused("needle", page_token=bad) == "INVALID_PAGE_TOKEN"
        listing = pb.ListConversationsRequest(page_size=1)
        listed = await desk.calls.ListConversations(listing)
        for bad in forged(listed.next_page_token, 2):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await desk.calls.ListConversations(pb.ListConversationsRequest(page_token=bad))
            assert from_rpc_error(caught.value).reason_name == "INVALID_PAGE_TOKEN"


async def test_what_was_written_before_a_restart_is_found_once(
    start: Start, signer: TokenSigner
) -> None:
    talks = [new_id() for _ in range(40)]
    async with start() as chat, somebody(chat, signer, Role.VISITOR, "me") as me:
        for number, talk in enumerate(talks):
            await me.say(talk, f"before {number}")
    async with start() as chat, somebody(chat, signer, Role.VISITOR, "me") as me:
        await eventually(lambda: me.finds("before", 40, page_size=100))
        for number, talk in enumerate(talks):
            await me.say(talk, f"after {number}")
        await eventually(lambda: me.finds("after", 40, page_size=100))
        assert await me.finds("before", 40, page_size=100)


async def test_postgresql_cuts_plain_text_as_the_others_do(postgres: DatabaseServer) -> None:
    plain = [
        "Refund, please: order-4711 to a@B.com, see https://x.example/a_b?c=1.5e5&d=%20#top!",
        "a" * 38 + " 12" + "3" * 36,
        "1e5 0x1F 3.14 -7 1,000 v1.2.3 10:30 don't the and",
        "z",
        "x " * 62 + "x",
        "x y" * 42,
        " ".join(f"word{each}" for each in range(800)),
        "a\tb\nc\r\\ \"'{}|&!():*<->",
        "in 12 - 34 5, at 10:30:00, 2 x 3.14 and 1,000,000",
        "order 4711081515",
    ]
    # The third may have a number in groups, and hasn't.
    by_hand = [
        "call 138 0013 8000",
        "06.12.34.56.78",
        "12 34 56a",
        "b" * 39,
        "caf\u00e9 now",
        "nul \0 here",
        "\u6211\u8981\u9000\u6b3e",
        "naive\u0301",
    ]
    nothing = ["?!", "- . -"]
    talk = new_id()
    number = partition_of(talk)
    url = postgres.fresh()
    await migrate(url, "deskwire_chat")
    db = await Database.open(url)
    bodies = [text_content(each) for each in [*plain, *nothing, *by_hand]]
    # As a later client could write it: a field that isn't known here.
    bodies.append(bodies[0] + b"\xfa\x01\x01x")
    items = [
        a_message(conversation_id=talk, seq=seq, position=seq, client_msg_id=str(seq), body=body)
        for seq, body in enumerate(bodies, 1)
    ]
    steps = {number: (0, len(items))}

    async def work(uow: UnitOfWork) -> tuple[int, dict[int, str]]:
        await messages.append(uow, items)
        count = await search.put_plain(uow, steps)
        assert await search.put_plain(uow, steps) == 0
        found = await uow.connection.exec_driver_sql("SELECT seq, words FROM message_search")
        return count, {row.seq: row.words for row in found}

    count, found = await db.run(work)
    async with db.read() as c:
        rest = await search.log(c, steps)
        vectors = {}
        for seq, each in enumerate(plain, 1):
            said = " ".join(f"{word}:{at}" for at, word in enumerate(words.of_text(each), 1))
            vectors[seq] = (await c.exec_driver_sql(f"SELECT '{said}'::tsvector")).scalar()
    await db.close()
    postgres.drop(url)
    assert found == {seq: vectors[seq] for seq in found}
    # A single letter is too short to tell, and left to the general way.
    assert set(found) == {1, 2, 3, 5, 6, 7, 8, 9, 10}
    assert count == len(found)
    assert {row.seq for row in rest} == {4, *range(len(plain) + 1, len(items) + 1)}


async def test_autovacuum_samples_little_of_the_tables_that_every_message_grows(
    postgres: DatabaseServer,
) -> None:
    url = postgres.fresh()
    await migrate(url, "deskwire_chat")
    db = await Database.open(url)
    async with db.read() as c:
        found = await c.exec_driver_sql(
            "SELECT attrelid::regclass::text AS name, max(attstattarget) AS target, min(attstattarget) AS least"
            " FROM pg_attribute WHERE attrelid IN ('messages'::regclass, 'message_search'::regclass)"
            " AND attnum > 0 GROUP BY attrelid"
        )
        targets = {row.name: (row.least, row.target) for row in found}
    await db.close()
    postgres.drop(url)
    assert targets == {"messages": (0, 10), "message_search": (0, 10)}
