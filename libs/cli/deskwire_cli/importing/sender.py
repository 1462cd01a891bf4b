"""Sends dialogues to HistoryService, as often as it takes: what is there already is not stored again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from rich.progress import Progress

from deskwire.chat.v1 import history_service_pb2, history_service_pb2_grpc
from deskwire_cli.importing.requests import Form
from deskwire_cli.machine.problem import Problem
from deskwire_cli.recorded.bounded import bounded
from deskwire_cli.recorded.dialogues import Dialogue
from deskwire_cli.recorded.oddities import Balance, Kind
from deskwire_common.errors import DeadlineExceeded, DeskwireError, Unauthenticated
from deskwire_common.loops import Backoff
from deskwire_common.rpc import domain_errors

AT_ONCE: Final = 12
"""How many dialogues are under way at once."""
PATIENCE: Final = 60.0
"""Seconds for which a request is tried again while the suite is away or busy."""
NAMED: Final = 20
"""How many of the refused dialogues are named."""

_SECONDS: Final = 30.0
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0


@dataclass(slots=True)
class Outcome:
    """The outcome of an import; `balance` is what the file holds, without what was refused."""

    balance: Balance
    conversations: int = 0
    stored: int = 0
    duplicates: int = 0
    seconds: float = 0.0
    refused: list[dict[str, Any]] = field(default_factory=list)
    """The first NAMED dialogues that were refused: their place, the contract's reason, and a message for people."""

    def report(self) -> dict[str, Any]:
        """Return the contract of `import --json`."""
        turns = self.stored + self.duplicates
        return {
            **self.balance.report("imported"),
            "conversations": self.conversations,
            "stored": self.stored,
            "duplicates": self.duplicates,
            "refused": self.refused,
            "seconds": round(self.seconds, 3),
            "turns_per_second": round(turns / self.seconds, 1) if self.seconds else 0.0,
        }


class Sender:
    """One import."""

    def __init__(self, channel: Any, form: Form, outcome: Outcome, progress: Progress) -> None:
        self._stub = history_service_pb2_grpc.HistoryServiceStub(channel)
        self._form = form
        self._outcome = outcome
        self._progress = progress
        self._task = progress.add_task(
            "importing dialogues", total=outcome.balance.dialogues_played
        )

    async def send(self, dialogues: Iterable[Dialogue]) -> None:
        """Send everything. Raises Problem when the suite stays away: sent again, the rest follows."""
        await bounded(self._one, dialogues, AT_ONCE)

    async def _one(self, dialogue: Dialogue) -> None:
        outcome = self._outcome
        done = 0
        for request in self._form.requests(dialogue):
            try:
                answer = await self._call(request)
            except DeskwireError as error:
                if error.temporary or isinstance(error, DeadlineExceeded | Unauthenticated):
                    raise Problem(
                        f"stopped at {dialogue.place}: {error}; run it again, and it goes on where it stopped"
                    ) from None
                self._refuse(dialogue, error, len(dialogue.turns) - done)
                break
            done += len(request.messages)
            outcome.stored += answer.stored
            outcome.duplicates += answer.duplicates
        else:
            outcome.conversations += 1
        self._progress.advance(self._task)

    def _refuse(self, dialogue: Dialogue, error: DeskwireError, turns: int) -> None:
        place = dialogue.place
        self._outcome.balance.take_back(Kind.REFUSED, place, turns)
        if len(self._outcome.refused) < NAMED:
            self._outcome.refused.append(
                {
                    "line": place.line,
                    "dialogue": place.dialogue,
                    "reason": error.reason_name,
                    "message": error.message,
                }
            )

    async def _call(
        self, request: history_service_pb2.ImportConversationRequest
    ) -> history_service_pb2.ImportConversationResponse:
        """Call until it is answered. Raises the last error after PATIENCE, and at once one that isn't temporary."""
        pauses = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE
        while True:
            try:
                with domain_errors():
                    answer: history_service_pb2.ImportConversationResponse = (
                        await self._stub.ImportConversation(request, timeout=_SECONDS)
                    )
                return answer
            except DeskwireError as error:
                again = error.temporary or isinstance(error, DeadlineExceeded)
                if not again or error.reason_name == "TOO_LARGE" or loop.time() > until:
                    raise
            await pauses.pause()
