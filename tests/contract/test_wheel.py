"""The stubs' wheel is what an integrator gets: typed, without protovalidate, running on old runtimes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UV = shutil.which("uv") or str(ROOT / ".tools" / "uv" / "bin" / "uv")

# An integrator's program on the oldest runtimes that the wheel promises.
PROGRAM = """
import google.protobuf, grpc, sys
from deskwire.chat.v1 import conversation_service_pb2, conversation_service_pb2_grpc
from deskwire.adapters.v1 import system_adapter_service_pb2_grpc
request = conversation_service_pb2.SendMessageRequest(client_msg_id="a")
assert type(request).FromString(request.SerializeToString()) == request
stub = conversation_service_pb2_grpc.ConversationServiceStub(grpc.insecure_channel("127.0.0.1:1"))
assert not any(name.startswith("buf") for name in sys.modules)
print(google.protobuf.__version__, grpc.__version__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    command = [UV, "build", "--quiet", "--wheel", "--package", "deskwire-protos"]
    subprocess.run([*command, "--out-dir", target], cwd=ROOT, check=True)
    (built,) = target.glob("*.whl")
    return built


def test_wheel_holds_the_contract(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "deskwire/py.typed" in names
    assert "deskwire/contract/descriptors.binpb" in names
    for source in (ROOT / "protos" / "deskwire").rglob("*.proto"):
        name = source.relative_to(ROOT / "protos").as_posix()
        assert f"deskwire/contract/{name}" in names
        # Rules for protovalidate have no stubs, as these have no protovalidate.
        is_rules = "extend buf.validate." in source.read_text()
        assert (name.replace(".proto", "_pb2.pyi") in names) != is_rules
    for topic in (ROOT / "protos" / "topics").iterdir():
        assert f"deskwire/contract/topics/{topic.name}" in names
    assert not [name for name in names if name.startswith("buf/")]


def test_wheel_runs_on_the_oldest_runtimes(wheel: Path) -> None:
    isolated = [UV, "run", "--quiet", "--isolated", "--no-project", "--python", sys.executable]
    pins = ["protobuf==5.27.*", "grpcio==1.66.*", "googleapis-common-protos==1.65.*", str(wheel)]
    withs = [part for pin in pins for part in ("--with", pin)]
    run = subprocess.run(
        [*isolated, *withs, "python", "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("5.27.")
