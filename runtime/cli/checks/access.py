"""The checks of the settings alone; they query nothing."""

import time

from runtime.cli.checks.finding import Finding, fault, ok, skipped, warning
from runtime.connection.addresses import are_two_projects, project_ref
from runtime.connection.claims import claims_of
from runtime.settings import Settings

_KEY_CURE = (
    "Set SUPABASE_SECRET_KEY (or SUPABASE_SERVICE_ROLE_KEY) to an sb_secret_… key or the service_role key of this very "
    "project."
)
_SOON_SECONDS = 86_400


def check_url(settings: Settings) -> Finding:
    """Check that there is a URL of a project."""
    if settings.supabase_url is None:
        if settings.database_url is not None:
            return skipped("url", "SUPABASE_URL is not set; DATABASE_URL is used alone, without Realtime.")
        return fault(
            "url",
            "Nothing says where the stream is.",
            settings.origin.hint
            or "Set SUPABASE_URL and a key, or start a stack on this machine: `runtime local start`.",
        )
    return ok("url", f"The project is at {settings.supabase_url}.")


def check_key(settings: Settings) -> Finding:
    """Check that the key is of a role that may run workers."""
    if settings.supabase_key is None:
        if settings.supabase_url is None:
            return skipped("key", "No project is used.")
        return fault("key", "There is no key.", settings.origin.hint or _KEY_CURE)
    key = settings.supabase_key.get_secret_value()
    if key.startswith("sb_secret_"):
        return ok("key", "The key is a secret key, which stands for service_role.", role="service_role")
    if key.startswith("sb_publishable_"):
        return fault(
            "key", "The key is a publishable one: it stands for anon, which may not run workers.", _KEY_CURE
        )
    claims = claims_of(key)
    if claims is None:
        return fault("key", "The key is neither a JWT nor an sb_secret_… key.", _KEY_CURE)
    role = claims.get("role")
    if role != "service_role":
        return fault(
            "key", f"The key stands for {role or 'no role'}, which may not run workers.", _KEY_CURE, role=role
        )
    return ok("key", "The key stands for service_role.", role=role)


def check_claims(settings: Settings) -> Finding:
    """Check that the token is not expired, and of this project."""
    key = settings.supabase_key.get_secret_value() if settings.supabase_key else ""
    claims = claims_of(key)
    if claims is None:
        return skipped("token", "The key is no JWT, so it makes no claims.")
    host, ref = project_ref(settings.supabase_url or ""), claims.get("ref")
    if isinstance(ref, str) and are_two_projects(host, ref.lower()):
        return fault(
            "token", f"The key is of project {ref}, and SUPABASE_URL is of {host}.", _KEY_CURE, ref=ref
        )
    expiry = claims.get("exp")
    if not isinstance(expiry, int | float):
        return fault("token", "The token has no `exp`: Realtime refuses it.", _KEY_CURE)
    left = expiry - time.time()
    if left <= 0:
        return fault(
            "token", f"The token expired {-left:.0f} s ago.", "Get a new one. " + _KEY_CURE, seconds_left=left
        )
    if left < _SOON_SECONDS:
        return warning(
            "token",
            f"The token expires in {left:.0f} s.",
            "A worker's key must outlive the worker. " + _KEY_CURE,
            seconds_left=left,
        )
    return ok("token", f"The token is good for another {left / 86_400:.0f} days.", seconds_left=left)
