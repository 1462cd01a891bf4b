"""The client protocol as bytes: the forms that the gateway, chat and the reference client share."""
