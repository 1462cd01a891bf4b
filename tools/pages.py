"""The generated tables of docs/operations: `write` brings them up to date, `check` says whether they are.

A table stands between two comments that name it. Its rows come from where the program reads them: the settings
from the Settings classes and the strings below their fields, the metrics from the registry.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import annotated_types as bounds
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from deskwire_common.config import PREFIX, DatabaseSettings, KafkaSettings, ServiceSettings
from deskwire_common.metrics import METRICS

PAGES: Final = Path(__file__).resolve().parent.parent / "docs" / "operations"
_SERVICES: Final = ("gateway", "chat", "tickets", "events", "cdc")
_PART: Final = re.compile(
    r"(<!-- generated: (\w+), by `make docs` -->\n).*?(<!-- end -->)", re.DOTALL
)


def settings() -> str:
    """Return a table for each Settings class: the parts that services share, then each service's own."""
    classes: list[tuple[str, type[BaseSettings]]] = [
        ("Every service", ServiceSettings),
        ("Services with a database: chat, tickets, events, cdc", DatabaseSettings),
        ("Services on Kafka: chat, tickets, events, cdc", KafkaSettings),
    ]
    for service in _SERVICES:
        room = importlib.import_module(f"deskwire_{service}.config")
        classes.append((service, room.Settings))
    return "\n".join(_settings_table(title, settings) for title, settings in classes)


def _settings_table(title: str, settings: type[BaseSettings]) -> str:
    own = [name for name in settings.model_fields if name in settings.__annotations__]
    rows = [_setting(name, settings) for name in own]
    return _table(f"### {title}", ("setting", "default", "range", "meaning"), rows)


def _setting(name: str, settings: type[BaseSettings]) -> tuple[str, ...]:
    field = settings.model_fields[name]
    if not field.description:
        raise SystemExit(f"{name}: write a string below the setting that says what it means")
    meaning = " ".join(field.description.split())
    for (
        other
    ) in settings.model_fields:  # named as in the class; the page's reader knows the variable
        meaning = meaning.replace(f"`{other}`", _variable(other))
    return _variable(name), _default(field), _range(field), meaning


def _variable(name: str) -> str:
    return f"`{PREFIX}{name.upper()}`"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be set"
    if field.default_factory is not None:
        return "see there"
    value = field.get_default()
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value == "":
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _range(field: FieldInfo) -> str:
    low = high = ""
    for each in field.metadata:
        match each:
            case bounds.Ge(ge=value):
                low = f"≥ {value:,}"
            case bounds.Gt(gt=value):
                low = f"> {value:,}"
            case bounds.Le(le=value):
                high = f"≤ {value:,}"
            case bounds.Lt(lt=value):
                high = f"< {value:,}"
            case _:
                pass
    return ", ".join(part for part in (low, high) if part)


def metrics() -> str:
    """Return the table of all metrics."""
    rows = sorted(row for each in vars(METRICS).values() for row in _metric(each))
    return _table("", ("metric", "kind", "labels", "meaning"), rows)


def _metric(metric: Any) -> Iterator[tuple[str, ...]]:
    labels: Sequence[str] = getattr(metric, "_labelnames", ()) or getattr(metric, "_labels", ())
    for family in metric.describe() if hasattr(metric, "describe") else metric.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        yield f"`{name}`", family.type, ", ".join(labels), family.documentation


def _table(title: str, heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [title, ""] if title else []
    lines += [_row(cells) for cells in (heads, ("---",) * len(heads), *rows)]
    return "\n".join(lines) + "\n"


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_TABLES: Final = {"settings": settings, "metrics": metrics}


def fresh(page: str) -> str:
    """Return the page with its tables made anew."""
    return _PART.sub(lambda part: f"{part[1]}{_TABLES[part[2]]()}{part[3]}", page)


def main() -> None:
    """Write or check every page; exit code 1 when one is out of date."""
    (what,) = sys.argv[1:] or ["check"]
    stale = {
        page: text
        for page in sorted(PAGES.glob("*.md"))
        if (text := fresh(page.read_text())) != page.read_text()
    }
    if what == "write":
        for page, text in stale.items():
            page.write_text(text)
        return
    for page in stale:
        print(
            f"{page.relative_to(PAGES.parents[1])} is out of date: run `make docs`", file=sys.stderr
        )
    sys.exit(1 if stale else 0)


if __name__ == "__main__":
    main()
