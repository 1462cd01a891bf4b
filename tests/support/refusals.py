"""What a call that must fail says."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import grpc
import pytest

from deskwire_common.errors import DeskwireError, from_rpc_error


async def refused(call: Awaitable[Any]) -> DeskwireError:
    """The error of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def refusal(call: Awaitable[Any]) -> tuple[str, str]:
    """Code and reason of a call that must fail."""
    error = await refused(call)
    return error.code.name, error.reason_name
