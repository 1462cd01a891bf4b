"""Tickets and their audit."""
