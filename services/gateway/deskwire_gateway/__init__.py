"""Client connections: binary WebSocket and gRPC stream. The gateway owns no data."""
