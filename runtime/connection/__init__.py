"""Connections: addresses, credentials, proxies and poolers."""
