"""Each service from its locked dependencies alone, in an environment of its own: as its image."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.deploy import SERVICES
from support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Installed:
    service: str
    python: Path
    folder: Path

    def run(
        self, *arguments: str, env: dict[str, str], check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.python), "-m", *arguments],
            env={**bare_environment(), **env},
            cwd=self.folder,
            check=check,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def packages(self) -> set[str]:
        listing = "import importlib.metadata as m; [print(d.name) for d in m.distributions()]"
        command = [str(self.python), "-c", listing]
        finished = subprocess.run(command, check=True, capture_output=True, text=True)
        return set(finished.stdout.split())


def bare_environment() -> dict[str, str]:
    """This process's, without what would show it the development environment."""
    hidden = ("PYTHON", "VIRTUAL_ENV", "DESKWIRE_", "UV_")
    return {name: value for name, value in os.environ.items() if not name.startswith(hidden)}


def find_uv() -> str:
    places = f"{Path(sys.executable).parent}:{ROOT / '.tools' / 'uv' / 'bin'}:{os.environ['PATH']}"
    found = shutil.which("uv", path=places)
    assert found is not None, "no uv: `make setup` brings one"
    return found


@pytest.fixture(scope="module", params=SERVICES, name="installed")
def install(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    service = request.param
    folder = tmp_path_factory.mktemp(service)
    subprocess.run(
        [
            find_uv(),
            *("sync", "--frozen", "--no-dev", "--no-editable", "--quiet"),
            *("--python", sys.executable, "--package", f"deskwire-{service}"),
        ],
        cwd=ROOT,
        env={
            **bare_environment(),
            "UV_PROJECT_ENVIRONMENT": str(folder / "venv"),
            "UV_PYTHON_DOWNLOADS": "never",
        },
        check=True,
        timeout=300,
    )
    return Installed(service, folder / "venv" / "bin" / "python", folder)


@pytest.fixture(name="settings")
def make_settings(installed: Installed, request: pytest.FixtureRequest) -> dict[str, str]:
    keys = installed.folder / "keys.json"
    made = (
        "import sys; from deskwire_common.auth import KeySet; KeySet.generate().save(sys.argv[1])"
    )
    subprocess.run([str(installed.python), "-c", made, str(keys)], check=True)
    settings = {
        "DESKWIRE_KEYS_FILE": str(keys),
        "DESKWIRE_KAFKA": request.getfixturevalue("kafka"),
        "DESKWIRE_GRPC_LISTEN": f"127.0.0.1:{free_port()}",
        "DESKWIRE_METRICS_LISTEN": "",
        # Nobody is there: a service starts without the others.
        "DESKWIRE_CHAT_TARGET": f"127.0.0.1:{free_port()}",
    }
    if installed.service == "gateway":
        settings["DESKWIRE_REDIS_URL"] = request.getfixturevalue("valkey")
        settings["DESKWIRE_WS_LISTEN"] = f"127.0.0.1:{free_port()}"
    else:
        settings["DESKWIRE_DATABASE_URL"] = f"sqlite:///{installed.folder / 'data.db'}"
    return settings


@pytest.fixture(name="served")
def serve(
    installed: Installed, settings: dict[str, str]
) -> Iterator[tuple[Installed, dict[str, str]]]:
    package = f"deskwire_{installed.service}"
    if installed.service != "gateway":
        installed.run(package, "migrate", env=settings)
    log = installed.folder / "serve.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [str(installed.python), "-m", package, "serve"],
            env={**bare_environment(), **settings},
            cwd=installed.folder,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 30
        probe = ("deskwire_common.probe",)
        while installed.run(*probe, env=settings, check=False).returncode != 0:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
        yield installed, settings
    finally:
        server.terminate()
        assert server.wait(30) == 0, log.read_text()


def test_it_serves_and_stops(served):
    """The image's health check says so, and SIGTERM ends it with 0."""
    installed, settings = served
    assert installed.run("deskwire_common.probe", env=settings).returncode == 0


def test_it_holds_nothing_of_the_others(installed):
    others = {f"deskwire-{service}" for service in SERVICES} - {f"deskwire-{installed.service}"}
    development = {"pytest", "mypy", "ruff", "deskwire-cli", "deskwire-demo-crm", "typer"}
    assert not installed.packages() & (others | development)


def test_a_wrong_setting_is_one_clear_line(installed, settings):
    wrong = {**settings, "DESKWIRE_GRPC_LISTEN": "here"}
    finished = installed.run(
        f"deskwire_{installed.service}", "check-config", env=wrong, check=False
    )
    assert finished.returncode == 2
    (line,) = finished.stderr.strip().splitlines()
    assert "DESKWIRE_GRPC_LISTEN" in line
    assert "Traceback" not in line
