"""A Supabase-compatible stack without Docker: PostgreSQL from a wheel, and a gateway."""
