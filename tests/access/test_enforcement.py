"""Who is disabled is refused, sent away and offered nothing; everybody else notices nothing."""

from __future__ import annotations

from dataclasses import replace

from deskwire.chat.v1 import agent_pb2, conversation_pb2
from deskwire.chat.v1 import agent_service_pb2 as agents_pb
from deskwire.chat.v1 import conversation_service_pb2 as conversations_pb
from deskwire.chat.v1 import tenant_service_pb2 as tenants_pb
from deskwire.common.v1 import actor_pb2
from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire.shard.v1 import shard_service_pb2 as shard_pb
from deskwire.shard.v1 import shard_service_pb2_grpc
from deskwire_chat.store import agents as agent_store
from deskwire_chat.store import tenants as tenant_store
from deskwire_client import Client
from deskwire_common import events, topics
from deskwire_common.auth import ANY_TENANT, Role
from deskwire_common.rpc import stream_metadata
from support import eventually
from support.access import Access
from support.refusals import refusal
from support.suite import new_id
from support.talks import conversation

SHUT_OUT = 3503
TENANT_DISABLED = ("PERMISSION_DENIED", "TENANT_DISABLED")
AGENT_DISABLED = ("PERMISSION_DENIED", "AGENT_DISABLED")


def send(conversation_id: str) -> conversations_pb.SendMessageRequest:
    return conversations_pb.SendMessageRequest(
        conversation_id=conversation_id,
        client_msg_id=new_id(),
        content=conversation_pb2.Content(text="hello"),
    )


async def sent_away(client: Client, reason: int) -> None:
    """The client was told to go and didn't come back."""
    assert client._connection._task is not None
    await eventually(client._connection._task.done)
    assert client.reconnects == 0
    assert client._connection._goodbye is not None
    assert (client._connection._goodbye.code, client._connection._goodbye.reason) == (
        SHUT_OUT,
        reason,
    )


async def disable_tenant(access: Access, tenant: str) -> None:
    stub = access.tenants()
    await stub.CreateTenant(tenants_pb.CreateTenantRequest(request_id=new_id(), tenant_id=tenant))
    await stub.DisableTenant(tenants_pb.DisableTenantRequest(request_id=new_id(), tenant_id=tenant))


async def test_a_disabled_tenant_is_shut_out(access: Access) -> None:
    d = access.desk
    agent = await d.client(Role.AGENT, "alice")
    visitor = await d.client(Role.VISITOR, "1001")
    bot = await d.client(Role.BOT, "helper")
    stranger = await d.client(Role.VISITOR, "1001", tenant="another")
    talk = new_id()
    await visitor.send(talk, "before")

    await disable_tenant(access, d.tenant)

    for client in (agent, visitor, bot):
        await sent_away(client, reasons.ERROR_REASON_TENANT_DISABLED)
    for role in (Role.VISITOR, Role.AGENT, Role.BOT):
        goodbye = await access.goodbye(role, "new")
        assert (goodbye.code, goodbye.reconnect) == (SHUT_OUT, False)
        assert goodbye.reason == reasons.ERROR_REASON_TENANT_DISABLED
    for role, subject in ((Role.VISITOR, "1001"), (Role.AGENT, "alice"), (Role.BOT, "helper")):
        assert await refusal(access.conversations(role, subject).SendMessage(send(talk))) == (
            TENANT_DISABLED
        )
    listing = conversations_pb.ListConversationsRequest()
    for role in (Role.OPERATOR, Role.SERVICE):
        stub = access.conversations(role, "x")
        assert await refusal(stub.ListConversations(listing)) == TENANT_DISABLED
    # Its neighbours go on.
    assert (await stranger.send(new_id(), "still here")).seq == 1

    await access.tenants().EnableTenant(
        tenants_pb.EnableTenantRequest(request_id=new_id(), tenant_id=d.tenant)
    )
    back = await d.client(Role.VISITOR, "1001")
    assert (await back.send(talk, "after")).seq == 2


async def test_each_send_of_a_refused_connection_is_answered(access: Access) -> None:
    """Else the gateway would keep it, and send it again for ever."""
    await disable_tenant(access, access.desk.tenant)
    user = actor_pb2.Actor(role=actor_pb2.ROLE_VISITOR, subject="1001")
    attach = shard_pb.Attach(connection_id=7, tenant_id=access.desk.tenant, user=user)
    items = [
        shard_pb.LinkUpItem(hello=shard_pb.LinkHello(worker_id=new_id(), generation=1)),
        shard_pb.LinkUpItem(attach=attach),
    ]
    for number in (1, 2):
        frame = frame_pb2.Send(conversation_id=new_id(), client_msg_id="m")
        frame.content.text = "too late"
        link_send = shard_pb.LinkSend(connection_id=7, send_id=number, send=frame)
        items.append(shard_pb.LinkUpItem(send=link_send))
    items.append(shard_pb.LinkUpItem(detach=shard_pb.Detach(connection_id=7)))

    # Interceptors, which bring tokens, are not for streams.
    token = access.desk.token(Role.SERVICE, "gateway", tenant=ANY_TENANT)
    channel = access.desk.channel(Role.SERVICE, "gateway", tenant=ANY_TENANT)
    stub = shard_service_pb2_grpc.ShardServiceStub(channel)
    call = stub.Link(metadata=stream_metadata(token))
    await call.write(shard_pb.LinkRequest(items=items))
    await call.done_writing()
    down = [item async for response in call for item in response.items]
    down = [item for item in down if not item.HasField("owners")]
    assert down[0].refusal.reason == reasons.ERROR_REASON_TENANT_DISABLED
    assert [(item.send_id, item.stored) for item in down[1:]] == [(1, False), (2, False)]
    for item in down[1:]:
        (frame,) = frame_pb2.Batch.FromString(item.batch).frames
        assert frame.error.reason == reasons.ERROR_REASON_TENANT_DISABLED
        assert not frame.error.temporary


async def test_a_disabled_agents_conversations_go_to_another(access: Access) -> None:
    d = access.desk
    alice = await d.client(Role.AGENT, "alice")
    await d.available("alice")
    visitor = await d.client(Role.VISITOR, "1001")
    talks = [new_id(), new_id()]
    for talk in talks:
        await visitor.send(talk, "hello")
        await eventually(lambda talk=talk: assigned(access, talk, "alice"))
    await d.client(Role.AGENT, "bob")
    await d.available("bob")

    operator = access.agents()
    request = agents_pb.DisableAgentRequest(request_id=new_id(), agent_id="alice")
    assert (await operator.DisableAgent(request)).agent.disabled

    await sent_away(alice, reasons.ERROR_REASON_AGENT_DISABLED)
    for talk in talks:
        await eventually(lambda talk=talk: assigned(access, talk, "bob"))
    # Alice is out, whatever she tries; who has her id in another role is somebody else.
    assert (await access.goodbye(Role.AGENT, "alice")).reason == (
        reasons.ERROR_REASON_AGENT_DISABLED
    )
    mine = access.conversations(Role.AGENT, "alice")
    assert await refusal(mine.SendMessage(send(talks[0]))) == AGENT_DISABLED
    status = agents_pb.SetAgentStatusRequest(request_id=new_id(), status="AGENT_STATUS_AVAILABLE")
    assert await refusal(access.agents(Role.AGENT, "alice").SetAgentStatus(status)) == (
        AGENT_DISABLED
    )
    await access.conversations(Role.VISITOR, "alice").SendMessage(send(new_id()))
    # Nobody can give her one.
    transfer = conversations_pb.TransferConversationRequest(
        request_id=new_id(), conversation_id=talks[0], agent_id="alice"
    )
    manager = access.conversations(Role.OPERATOR, "olga")
    unavailable = ("FAILED_PRECONDITION", "AGENT_UNAVAILABLE")
    assert await refusal(manager.TransferConversation(transfer)) == unavailable

    shown = (await operator.GetAgent(agents_pb.GetAgentRequest(agent_id="alice"))).agent
    assert (shown.connected, shown.active_conversations, shown.disabled) == (False, 0, True)
    found = await access.events(topics.CONVERSATIONS.name, 9)
    moves = [each.event_type for each in found if each.subject == talks[0]]
    assert moves == [
        "conversation_opened",
        "conversation_assigned",
        "conversation_transferred",
        "conversation_assigned",
    ]

    # Let in again, she gets nothing until she says that she is there.
    enable = agents_pb.EnableAgentRequest(request_id=new_id(), agent_id="alice")
    enabled = (await operator.EnableAgent(enable)).agent
    assert (enabled.disabled, enabled.status) == (False, agent_pb2.AGENT_STATUS_AWAY)
    await d.client(Role.AGENT, "alice")
    transfer.request_id = new_id()
    assert await refusal(manager.TransferConversation(transfer)) == unavailable
    last = events.unpack((await access.events(topics.AGENTS.name, 4))[-1])
    assert last.changed.keys() == {"disabled", "status"}
    await d.available("alice")
    transfer.request_id = new_id()
    await manager.TransferConversation(transfer)
    assert (await conversation(access.desk, talks[0])).agent_id == "alice"


async def assigned(access: Access, conversation_id: str, agent: str) -> bool:
    return bool((await conversation(access.desk, conversation_id)).agent_id == agent)


async def test_what_another_process_disables_is_seen_within_seconds(access: Access) -> None:
    """And a conversation whose agent was disabled by a process that died then isn't left with them."""
    d = access.desk
    alice = await d.client(Role.AGENT, "alice")
    await d.available("alice")
    visitor = await d.client(Role.VISITOR, "1001")
    talk = new_id()
    await visitor.send(talk, "hello")
    await eventually(lambda: assigned(access, talk, "alice"))
    async with access.database() as db, db.transaction() as uow:
        row = await agent_store.lock(uow.connection, d.tenant, "alice")
        assert row is not None
        await agent_store.save(uow.connection, replace(row, disabled=True, version=row.version + 1))
        await uow.commit()

    await sent_away(alice, reasons.ERROR_REASON_AGENT_DISABLED)
    await eventually(lambda: assigned(access, talk, ""))
    assert (
        await conversation(access.desk, talk)
    ).state == conversation_pb2.CONVERSATION_STATE_QUEUED

    stub = access.tenants()
    await stub.CreateTenant(tenants_pb.CreateTenantRequest(request_id=new_id(), tenant_id=d.tenant))
    async with access.database() as db, db.transaction() as uow:
        tenant = await tenant_store.lock(uow.connection, d.tenant)
        assert tenant is not None
        await tenant_store.save(uow.connection, replace(tenant, disabled=True))
        await uow.commit()
    await sent_away(visitor, reasons.ERROR_REASON_TENANT_DISABLED)
