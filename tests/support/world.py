"""A message path in which each part can be killed: PostgreSQL, Kafka, Valkey, chat and gateway, each a process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from deskwire_cli.launch import serving
from deskwire_cli.machine import kafka, valkey
from deskwire_cli.machine.ports import HOST
from deskwire_cli.machine.process import Probe, Process, python_environment
from deskwire_common.auth import KeySet, Role, TokenSigner
from deskwire_common.migrations import migrate
from support import eventually, servers
from support.ports import free_port

TENANT = "world"
_SECONDS = 60.0


@dataclass(slots=True)
class Part:
    """A process, and the probe that tells when it is ready."""

    process: Process
    probe: Probe

    async def start(self) -> None:
        self.process.start()
        await self.process.ready(self.probe, timeout=_SECONDS)

    async def kill(self) -> None:
        """Send SIGKILL to the process and its children at once: nothing is flushed, nobody is notified."""
        parent = psutil.Process(self.process.pid)
        processes = [parent, *parent.children(recursive=True)]
        self.process.signal(signal.SIGKILL)
        await self.process.ended()
        # A server of several processes is gone when all of them are.
        await eventually(lambda: not any(process.is_running() for process in processes), timeout=30)


class World:
    """All parts that a message passes. `parts`: postgres, kafka, valkey, chat, gateway."""

    def __init__(self, folder: Path, *, workers: int = 2) -> None:
        self.folder = folder
        self.keys_file = folder / "keys.json"
        KeySet.generate().save(self.keys_file)
        self.signer = TokenSigner(KeySet.load(self.keys_file))
        postgres, self.database_url = servers.postgres_process(folder)
        broker, self.kafka = servers.kafka_process(folder)
        port = free_port()
        store = valkey.process(folder / "valkey", port=port, log=folder / "valkey.log")
        self.valkey = f"redis://{HOST}:{port}/0"
        self.chat, self.gateway = f"{HOST}:{free_port()}", f"{HOST}:{free_port()}"
        self.websocket, self.metrics = f"{HOST}:{free_port()}", f"{HOST}:{free_port()}"
        self.parts = {
            "postgres": Part(postgres, servers.postgres_probe(self.database_url)),
            "kafka": Part(broker, kafka.probe(self.kafka)),
            "valkey": Part(store, valkey.probe(HOST, port)),
            "chat": self._service(
                "chat",
                self.chat,
                DESKWIRE_DATABASE_URL=self.database_url,
                DESKWIRE_KAFKA=self.kafka,
                DESKWIRE_SHARD_NAME="chat-0",
                DESKWIRE_VISITOR_MAX_OPEN="0",
                DESKWIRE_VISITOR_OPENINGS_PER_MINUTE="0",
                DESKWIRE_METRICS_LISTEN=self.metrics,
            ),
            "gateway": self._service(
                "gateway",
                self.gateway,
                DESKWIRE_CHAT_TARGET=self.chat,
                DESKWIRE_REDIS_URL=self.valkey,
                DESKWIRE_WS_LISTEN=self.websocket,
                DESKWIRE_WORKERS=str(workers),
                DESKWIRE_SEND_RATE="5000",
                DESKWIRE_SEND_BURST="5000",
            ),
        }

    def _service(self, name: str, address: str, **settings: str) -> Part:
        process = Process(
            name=name,
            command=[sys.executable, "-m", f"deskwire_{name}", "serve"],
            log=self.folder / f"{name}.log",
            env={
                **python_environment(),
                "DESKWIRE_GRPC_LISTEN": address,
                "DESKWIRE_KEYS_FILE": str(self.keys_file),
                **settings,
            },
        )
        return Part(process, serving(address))

    @property
    def url(self) -> str:
        """The URL of the gateway's WebSocket."""
        return f"ws://{self.websocket}/ws"

    def token(self, role: Role, subject: str) -> str:
        """Return a token of the world's tenant."""
        return self.signer.mint(tenant=TENANT, role=role, subject=subject, ttl=86_400)

    async def start(self) -> None:
        """Start the servers, all at once, and then the services that need them."""
        await asyncio.gather(
            *(self.parts[name].start() for name in ("postgres", "kafka", "valkey"))
        )
        await migrate(self.database_url, "deskwire_chat")
        await self.parts["chat"].start()
        await self.parts["gateway"].start()

    def stop(self) -> None:
        """Stop everything, the last started first."""
        for part in reversed(self.parts.values()):
            part.process.stop()

    async def kill(self, name: str) -> None:
        """Kill a part with kill -9, and start it again at once."""
        await self.parts[name].kill()
        await self.parts[name].start()

    async def kill_worker(self) -> None:
        """Kill one worker of the gateway with kill -9; the gateway starts another one."""
        gateway = psutil.Process(self.parts["gateway"].process.pid)
        workers = gateway.children()
        victim = workers[0]
        os.kill(victim.pid, signal.SIGKILL)
        await eventually(lambda: len(gateway.children()) == len(workers), timeout=30)
        await asyncio.to_thread(psutil.wait_procs, [victim], 10)


@contextmanager
def a_world() -> Iterator[World]:
    """Run a world while the block runs."""
    with tempfile.TemporaryDirectory(prefix="deskwire-world-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # databases run as other users
        found = World(folder)
        try:
            asyncio.run(found.start())
            yield found
        finally:
            found.stop()
