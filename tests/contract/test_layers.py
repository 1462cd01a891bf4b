"""The import rules of pyproject.toml are rules: what breaks them fails the lint, in every package that has rooms."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
LAYERS = [each for each in CONFIG["contracts"] if each["type"] == "layers"]
PACKAGES = {
    path.parent.name: path.parent
    for folder in ("libs/*", "services/*", "examples/*")
    for path in ROOT.glob(f"{folder}/*/__init__.py")
}


def containers() -> dict[str, list[str]]:
    """The packages whose rooms must all have a place, and their rooms from the highest to the lowest."""
    found = {}
    for contract in LAYERS:
        rooms = [
            name.strip(" ()")
            for layer in contract["layers"]
            for name in layer.replace(":", "|").split("|")
        ]
        for container in contract.get("containers", []) if contract.get("exhaustive") else []:
            found[container] = [
                room for room in rooms if module_file(PACKAGES, container, room) is not None
            ]
    return found


def module_file(packages: dict[str, Path], container: str, room: str) -> Path | None:
    """Where a room's code is; None when there is no such room."""
    package, *inner = container.split(".")
    folder = packages[package].joinpath(*inner)
    for path in (folder / f"{room}.py", folder / room / "__init__.py"):
        if path.is_file():
            return path
    return None


CONTAINERS = containers()
DOMAINS = sorted(name for name, rooms in CONTAINERS.items() if "domain" in rooms)

Change = Callable[[dict[str, Path]], None]


def lint(folder: Path, change: Change) -> str:
    """What the lint says of a copy of the code that was changed; it has to fail."""
    copies = {
        name: Path(
            shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        )
        for name, path in PACKAGES.items()
    }
    change(copies)
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-c",
                "from importlinter.cli import lint_imports_command as run; run()",
            ),
            *("--config", str(ROOT / "pyproject.toml"), "--no-cache"),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "250"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def add_import(path: Path | None, module: str) -> None:
    assert path is not None
    path.write_text(f"{path.read_text()}\nimport {module}\n")


@pytest.fixture(scope="module")
def new_rooms(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the lint says when each package has a room that nobody gave a place."""

    def change(copies: dict[str, Path]) -> None:
        for container in CONTAINERS:
            package, *inner = container.split(".")
            copies[package].joinpath(*inner, "annex.py").write_text('"""A room."""\n')

    return lint(tmp_path_factory.mktemp("rooms"), change)


@pytest.fixture(scope="module")
def bad_imports(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the lint says when in each package the lowest room imports the highest, and each domain a message."""

    def change(copies: dict[str, Path]) -> None:
        for container, rooms in CONTAINERS.items():
            add_import(module_file(copies, container, rooms[-1]), f"{container}.{rooms[0]}")
        for container in DOMAINS:
            message = "deskwire.events.v1.event_pb2"
            add_import(module_file(copies, container, "domain"), message)

    return lint(tmp_path_factory.mktemp("imports"), change)


def test_every_service_and_library_is_in_a_contract() -> None:
    assert {name for name in PACKAGES if name.startswith("deskwire_")} <= set(CONTAINERS)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_room_without_a_place_fails(new_rooms: str, container: str) -> None:
    assert f"- {container}.annex\n" in new_rooms


@pytest.mark.parametrize("container", CONTAINERS)
def test_an_import_from_above_fails(bad_imports: str, container: str) -> None:
    rooms = CONTAINERS[container]
    assert (
        f"{container}.{rooms[-1]} is not allowed to import {container}.{rooms[0]}:" in bad_imports
    )


@pytest.mark.parametrize("container", DOMAINS)
def test_a_domain_that_imports_a_message_fails(bad_imports: str, container: str) -> None:
    assert f"{container}.domain is not allowed to import deskwire:\n" in bad_imports
