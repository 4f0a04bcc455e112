"""Faults on a schedule, and a ledger kept apart from the kernel: `python -m tests.chaos`."""
