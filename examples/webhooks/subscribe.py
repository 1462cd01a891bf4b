"""Makes a webhook, prints its secret, and tries it out.

WEBHOOK_TOKEN="$(deskwire token --role operator --tenant demo --subject olga)" \
    python subscribe.py create billing https://hooks.shop.example/deskwire ticket_solved ticket_reopened
WEBHOOK_TOKEN=… python subscribe.py check billing

WEBHOOK_HUB is the hub's address, 127.0.0.1:7404 unless it is set. The stubs are in the wheel deskwire-protos.
"""

from __future__ import annotations

import os
import sys
import uuid

import grpc

from deskwire.events.v1 import adapter_pb2, event_hub_service_pb2_grpc, subscription_pb2
from deskwire.events.v1 import event_hub_service_pb2 as pb


def main(do: str, name: str, url: str = "", *event_types: str) -> None:
    """Do one of the two."""
    token = os.environ["WEBHOOK_TOKEN"]
    metadata = (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(os.environ.get("WEBHOOK_HUB", "127.0.0.1:7404")) as channel:
        hub = event_hub_service_pb2_grpc.EventHubServiceStub(channel)
        if do == "create":
            request = pb.CreateSubscriptionRequest(
                request_id=str(uuid.uuid4()),
                subscription=subscription_pb2.Subscription(
                    subscription_id=name,
                    filter=subscription_pb2.SubscriptionFilter(event_types=event_types),
                    webhook=subscription_pb2.Webhook(url=url),
                ),
            )
            print(hub.CreateSubscription(request, metadata=metadata).secret)
        else:
            answer = hub.CheckWebhook(
                pb.CheckWebhookRequest(subscription_id=name), metadata=metadata, timeout=60
            )
            print(adapter_pb2.PushOutcome.Name(answer.outcome), answer.status, answer.detail)


if __name__ == "__main__":
    main(*sys.argv[1:])
