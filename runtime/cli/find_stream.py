"""The stream of a command: the environment's, else the local stack that runs on this machine."""

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
    # Not for a hosted project; and without what starts a stack, which another environment may have done.
    from runtime.local.keys import Keys
    from runtime.local.state import default_folder, running_stack

    stack = running_stack(default_folder().expanduser().resolve())
    if stack is None:
        # The store says what to set.
        return settings
    url = f"http://127.0.0.1:{stack.api_port}"
    typer.echo(f"Using the local stack at {url}.", err=True)
    return settings.with_stream(
        "the local stack", supabase_url=url, supabase_key=SecretStr((stack.keys or Keys()).secret_key)
    )
