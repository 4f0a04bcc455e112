"""How does a developer get a Supabase-compatible stack without Docker? PostgreSQL from a wheel, and a gateway."""
