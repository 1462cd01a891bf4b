"""Coming back to another process than before: nothing is known of the session there, and history has everything."""

from __future__ import annotations

from pathlib import Path

import deskwire_gateway.app
from deskwire.gateway.v1 import frame_pb2
from deskwire_common.auth import Role
from deskwire_common.lifecycle import running
from support import eventually
from support.ports import free_port
from support.suite import Desk, Start, gateway_settings, new_id
from support.wire import wire


async def test_a_session_is_resumed_on_another_worker_from_cursors(
    start: Start, valkey: str, keys_file: Path
) -> None:
    async with start() as d:
        settings = gateway_settings(d.chat.port, valkey, keys_file)
        async with running("gateway", settings, deskwire_gateway.app.build) as second:
            other = Desk(d.signer, d.chat, second, d.stack, d.tenant)
            ann = await d.client(Role.AGENT, "ann", receipts=False)
            await d.available("ann")
            token = d.token(Role.VISITOR, "1")
            async with wire(d, token) as here:
                conversation = new_id()
                await here.send(conversation, "one", "m-1")
                await here.hear("send_ack")
                here.socket.transport.abort()
                await here.socket.wait_closed()
            await ann.send(conversation, "three")  # the greeting is the second one
            async with wire(other) as there:
                resumed = await there.resume(token, here)
                assert resumed == frame_pb2.Resumed(reset=True)
                assert there.welcome.session_id != here.welcome.session_id
                # What it couldn't know to be stored is sent again, and is stored once.
                await there.send(conversation, "one", "m-1")
                ack = await there.hear("send_ack")
                assert (ack.seq, ack.duplicate) == (1, True)
                await there.say(sync=frame_pb2.Sync(conversation_id=conversation, after_seq=1))
                synced = await there.hear("synced")
                assert [each.seq for each in synced.messages] == [2, 3]
                # The new session counts from 1.
                await ann.send(conversation, "four")
                there.number = 0
                await there.hear("push")
                assert 1 <= there.number < 10


async def test_clients_outlive_a_gateway_that_is_started_again(
    start: Start, valkey: str, keys_file: Path
) -> None:
    async with start() as d:
        listen = f"127.0.0.1:{free_port()}"
        settings = gateway_settings(d.chat.port, valkey, keys_file, ws_listen=listen)
        seen: dict[str, list[str]] = {"ann": [], "1": []}

        def reading(name: str) -> object:
            def on_push(push: frame_pb2.Push) -> None:
                if push.HasField("message"):
                    seen[name].append(push.message.content.text)

            return on_push

        async with running("gateway", settings, deskwire_gateway.app.build) as first:
            desk = Desk(d.signer, d.chat, first, d.stack, d.tenant)
            ann = await desk.client(Role.AGENT, "ann", on_push=reading("ann"))
            await d.available("ann")
            visitor = await desk.client(Role.VISITOR, "1", on_push=reading("1"))
            conversation = new_id()
            await visitor.send(conversation, "before")
            await eventually(lambda: len(seen["ann"]) == 2)
        # It is away: what is said meanwhile waits, in order.
        sent = [visitor.post(conversation, f"meanwhile {number}") for number in range(5)]
        answer = ann.post(conversation, "and the agent, too")
        async with running("gateway", settings, deskwire_gateway.app.build):
            seqs = [(await each).seq for each in sent]
            assert seqs == sorted(seqs)
            await answer
            await visitor.send(conversation, "after")
            await eventually(lambda: len(seen["ann"]) == len(seen["1"]) == 9)
            assert seen["ann"] == seen["1"]
            own = [each for each in seen["1"] if each.startswith("meanwhile")]
            assert own == [f"meanwhile {number}" for number in range(5)]
            assert ann.reconnects
            assert visitor.reconnects
            assert not visitor.lossless_resumes
            await visitor.close()
            await ann.close()


async def test_many_conversations_are_synced_at_once_page_by_page(start: Start) -> None:
    async with start() as d, wire(d, d.token(Role.VISITOR, "1")) as visitor:
        conversations = [new_id() for _ in range(4)]
        for number in range(7):
            for conversation in conversations:
                await visitor.send(conversation, f"{conversation} {number}")
        for _ in range(28):
            await visitor.hear("send_ack")
        have = {conversation: [] for conversation in conversations}

        async def ask(*of: str) -> None:
            frames = [
                frame_pb2.Frame(
                    sync=frame_pb2.Sync(conversation_id=each, after_seq=len(have[each]), limit=3)
                )
                for each in of
            ]
            await visitor.raw(frame_pb2.Batch(frames=frames).SerializeToString())

        await ask(*conversations)
        pages = 0
        while any(len(each) < 7 for each in have.values()):
            synced = await visitor.hear("synced")
            pages += 1
            assert synced.head_seq == 7
            assert len(synced.messages) <= 3
            mine = have[synced.conversation_id]
            for message in synced.messages:
                assert message.seq == len(mine) + 1
                mine.append(message.content.text)
            if len(mine) < 7:
                await ask(synced.conversation_id)
        assert pages == 4 * 3
        for conversation, texts in have.items():
            assert texts == [f"{conversation} {number}" for number in range(7)]
