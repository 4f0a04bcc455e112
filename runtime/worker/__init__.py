"""One process that runs handlers."""
