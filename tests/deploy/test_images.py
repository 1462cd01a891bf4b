"""The Dockerfile, and the compose file that builds with it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.deploy import SERVICES, setting_names

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
COMPOSE = ROOT / "deploy" / "compose.yaml"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, with their continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return document


def test_every_service_is_a_package_of_the_workspace():
    syncs = [rest for word, rest in instructions() if word == "RUN" and "uv sync" in rest]
    assert any('--package "deskwire-$SERVICE"' in rest for rest in syncs)
    for service in SERVICES:
        project = tomllib.loads((ROOT / "services" / service / "pyproject.toml").read_text())
        assert project["project"]["name"] == f"deskwire-{service}"
        assert (ROOT / "services" / service / f"deskwire_{service}" / "__main__.py").is_file()


def test_the_lock_is_all_that_decides():
    for _, rest in instructions():
        for command in re.findall(r"uv sync[^&]*", rest):
            assert "--frozen" in command


def test_the_first_layer_knows_every_member():
    """uv reads all members' pyproject.toml before it installs one of them."""
    workspace = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]
    members = {
        str(path.relative_to(ROOT))
        for pattern in workspace["members"]
        for path in ROOT.glob(f"{pattern}/pyproject.toml")
    }
    copied = {rest.split()[0] for word, rest in instructions() if word == "COPY"}
    assert members <= copied


def test_what_is_copied_is_there_and_sent():
    ignored = (ROOT / ".dockerignore").read_text().split()
    for word, rest in instructions():
        if word != "COPY" or rest.startswith("--from"):
            continue
        *sources, _ = rest.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            parents = [source, *(str(parent) for parent in Path(source).parents)]
            assert any(f"!{parent}" in ignored for parent in parents), source


def test_the_image_runs_as_nobody_and_takes_signals():
    last = dict(instructions())
    user, _, group = last["USER"].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert "exec python -m" in last["ENTRYPOINT"]
    assert last["CMD"] == '["serve"]'


def test_the_generated_stubs_are_not_sent():
    """They would hide a generator that fails in the image."""
    assert "protos/gen" in (ROOT / ".dockerignore").read_text().split()


def test_compose_has_the_suite_and_what_it_stands_on(compose):
    expected = {"postgres", "kafka", "valkey", "keys", *SERVICES}
    migrations = {f"{service}-migrate" for service in SERVICES if service != "gateway"}
    assert set(compose["services"]) == expected | migrations


def test_compose_builds_the_image_that_is_there(compose):
    for name, service in compose["services"].items():
        if "build" not in service:
            continue
        build = service["build"]
        assert (COMPOSE.parent / build["context"]).resolve() == ROOT
        assert ROOT / build["dockerfile"] == DOCKERFILE
        of = build["args"]["SERVICE"]
        assert of in SERVICES
        assert service["image"] == f"deskwire/{of}:0.1.0"
        assert name == "keys" or name.removesuffix("-migrate") == of


@pytest.mark.parametrize("service", SERVICES)
def test_compose_sets_what_a_service_needs(compose, service):
    known = set().union(*(setting_names(each) for each in SERVICES))
    for name in (service, f"{service}-migrate"):
        if name not in compose["services"]:
            continue
        seen = set(compose["services"][name]["environment"])
        assert seen <= known
        assert setting_names(service, required=True) <= seen


def test_compose_dependencies_exist_and_can_be_waited_for(compose):
    services = compose["services"]
    for service in services.values():
        for needed, condition in service.get("depends_on", {}).items():
            assert needed in services
            if condition["condition"] == "service_healthy":
                # Own images bring a HEALTHCHECK.
                assert "healthcheck" in services[needed] or "build" in services[needed]
            else:
                assert services[needed]["restart"] == "no"


def test_compose_opens_ports_on_this_machine_only(compose):
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    outside = [port.split(":")[1] for port in ports]
    assert len(set(outside)) == len(outside)


def test_compose_volumes_are_declared(compose):
    used = {
        volume.partition(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
    }
    assert used == set(compose["volumes"])
