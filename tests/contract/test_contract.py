"""The contract keeps the rules it states: exhaustive, by reflection over every descriptor."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import MethodDescriptor

from support.contract import (
    DESCRIPTORS,
    IMPLEMENTED_OUTSIDE,
    METHODS,
    PUBLISHES,
    ROOT,
    SERVED_BY,
    load_set,
    mutates,
    our_files,
    short,
)


@pytest.mark.parametrize("method", METHODS, ids=short)
def test_every_rpc_has_an_authorisation_rule(method: MethodDescriptor) -> None:
    service = method.containing_service.full_name
    if service in IMPLEMENTED_OUTSIDE:
        return
    table = importlib.import_module(SERVED_BY[service]).AUTHORIZATION
    roles = table[f"/{service}/{method.name}"]
    assert roles, f"{method.full_name}: nobody may call it"


def test_no_authorisation_rule_without_an_rpc() -> None:
    known = {f"/{m.containing_service.full_name}/{m.name}" for m in METHODS}
    for module in set(SERVED_BY.values()):
        assert set(importlib.import_module(module).AUTHORIZATION) <= known


@pytest.mark.parametrize("method", [m for m in METHODS if mutates(m)], ids=short)
def test_every_mutating_rpc_is_idempotent_and_publishes(method: MethodDescriptor) -> None:
    assert short(method) in PUBLISHES, "say which events it publishes"
    if method.containing_service.full_name in IMPLEMENTED_OUTSIDE:
        return
    names = set(method.input_type.fields_by_name)
    if method.client_streaming:
        # Each of what a request brings is idempotent by itself.
        for field in method.input_type.fields:
            names.update(field.message_type.fields_by_name if field.message_type else ())
    own_ids = {"request_id", "client_msg_id", "external_id"}
    assert names & own_ids, "a mutating request needs a request_id, or an id of the caller's own"


def test_events_and_topics_agree() -> None:
    from deskwire_common.events import data_class
    from deskwire_common.topics import TOPICS

    on_topics = {event for topic in TOPICS.values() for event in topic.event_types}
    assert set().union(*PUBLISHES.values()) <= on_topics
    for event_type in on_topics:
        camel = "".join(part.title() for part in event_type.split("_"))
        assert data_class(event_type).DESCRIPTOR.full_name == f"deskwire.events.v1.{camel}"


def test_counters_are_json_numbers() -> None:
    wide = [
        f"{message.name}.{field.name}"
        for file in our_files()
        for message in file.message_type
        for field in message.field
        if field.name in {"seq", "version", "sequence", "epoch", "head_seq", "timestamp"}
        and field.type != descriptor_pb2.FieldDescriptorProto.TYPE_UINT32
    ]
    assert wide == []


def test_packages_import_each_other_without_a_circle() -> None:
    imports: dict[str, set[str]] = {}
    package = {file.name: file.package for file in load_set().file}
    for file in our_files():
        imports.setdefault(file.package, set()).update(
            package[name] for name in file.dependency if package[name] != file.package
        )

    def reach(start: str) -> set[str]:
        found: set[str] = set()
        todo = [start]
        while todo:
            for name in imports.get(todo.pop(), ()):
                if name not in found:
                    found.add(name)
                    todo.append(name)
        return found

    assert [name for name in imports if name in reach(name)] == []


def test_the_breaking_check_fails_on_a_removed_field(tmp_path: Path) -> None:
    mutated = load_set()
    ticket = next(
        message
        for file in mutated.file
        if file.name == "deskwire/tickets/v1/ticket.proto"
        for message in file.message_type
        if message.name == "Ticket"
    )
    removed = ticket.field.pop()
    broken = tmp_path / "mutated.binpb"
    broken.write_bytes(mutated.SerializeToString())
    buf = Path(sys.executable).parent / "buf"

    def breaking(image: str) -> subprocess.CompletedProcess[str]:
        command = [buf, "breaking", image, "--against", ROOT / "protos" / "released.binpb"]
        return subprocess.run(
            [*command, "--config", ROOT / "buf.yaml"], capture_output=True, text=True, check=False
        )

    assert breaking(str(DESCRIPTORS)).returncode == 0
    refused = breaking(str(broken))
    assert refused.returncode != 0
    assert removed.name in refused.stdout + refused.stderr
