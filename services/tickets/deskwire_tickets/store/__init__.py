"""The only SQL of tickets: tables, and queries that take an open connection, each limited to one tenant."""
