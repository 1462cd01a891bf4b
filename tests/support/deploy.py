"""What deploy/ must agree with: the services' own settings."""

from __future__ import annotations

import importlib

from pydantic_settings import BaseSettings

SERVICES = ("gateway", "chat", "tickets", "events", "cdc")


def settings_class(service: str) -> type[BaseSettings]:
    """The one settings class that the service's config room defines."""
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
    """The environment variables that the service reads; if required, those without a default."""
    settings = settings_class(service)
    prefix = settings.model_config.get("env_prefix", "")
    return {
        f"{prefix}{name}".upper()
        for name, field in settings.model_fields.items()
        if field.is_required() or not required
    }
