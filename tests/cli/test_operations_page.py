"""docs/operations.md is contract: what it lists is what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

from deskwire_cli.machine.ports import LAYOUT
from deskwire_cli.main import app
from deskwire_common.auth import KeySet, Profile, Role, TokenVerifier
from support.deploy import SERVICES, setting_names

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def test_every_setting_is_listed_with_its_services():
    listed: dict[str, set[str]] = {}
    for line in PAGE.splitlines():
        if line.startswith("| `DESKWIRE_"):
            names, _, services, _ = line.strip("| ").split(" | ")
            for name in re.findall(r"DESKWIRE_\w+", names):
                listed[name] = set(SERVICES) if services == "all" else set(services.split(", "))
    read: dict[str, set[str]] = {}
    for service in SERVICES:
        for name in setting_names(service):
            read.setdefault(name, set()).add(service)
    assert listed == read


def test_every_listed_command_exists():
    commands = set(re.findall(r"^\| `deskwire (\w+)", PAGE, re.MULTILINE))
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert commands <= known | {group.typer_instance.info.name for group in app.registered_groups}


def test_the_ports_are_the_ones_listed():
    assert (LAYOUT["gateway"], LAYOUT["cdc"]) == (1, 5)
    assert (LAYOUT["gateway-metrics"], LAYOUT["cdc-metrics"]) == (21, 25)
    assert (LAYOUT["chat-files"], LAYOUT["chat-1-files"], LAYOUT["chat-7-files"]) == (6, 51, 57)
    assert (LAYOUT["crm"], LAYOUT["valkey"], LAYOUT["kafka"]) == (10, 79, 92)


def test_a_website_can_mint_a_token_as_the_page_says(keys_file: Path):
    (program,) = re.findall(r"```python\n(import json.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(program, names)
    (jwk,) = json.loads(keys_file.read_text())["keys"]
    profile = {"name": "Ann", "email": "ann@example.org", "ids": {"crm:main": "4711"}}
    token = names["visitor_token"](jwk, "1001", profile)  # type: ignore[operator]
    principal = TokenVerifier(KeySet.load(keys_file)).verify(token)
    assert (principal.tenant, principal.role) == ("demo", Role.VISITOR)
    assert (principal.subject, principal.name) == ("1001", "Ann")
    assert principal.profile == Profile("ann@example.org", "", (("crm:main", "4711"),))
