"""Files of conversations: their rules, where their bytes are, and how those leave again."""
