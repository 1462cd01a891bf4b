"""The client protocol as bytes: what the gateway, chat and the reference client say in the same way."""
