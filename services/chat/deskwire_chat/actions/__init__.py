"""The use cases of chat: each is one transaction, idempotent by request_id, with its event in it."""
