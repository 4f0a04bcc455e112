"""The stream of a command: the environment's, else the local stack that runs on this machine."""

import sys

import typer
from pydantic import SecretStr

from runtime.settings import Settings


def find_settings(**overrides: object) -> Settings:
    """Return the environment's settings, or if they name no stream, those of a running local stack.

    Args:
        overrides: settings given on the command line; None leaves the environment's.

    Raises:
        SettingsError: a variable has a wrong value.
    """
    settings = Settings.load(**{name: value for name, value in overrides.items() if value is not None})
    if settings.supabase_url is not None or settings.database_url is not None:
        return settings
    # Imported here, since a hosted project needs neither; both work without the extra `local`.
    from runtime.local.keys import Keys
    from runtime.local.state import default_folder, running_stack

    stack = running_stack(default_folder().expanduser().resolve())
    if stack is None:
        # Opening the store raises the error that says what to set.
        return settings
    url = f"http://127.0.0.1:{stack.api_port}"
    if sys.stderr.isatty():
        # A program that reads the errors of a command has no use for it.
        typer.echo(f"Using the local stack at {url}.", err=True)
    return settings.with_stream(
        "the local stack", supabase_url=url, supabase_key=SecretStr((stack.keys or Keys()).secret_key)
    )
