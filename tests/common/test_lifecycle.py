"""How a service ends: with its background work, and everything is closed, last one first, whatever one of them does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from deskwire_common import lifecycle
from deskwire_common.config import ServiceSettings
from deskwire_common.lifecycle import Runtime, running


async def test_nothing_that_hangs_keeps_a_service_from_ending(
    keys_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lifecycle, "_CLOSE_SECONDS", 0.5)
    closed: list[str] = []
    begun, let_go = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        begun.set()
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                closed.append("stubborn was asked")

    async def hanging() -> None:
        closed.append("hanging")
        await asyncio.Event().wait()

    async def close(name: str) -> None:
        closed.append(name)

    async def build(_settings: ServiceSettings, runtime: Runtime[ServiceSettings]) -> None:
        runtime.stack.push_async_callback(close, "first")
        runtime.spawn("stubborn", stubborn)
        runtime.stack.push_async_callback(hanging)
        runtime.stack.push_async_callback(close, "last")
        await begun.wait()

    settings = ServiceSettings(grpc_listen="127.0.0.1:0", keys_file=keys_file)
    try:
        async with asyncio.timeout(30), running("test", settings, build):
            pass
        assert closed == ["last", "hanging", "stubborn was asked", "first"]
        told = capsys.readouterr()
        assert (told.out + told.err).count("close_cut_short") == 2
    finally:
        # The test's own loop waits for it.
        let_go.set()


async def test_work_whose_wait_was_cancelled_ends_the_service(
    keys_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waited_for: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait() -> None:
        await waited_for

    async def build(_settings: ServiceSettings, runtime: Runtime[ServiceSettings]) -> None:
        runtime.spawn("waiting", wait)

    settings = ServiceSettings(grpc_listen="127.0.0.1:0", keys_file=keys_file)
    async with running("test", settings, build) as runtime:
        await asyncio.sleep(0)
        assert not runtime.crashed.done()
        waited_for.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(RuntimeError, match="was cancelled"):
                await runtime.crashed
    told = capsys.readouterr()
    assert (told.out + told.err).count("background_task_crashed") == 1
