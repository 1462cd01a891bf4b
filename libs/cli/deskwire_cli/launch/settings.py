"""The settings of each process of a plan."""

from __future__ import annotations

import os

from deskwire_cli.launch.plan import STORES, Plan, service_of
from deskwire_cli.machine.process import python_environment


def service_settings(plan: Plan, name: str, *, kafka: str, redis: str) -> dict[str, str]:
    """Return a process's settings. The caller's environment decides all others (OTLP, TLS …)."""
    service = service_of(name)
    settings = {
        **python_environment(),
        "DESKWIRE_GRPC_LISTEN": plan.ports.address(name),
        "DESKWIRE_METRICS_LISTEN": plan.ports.address(f"{name}-metrics"),
        "DESKWIRE_KEYS_FILE": str(plan.home.keys_file),
        "DESKWIRE_KAFKA": kafka,
        "DESKWIRE_REDIS_URL": redis,
        "DESKWIRE_CHAT_TARGET": plan.ports.address("chat"),
        "DESKWIRE_WS_LISTEN": plan.ports.address("websocket"),
    }
    if plan.broker == "dev":
        # It forgets all records when it ends, so the databases keep published events as long as topics would.
        settings["DESKWIRE_OUTBOX_KEEP_SECONDS"] = str(7 * 86_400)
    if service == "gateway":
        settings["DESKWIRE_WORKERS"] = str(plan.gateway_workers)
    if service == "chat":
        # Not the host's name: several of these run on one host.
        settings["DESKWIRE_SHARD_NAME"] = "chat-0" if name == "chat" else name
        # All of them see the folder. To use a bucket, set it in the environment.
        if not os.environ.get("DESKWIRE_ATTACHMENTS_URL"):
            settings["DESKWIRE_ATTACHMENTS_URL"] = plan.home.attachments.as_uri()
        settings["DESKWIRE_ATTACHMENTS_LISTEN"] = plan.ports.address(f"{name}-files")
    if service == "events":
        settings["DESKWIRE_ADAPTER_TARGETS"] = _allowed("DESKWIRE_ADAPTER_TARGETS")
        settings["DESKWIRE_WEBHOOK_TARGETS"] = _allowed("DESKWIRE_WEBHOOK_TARGETS")
        # A receiver that somebody tries out on this machine has no certificate.
        settings["DESKWIRE_WEBHOOK_ALLOW_HTTP"] = os.environ.get(
            "DESKWIRE_WEBHOOK_ALLOW_HTTP", "true"
        )
        for variable, value in (
            ("DESKWIRE_PYTHON_ADAPTERS", "file,sql,odata"),
            ("DESKWIRE_ADAPTER_ROOT", str(plan.home.adapters)),
        ):
            settings[variable] = os.environ.get(variable) or value
    if service == "cdc":
        settings["DESKWIRE_SOURCE_TARGETS"] = _allowed("DESKWIRE_SOURCE_TARGETS")
        # The demo CRM's folder, beside what the caller's environment allows, and nothing else.
        folders = [os.environ.get("DESKWIRE_SQLITE_ROOT", "")]
        folders += [str(plan.home.crm)] if plan.demo else []
        settings["DESKWIRE_SQLITE_ROOT"] = os.pathsep.join(filter(None, folders))
    if service in STORES:
        settings["DESKWIRE_DATABASE_URL"] = plan.database(service)
    return settings


def _allowed(variable: str) -> str:
    """The rules for foreign addresses: the caller's, else the internet and this machine, for development."""
    return os.environ.get(variable) or "public:*, 127.0.0.0/8:*, [::1]:*"
