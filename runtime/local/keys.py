"""Which ports, keys and secrets has the stack of `supabase start`? The same for everyone, and secret to no one.

Source: the Supabase CLI's defaults, as `supabase status -o env` prints them.
"""

import jwt

API_PORT = 54321
DB_PORT = 54322
DB_PASSWORD = "postgres"
JWT_SECRET = "super-secret-jwt-token-with-at-least-32-characters-long"
PUBLISHABLE_KEY = "sb_publishable_ACJWlzQHlZjBrEguHvfOxg_3BJgxAaH"
SECRET_KEY = "sb_secret_N7UND0UgjKTVK-Uodkm0Hg_xSvEMPvz"
_EXPIRES = 1983812996


def _demo_key(role: str) -> str:
    claims = {"iss": "supabase-demo", "role": role, "exp": _EXPIRES}
    return jwt.encode(claims, JWT_SECRET, algorithm="HS256", headers={"alg": "HS256", "typ": "JWT"})


ANON_KEY = _demo_key("anon")
SERVICE_ROLE_KEY = _demo_key("service_role")
