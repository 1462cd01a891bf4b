"""`make bench-webhook`: events a second that one webhook of the hub is sent, and what each costs the hub in CPU."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import harness
from harness import say
from hub import Hub, Source, hub

from deskwire.events.v1 import event_hub_service_pb2 as pb
from deskwire.events.v1 import event_hub_service_pb2_grpc, subscription_pb2
from deskwire_common.kafka import ensure_topics
from support import servers

_HEAD_ENDS: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length: "
_ANSWER: Final = b"HTTP/1.1 204 No Content\r\n\r\n"
#: More than any machine sends: all at once.
_AT_ONCE: Final = 1e9


class Receiver(asyncio.Protocol):
    """The least that a receiver can be, so that the figures are the hub's. `seen` are the ids of all."""

    seen: set[bytes]

    def __init__(self, seen: set[bytes]) -> None:
        self.seen = seen
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        """A connection of the hub's."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self._buffer += data
        while (end := self._buffer.find(_HEAD_ENDS)) >= 0:
            head = self._buffer[:end].lower()
            length = int(head.partition(_LENGTH)[2].partition(b"\r\n")[0])
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            self.seen.add(head.partition(b"webhook-id: ")[2].partition(b"\r\n")[0])
            self._transport.write(_ANSWER)


async def receive(count: int) -> None:
    """The receiver's process: its port on a line, and a line when `count` different events came."""
    seen: set[bytes] = set()
    server = await asyncio.get_running_loop().create_server(lambda: Receiver(seen), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    while len(seen) < count:
        await asyncio.sleep(0.01)
    print(json.dumps({"time": time.time()}), flush=True)


@contextmanager
def receiving(count: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A receiver of so many events, and its URL."""
    command = [sys.executable, __file__, "--receive", str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/", process
    finally:
        process.kill()
        process.wait()


async def create(running: Hub, tenant: str, url: str) -> None:
    """Make the webhook."""
    token = running.token(tenant)
    async with grpc.aio.insecure_channel(running.target) as channel:
        await event_hub_service_pb2_grpc.EventHubServiceStub(channel).CreateSubscription(
            pb.CreateSubscriptionRequest(
                request_id="bench",
                subscription=subscription_pb2.Subscription(
                    subscription_id="bench",
                    filter=subscription_pb2.SubscriptionFilter(event_types=["order_paid"]),
                    webhook=subscription_pb2.Webhook(url=url),
                ),
            ),
            metadata=[("authorization", f"Bearer {token}")],
        )


def measure(running: Hub, kafka: str, count: int, seconds: float) -> dict[str, Any]:
    """Deliver so many events that were published at once, or within `seconds`."""
    tenant = f"bench-{uuid.uuid4().hex[:8]}"
    with receiving(count) as (url, process), harness.Speedometer() as speed:
        asyncio.run(create(running, tenant, url))
        source = Source(
            kafka, tenant, count / seconds if seconds else _AT_ONCE, seconds + 60, count
        )
        before, began = running.cpu(), time.time()
        source.start()
        assert process.stdout is not None
        ended = json.loads(process.stdout.readline())["time"]
        used = running.cpu() - before
        source.join()
    return {
        "asked_a_second": round(count / seconds) if seconds else "all at once",
        "events": count,
        "deliveries_a_second": round(count / (ended - began)),
        "cpu_us_a_delivery": round(used / count * 1e6),
        "million_additions_ms": speed.million_additions_ms,
        **running.size(),
    }


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=6_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the run at a steady rate")
    parser.add_argument("--receive", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receive:
        asyncio.run(receive(options.receive))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.environ["DESKWIRE_WEBHOOK_TARGETS"] = "127.0.0.1:*"
    os.environ["DESKWIRE_WEBHOOK_ALLOW_HTTP"] = "true"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deskwire-bench-")))
        folder.chmod(0o711)
        say("starting PostgreSQL and Kafka")
        kafka = stack.enter_context(servers.kafka_broker(folder))
        postgres = stack.enter_context(servers.postgres_server(folder, shared_buffers="128MB"))
        asyncio.run(ensure_topics(kafka))
        running = stack.enter_context(hub(folder, kafka, postgres.url("bench_webhook"), None))
        rows = [
            measure(running, kafka, options.events, seconds)
            for seconds in (0.0, 0.0, options.seconds)
        ]
        harness.record(
            "webhook",
            figures={
                "deliveries_a_second": max(row["deliveries_a_second"] for row in rows),
                "cpu_us_a_delivery": min(row["cpu_us_a_delivery"] for row in rows),
            },
            parameters={"events": options.events, "seconds": options.seconds},
            rows=rows,
        )


if __name__ == "__main__":
    main()
