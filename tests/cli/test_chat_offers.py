"""`deskwire chat --as agent` at a desk that offers conversations."""

from __future__ import annotations

from pathlib import Path

import pytest

from deskwire_cli.chat import Side, Terminal
from deskwire_common.auth import Role, TokenSigner
from support import eventually
from support.suite import desk, new_id


async def test_an_agent_answers_offers_by_commands(
    tmp_path: Path,
    kafka: str,
    valkey: str,
    keys_file: Path,
    signer: TokenSigner,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    seen: list[str] = []

    def said(text: str) -> bool:
        seen.append(capsys.readouterr().out)
        return text in "".join(seen)

    async with desk(url, kafka, valkey, keys_file, signer, chat={"offer_seconds": 60.0}) as d:
        terminal = Terminal(Side.AGENT, "ann", d.channel(Role.AGENT, "ann"))
        await terminal.enter("/accept")
        assert said("nothing is offered to you")
        terminal.client = await d.client(Role.AGENT, "ann", on_push=terminal.see)
        await terminal.set_available(True)
        visitor = await d.client(Role.VISITOR, "1001", name="Li Na")
        await visitor.send(new_id(), "hello")
        await eventually(lambda: said("* Li Na waits: /accept or /decline"))
        await terminal.enter("/decline")
        await eventually(lambda: said("* the offer is declined"))
        await visitor.send(new_id(), "hello again")
        await eventually(lambda: said("") and "".join(seen).count("waits") == 2)
        await terminal.enter("/accept")
        await eventually(lambda: said("with ann"))
        await eventually(lambda: said("Li Na: hello again"))
