"""Webhooks: their secrets, and trying one out. All else of them is a subscription's."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from google.protobuf.duration_pb2 import Duration

from deskwire.events.v1 import event_hub_service_pb2 as pb
from deskwire_common import events as codec
from deskwire_common import exact, topics
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database
from deskwire_common.ids import Ids
from deskwire_common.quota import Quota
from deskwire_common.sealing import Sealer
from deskwire_events import domain, events
from deskwire_events.actions.finding import find
from deskwire_events.callers import tenant_caller
from deskwire_events.domain import Outcome, Result, Subscription, webhooks
from deskwire_events.sinks import Away, Outgoing, Unanswered, Unreachable, WebhookSink, result_of
from deskwire_events.spine import Carried

CHECKED: Final = "webhook_checked"


def new_secret(sealer: Sealer, tenant: str, subscription_id: str) -> tuple[str, str]:
    """A secret for a webhook, as its owner gets it, and as it is stored."""
    secret = webhooks.secret_text(secrets.token_bytes(webhooks.SECRET_BYTES))
    return secret, sealer.seal(secret, domain.owner_of_secrets(tenant, subscription_id))


@dataclass(frozen=True, slots=True)
class WebhookActions:
    """Tries out webhooks of the current principal's tenant; `under_way` is how many at the same time."""

    db: Database
    clock: Clock
    ids: Ids
    open_webhook: Callable[[Subscription], WebhookSink]
    under_way: Quota

    async def check(self, request: pb.CheckWebhookRequest) -> pb.CheckWebhookResponse:
        """POST an event that is none. Raises NotFound, PermissionDenied, ResourceExhausted (RATE_LIMITED)."""
        principal = tenant_caller()
        found = webhooks.check_webhook(await find(self.db, request.subscription_id))
        domain.check_system(found.system_id, principal.system)
        event = self._ping(found)
        status = 0
        began = self.clock.monotonic()
        with self.under_way.taken(principal.tenant, "checks under way"):
            sink = self.open_webhook(found)
            try:
                await sink.ready()
                answer = await sink.send(event)
                status = answer.status
                result = result_of(answer, to_micros(self.clock.now()) / 1e6)
            except Away as error:
                result = Result(Outcome.RETRY, error.message)
            except Unreachable as error:
                result = Result(Outcome.RETRY, error.told)
            except Unanswered as error:
                result = Result(Outcome.UNKNOWN, str(error))
            finally:
                await sink.close()
        elapsed = Duration()
        elapsed.FromMicroseconds(int((self.clock.monotonic() - began) * 1e6))
        return pb.CheckWebhookResponse(
            outcome=events.outcome_message(result.outcome),
            status=status,
            detail=result.detail,
            elapsed=elapsed,
            event_id=event.event_id,
        )

    def _ping(self, webhook: Subscription) -> Outgoing:
        event = codec.new_event(
            exact.json_object({"subscription_id": webhook.subscription_id}),
            event_type=CHECKED,
            subject=webhook.subject,
            sequence=1,
            ids=self.ids,
            clock=self.clock,
            topic=topics.EXTERNAL,
        )
        value, headers = codec.encode(event), codec.headers(event)
        key = event.partition_key.encode()
        carried = Carried(topics.EXTERNAL.name, 0, 0, key, value, headers, 0)
        return Outgoing(carried, 1, event.traceparent)
