"""Change capture from MySQL/MariaDB and SQLite, and CRM sync."""
