"""What a released worker says and expects, kept as it was recorded, and held against the schema of today."""
