"""Which stream does a command mean? The environment's, else the local stack that runs on this machine."""

import typer
from pydantic import SecretStr

from runtime.settings import Settings


def find_settings(**overrides: object) -> Settings:
    """Return the environment's settings; where they name no stream, those of a local stack that runs.

    Args:
        overrides: settings given on the command line; None leaves the environment's.

    Raises:
        SettingsError: the environment holds nonsense.
    """
    settings = Settings.load(**{name: value for name, value in overrides.items() if value is not None})
    if settings.supabase_url is not None or settings.database_url is not None:
        return settings
    # The stack brings servers and drivers along that a command for a hosted project does without.
    from runtime.local.stack import LocalStack

    stack = LocalStack().status()
    if not stack.is_running:
        # The store says what to set.
        return settings
    typer.echo(f"Using the local stack at {stack.api_url}.", err=True)
    return settings.placed(
        "the local stack",
        supabase_url=stack.api_url,
        supabase_key=SecretStr(stack.values["SECRET_KEY"]),
    )
