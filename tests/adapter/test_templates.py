"""The template that people copy passes the kit, as the guide has it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from deskwire_adapter.conformance import Grade, Subject, examine
from support.ports import free_port

EXAMPLES = Path(__file__).parents[2] / "examples" / "adapters"
DESCRIPTORS = EXAMPLES.parents[1] / "protos" / "gen" / "deskwire" / "contract" / "descriptors.binpb"


async def passes(command: str, port: int, folder: Path) -> None:
    subject = Subject(
        f"127.0.0.1:{port}",
        command=command,
        credentials={"password": "choose-one"},
        environment={
            "MY_PASSWORD": "choose-one",
            "MY_DATABASE": str(folder / "contacts.db"),
            "MY_FILE": str(folder / "contacts.jsonl"),
        },
    )
    report = await examine(subject)
    bad = {each.trial: each.text for each in report.findings if each.grade is not Grade.PASSED}
    assert bad == {}


async def test_the_template_in_python(tmp_path: Path) -> None:
    program = shutil.copy(EXAMPLES / "python" / "my_adapter.py", tmp_path)
    port = free_port()
    await passes(f"{sys.executable} {program} 127.0.0.1:{port}", port, tmp_path)


async def test_the_template_in_typescript(tmp_path: Path) -> None:
    """Where `npm install && npm run build` was run in its folder, as its README says."""
    program = EXAMPLES / "typescript" / "dist" / "adapter.js"
    if not program.exists():
        pytest.skip("examples/adapters/typescript isn't built: npm install && npm run build")
    port = free_port()
    await passes(f"node {program} 127.0.0.1:{port} {DESCRIPTORS}", port, tmp_path)
