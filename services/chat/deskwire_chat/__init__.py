"""Conversations, messages, customers, agents and routing."""
