"""Sessions with adapters are renewed before they end, with secrets as they are then."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from deskwire_common.clock import ManualClock, to_micros
from deskwire_common.sealing import Sealer
from deskwire_common.targets import Targets, parse_rules
from deskwire_events import domain
from deskwire_events.hosts import AdapterHost, HostLimits
from deskwire_events.secret_refs import SecretRefs, parse_secret_rules
from deskwire_events.sinks import AdapterSink, way_to
from support.outgoing import outgoing


def sink(crm: Any, clock: ManualClock, secret: Path) -> AdapterSink:
    subscription = domain.register(
        None, tenant="t", adapter_id="a-1", incarnation="i", system_id="crm:main", target=crm.target, event_types=(),
        accepts=(), credentials={}, secret_refs={"password": f"file:{secret}"}, now=0,
    )  # fmt: skip
    host = AdapterHost(frozenset(), HostLimits())
    return AdapterSink(
        subscription,
        open_way=partial(
            way_to, targets=Targets(parse_rules("127.0.0.0/8:*")), tls=None, host=host
        ),
        secrets=SecretRefs(parse_secret_rules(f"t=file:{secret}")),
        sealer=Sealer(),
        clock=clock,
    )


async def test_a_session_is_renewed_before_it_ends(crm: Any, tmp_path: Path) -> None:
    clock, secret = ManualClock(), tmp_path / "password"
    secret.write_text("first\n")
    crm.password = "first"
    real = crm.Auth

    async def auth(request: Any, context: Any) -> Any:
        answer = await real(request, context)
        until = Timestamp()
        until.FromMicroseconds(to_micros(clock.now()) + 3_600_000_000)
        answer.expire_time.CopyFrom(until)
        return answer

    crm.Auth = auth
    await crm.stop()
    await crm.serve()
    adapter = sink(crm, clock, secret)
    await adapter.deliver([outgoing()])
    clock.advance(3_600 - 61)
    await adapter.deliver([outgoing()])
    assert crm.calls.count("Auth") == 1
    # A minute before its end, and with the secret as it is by then: it was rotated meanwhile.
    secret.write_text("second")
    crm.password = "second"
    clock.advance(1)
    await adapter.deliver([outgoing()])
    assert crm.calls.count("Auth") == 2
    assert [push.session for push in crm.pushes] == ["s1", "s1", "s2"]
    await adapter.close()
