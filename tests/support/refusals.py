"""The errors of calls that must fail."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import grpc
import pytest

from deskwire_common.errors import DeskwireError, from_rpc_error


async def refused(call: Awaitable[Any]) -> DeskwireError:
    """Return the error of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def failure(call: Awaitable[Any]) -> tuple[str, str]:
    """Return code and message of a call that must fail."""
    error = await refused(call)
    return error.code.name, error.message


async def refusal(call: Awaitable[Any]) -> tuple[str, str]:
    """Return code and reason of a call that must fail."""
    error = await refused(call)
    return error.code.name, error.reason_name
