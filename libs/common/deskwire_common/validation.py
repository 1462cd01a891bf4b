"""The contract's limits (protovalidate), checked on plain generated messages.

The stubs carry no rules, so that integrators need no protovalidate. The rules travel beside them in
`deskwire/contract/descriptors.binpb`; here that set is loaded into a private pool, and a message is checked as the
twin of its type there: serialise, parse, check.
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


class Validator:
    """Checks messages of the contract; build one per process, it compiles the rules of a type at its first use."""

    def __init__(self) -> None:
        data = (files("deskwire") / "contract" / "descriptors.binpb").read_bytes()
        self._pool = DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
            self._pool.Add(file)
        self._validator = protovalidate.Validator()
        self._twins: dict[str, type[Message] | None] = {}

    def check(self, message: Message) -> None:
        """Raise InvalidArgument (INVALID_FIELD) that names each field that breaks a rule. ~10 µs a message."""
        name = message.DESCRIPTOR.full_name
        if name not in self._twins:
            self._twins[name] = self._twin(name)
        twin = self._twins[name]
        if twin is None:
            return
        violations = self._validator.collect_violations(
            twin.FromString(message.SerializeToString())
        )
        if not violations:
            return
        broken = [(_path(each), each.proto.message) for each in violations]
        raise InvalidArgument(
            "; ".join(f"{field}: {rule}" for field, rule in broken), violations=broken
        )

    def _twin(self, name: str) -> type[Message] | None:
        if not name.startswith(_PREFIX):
            return None  # health, reflection: not ours to judge
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(name))


def _path(violation: protovalidate.Violation) -> str:
    parts = []
    field: Any = violation.proto.field
    for element in field.elements if field is not None else ():
        text = element.field_name
        if element.subscript is not None:
            text += f"[{element.subscript.value}]"
        parts.append(text)
    return ".".join(parts)
