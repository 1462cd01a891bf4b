"""One running suite, from its first process to its last."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from typing import Final
from urllib.parse import urlsplit

from deskwire_cli.launch.crm import connect_crm, crm_process
from deskwire_cli.launch.databases import migrate
from deskwire_cli.launch.plan import SERVICES, STORES, Plan, service_of
from deskwire_cli.launch.probes import listening, serving
from deskwire_cli.launch.settings import service_settings
from deskwire_cli.machine import devbroker, kafka, valkey
from deskwire_cli.machine.ports import HOST
from deskwire_cli.machine.problem import Problem
from deskwire_cli.machine.process import Process
from deskwire_cli.machine.progress import say
from deskwire_common.logging import redact_text

SERVICE_SECONDS: Final = 60.0
"""Seconds that a service may take until it serves."""
DRAIN_SECONDS: Final = 20.0
"""Seconds that a service may take from SIGTERM to its end."""


class Launch:
    """One running suite: starts its processes in order, watches them, stops them in the reverse order."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.kafka = plan.kafka
        self.redis = plan.redis
        self.processes: list[tuple[Process, str]] = []  # with the address
        self.phase = "starting"
        self.walk = ""
        self.problem = ""
        self._started = datetime.now(UTC).isoformat(timespec="seconds")

    # -- what others see ------------------------------------------------------------------------------------

    def write_state(self, **changes: str) -> None:
        """Write the progress of the start into run/state.json."""
        for name, value in changes.items():
            setattr(self, name, value)
        plan = self.plan
        plan.home.write_state(
            {
                "phase": self.phase,
                "problem": self.problem,
                "walk": self.walk,
                "pid": os.getpid(),
                "started_at": self._started,
                "version": installed_version("deskwire-cli"),
                "port_base": plan.ports.base,
                "broker": plan.broker,
                "kafka": self.kafka,
                "redis": self.redis,
                "demo": plan.demo,
                "websocket": f"ws://{plan.ports.address('websocket')}/ws",
                "databases": {service: plan.database(service) for service in STORES},
                "processes": [
                    {
                        "name": process.name,
                        "pid": process.pid,
                        "address": address,
                        "metrics": plan.ports.address(f"{process.name}-metrics")
                        if service_of(process.name) in SERVICES
                        else "",
                        "log": str(process.log),
                    }
                    for process, address in self.processes
                ],
            }
        )

    # -- start ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Do everything up to "all serve". Raises Problem."""
        plan = self.plan
        self.write_state()
        migrations = asyncio.create_task(migrate(plan))
        try:
            await self._start_valkey()
            await self._start_broker()
            await migrations
        finally:
            migrations.cancel()
            await asyncio.gather(migrations, return_exceptions=True)
        begun = time.monotonic()
        services = [self._service(name) for name in plan.services()]
        for process in services:
            self._begin(process, plan.ports.address(process.name))
        for process in services:
            address = plan.ports.address(process.name)
            await process.ready(serving(address), timeout=SERVICE_SECONDS)
            say(f"{process.name:<10} serves at {address} ({time.monotonic() - begun:.1f} s)")
        if plan.demo:
            await self._start_crm()
        self.write_state()

    def _begin(self, process: Process, address: str) -> None:
        process.start()
        self.processes.append((process, address))
        self.write_state()

    async def _start_valkey(self) -> None:
        plan = self.plan
        if plan.redis:
            parts = urlsplit(plan.redis)
            probe = valkey.probe(parts.hostname or HOST, parts.port or 6379)
            if parts.scheme != "unix" and (missing := await asyncio.to_thread(probe)):
                raise Problem(f"--redis {redact_text(plan.redis)}: {missing}")
            return
        port = plan.ports.port("valkey")
        process = valkey.process(
            plan.home.valkey,
            port=port,
            log=plan.home.log("valkey"),
            pid_file=plan.home.pid_file("valkey"),
        )
        self._begin(process, plan.ports.address("valkey"))
        await process.ready(valkey.probe(HOST, port), timeout=15.0)
        self.redis = f"redis://{HOST}:{port}/0"
        say(f"{'valkey':<10} serves at {HOST}:{port}")

    async def _start_broker(self) -> None:
        begun = time.monotonic()
        match self.plan.broker:
            case "external":
                await self._require_broker()
                return
            case "dev":
                name = await self._start_development_broker()
            case _:
                name = await self._start_kafka()
        say(f"{name:<10} serves at {self.kafka} ({time.monotonic() - begun:.1f} s)")

    async def _require_broker(self) -> None:
        probe = kafka.probe(self.plan.kafka)
        missing = ""
        for _ in range(5):
            missing = await asyncio.to_thread(probe)
            if not missing:
                return
        raise Problem(f"--kafka {self.plan.kafka}: {missing}")

    async def _start_development_broker(self) -> str:
        home = self.plan.home
        say(devbroker.LIMITS)
        file = home.run / "devbroker.address"
        process = devbroker.process(
            file, log=home.log("devbroker"), pid_file=home.pid_file("devbroker")
        )
        self._begin(process, "")
        await process.ready(devbroker.probe(file), timeout=15.0)
        self.kafka = devbroker.address(file)
        self.processes[-1] = (process, self.kafka)
        return process.name

    async def _start_kafka(self) -> str:
        plan = self.plan
        self.kafka = plan.ports.address("kafka")
        # The process is started here, in the main thread; the slow rest (a fetch, a format) runs on another.
        process = await asyncio.to_thread(
            kafka.process,
            plan.home.kafka,
            port=plan.ports.port("kafka"),
            controller_port=plan.ports.port("kafka-controller"),
            log=plan.home.log("kafka"),
            pid_file=plan.home.pid_file("kafka"),
            say=say,
        )
        self._begin(process, self.kafka)
        await process.ready(kafka.probe(self.kafka), timeout=kafka.READY_SECONDS)
        return process.name

    def _service(self, name: str) -> Process:
        return Process(
            name=name,
            command=[sys.executable, "-m", f"deskwire_{service_of(name)}", "serve"],
            log=self.plan.home.log(name),
            env=service_settings(self.plan, name, kafka=self.kafka, redis=self.redis),
            pid_file=self.plan.home.pid_file(name),
            grace=DRAIN_SECONDS,
        )

    async def _start_crm(self) -> None:
        process, address = crm_process(self.plan), self.plan.ports.address("crm")
        self._begin(process, address)
        await process.ready(listening(address), timeout=SERVICE_SECONDS)
        await asyncio.to_thread(connect_crm, self.plan)
        say(f"{'crm':<10} serves at {address} (demo)")

    # -- while it runs, and the end ---------------------------------------------------------------------------

    async def watch(self) -> None:
        """Report each process that ends; never returns."""
        await asyncio.gather(*(self._watch(process) for process, _ in self.processes))
        await asyncio.Event().wait()

    async def _watch(self, process: Process) -> None:
        await process.ended()
        self.problem = process.how_it_ended()
        say(f"\n{self.problem}\nthe rest goes on; `deskwire down` and `deskwire up` start it again")
        self.write_state()

    async def stop(self) -> None:
        """Stop everything, last one first."""
        self.write_state(phase="stopping")
        for process, _ in reversed(self.processes):
            if process.running:
                say(f"stopping {process.name}")
            await process.stopped()
        self.write_state(phase="failed" if self.phase == "failed" else "stopped")
