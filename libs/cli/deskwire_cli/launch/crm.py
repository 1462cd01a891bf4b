"""The demo CRM beside the suite: its process, and its connection to the suite."""

from __future__ import annotations

import os
import secrets
import sys
from importlib import import_module

import grpc

from deskwire_cli.launch.plan import Plan
from deskwire_cli.launch.probes import error_text
from deskwire_cli.machine.home import Home
from deskwire_cli.machine.problem import Problem
from deskwire_cli.machine.process import Process, python_environment
from deskwire_cli.suite import crm_database, load_suite
from deskwire_common.auth import Role


def crm_secret(home: Home) -> str:
    """The credential that the hub shows to the demo CRM; made once, since the hub keeps it too."""
    file = home.root / "crm.secret"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(24))
    return file.read_text()


def crm_process(plan: Plan) -> Process:
    """Return the demo CRM's process; not started."""
    return Process(
        name="crm",
        command=[sys.executable, "-m", "demo_crm", "serve"],
        log=plan.home.log("crm"),
        env={
            **python_environment(),
            "DEMO_CRM_DATABASE": str(crm_database(plan.home)),
            "DEMO_CRM_LISTEN": plan.ports.address("crm"),
            "DEMO_CRM_SECRET": crm_secret(plan.home),
            "DEMO_CRM_OTLP_ENDPOINT": os.environ.get("DESKWIRE_OTLP_ENDPOINT", ""),
        },
        pid_file=plan.home.pid_file("crm"),
    )


def connect_crm(plan: Plan) -> None:
    """Register its adapter and its database with the running suite. Raises Problem. Blocks."""
    suite = load_suite(plan.home)
    connect = import_module("demo_crm.connect").connect
    try:
        connect(
            cdc=suite.cdc,
            events=suite.events,
            token=suite.token(Role.OPERATOR, "deskwire-up"),
            database=crm_database(plan.home),
            target=plan.ports.address("crm"),
            secret=crm_secret(plan.home),
        )
    except grpc.RpcError as error:
        raise Problem(f"the demo CRM can't be connected: {error_text(error)}") from None
