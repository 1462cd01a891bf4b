"""The deskwire command: up, status, down, chat, tail, token, replay."""
