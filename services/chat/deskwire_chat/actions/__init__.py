"""Use cases of chat: one transaction each, idempotent by request_id, the event in the same transaction."""
