"""What a Supabase client needs of PostgREST and Realtime to run, test and demo agents, and no more."""
