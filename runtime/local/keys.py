"""Which ports and keys does `supabase start` use? The same here, so that every client's defaults fit.

They are published with the Supabase CLI and open nothing but a database on the developer's own machine.
"""

from typing import Final

API_PORT: Final = 54321
DB_PORT: Final = 54322

SUPERUSER: Final = "supabase_admin"
DB_USER: Final = "postgres"
DB_PASSWORD: Final = "postgres"
DATABASE: Final = "postgres"

JWT_SECRET: Final = "super-secret-jwt-token-with-at-least-32-characters-long"
ANON_KEY: Final = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
    ".eyJpc3MiOiJzdXBhYmFzZS1kZW1vIiwicm9sZSI6ImFub24iLCJleHAiOjE5ODM4MTI5OTZ9"
    ".CRXP1A7WOeoJeXxjNni43kdQwgnWNReilDMblYTn_I0"
)
SERVICE_ROLE_KEY: Final = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
    ".eyJpc3MiOiJzdXBhYmFzZS1kZW1vIiwicm9sZSI6InNlcnZpY2Vfcm9sZSIsImV4cCI6MTk4MzgxMjk5Nn0"
    ".EGIM96RAZx35lJzdJsyH-qQwv8Hdp7fsn3W0YpN81IU"
)
PUBLISHABLE_KEY: Final = "sb_publishable_ACJWlzQHlZjBrEguHvfOxg_3BJgxAaH"
SECRET_KEY: Final = "sb_secret_N7UND0UgjKTVK-Uodkm0Hg_xSvEMPvz"
