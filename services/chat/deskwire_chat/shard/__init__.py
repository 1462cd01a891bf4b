"""The shard: the one writer of every conversation, and the streams that it serves."""
