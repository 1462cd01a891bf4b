"""What the comment above an RPC says in its fixed lines is what the code's tables say."""

from __future__ import annotations

import importlib
import re

import pytest
from google.protobuf.descriptor import MethodDescriptor

from deskwire.common.v1 import error_reason_pb2
from deskwire_common.auth import Role
from deskwire_common.rpc import REQUEST_BYTES
from support.contract import (
    IMPLEMENTED_OUTSIDE,
    METHODS,
    PUBLISHES,
    ROOT,
    SERVED_BY,
    mutates,
    request_bytes_of,
    served,
    short,
)

LABELS = ("Callers", "Idempotency", "Publishes", "Order", "Limits", "Fails with")
REASONS = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()}  # noqa: SIM118
ANYONE = {"anyone", "any role"}


def comment_of(method: MethodDescriptor) -> list[str]:
    """The lines of the comment above the method in its .proto file."""
    source = (ROOT / "protos" / method.containing_service.file.name).read_text()
    (block,) = re.findall(rf"((?:^  //.*\n)+)  rpc {method.name}\(", source, re.MULTILINE)
    return [line.removeprefix("  //").removeprefix(" ") for line in block.splitlines()]


def fixed_lines(lines: list[str]) -> dict[str, str]:
    """Label → its text, with continuation lines joined. Labels must stand in their order, after everything else."""
    found: dict[str, str] = {}
    for line in lines:
        label, _, text = line.partition(": ")
        if label in LABELS:
            assert label not in found, f"{label} stands twice"
            found[label] = text
        elif found:
            assert line.startswith("  "), f"{line!r} stands below the fixed lines"
            found[next(reversed(found))] += " " + line.strip()
    assert list(found) == [label for label in LABELS if label in found], (
        "the lines are out of order"
    )
    return found


def words(text: str) -> set[str]:
    """The words of a list, without what stands in parentheses."""
    plain = re.sub(r"\([^()]*\)", "", text).rstrip(".")
    return {word.strip() for word in re.split(r",| or ", plain)}


@pytest.mark.parametrize("method", METHODS, ids=short)
def test_the_comment_says_who_calls_and_how_it_fails(method: MethodDescriptor) -> None:
    lines = comment_of(method)
    assert lines[0].startswith(f"{method.name} "), "begin with what the call does"
    said = fixed_lines(lines)
    assert {"Callers", "Fails with"} <= set(said)
    assert all(text.endswith(".") for text in said.values())
    service = method.containing_service.full_name
    if service in IMPLEMENTED_OUTSIDE:
        assert words(said["Callers"]) == {"the hub"}
        return
    room = importlib.import_module(SERVED_BY[service])
    roles = room.AUTHORIZATION[f"/{service}/{method.name}"]
    everybody = roles == frozenset(Role)
    assert words(said["Callers"]) == {role.value for role in roles} or (
        everybody and words(said["Callers"]) <= ANYONE
    )
    named = set(re.findall(r"\b[A-Z]{2,}(?:_[A-Z]+)+\b|\bOVERLOADED\b", said["Fails with"]))
    assert named <= REASONS


@pytest.mark.parametrize("method", [m for m in METHODS if served(m)], ids=short)
def test_the_comment_says_how_large_a_request_may_be(method: MethodDescriptor) -> None:
    limit = request_bytes_of(method)
    said = fixed_lines(comment_of(method)).get("Limits")
    if limit == REQUEST_BYTES:
        assert said is None, "docs/contract.md says it for all methods"
        return
    units = {f"{limit >> 10} KiB"} | ({f"{limit >> 20} MiB"} if limit % (1 << 20) == 0 else set())
    assert said is not None
    assert units & set(re.findall(r"up to (\d+ [KM]iB)", said))


@pytest.mark.parametrize("method", [m for m in METHODS if mutates(m)], ids=short)
def test_the_comment_says_what_a_mutation_publishes(method: MethodDescriptor) -> None:
    said = fixed_lines(comment_of(method))
    assert said.get("Idempotency"), "say what makes it idempotent"
    events = {word for word in words(said.get("Publishes", "")) if not word.startswith("nothing")}
    assert events == PUBLISHES[short(method)]


@pytest.mark.parametrize("method", [m for m in METHODS if not mutates(m)], ids=short)
def test_the_comment_of_a_read_claims_no_event(method: MethodDescriptor) -> None:
    assert "Publishes" not in fixed_lines(comment_of(method))


def test_a_comment_without_its_lines_fails() -> None:
    assert fixed_lines(["GetThing returns a thing.", "", "Callers: agent.", "Fails with: nothing."])
    with pytest.raises(AssertionError, match="out of order"):
        fixed_lines(["Fails with: nothing.", "Callers: agent."])
    with pytest.raises(AssertionError, match="below"):
        fixed_lines(["Callers: agent.", "And more."])
    assert words("agent, bot (its own), visitor (own; the first opens).") == {
        "agent",
        "bot",
        "visitor",
    }
