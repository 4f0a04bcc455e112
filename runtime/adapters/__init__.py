"""Adapters: agent objects of other frameworks as handlers, each behind an extra of its own."""
