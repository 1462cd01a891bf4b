"""The bytes of attachments: the stores that hold them, their signed URLs, and their removal."""
