"""A demo CRM: its own database, and a SystemAdapterService to start from."""
