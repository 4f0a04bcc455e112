"""Values as JSON, written and read back."""
