"""Files in conversations: uploaded and fetched over HTTP, carried by messages, gone when redacted or never sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deskwire.chat.v1 import (
    attachment_pb2,
    conversation_pb2,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
)
from deskwire.chat.v1 import attachment_service_pb2 as pb
from deskwire.gateway.v1 import frame_pb2
from deskwire_chat import domain
from deskwire_chat.attachments.directory import DirectoryStore, Folder
from deskwire_chat.attachments.remover import Remover
from deskwire_chat.attachments.signing import Signatures, UrlSigner
from deskwire_chat.domain.attachments import Attachment, AttachmentState
from deskwire_chat.domain.conversations import partition_of
from deskwire_chat.store import attachments
from deskwire_common import events, topics
from deskwire_common.auth import KeySet, Role, TokenSigner
from deskwire_common.clock import ManualClock, to_micros
from deskwire_common.db import Database
from deskwire_common.errors import Unavailable
from deskwire_common.kafka import Reader
from deskwire_common.migrations import migrate
from support import eventually
from support.files import PICTURE, Files, http, reference, signed
from support.refusals import refusal
from support.s3 import S3Server
from support.servers import DatabaseServer
from support.suite import Desk, desk, new_id, owner_of_two, second_process
from support.wire import Wire, reason, wire

VISITOR, AGENT = Role.VISITOR, Role.AGENT


def folder_settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "attachments_url": f"file://{folder}",
        "attachments_listen": "127.0.0.1:0",
        **more,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "the files"


@pytest.fixture
async def d(
    database_url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner, folder: Path
) -> AsyncIterator[Desk]:
    chat = folder_settings(
        folder, attachments_max_unsent=4, attachments_cors_origins="https://a.example"
    )
    async with desk(database_url, kafka, valkey, keys_file, signer, chat=chat) as found:
        yield found


@pytest.fixture
async def one(
    kafka: str, valkey: str, keys_file: Path, signer: TokenSigner, tmp_path: Path, folder: Path
) -> AsyncIterator[Desk]:
    """A desk on SQLite, for what is no database's matter."""
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    async with desk(url, kafka, valkey, keys_file, signer, chat=folder_settings(folder)) as found:
        yield found


def objects(folder: Path) -> list[str]:
    """The files that are there, uploads that aren't complete too."""
    return sorted(each.name for each in folder.rglob("*") if each.is_file())


async def say(who: Wire, conversation: str, client_msg_id: str = "", **content: Any) -> str:
    """Send some content: "" when it is stored, else the reason why not."""
    send = frame_pb2.Send(
        conversation_id=conversation,
        client_msg_id=client_msg_id or new_id(),
        content=conversation_pb2.Content(**content),
    )
    await who.say(send=send)
    answer = await who.hear_one_of("send_ack", "error")
    return "" if isinstance(answer, frame_pb2.SendAck) else reason(answer.reason)


async def pushed(who: Wire, kind: str) -> conversation_pb2.Message:
    """The next message with content of a kind."""
    while True:
        push = await who.hear("push")
        if push.HasField("message") and push.message.content.WhichOneof("kind") == kind:
            found: conversation_pb2.Message = push.message
            return found


async def published(kafka: str, conversation: str, count: int) -> list[Any]:
    """The events of a conversation, in their order."""
    reader = Reader(kafka, [topics.MESSAGES.name], start="earliest")
    await reader.start()
    found: list[Any] = []
    try:
        while len(found) < count:
            for record in await reader.read(1_000, 0.2):
                event = events.decode(topics.MESSAGES, record.value, record.headers)
                if event.subject == conversation:
                    found.append(events.to_json(event))
    finally:
        await reader.close()
    return found


async def test_from_the_upload_to_the_redaction(d: Desk, kafka: str, folder: Path) -> None:
    async with (
        wire(d, d.token(VISITOR, "1")) as visitor,
        wire(d, d.token(AGENT, "ann")) as ann,
    ):
        await d.available("ann")
        conversation = new_id()
        mine, theirs = Files(d, VISITOR, "1"), Files(d, AGENT, "ann")

        request_id = new_id()
        made = await mine.create(conversation, request_id=request_id, file_name="Katze №1.png")
        item = made.attachment
        assert item.state == attachment_pb2.ATTACHMENT_STATE_PENDING
        assert (item.uploader.subject, item.conversation_id) == ("1", conversation)
        assert made.upload.method == "PUT"
        again = await mine.create(conversation, request_id=request_id, file_name="Katze №1.png")
        assert again.attachment == item

        # Before the bytes are there.
        assert await refusal(mine.complete(item.attachment_id)) == (
            "FAILED_PRECONDITION",
            "ATTACHMENT_NOT_READY",
        )
        assert (await signed(again.upload, PICTURE)).status == 200
        completed = await mine.complete(item.attachment_id, "c-1")
        assert completed.state == attachment_pb2.ATTACHMENT_STATE_READY
        assert await mine.complete(item.attachment_id, "c-1") == completed
        assert await mine.complete(item.attachment_id) == completed
        # What was checked stays.
        assert (await signed(made.upload, PICTURE)).status == 409
        # Only the uploader sees it before it is sent.
        assert (await mine.get(item.attachment_id)).HasField("download")
        assert (await refusal(theirs.get(item.attachment_id)))[1] == "ATTACHMENT_NOT_FOUND"

        # It is the visitor's first message, and opens the conversation.
        said = conversation_pb2.AttachmentReference(
            attachment_id=item.attachment_id,
            file_name="Katze №1.png",
            content_type="image/png",
            size_bytes=len(PICTURE),
        )
        assert await say(visitor, conversation, "m-1", attachment=said) == ""
        assert await say(visitor, conversation, "m-1", attachment=said) == ""
        await say(visitor, conversation, text="look")
        await pushed(ann, "text")
        stub = conversation_service_pb2_grpc.ConversationServiceStub(d.channel(AGENT, "ann"))
        history = await stub.ListMessages(
            conversation_service_pb2.ListMessagesRequest(conversation_id=conversation)
        )
        assert history.messages[0].content.attachment == said
        assert history.head_seq == 3  # with the greeting

        shown = await theirs.get(item.attachment_id)
        assert shown.attachment.state == attachment_pb2.ATTACHMENT_STATE_SENT
        got = await signed(shown.download)
        assert (got.status, got.body) == (200, PICTURE)
        assert got.headers["Content-Type"] == "image/png"
        assert got.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in got.headers["Content-Security-Policy"]
        assert got.headers["Content-Disposition"] == (
            "attachment; filename=\"Katze No1.png\"; filename*=UTF-8''Katze%20%E2%84%961.png"
        )

        # The agent answers with a file, which comes to the visitor as a push.
        answer = await theirs.ready(
            conversation, b"a,b\n", file_name="b.csv", content_type="text/csv"
        )
        assert await say(ann, conversation, attachment=answer) == ""
        message = await pushed(visitor, "attachment")
        assert message.content.attachment == answer
        assert (await signed((await mine.get(answer.attachment_id)).download)).body == b"a,b\n"
        assert await say(ann, conversation, edit={"seq": 4, "text": "x"}) == "MESSAGE_UNCHANGEABLE"

        # Taken back, it is gone: for callers at once, from the disk a moment later, whoever has a URL.
        assert len(objects(folder)) == 2
        assert await say(ann, conversation, redaction={"seq": 1}) == ""
        for who in (mine, theirs):
            assert await refusal(who.get(item.attachment_id)) == (
                "NOT_FOUND",
                "ATTACHMENT_NOT_FOUND",
            )
        await eventually(lambda: objects(folder) == [answer.attachment_id])
        assert (await signed(shown.download)).status == 404
        # A repeated Send is still known.
        assert await say(visitor, conversation, "m-1", attachment=said) == ""

    found = await published(kafka, conversation, 5)
    assert [each["event_type"] for each in found][-2:] == ["message_sent", "message_redacted"]
    assert found[0]["data"]["message"]["content"] == {
        "attachment": {
            "attachment_id": item.attachment_id,
            "file_name": "Katze №1.png",
            "content_type": "image/png",
            "size_bytes": len(PICTURE),
        }
    }


async def test_what_may_not_be_sent(d: Desk) -> None:
    async with (
        wire(d, d.token(VISITOR, "1")) as visitor,
        wire(d, d.token(VISITOR, "2")) as other,
        wire(d, d.token(AGENT, "ann")) as ann,
    ):
        await d.available("ann")
        conversation, elsewhere = new_id(), new_id()
        mine = Files(d, VISITOR, "1")
        said = await mine.ready(conversation, b"12345")

        def like(**other: Any) -> conversation_pb2.AttachmentReference:
            found = conversation_pb2.AttachmentReference()
            found.CopyFrom(said)
            for name, value in other.items():
                setattr(found, name, value)
            return found

        # Nobody's, somebody else's, another conversation's: nothing of it is opened.
        assert await say(visitor, conversation, attachment=like(attachment_id=new_id())) == (
            "ATTACHMENT_NOT_FOUND"
        )
        assert await say(other, elsewhere, attachment=said) == "ATTACHMENT_NOT_FOUND"
        assert await say(visitor, elsewhere, attachment=said) == "ATTACHMENT_NOT_FOUND"
        stub = conversation_service_pb2_grpc.ConversationServiceStub(d.channel(VISITOR, "1"))
        listed = await stub.ListConversations(conversation_service_pb2.ListConversationsRequest())
        assert not listed.conversations
        # It says something else than the record.
        for wrong in ({"file_name": "x.png"}, {"content_type": "a/b"}, {"size_bytes": 6}):
            assert await say(visitor, conversation, attachment=like(**wrong)) == "INVALID_FIELD"
        for missing in ({"attachment_id": "x"}, {"file_name": ""}, {"size_bytes": 0}):
            assert await say(visitor, conversation, attachment=like(**missing)) == "INVALID_FIELD"
        # Declared only.
        pending = (await mine.create(conversation, b"12345")).attachment.attachment_id
        assert await say(visitor, conversation, attachment=like(attachment_id=pending)) == (
            "ATTACHMENT_NOT_READY"
        )
        # Two messages with the same file, in one group: the first has it.
        frames = [
            frame_pb2.Frame(
                send=frame_pb2.Send(
                    conversation_id=conversation,
                    client_msg_id=f"m-{number}",
                    content=conversation_pb2.Content(attachment=said),
                )
            )
            for number in (1, 2)
        ]
        await visitor.raw(frame_pb2.Batch(frames=frames).SerializeToString())
        assert (await visitor.hear("send_ack")).seq == 1
        assert await visitor.refused() == "ATTACHMENT_NOT_READY"
        # And in another one.
        assert await say(visitor, conversation, attachment=said) == "ATTACHMENT_NOT_READY"
        # A message with a file, and its redaction, may be stored together.
        second = await mine.ready(conversation, b"12345")

        async def greeted() -> bool:
            request = conversation_service_pb2.ListMessagesRequest(conversation_id=conversation)
            return (await stub.ListMessages(request)).head_seq == 2

        await eventually(greeted)
        contents = ({"attachment": second}, {"redaction": {"seq": 3}})
        frames = [
            frame_pb2.Frame(
                send=frame_pb2.Send(
                    conversation_id=conversation,
                    client_msg_id=new_id(),
                    content=conversation_pb2.Content(**content),
                )
            )
            for content in contents
        ]
        await visitor.raw(frame_pb2.Batch(frames=frames).SerializeToString())
        assert (await pushed(ann, "attachment")).seq == 3
        await pushed(ann, "redaction")
        assert (await refusal(mine.get(second.attachment_id)))[1] == "ATTACHMENT_NOT_FOUND"

    # The same over unary calls and streams of callers.
    third = await mine.ready(conversation, b"12345")
    request = conversation_service_pb2.SendMessageRequest(
        conversation_id=conversation,
        client_msg_id="u-1",
        content=conversation_pb2.Content(attachment=third),
    )
    streamed = conversation_service_pb2.StreamMessagesRequest(
        messages=[
            conversation_service_pb2.StreamedMessage(
                conversation_id=conversation, client_msg_id=key, content=request.content
            )
            for key in ("u-1", "u-2")
        ]
    )
    sent = await stub.SendMessage(request)
    assert sent.message.content.attachment == third
    results = []
    bearer = f"Bearer {d.token(VISITOR, '1')}"
    async for response in stub.StreamMessages(
        iter([streamed]), metadata=[("authorization", bearer)]
    ):
        results += response.results
    assert results[0].ack.duplicate
    assert reason(results[1].error.reason) == "ATTACHMENT_NOT_READY"


async def test_a_refused_send_says_what_a_program_needs(one: Desk) -> None:
    """All of it: what the status of a unary call would say."""
    async with wire(one, one.token(VISITOR, "1")) as visitor:
        conversation = new_id()
        pending = (await Files(one, VISITOR, "1").create(conversation)).attachment
        said = reference(pending)
        for content, metadata, fields in (
            (said, {"state": "PENDING"}, []),
            (
                conversation_pb2.AttachmentReference(attachment_id="x", file_name="x"),
                {},
                ["content.attachment.attachment_id", "content.attachment.content_type"],
            ),
        ):
            send = frame_pb2.Send(conversation_id=conversation, client_msg_id=new_id())
            send.content.attachment.CopyFrom(content)
            await visitor.say(send=send)
            error = await visitor.hear("error")
            assert dict(error.metadata) == metadata
            found = [each.field for each in error.violations]
            assert found[: len(fields)] == fields
            assert all(each.description for each in error.violations)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("Screenshot 3.45.12\u202fPM.png", "Screenshot 3.45.12\u202fPM.png"),
        ("\u8acb\u6c42\u66f8\u300011\u6708.pdf", "\u8acb\u6c42\u66f8\u300011\u6708.pdf"),
        (
            "\u0646\u0627\u0645\u0647\u200c\u0647\u0627.pdf",
            "\u0646\u0627\u0645\u0647\u200c\u0647\u0627.pdf",
        ),
        ("shaking \U0001fae8.png", "shaking \U0001fae8.png"),
        (" a.png\u200e", "a.png"),
    ],
)
async def test_names_that_ordinary_machines_make(one: Desk, name: str, kept: str) -> None:
    async with wire(one, one.token(VISITOR, "1")) as visitor:
        conversation = new_id()
        mine = Files(one, VISITOR, "1")
        said = await mine.ready(conversation, b"1", file_name=name)
        assert said.file_name == kept
        # The message may have the name as it was given, or as it was kept.
        said.file_name = name
        assert await say(visitor, conversation, attachment=said) == ""
    shown = await Files(one, Role.OPERATOR, "olga").get(said.attachment_id)
    assert shown.attachment.file_name == kept


async def test_who_may_upload_and_see(d: Desk) -> None:
    async with wire(d, d.token(VISITOR, "1")) as visitor, wire(d, d.token(AGENT, "ann")) as ann:
        await d.available("ann")
        conversation = new_id()
        assert await say(visitor, conversation, text="hello") == ""
        await pushed(ann, "text")
        mine = Files(d, VISITOR, "1")
        said = await mine.ready(conversation, b"1")
        assert await say(visitor, conversation, attachment=said) == ""
    item = said.attachment_id
    stranger, elsewhere = Files(d, VISITOR, "2"), Files(d, AGENT, "ann", tenant="theirs")
    nobody = "NOT_FOUND", "ATTACHMENT_NOT_FOUND"
    for who in (stranger, elsewhere):
        assert await refusal(who.get(item)) == nobody
        assert await refusal(who.complete(item)) == nobody
        assert await refusal(who.create(conversation)) == ("NOT_FOUND", "CONVERSATION_NOT_FOUND")
    # The desk sees what is sent, but completes nothing of others.
    bob = Files(d, AGENT, "bob")
    assert (await bob.get(item)).attachment.attachment_id == item
    assert await refusal(bob.complete(item)) == nobody
    assert (await refusal(bob.create(conversation)))[1] == "NOT_A_PARTICIPANT"
    assert (await refusal(bob.create(new_id())))[1] == "CONVERSATION_NOT_FOUND"
    crm = Files(d, Role.INTEGRATION, "crm", system="crm:main")
    assert (await crm.ready(conversation, b"1")).size_bytes == 1
    assert (await Files(d, Role.OPERATOR, "olga").get(item)).download.url

    # What isn't taken.
    for wrong in (
        {"file_name": "a/b.png"},
        {"file_name": "..\\b.png"},
        {"file_name": ".."},
        {"file_name": "a\nb.png"},
        {"file_name": "invoice\u202egpj.exe"},
        {"file_name": "\u200b"},
        {"content_type": "text/html"},
        {"content_type": "image/svg+xml"},
        {"content_type": "image/png; charset=x"},
        {"size_bytes": 26_214_401},
        {"size_bytes": 0},
        {"sha256": "AA"},
    ):
        assert await refusal(mine.create(conversation, **wrong)) == (
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
        ), wrong
    for kind in ("application/vnd.ms-excel", "video/mp4"):
        await mine.create(conversation, content_type=kind)
    # At most so many wait to be sent, the one that is sent doesn't count.
    for _ in range(2):
        await mine.create(conversation)
    assert await refusal(mine.create(conversation)) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")

    stub = conversation_service_pb2_grpc.ConversationServiceStub(d.channel(Role.OPERATOR, "olga"))
    await stub.CloseConversation(
        conversation_service_pb2.CloseConversationRequest(
            request_id=new_id(), conversation_id=conversation
        )
    )
    assert (await refusal(Files(d, AGENT, "ann").create(conversation)))[1] == "CONVERSATION_CLOSED"
    assert (await mine.get(item)).download.url  # history stays


async def test_the_reference_client_sends_a_file(one: Desk) -> None:
    visitor, conversation, mine = await one.client(VISITOR, "1"), new_id(), Files(one, VISITOR, "1")
    said = await mine.ready(conversation, b"123")
    # As a browser does it: over its connection.
    found = await visitor.call(
        "/deskwire.chat.v1.AttachmentService/GetAttachment",
        pb.GetAttachmentRequest(attachment_id=said.attachment_id),
        pb.GetAttachmentResponse,
    )
    ack = await visitor.attach(conversation, found.attachment)
    assert ack.seq == 1
    files = Files(one, AGENT, "ann")
    assert (await signed((await files.get(said.attachment_id)).download)).body == b"123"
    # Nothing for pages of other origins, unless it is set.
    answer = await signed((await files.get(said.attachment_id)).download)
    assert "Access-Control-Allow-Origin" not in answer.headers


async def test_a_file_is_found_by_its_name(d: Desk) -> None:
    conversation = new_id()
    said = await Files(d, VISITOR, "1").ready(
        conversation, b"%PDF", file_name="invoice 4711.pdf", content_type="application/pdf"
    )
    stub = conversation_service_pb2_grpc.ConversationServiceStub(d.channel(VISITOR, "1"))
    await stub.SendMessage(
        conversation_service_pb2.SendMessageRequest(
            conversation_id=conversation,
            client_msg_id="1",
            content=conversation_pb2.Content(attachment=said),
        )
    )

    async def hits() -> int:
        request = conversation_service_pb2.SearchMessagesRequest(query="Invoice 4711")
        return len((await stub.SearchMessages(request)).hits)

    await eventually(hits)
    await stub.SendMessage(
        conversation_service_pb2.SendMessageRequest(
            conversation_id=conversation,
            client_msg_id="2",
            content=conversation_pb2.Content(redaction={"seq": 1}),  # type: ignore[arg-type]
        )
    )

    async def gone() -> bool:
        return await hits() == 0

    await eventually(gone)


# -------------------------------------------------------------------------------------------- removal


async def test_what_is_never_sent_is_removed(
    database_url: str, keys_file: Path, folder: Path
) -> None:
    await migrate(database_url, "deskwire_chat")
    clock = ManualClock(datetime.now(UTC))
    files = Folder(folder)
    await files.open()
    store = DirectoryStore(files, UrlSigner("http://x", Signatures(KeySet.load(keys_file), clock)))
    db = await Database.open(database_url)
    remover = Remover(db, store, clock)

    async def made(state: AttachmentState = AttachmentState.READY) -> Attachment:
        now = to_micros(clock.now())
        item = Attachment(
            attachment_id=new_id(),
            tenant="t",
            conversation_id=new_id(),
            uploader_role=1,
            uploader_id="1",
            uploader_name="Li Na 李娜",
            file_name="猫.png",
            content_type="image/png",
            size_bytes=3,
            sha256="",
            state=state,
            seq=0,
            created_at=now,
            remove_at=now + domain.attachments.UNSENT_SECONDS * 1_000_000,
        )
        await db.run(lambda uow: attachments.add(uow.connection, item))
        upload = files.receive(item.attachment_id, size=3, sha256="")
        await upload.write(b"abc")
        await upload.commit()
        if state == AttachmentState.READY:
            await store.promote(item)
        async with db.read() as c:
            assert await attachments.get(c, "t", item.attachment_id) == item
        return item

    try:
        kept, unsent = await made(), await made()
        pending = await made(AttachmentState.PENDING)
        assert await db.run(lambda uow: attachments.sent(uow, [domain.attachments.sent(kept, 7)]))
        clock.advance(24 * 3600 - 1)
        await remover.round()
        assert len(objects(folder)) == 3
        clock.advance(2)
        # A Send and the removal at the same moment: one of them wins.
        assert await db.run(lambda uow: attachments.claim(uow, unsent))
        assert not await db.run(
            lambda uow: attachments.sent(uow, [domain.attachments.sent(unsent, 8)])
        )
        assert not await db.run(lambda uow: attachments.claim(uow, kept))
        # A crash between mark and removal: the next life goes on from the mark.
        await Remover(db, store, clock).round()
        assert objects(folder) == [kept.attachment_id]
        async with db.read() as c:
            found = await attachments.get_many(
                c, [kept.attachment_id, unsent.attachment_id, pending.attachment_id]
            )
        assert list(found) == [kept.attachment_id]
        # Redacted; and a store that fails for the moment.
        await db.run(
            lambda uow: attachments.discard(uow, [(kept.conversation_id, 7)], now=kept.created_at)
        )
        holder = files.object_path(kept.attachment_id).parent
        moved = holder.rename(holder.with_name("away"))
        holder.write_text("in the way")
        with pytest.raises(Unavailable):
            await remover.round()
        holder.unlink()
        moved.rename(holder)
        await remover.round()
        assert objects(folder) == []
        assert not await remover.round()
    finally:
        await db.close()
        files.close()


async def test_without_a_store_nothing_is_taken(
    kafka: str, valkey: str, keys_file: Path, signer: TokenSigner, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    async with desk(url, kafka, valkey, keys_file, signer) as d:
        assert await refusal(Files(d, VISITOR, "1").create(new_id())) == (
            "FAILED_PRECONDITION",
            "INVALID_STATE",
        )


async def test_uploads_outlive_a_restart(
    kafka: str, valkey: str, keys_file: Path, signer: TokenSigner, tmp_path: Path, folder: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    conversation = new_id()
    async with desk(url, kafka, valkey, keys_file, signer, chat=folder_settings(folder)) as d:
        tenant = d.tenant
        made = await Files(d, VISITOR, "1").create(conversation, b"abc")
        assert (await signed(made.upload, b"abc")).status == 200
    async with desk(url, kafka, valkey, keys_file, signer, chat=folder_settings(folder)) as d:
        mine = Files(d, VISITOR, "1", tenant=tenant)
        await mine.complete(made.attachment.attachment_id)
        download = (await mine.get(made.attachment.attachment_id)).download
        assert (await signed(download)).body == b"abc"


async def test_processes_share_a_folder(
    postgres: DatabaseServer,
    kafka: str,
    valkey: str,
    keys_file: Path,
    signer: TokenSigner,
    folder: Path,
) -> None:
    """Whichever process a call or a URL comes to, and whichever removes what is taken back."""
    url = postgres.fresh()
    chat = folder_settings(folder, lease_seconds=1.0)
    async with (
        desk(url, kafka, valkey, keys_file, signer, chat=chat) as d,
        second_process(url, kafka, keys_file, **chat) as other,
        wire(d, d.token(VISITOR, "1")) as visitor,
    ):
        here, there = (f":{each.extra_ports['attachments']}/" for each in (d.chat, other))
        mine, elsewhere = Files(d, VISITOR, "1"), Files(d, VISITOR, "1", port=other.port)
        for number in (0, 1):
            conversation = next(
                each
                for each in iter(new_id, "")
                if owner_of_two(partition_of(each)) == f"chat-{number}"
            )
            made = await mine.create(conversation, b"abc")
            item = made.attachment
            made.upload.url = made.upload.url.replace(here, there)
            assert (await signed(made.upload, b"abc")).status == 200
            said = reference(await elsewhere.complete(item.attachment_id))
            assert await say(visitor, conversation, attachment=said) == ""
            download = (await elsewhere.get(item.attachment_id)).download
            assert there in download.url
            assert (await signed(download)).body == b"abc"
            download.url = download.url.replace(there, here)
            assert (await signed(download)).body == b"abc"
            assert await say(visitor, conversation, redaction={"seq": 1}) == ""
            await eventually(lambda: objects(folder) == [])
    postgres.drop(url)


# ---------------------------------------------------------------------------------------------- bucket


async def test_a_bucket_does_it_too(
    kafka: str,
    valkey: str,
    keys_file: Path,
    signer: TokenSigner,
    tmp_path: Path,
    s3_server: S3Server,
) -> None:
    bucket = f"desk-{new_id()}"
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    chat = s3_server.settings(bucket)
    async with desk(url, kafka, valkey, keys_file, signer, chat=chat) as d:
        assert "attachments" not in d.chat.extra_ports
        conversation, mine = new_id(), Files(d, VISITOR, "1")
        made = await mine.create(conversation, file_name="Katze №1.png")
        item = made.attachment.attachment_id
        not_ready = "FAILED_PRECONDITION", "ATTACHMENT_NOT_READY"
        assert await refusal(mine.complete(item)) == not_ready

        # Type, length and place are signed.
        headers = {each.name: each.value for each in made.upload.headers}
        more, other = PICTURE + b"1", {**headers, "Content-Type": "text/html"}
        longer = {**headers, "Content-Length": str(len(more))}
        assert (await http("PUT", made.upload.url, more, longer)).status == 403
        assert (await http("PUT", made.upload.url, PICTURE, other)).status == 403
        elsewhere = made.upload.url.replace(item, new_id())
        assert (await http("PUT", elsewhere, PICTURE, headers)).status == 403
        assert s3_server.keys(bucket) == []

        # Other bytes of the same length: the digest says so.
        assert (await signed(made.upload, bytes(len(PICTURE)))).status == 200
        assert await refusal(mine.complete(item)) == not_ready
        assert (await signed(made.upload, PICTURE)).status == 200
        await mine.complete(item)
        assert s3_server.keys(bucket) == [f"desk/objects/{item}"]
        # What comes to the URL afterwards changes nothing.
        assert (await signed(made.upload, bytes(len(PICTURE)))).status == 200
        said = reference(await mine.complete(item))
        got = await signed((await mine.get(item)).download)
        assert (got.status, got.body) == (200, PICTURE)
        assert got.headers["Content-Type"] == "image/png"
        assert got.headers["Content-Disposition"].startswith('attachment; filename="Katze No1.png"')

        stub = conversation_service_pb2_grpc.ConversationServiceStub(d.channel(VISITOR, "1"))
        for key, content in (
            ("1", conversation_pb2.Content(attachment=said)),
            ("2", conversation_pb2.Content(redaction={"seq": 1})),  # type: ignore[arg-type]
        ):
            await stub.SendMessage(
                conversation_service_pb2.SendMessageRequest(
                    conversation_id=conversation, client_msg_id=key, content=content
                )
            )
        await eventually(lambda: s3_server.keys(bucket) == [])
        assert (await refusal(mine.get(item)))[1] == "ATTACHMENT_NOT_FOUND"


async def test_a_bucket_that_is_away(
    kafka: str, valkey: str, keys_file: Path, signer: TokenSigner, tmp_path: Path
) -> None:
    chat = {
        "attachments_url": "s3://desk?endpoint=http://127.0.0.1:9",
        "attachments_access_key": "a",
        "attachments_secret_key": "s",
    }
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    async with desk(url, kafka, valkey, keys_file, signer, chat=chat) as d:
        mine = Files(d, VISITOR, "1")
        made = await mine.create(new_id())  # a URL is signed here
        async with asyncio.timeout(60):
            assert await refusal(mine.complete(made.attachment.attachment_id)) == (
                "UNAVAILABLE",
                "DEPENDENCY_UNAVAILABLE",
            )
