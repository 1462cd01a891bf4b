"""The streams of integrators: messages in, conversations out, and the way to another owner."""
