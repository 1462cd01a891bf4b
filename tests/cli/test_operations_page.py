"""docs/operations is contract: what it lists is what there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from deskwire_cli.machine.ports import LAYOUT
from deskwire_cli.main import app
from deskwire_common.auth import KeySet, Profile, Role, TokenVerifier
from support.deploy import SERVICES, setting_names

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "operations"


def test_the_generated_tables_are_up_to_date():
    run = subprocess.run(
        [sys.executable, ROOT / "tools" / "pages.py", "check"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_every_setting_is_listed_where_its_service_looks_for_it():
    page = (PAGES / "settings.md").read_text()
    sections = dict(part.split("\n", 1) for part in page.split("\n### ")[1:])
    for service in SERVICES:
        listed: set[str] = set()
        for title, table in sections.items():
            if title.startswith("Every service") or service in re.split("[:, ]+", title):
                listed |= set(re.findall(r"^\| `(DESKWIRE_\w+)`", table, re.MULTILINE))
        assert listed == setting_names(service), service


def test_every_listed_command_exists():
    page = (PAGES / "install.md").read_text()
    commands = set(re.findall(r"^\| `deskwire (\w+)", page, re.MULTILINE))
    assert len(commands) > 10
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert commands <= known | {group.typer_instance.info.name for group in app.registered_groups}


def test_the_ports_are_the_ones_listed():
    assert (LAYOUT["gateway"], LAYOUT["cdc"]) == (1, 5)
    assert (LAYOUT["gateway-metrics"], LAYOUT["cdc-metrics"]) == (21, 25)
    assert (LAYOUT["chat-files"], LAYOUT["chat-1-files"], LAYOUT["chat-7-files"]) == (6, 51, 57)
    assert (LAYOUT["crm"], LAYOUT["valkey"], LAYOUT["kafka"]) == (10, 79, 92)


def test_a_website_can_mint_a_token_as_the_page_says(keys_file: Path):
    page = (PAGES / "keys.md").read_text()
    (program,) = re.findall(r"```python\n(import json.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    exec(program, names)
    (jwk,) = json.loads(keys_file.read_text())["keys"]
    profile = {"name": "Ann", "email": "ann@example.org", "ids": {"crm:main": "4711"}}
    token = names["visitor_token"](jwk, "1001", profile)  # type: ignore[operator]
    principal = TokenVerifier(KeySet.load(keys_file)).verify(token)
    assert (principal.tenant, principal.role) == ("demo", Role.VISITOR)
    assert (principal.subject, principal.name) == ("1001", "Ann")
    assert principal.profile == Profile("ann@example.org", "", (("crm:main", "4711"),))
