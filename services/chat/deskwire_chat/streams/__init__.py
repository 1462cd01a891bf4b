"""The streams of integrators: messages in, conversations out, and forwarding to another owner."""
