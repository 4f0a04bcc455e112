"""What do the measured workers run? Agents that note when a handler starts, and do nothing."""
