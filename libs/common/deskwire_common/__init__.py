"""The library that every deskwire service shares; it knows nothing of the business."""
