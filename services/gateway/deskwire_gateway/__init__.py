"""Client connections: binary WebSocket and gRPC stream; owns no data."""
