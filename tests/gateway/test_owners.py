"""Messages that nobody takes: a gateway keeps them for a while, in order, and then gives them back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import deskwire_chat.app
import deskwire_gateway.app
from deskwire.chat.v1 import conversation_pb2
from deskwire.common.v1 import error_reason_pb2
from deskwire.gateway.v1 import frame_pb2
from deskwire_chat.log.commit import Committer
from deskwire_chat.owners.ownership import KIND, Ownership
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.errors import Unavailable
from deskwire_common.lifecycle import running
from deskwire_common.migrations import migrate
from deskwire_gateway import sends
from support.ports import free_port
from support.suite import chat_settings, gateway_settings, new_id
from support.wire import wire


async def test_what_nobody_takes_is_given_back_and_holds_its_line(
    tmp_path: Path,
    kafka: str,
    valkey: str,
    keys_file: Path,
    signer: TokenSigner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sends, "_PATIENCE", 0.5)
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    await migrate(url, "deskwire_chat")
    port = free_port()
    token = signer.mint(tenant="t", role=Role.VISITOR, subject="1001")
    conversation = new_id()
    settings = gateway_settings(port, valkey, keys_file)
    async with (
        running("gateway", settings, deskwire_gateway.app.build) as gateway,
        wire(address(gateway), token) as w,
    ):
        # There is no chat at all.
        await w.say(send=send(conversation, "one"))
        await w.say(send=send(conversation, "two"))
        errors = [await w.hear("error"), await w.hear("error")]
        assert [(e.client_msg_id, e.reason, e.temporary) for e in errors] == [
            ("one", error_reason_pb2.ERROR_REASON_NOT_OWNER, True),
            ("two", error_reason_pb2.ERROR_REASON_LINE_HELD, True),
        ]
        # The second can't go before the first has come again.
        await w.say(send=send(conversation, "two"))
        error = await w.hear("error")
        assert (error.client_msg_id, error.reason) == (
            "two",
            error_reason_pb2.ERROR_REASON_LINE_HELD,
        )

        monkeypatch.setattr(sends, "_PATIENCE", 30.0)
        await w.say(send=send(conversation, "one"))
        await w.say(send=send(conversation, "two"))
        chat = chat_settings(url, kafka, keys_file, grpc_listen=f"127.0.0.1:{port}")
        async with running("chat", chat, deskwire_chat.app.build):
            acks = [await w.hear("send_ack"), await w.hear("send_ack")]
            assert [(a.client_msg_id, a.seq) for a in acks] == [("one", 1), ("two", 2)]


async def test_a_shard_that_gives_its_partitions_up_and_takes_them_again_reorders_nothing(
    tmp_path: Path,
    kafka: str,
    valkey: str,
    keys_file: Path,
    signer: TokenSigner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sends that are on the way while a partition is away come back, all of them, in order."""
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    await migrate(url, "deskwire_chat")
    port = free_port()
    found = made(monkeypatch)
    token = signer.mint(tenant="t", role=Role.VISITOR, subject="1001")
    conversation = new_id()
    chat = chat_settings(url, kafka, keys_file, grpc_listen=f"127.0.0.1:{port}")
    async with (
        running("chat", chat, deskwire_chat.app.build),
        running(
            "gateway", gateway_settings(port, valkey, keys_file), deskwire_gateway.app.build
        ) as gateway,
        wire(address(gateway), token) as w,
    ):
        (ownership,) = found
        for number in range(60):
            if number % 20 == 10:
                await ownership._owner._shares[KIND].give_up(set(ownership.partitions))
            await w.say(send=send(conversation, str(number)))
            if number % 20 == 15:
                await ownership._owner.look()
        await ownership._owner.look()
        acks = [await w.hear("send_ack") for _ in range(60)]
        assert [(a.client_msg_id, a.seq) for a in acks] == [(str(n), n + 1) for n in range(60)]


async def test_a_line_is_held_however_the_owner_changes(
    tmp_path: Path,
    kafka: str,
    valkey: str,
    keys_file: Path,
    signer: TokenSigner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    await migrate(url, "deskwire_chat")
    found = made(monkeypatch)

    async def away(*_: object) -> None:
        raise Unavailable("the database is away")

    port = free_port()
    token = signer.mint(tenant="t", role=Role.VISITOR, subject="1001")
    conversation = new_id()
    chat = chat_settings(url, kafka, keys_file, grpc_listen=f"127.0.0.1:{port}")
    async with (
        running("chat", chat, deskwire_chat.app.build),
        running(
            "gateway", gateway_settings(port, valkey, keys_file), deskwire_gateway.app.build
        ) as gateway,
        wire(address(gateway), token) as w,
    ):
        with monkeypatch.context() as broken:
            broken.setattr(Committer, "_transact", away)
            await w.say(send=send(conversation, "one"))
            assert (await w.hear("error")).temporary
        # Chat forgets who holds a line when the partition leaves it: the gateway doesn't.
        (ownership,) = found
        await ownership._owner._shares[KIND].give_up(set(ownership.partitions))
        await ownership._owner.look()
        await w.say(send=send(conversation, "two"))
        error = await w.hear("error")
        assert error.reason == error_reason_pb2.ERROR_REASON_LINE_HELD
        await w.say(send=send(conversation, "one"))
        await w.say(send=send(conversation, "two"))
        acks = [await w.hear("send_ack") for _ in range(2)]
        assert [(a.client_msg_id, a.seq) for a in acks] == [("one", 1), ("two", 2)]


def made(monkeypatch: pytest.MonkeyPatch) -> list[Ownership]:
    """The ownership of each chat process that is built from now on."""
    found: list[Ownership] = []
    take_share = Ownership.take_share

    def noted(self: Ownership, duties: Any) -> None:
        found.append(self)
        take_share(self, duties)

    monkeypatch.setattr(Ownership, "take_share", noted)
    return found


def address(gateway: Any) -> Any:
    return SimpleNamespace(url=f"ws://127.0.0.1:{gateway.extra_ports['ws']}/ws")


def send(conversation_id: str, text: str) -> frame_pb2.Send:
    return frame_pb2.Send(
        conversation_id=conversation_id,
        client_msg_id=text,
        content=conversation_pb2.Content(text=text),
    )
