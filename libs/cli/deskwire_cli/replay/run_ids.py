"""The names of one run: its ids, its tenant and the tokens of its players."""

from __future__ import annotations

import uuid
from pathlib import Path

from deskwire_cli.recorded.dialogues import Dialogue, Turn
from deskwire_common.auth import KeySet, Role, TokenSigner

_TOKEN_SECONDS = 86_400.0


class RunIds:
    """The names of one run: no two runs have any in common."""

    def __init__(self, keys_file: Path) -> None:
        self.run = uuid.uuid4()
        self.tenant = f"replay-{self.run.hex[:12]}"
        self._signer = TokenSigner(KeySet.load(keys_file))

    def token(self, role: Role, subject: str) -> str:
        """Return a token for a player of this run."""
        return self._signer.mint(tenant=self.tenant, role=role, subject=subject, ttl=_TOKEN_SECONDS)

    def conversation(self, dialogue: Dialogue) -> str:
        """Return the id of a dialogue's conversation."""
        return str(uuid.uuid5(self.run, dialogue.dialogue_id))

    @staticmethod
    def message(dialogue: Dialogue, turn: Turn) -> str:
        """Return the client_msg_id of a turn: its place in the file, which no other turn of the run has."""
        return f"{dialogue.line}.{turn.number}"
