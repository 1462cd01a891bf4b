"""The contract's limits (protovalidate), checked on plain generated messages.

The stubs carry no rules, so that integrators need no protovalidate. The rules travel beside them in
`deskwire/contract/descriptors.binpb`; here that set is loaded into a private pool, and a message is checked as the same
type of that pool: serialise, parse, check.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Final

import protovalidate
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

from deskwire_common.errors import InvalidArgument

_PREFIX: Final = "deskwire."
_ALL_NAMED: Final = 100
"""Fields and list items of a message in which all that is wrong is named. Of a larger one it is the first only: each
violation costs ~100 µs, and a message of 4 MiB can have millions."""


class Validator:
    """Checks messages of the contract. Build one per process: it compiles the rules of a type at its first use."""

    def __init__(self) -> None:
        data = (files("deskwire") / "contract" / "descriptors.binpb").read_bytes()
        self._pool = DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
            self._pool.Add(file)
        self._validator = protovalidate.Validator()
        self._twins: dict[str, type[Message] | None] = {}

    def check(self, message: Message) -> None:
        """Raise InvalidArgument (INVALID_FIELD) that names what breaks a rule, of a long message one. ~10 µs."""
        name = message.DESCRIPTOR.full_name
        if name not in self._twins:
            self._twins[name] = self._twin(name)
        twin = self._twins[name]
        if twin is None:
            return
        checked = twin.FromString(message.SerializeToString())
        violations = self._validator.collect_violations(checked, fail_fast=True)
        if not violations:
            return
        if _room_after(checked, _ALL_NAMED) >= 0:
            violations = self._validator.collect_violations(checked)
        broken = [(_path(each), each.proto.message) for each in violations]
        raise InvalidArgument(
            "; ".join(f"{field}: {rule}" for field, rule in broken), violations=broken
        )

    def _twin(self, name: str) -> type[Message] | None:
        if not name.startswith(_PREFIX):
            return None  # health and reflection aren't in the contract
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(name))


def _room_after(message: Message, room: int) -> int:
    """What is left of `room` after the fields and list items of a message; counts no further than below 0."""
    for _, value in message.ListFields():
        items = [value] if isinstance(value, str | bytes | int | float | Message) else value
        room -= len(items)
        for each in items if room >= 0 else ():
            room = _room_after(each, room) if isinstance(each, Message) else room
        if room < 0:
            break
    return room


def _path(violation: protovalidate.Violation) -> str:
    parts = []
    field: Any = violation.proto.field
    for element in field.elements if field is not None else ():
        text = element.field_name
        if element.subscript is not None:
            text += f"[{element.subscript.value}]"
        parts.append(text)
    return ".".join(parts)
