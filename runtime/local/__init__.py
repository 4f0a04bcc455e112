"""What stands in for `supabase start` where there is no Docker? PostgreSQL from a wheel, and a small gateway."""
