"""The parts of PostgREST and Realtime that a Supabase client needs to run, test and demo agents."""
