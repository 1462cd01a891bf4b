"""The only SQL of chat: tables, and queries that take an open connection."""
