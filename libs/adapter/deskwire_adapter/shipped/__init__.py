"""The adapters that come with deskwire, as entry points: file, sql, odata. They need the extra `shipped`."""
