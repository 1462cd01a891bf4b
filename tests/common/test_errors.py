"""Every domain error crosses a real connection and comes out as it went in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from deskwire_common import errors
from deskwire_common.errors import DeskwireError, from_rpc_error
from deskwire_common.rpc import refuse


def all_kinds(kind: type[DeskwireError] = DeskwireError) -> Iterator[type[DeskwireError]]:
    for each in kind.__subclasses__():
        if each.__module__ == errors.__name__:
            yield each
            yield from all_kinds(each)


class Failing:
    """A server whose one method fails as it is told."""

    def __init__(self) -> None:
        self.error: DeskwireError | None = None
        self.code = grpc.StatusCode.DATA_LOSS

    async def fail(self, _request: bytes, context: Any) -> bytes:
        if self.error is None:
            await context.abort(self.code, "no details")
        else:
            await refuse(context, self.error)
        return b""


@pytest.fixture
async def failing() -> AsyncIterator[tuple[Failing, grpc.aio.Channel]]:
    servicer = Failing()
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(servicer.fail)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Test", {"Fail": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield servicer, channel
    await server.stop(None)


async def crossed(channel: grpc.aio.Channel) -> DeskwireError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/test.Test/Fail")(b"")
    return from_rpc_error(caught.value)


@pytest.mark.parametrize("kind", sorted(set(all_kinds()), key=str), ids=lambda kind: kind.__name__)
async def test_an_error_crosses_whole(
    kind: type[DeskwireError], failing: tuple[Failing, grpc.aio.Channel]
) -> None:
    servicer, channel = failing
    if kind is errors.VersionMismatch:
        sent: DeskwireError = errors.VersionMismatch(current=7, expected=5)
        assert sent.metadata == {"current_version": "7", "expected_version": "5"}
    else:
        sent = kind(
            "нет: 李",
            metadata={"limit": "7", "слово": "да"},
            retry_after=1.25,
            field="customer.name",
            violations=[("ids[0]", "must not be empty")],
        )
    servicer.error = sent
    received = await crossed(channel)
    assert isinstance(sent, type(received))
    assert received.code is sent.code
    assert received.reason_name == sent.reason_name
    assert received.message == sent.message
    assert received.metadata == sent.metadata
    assert received.violations == sent.violations
    assert received.retry_after == sent.retry_after
    assert received.temporary == sent.temporary


async def test_an_error_with_more_text_than_trailers_have_room_for_still_crosses(
    failing: tuple[Failing, grpc.aio.Channel],
) -> None:
    servicer, channel = failing
    rule = "李" * 10_000
    servicer.error = errors.InvalidArgument(
        rule, field="name", violations=[("ids[0]", "empty"), *[("ids", rule)] * 500]
    )
    received = await crossed(channel)
    assert received.code is grpc.StatusCode.INVALID_ARGUMENT
    assert received.message == "李" * (errors.TEXT_BYTES // 3) + "…"
    assert received.violations == [("ids[0]", "empty")]


async def test_every_reason_of_the_contract_crosses(
    failing: tuple[Failing, grpc.aio.Channel],
) -> None:
    servicer, channel = failing
    for name, reason in errors.Reason.items():
        servicer.error = errors.FailedPrecondition("no", reason=reason)
        received = await crossed(channel)
        assert received.reason == reason
        assert f"ERROR_REASON_{received.reason_name}" == name
        assert (received.metadata, received.violations, received.retry_after) == ({}, [], None)


async def test_a_failure_without_details_is_still_a_domain_error(
    failing: tuple[Failing, grpc.aio.Channel],
) -> None:
    _, channel = failing
    received = await crossed(channel)
    assert isinstance(received, errors.Internal)
    assert received.message == "no details"


async def test_a_call_that_the_other_side_cut_off_is_unavailable_and_temporary(
    failing: tuple[Failing, grpc.aio.Channel],
) -> None:
    servicer, channel = failing
    servicer.code = grpc.StatusCode.CANCELLED
    received = await crossed(channel)
    assert isinstance(received, errors.Unavailable)
    assert received.temporary


async def test_a_server_that_is_away_is_unavailable_and_temporary() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        received = await crossed(channel)
    assert isinstance(received, errors.Unavailable)
    assert received.temporary


def test_only_limits_and_absence_are_temporary() -> None:
    assert {kind.__name__ for kind in all_kinds() if kind.__new__(kind).temporary} == {
        "ResourceExhausted",
        "Unavailable",
    }
