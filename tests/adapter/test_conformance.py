"""The conformance kit finds what is wrong, and nothing where nothing is."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from deskwire.adapters.v1 import system_adapter_service_pb2 as pb
from deskwire.adapters.v1 import system_adapter_service_pb2_grpc
from deskwire_adapter import (
    DELIVERED,
    DUPLICATE,
    AdapterBase,
    CredentialsRefused,
    Incoming,
    Login,
    Outcome,
    Result,
    Session,
    conflict,
    rate_limited,
    retry,
    serving,
)
from deskwire_adapter.conformance import Grade, NotThere, Report, Subject, examine
from support.ports import free_port

Service = system_adapter_service_pb2_grpc.SystemAdapterServiceServicer
PASSWORD = {"password": "correct-horse"}


class Good(AdapterBase):
    """Knows what it has, and limits now and then."""

    program = "good/1"
    event_types = ("customer_updated",)

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.latest: dict[str, int] = {}
        self.limited = False

    def auth(self, login: Login) -> Session:
        if login.credentials != PASSWORD:
            raise CredentialsRefused("wrong password")
        return Session(login)

    async def push_one(self, _session: Session, event: Incoming) -> Result:
        assert event.data
        if event.event_id in self.ids:
            return DUPLICATE
        if not self.limited and event.subject.startswith("conformance-rate-20"):
            self.limited = True
            return rate_limited("slow down", 0.01)
        if event.sequence < self.latest.get(event.subject, 0):
            return conflict("there is a newer one")
        self.ids.add(event.event_id)
        self.latest[event.subject] = event.sequence
        return DELIVERED


def grades(report: Report) -> dict[str, Grade]:
    return {each.trial: each.grade for each in report.findings}


def failed(report: Report) -> dict[str, str]:
    return {each.trial: each.text for each in report.findings if each.grade is Grade.FAILED}


async def test_a_good_adapter_passes() -> None:
    async with serving(Good(), "127.0.0.1:0") as port:
        report = await examine(Subject(f"127.0.0.1:{port}", credentials=PASSWORD))
    assert report.passed, failed(report)
    found = grades(report)
    assert found.pop("restart") is Grade.SKIPPED
    assert set(found.values()) == {Grade.PASSED}
    texts = {each.trial: each.text for each in report.findings}
    assert texts["rate limit"].startswith("limited after 21, taken 0.01 s later")
    assert report.as_json()["adapter"] == "good/1"


class Bad(Good):
    """A good one with one fault."""

    def __init__(self, fault: Callable[[Incoming], Any]) -> None:
        super().__init__()
        self.fault = fault

    async def push_one(self, session: Session, event: Incoming) -> Result:
        found = self.fault(event)
        if isinstance(found, Result):
            return found
        return await super().push_one(session, event)


def about(what: str, result: Result) -> Callable[[Incoming], Result | None]:
    """This result for what is about something."""
    return lambda event: result if event.subject.startswith(f"conformance-{what}-") else None


def repeated(event: Incoming) -> Result | None:
    return conflict("duplicate key") if event.attempt > 1 else None


@pytest.mark.parametrize(
    ("fault", "trial", "text"),
    [
        (repeated, "duplicates", "try 2 of the same event: CONFLICT (duplicate key)"),
        (repeated, "time-out after apply", "three calls without an answer: CONFLICT"),
        (about("one", retry("later")), "delivery", "RETRY (later)"),
        (about("rate", Result(Outcome.RATE_LIMITED, "", 7_200.0)), "rate limit", "7200 s"),
        (about("large", retry("timeout")), "large event", "900 kB: RETRY"),
        (about("texts", Result(Outcome.UNKNOWN, "UnicodeEncodeError")), "texts and numbers", "Unicode"),
        (lambda e: retry("gap") if "order" in e.subject and e.sequence == 1 else None,
         "reordering", "an older event after a newer one: RETRY"),
    ],
)  # fmt: skip
async def test_faults_of_results_are_found(
    fault: Callable[[Incoming], Any], trial: str, text: str
) -> None:
    async with serving(Bad(fault), "127.0.0.1:0") as port:
        subject = Subject(f"127.0.0.1:{port}", credentials=PASSWORD)
        report = await examine(subject, only=["schema", trial])
    assert text in failed(report)[trial]


class Raw(Service):
    """A servicer without the library; `answer` makes the results of a Push."""

    def __init__(self, answer: Callable[[Any, Any], Any]) -> None:
        self.answer = answer

    async def Schema(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        return pb.SchemaResponse(adapter="raw/1", max_batch=5)

    async def Auth(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        return pb.AuthResponse(session="s")

    async def Push(self, request: Any, context: Any) -> Any:  # noqa: N802
        found = self.answer(request, context)
        results = await found if asyncio.iscoroutine(found) else found
        return pb.PushResponse(results=results)


def taken(items: Sequence[Any], outcome: int = 1) -> list[Any]:
    return [pb.PushResult(event_id=each.event.event_id, outcome=outcome) for each in items]


async def exhausted(request: Any, context: Any) -> Any:
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "429")


async def internal_for_odd(request: Any, context: Any) -> Any:
    if any(each.event.event_type == "conformance_unheard_of" for each in request.items):
        await context.abort(grpc.StatusCode.INTERNAL, "NullPointerException")
    return taken(request.items)


@pytest.mark.parametrize(
    ("answer", "trial", "text"),
    [
        (lambda r, _: taken(r.items[1:]), "batch", "it answered 4 results for 5 events"),
        (lambda r, _: taken(r.items)[::-1], "batch", "in another order"),
        (lambda r, _: [pb.PushResult(outcome=1) for _ in r.items], "delivery", "for other events"),
        (lambda r, _: taken(r.items, 0), "delivery", "outcome 0 is none"),
        (lambda r, _: taken(r.items, 77), "delivery", "outcome 77 is none"),
        (lambda r, _: taken(r.items), "auth expiry", "a session that it never gave was taken"),
        (lambda r, _: taken(r.items), "wrong credentials", "it took wrong credentials"),
        (exhausted, "rate limit", "answer RATE_LIMITED for each event, not a status"),
        (internal_for_odd, "partial batch", "one odd event fails the whole batch"),
    ],
)
async def test_faults_of_answers_are_found(
    answer: Callable[[Any, Any], Any], trial: str, text: str
) -> None:
    server = grpc.aio.server()
    system_adapter_service_pb2_grpc.add_SystemAdapterServiceServicer_to_server(Raw(answer), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    subject = Subject(f"127.0.0.1:{port}", credentials=PASSWORD)
    report = await examine(subject, only=[trial])
    await server.stop(0)
    assert text in failed(report)[trial]


async def test_a_slow_adapter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deskwire_adapter.conformance.peer.PUSH_SECONDS", 0.2)

    async def sleep(request: Any, _context: Any) -> Any:
        await asyncio.sleep(60)
        return taken(request.items)

    server = grpc.aio.server()
    system_adapter_service_pb2_grpc.add_SystemAdapterServiceServicer_to_server(Raw(sleep), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    report = await examine(Subject(f"127.0.0.1:{port}"), only=["batch"])
    await server.stop(0)
    assert "a full batch takes longer than" in failed(report)["batch"]


PROGRAM = """
import sys
from pathlib import Path
from deskwire_adapter import DELIVERED, DUPLICATE, AdapterBase, rejected, serve

class Kept(AdapterBase):
    program = "kept/1"
    def push_one(self, session, event):
        path = Path(sys.argv[2], event.event_id)
        if sys.argv[3] == "forgets":
            return rejected("duplicate") if path.exists() else (path.touch(), DELIVERED)[1]
        return DUPLICATE if path.exists() else (path.touch(), DELIVERED)[1]

serve(Kept(), "127.0.0.1:" + sys.argv[1])
"""


@pytest.mark.parametrize(("kind", "code"), [("keeps", 0), ("forgets", 1)])
async def test_the_command_kills_and_begins_again(tmp_path: Path, kind: str, code: int) -> None:
    """Also what a person sees: the command, its JSON and its exit code."""
    program = tmp_path / "adapter.py"
    program.write_text(PROGRAM)
    port = free_port()
    folder = tmp_path / "events"
    folder.mkdir()
    finished = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deskwire_cli", "adapter", "test", f"127.0.0.1:{port}"),
        *("--command", f"{sys.executable} {program} {port} {folder} {kind}", "--json"),
        *("--only", "duplicates", "--only", "restart"),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await finished.communicate()
    assert finished.returncode == code
    report = json.loads(out)
    assert report["passed"] is (code == 0)
    found = {each["trial"]: each["grade"] for each in report["trials"]}
    assert found["duplicates"] == ("passed" if code == 0 else "failed")
    assert (found["restart"] == "passed") or code == 1


async def test_nothing_there_is_one_line() -> None:
    with pytest.raises(NotThere, match="start the adapter"):
        await examine(Subject(f"127.0.0.1:{free_port()}"))


async def test_the_table_shows_what_was_seen() -> None:
    async with serving(Good(), "127.0.0.1:0") as port:
        finished = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deskwire_cli", "adapter", "test", f"127.0.0.1:{port}"),
            *("--credential", "password=correct-horse", "--only", "schema", "--only", "restart"),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "COLUMNS": "120"},
        )
        out, _ = await finished.communicate()
    assert finished.returncode == 0
    lines = out.decode().splitlines()
    assert any(
        "schema" in line and "passed" in line and "good/1, 1 types" in line for line in lines
    )
    assert any("restart" in line and "skipped" in line for line in lines)
