"""Webhooks: what others post becomes messages, and messages are posted to others."""
