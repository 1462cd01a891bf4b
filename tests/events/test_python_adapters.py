"""Adapters that the hub runs in processes of its own: what they do to themselves stays with them."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deskwire_common.auth import Role
from deskwire_common.clock import SystemClock
from deskwire_common.metrics import REGISTRY
from deskwire_common.sealing import Sealer
from deskwire_common.targets import Targets
from deskwire_events import domain
from deskwire_events.hosts import AdapterHost, HostLimits
from deskwire_events.secret_refs import SecretRefs, parse_secret_rules
from deskwire_events.sinks import NOT_THERE, AdapterSink, Away, Faulty, way_to
from support import eventually
from support.outgoing import outgoing
from support.refusals import failure

TRIAL = Path(__file__).parents[1] / "support" / "trial"
PAID = ["invoice_paid"]


@pytest.fixture(autouse=True)
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial adapters are installed, as far as child processes can see."""
    package = tmp_path / "installed" / "trial_adapters-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: trial-adapters\nVersion: 1\n")
    (package / "entry_points.txt").write_text(
        "[deskwire.adapters]\n"
        "trial = trial_adapters:Trial\n"
        "broken = trial_adapters:Broken\n"
        "missing = trial_adapters:missing\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package.parent), str(TRIAL)]))
    monkeypatch.setenv("DESKWIRE_PASSWORD_OF_THE_HUB", "secret")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def seen(log: Path) -> list[str]:
    """The ids of events in the order in which they were tried."""
    return log.read_text().split() if log.exists() else []


LIMITS = HostLimits(memory=256 << 20, call_seconds=1.0, first_pause=0.05, longest_pause=0.2)


@pytest.fixture
async def host() -> AsyncIterator[AdapterHost]:
    names = frozenset({"trial", "broken", "missing", "nobody"})
    found = AdapterHost(names, LIMITS)
    yield found
    await found.close()


def sink(
    host: AdapterHost, log: Path, name: str = "trial", *, rules: str = "", **fields: Any
) -> AdapterSink:
    about = domain.owner_of_secrets("t", "a-1")
    credentials = {
        each: Sealer().seal(text, about) for each, text in fields.pop("credentials", {}).items()
    }
    subscription = domain.register(
        None, tenant="t", adapter_id="a-1", incarnation="i", system_id="crm:main", target=f"python:{name}",
        event_types=(), accepts=(), credentials=credentials, config=json.dumps({"log": str(log)}),
        now=1_767_225_600_000_000, **fields,
    )  # fmt: skip
    open_way = partial(way_to, targets=Targets(()), tls=None, host=host)
    secrets = SecretRefs(parse_secret_rules(rules))
    return AdapterSink(
        subscription, open_way=open_way, secrets=secrets, sealer=Sealer(), clock=SystemClock()
    )


def exits(how: str) -> float:
    labels = {"adapter": "trial", "how": how}
    return REGISTRY.get_sample_value("deskwire_hub_adapter_exits_total", labels) or 0.0


async def test_a_process_serves_on_a_socket_of_this_user_alone(
    host: AdapterHost, log: Path
) -> None:
    adapter = sink(host, log)
    event = outgoing("a", number=1)
    assert [each.outcome.name for each in await adapter.deliver([event])] == ["DELIVERED"]
    assert [each.outcome.name for each in await adapter.deliver([event])] == ["DUPLICATE"]
    process = await host.running("trial")
    folder = process.socket.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    environment = await asyncio.to_thread(Path(f"/proc/{process.pid}/environ").read_bytes)
    assert b"PASSWORD_OF_THE_HUB" not in environment
    await adapter.close()
    await host.close()
    assert process.how == "stopped"
    assert not folder.exists()


async def test_names_that_no_rule_allows_and_no_adapter_are_away(
    host: AdapterHost, log: Path
) -> None:
    for name, why in (
        ("nobody", "0 entry points"), ("broken", "no AdapterBase"), ("missing", "libthatisnotthere"),
        ("other", "doesn't name other"),
    ):  # fmt: skip
        with pytest.raises(Away) as caught:
            await sink(host, log, name).ready()
        assert caught.value.message == NOT_THERE
        assert why in caught.value.detail


async def test_a_hub_without_a_folder_for_sockets_goes_on(
    host: AdapterHost, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> str:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkdtemp", full)
        with pytest.raises(Away) as caught:
            await sink(host, log).ready()
    assert caught.value.detail == "No space left on device"
    adapter = sink(host, log)
    await again(adapter)
    await adapter.close()


async def test_a_killed_process_is_a_fault_and_the_next_one_goes_on(
    host: AdapterHost, log: Path
) -> None:
    adapter = sink(host, log)
    before = exits("killed")
    with pytest.raises(Faulty, match="it was killed"):
        await adapter.deliver([outgoing(do="die")])
    assert exits("killed") == before + 1
    # Not at once: pauses grow, and say how long they are.
    with pytest.raises(Away) as caught:
        await adapter.ready()
    assert 0 < (caught.value.retry_after or 0) <= LIMITS.longest_pause
    await again(adapter)
    assert (await adapter.deliver([outgoing()]))[0].outcome.name == "DELIVERED"
    await adapter.close()


async def again(adapter: AdapterSink) -> None:
    """Wait until it is ready again."""

    async def ready() -> bool:
        try:
            await adapter.ready()
        except Away:
            return False
        return True

    await eventually(ready, timeout=20)


@pytest.mark.parametrize(("what", "how"), [("hang", "hangs"), ("eat", "memory")])
async def test_a_process_that_hangs_or_eats_memory_ends(
    host: AdapterHost, log: Path, what: str, how: str
) -> None:
    adapter = sink(host, log)
    before = exits(how)
    with pytest.raises(Faulty, match="the adapter's process ended"):
        await adapter.deliver([outgoing(do=what)])
    assert exits(how) == before + 1
    await again(adapter)
    await adapter.close()


async def test_a_process_that_stands_still_as_a_whole_is_killed(
    host: AdapterHost, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deskwire_events.sinks.adapter.PUSH_SECONDS", 0.5)
    monkeypatch.setattr("deskwire_events.hosts.host._ANSWER_SECONDS", 0.5)
    adapter = sink(host, log)
    with pytest.raises(Faulty, match="DEADLINE_EXCEEDED"):
        await adapter.deliver([outgoing(do="stop")])
    await again(adapter)
    assert (await adapter.deliver([outgoing()]))[0].outcome.name == "DELIVERED"
    await adapter.close()


async def test_floods_are_cut_and_counted(host: AdapterHost, log: Path) -> None:
    def dropped() -> float:
        name = "deskwire_hub_adapter_log_dropped_total"
        return REGISTRY.get_sample_value(name, {"adapter": "trial"}) or 0.0

    adapter = sink(host, log)
    before = dropped()
    assert (await adapter.deliver([outgoing(do="flood")]))[0].outcome.name == "DELIVERED"
    await eventually(lambda: dropped() - before > 15_000)
    assert len((await adapter.deliver([outgoing(do="shout")]))[0].detail) == 500
    await adapter.close()


async def test_a_process_ends_with_its_parent() -> None:
    """Whoever holds the pipe to its stdin is its parent; when that ends, by kill -9 too, so does the process."""
    program = (
        "import asyncio, sys\n"
        "from deskwire_events.hosts import AdapterHost, HostLimits\n"
        "async def main():\n"
        "    process = await AdapterHost(frozenset({'trial'}), HostLimits()).running('trial')\n"
        "    print(process.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    # A socket's path has 107 bytes at the most, and the folders of tests are long.
    short = tempfile.TemporaryDirectory()
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, env=dict(os.environ, TMPDIR=short.name)
    )  # fmt: skip
    assert parent.stdout is not None
    lines = [await parent.stdout.readline() for _ in range(2)]
    child = int(lines[1])
    parent.kill()
    await parent.wait()

    def gone() -> bool:
        try:
            return "Z" in Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True

    await eventually(gone)
    short.cleanup()


async def test_secrets_are_read_by_rules_and_never_told(
    host: AdapterHost, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "password").write_text("sesame-sesame\n")
    (tmp_path / "outside").write_text("sesame-sesame")
    (folder / "link").symlink_to(tmp_path / "outside")
    monkeypatch.setenv("CRM_PASSWORD", "wrong-secret")
    rules = f"t=file:{folder}/, other=env:HOME, t=env:CRM_PASSWORD"

    async def signs_in(reference: str) -> None:
        adapter = sink(host, log, rules=rules, secret_refs={"password": reference})
        await adapter.ready()
        await adapter.close()

    await signs_in(f"file:{folder}/password")
    for reference in (
        "env:HOME", "env:PATH", f"file:{tmp_path}/outside", f"file:{folder}/../outside", f"file:{folder}/link",
        f"file:{folder}/none", f"file:{folder}",
    ):  # fmt: skip
        with pytest.raises(Away, match="the secret password can't be used") as caught:
            await signs_in(reference)
        assert reference in caught.value.detail or "is a directory" in caught.value.detail.lower()
    # The adapter repeats what it was told; the hub doesn't.
    with pytest.raises(Away) as told:
        await signs_in("env:CRM_PASSWORD")
    assert told.value.message == "UNAUTHENTICATED: the password *** is wrong"


async def test_poison_ends_as_a_dead_letter_and_others_go_on(
    start: Callable[..., Any], hub_url: str, tenant: str, log: Path
) -> None:
    async with start(hub_url, python_adapters="trial", delivery_attempts=2) as client:
        olga = client(tenant)
        await olga.register(
            "t-1",
            "python:trial",
            event_types=PAID,
            config=json.dumps({"log": str(log), "level": 3}),
        )
        found = await olga.adapter("t-1")
        assert json.loads(found.config) == {"log": str(log), "level": 3}
        ids = await olga.publish(
            ("invoice_paid", "a", {"do": "die"}),
            ("invoice_paid", "b", {"n": 1}),
            ("invoice_paid", "a", {"n": 2}),
            ("invoice_paid", "c", {"n": 3}),
        )

        async def ended() -> bool:
            adapter = await olga.adapter("t-1")
            return bool(adapter.delivered_count == 3 and adapter.dead_letter_count == 1)

        await eventually(ended, timeout=60)
        letters = await olga.deliveries("t-1", dead_letters=True)
        assert [(each.event_id, each.attempts >= 2) for each in letters] == [(ids[0], True)]
        assert "the adapter's process ended: it was killed" in letters[0].detail
        # The one behind it in its subject came after it had ended.
        tried = seen(log)
        assert tried.index(ids[2]) > max(n for n, each in enumerate(tried) if each == ids[0])


async def test_configuration_keeps_the_adapters_schema(
    start: Callable[..., Any], hub_url: str, tenant: str, log: Path
) -> None:
    async with start(hub_url, python_adapters="trial") as client:
        olga = client(tenant)
        good = json.dumps({"log": str(log)})
        for wrong, field in (
            ({}, "adapter.config: 'log' is a required property"),
            ({"log": ""}, "adapter.config.log: "),
            ({"log": "x", "level": 1.5}, "adapter.config.level: 1.5 is not of type 'integer'"),
            ({"log": "x", "x": 1}, "adapter.config: Additional properties"),
            ([], "config is no JSON object"),
        ):
            code, text = await failure(
                olga.register("t-1", "python:trial", config=json.dumps(wrong))
            )
            assert code == "INVALID_ARGUMENT"
            assert field in text
        # What the schema can't know, Check does.
        code, text = await failure(
            olga.register("t-1", "python:trial", config=json.dumps({"log": f"{log}/none/log"}))
        )
        assert (code, text.endswith("the log has no folder")) == ("FAILED_PRECONDITION", True)
        crm = client(tenant, role=Role.INTEGRATION, system="crm:main")
        code, _ = await failure(
            crm.register("t-1", "python:trial", config=good, secret_refs={"password": "env:HOME"})
        )
        assert code == "PERMISSION_DENIED"
        await crm.register("t-1", "python:trial", config=good)
        code, text = await failure(olga.register("t-2", "python:sql"))
        assert (code, text.endswith(NOT_THERE)) == ("FAILED_PRECONDITION", True)


async def test_a_shipped_adapter_writes_what_is_published(
    start: Callable[..., Any], hub_url: str, tenant: str, tmp_path: Path
) -> None:
    async with start(hub_url, python_adapters="file, sql", adapter_root=tmp_path) as client:
        olga = client(tenant)
        await olga.register("f-1", "python:file", event_types=PAID, config='{"name": "paid"}')
        ids = await olga.publish(*[("invoice_paid", f"s{n}", {"amount": 12.5}) for n in range(20)])

        def written() -> list[Any]:
            path = tmp_path / tenant / "paid.jsonl"
            return [json.loads(line) for line in path.read_text().split("\n")[:-1]]

        await eventually(
            lambda: (tmp_path / tenant / "paid.jsonl").exists() and len(written()) == 20
        )
        assert {each["event_id"] for each in written()} == set(ids)
        assert written()[0]["data"] == {"amount": 12.5}
        wrong = '{"url": "sqlite:///x.db", "table": "t", "columns": {"a": "data.a"}, "event_id": "a; --"}'
        code, text = await failure(olga.register("s-1", "python:sql", config=wrong))
        assert (code, "adapter.config.event_id" in text) == ("INVALID_ARGUMENT", True)
