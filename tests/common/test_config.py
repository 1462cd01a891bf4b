"""Settings that are wrong are named, one line each, before anything starts."""

from __future__ import annotations

import io
import json
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

GOOD = {
    "DESKWIRE_GRPC_LISTEN": "127.0.0.1:0",
    "DESKWIRE_KAFKA": "127.0.0.1:9092",
    "DESKWIRE_DATABASE_URL": "postgresql://deskwire:s3cret@db.example/chat",
    "DESKWIRE_REDIS_URL": "redis://127.0.0.1:6379/0",
}


def environment(keys_file: Path, **settings: str) -> dict[str, str]:
    """Good settings but for some; "-" takes one out."""
    given = {**GOOD, "DESKWIRE_KEYS_FILE": str(keys_file)}
    given |= {f"DESKWIRE_{name}": value for name, value in settings.items()}
    outside = {
        name: value for name, value in os.environ.items() if not name.startswith("DESKWIRE_")
    }
    return outside | {name: value for name, value in given.items() if value != "-"}


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def check(service: str, keys_file: Path, *arguments: str, **settings: str) -> Done:
    """`check-config` of a service's `__main__`, in this process: another one imports for a second."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, environment(keys_file, **settings), clear=True),
        patch.object(sys, "argv", ["python", "check-config", *arguments]),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        runpy.run_module(f"deskwire_{service}", run_name="__main__")
    assert isinstance(ended.value.code, int)
    return Done(ended.value.code, out.getvalue(), err.getvalue())


@pytest.mark.parametrize("service", ["gateway", "chat", "tickets", "events", "cdc"])
def test_good_settings_are_shown_without_secrets(service: str, keys_file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"deskwire_{service}", "check-config"],
        env=environment(keys_file),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert shown["grpc_listen"] == "127.0.0.1:0"
    assert "s3cret" not in done.stdout
    if service != "gateway":
        assert shown["database_url"].startswith("postgresql://deskwire:")


@pytest.mark.parametrize(
    ("setting", "value", "line"),
    [
        ("GRPC_LISTEN", "-", "DESKWIRE_GRPC_LISTEN: is not set"),
        ("GRPC_LISTEN", "7402", "DESKWIRE_GRPC_LISTEN: '7402' is not host:port"),
        (
            "GRPC_LISTEN",
            "127.0.0.1:99999",
            "DESKWIRE_GRPC_LISTEN: '127.0.0.1:99999' is not host:port",
        ),
        ("METRICS_LISTEN", "x", "DESKWIRE_METRICS_LISTEN: 'x' is not host:port"),
        ("KAFKA", "a:1,b", "DESKWIRE_KAFKA: 'b' is not host:port"),
        ("KEYS_FILE", "/nowhere", "can't read the keys file /nowhere: No such file or directory"),
        ("LOG_LEVEL", "LOUD", "log_level must be one of DEBUG, INFO, WARNING, ERROR"),
        ("TRACE_SAMPLE_RATIO", "2", "trace_sample_ratio must be between 0 and 1"),
        ("TLS_CERT", "/x", "tls_cert, tls_key and tls_ca belong together: set all or none"),
        (
            "GRPC_LISTEN",
            "0.0.0.0:7402",
            "0.0.0.0:7402 is not loopback: set tls_cert, tls_key and tls_ca, or allow_plaintext=true",
        ),
    ],
)
def test_a_wrong_setting_is_named(keys_file: Path, setting: str, value: str, line: str) -> None:
    done = check("chat", keys_file, **{setting: value})
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{line}\n")


def test_every_wrong_setting_is_named_at_once(keys_file: Path) -> None:
    done = check(
        "chat", keys_file, KAFKA="-", DATABASE_URL="oracle://u:s3cret@h/x", DRAIN_SECONDS="-1"
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 2
    assert [line.partition(":")[0] for line in sorted(lines)] == [
        "DESKWIRE_DATABASE_URL",
        "DESKWIRE_DRAIN_SECONDS",
        "DESKWIRE_KAFKA",
    ]
    assert "s3cret" not in done.stderr


def test_workers_may_be_said_on_the_command_line(keys_file: Path) -> None:
    assert json.loads(check("gateway", keys_file).stdout)["workers"] == 1
    assert json.loads(check("gateway", keys_file, WORKERS="2").stdout)["workers"] == 2
    said = check("gateway", keys_file, "--workers", "3", WORKERS="2")
    assert json.loads(said.stdout)["workers"] == 3
    wrong = check("gateway", keys_file, "--workers", "many")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("DESKWIRE_WORKERS: ")
