"""What every deskwire service shares; it knows no business word."""
