"""Who is connected through gateways, and what the gateways are sent for them."""
