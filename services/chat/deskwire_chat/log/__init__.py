"""Writing: commands become groups, groups become the committed log, and from there Kafka and the index follow it."""
