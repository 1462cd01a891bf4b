"""The only SQL of tickets: tables, and queries on an open connection, each limited to one tenant."""
