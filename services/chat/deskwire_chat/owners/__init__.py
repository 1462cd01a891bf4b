"""Which process owns which partition, and how calls reach the owner."""
