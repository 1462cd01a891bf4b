"""The event hub: catalogue, subscriptions, deliveries, adapters."""
