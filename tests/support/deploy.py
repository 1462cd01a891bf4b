"""The services' settings, with which deploy/ must agree."""

from __future__ import annotations

import importlib

from pydantic_settings import BaseSettings

SERVICES = ("gateway", "chat", "tickets", "events", "cdc")


def settings_class(service: str) -> type[BaseSettings]:
    """Return the one settings class that the service's config module defines."""
    room = importlib.import_module(f"deskwire_{service}.config")
    found = [
        value
        for value in vars(room).values()
        if isinstance(value, type)
        and issubclass(value, BaseSettings)
        and value.__module__ == room.__name__
    ]
    (settings,) = found
    return settings


def setting_names(service: str, *, required: bool = False) -> set[str]:
    """Return the environment variables that the service reads; if `required`, only those without a default."""
    settings = settings_class(service)
    prefix = settings.model_config.get("env_prefix", "")
    return {
        f"{prefix}{name}".upper()
        for name, field in settings.model_fields.items()
        if field.is_required() or not required
    }
