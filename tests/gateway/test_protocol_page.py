"""docs/protocol.md is contract: its frames, codes and bytes are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from deskwire.common.v1 import error_reason_pb2
from deskwire.gateway.v1 import frame_pb2
from deskwire_gateway.protocol import Protocol
from deskwire_wire.codes import Close

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
TALK = "0199a000-0000-4000-8000-000000000001"


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows() -> dict[str, list[str]]:
    """Frame → its cells in the table of frames."""
    lines = re.findall(r"^\| `(\w+)` (\d+)(.*)\|$", section("The frames"), re.MULTILINE)
    return {name: [number, *rest.split("|")] for name, number, rest in lines}


def test_every_frame_is_there_with_its_fields() -> None:
    kinds = frame_pb2.Frame.DESCRIPTOR.fields
    assert {each.name: str(each.number) for each in kinds} == {
        name: cells[0] for name, cells in rows().items()
    }
    for kind in kinds:
        listed = set(re.findall(r"`(\w+)`", rows()[kind.name][3]))
        fields = set(kind.message_type.fields_by_name)
        for part in kind.message_type.fields:
            if part.message_type and part.message_type.full_name in {
                "deskwire.gateway.v1.Resume",
                "deskwire.gateway.v1.Backoff",
            }:
                fields |= set(part.message_type.fields_by_name)
        assert listed == fields, kind.name


def test_clients_say_what_the_page_says() -> None:
    said = {name for name, cells in rows().items() if re.search("client|either", cells[2])}
    assert said == {"hello", *Protocol.HANDLERS}


def test_every_close_code_is_there_and_what_to_do() -> None:
    listed = re.findall(r"^\| (\d{4}) \|.*\| (.*) \|$", section("How it ends"), re.MULTILINE)
    codes = {int(code): answer.startswith("yes") for code, answer in listed if int(code) >= 3000}
    assert codes == {each.value: each.reconnect for each in Close}


def test_reasons_are_the_contracts() -> None:
    known = {each.removeprefix("ERROR_REASON_") for each in error_reason_pb2.ErrorReason.keys()}  # noqa: SIM118
    told = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", PAGE))
    assert {each for each in told if not each.startswith("DESKWIRE_")} <= known


def test_the_bytes_are_what_they_are_said_to_be() -> None:
    found = [
        frame_pb2.Batch.FromString(
            b"".join(
                bytes.fromhex(hexes)
                for hexes in re.findall(r"^((?:[0-9a-f]{2} )+) ", block, re.MULTILINE)
            )
        )
        for block in re.findall(r"```hex\n(.*?)```", PAGE, re.DOTALL)
    ]
    hello = frame_pb2.Hello(token="eyJ0", client="mine/1", device_id="tab-7")
    send = frame_pb2.Send(conversation_id=TALK, client_msg_id="m-1")
    send.content.text = "Hi"
    ack = frame_pb2.SendAck(conversation_id=TALK, client_msg_id="m-1", epoch=1, seq=3)
    ack.message_id = "0199a000-0000-7000-8000-000000000002"
    ack.create_time.seconds = 1_764_000_000
    assert found == [
        frame_pb2.Batch(frames=[frame_pb2.Frame(hello=hello)]),
        frame_pb2.Batch(frames=[frame_pb2.Frame(send=send)], ack=5),
        frame_pb2.Batch(frames=[frame_pb2.Frame(send_ack=ack)], number=6),
    ]
    for each in found:  # and as protobuf writes them
        assert each.SerializeToString().hex(" ") in re.sub(
            r"\s+", " ", " ".join(re.findall(r"^((?:[0-9a-f]{2} )+) ", PAGE, re.MULTILINE))
        )
