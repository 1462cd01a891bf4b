"""Who is connected through gateways, and what they are told."""
