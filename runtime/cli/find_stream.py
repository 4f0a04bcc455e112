"""The stream of a command: the environment's, else the local stack of the project here."""

from pathlib import Path
from urllib.parse import urlsplit

from runtime.cli.output import err
from runtime.connection.addresses import DatabaseAddress
from runtime.connection.local_stack import is_listening
from runtime.connection.project import is_on_this_machine
from runtime.errors import SettingsError
from runtime.settings import Settings


def find_settings(*, waits: bool = False, **overrides: object) -> Settings:
    """Return the environment's settings, or if they name no stream, those of the project's running local stack.

    Args:
        waits: whether the command waits for a stream that is away; else that of a stack that is gone is an error.
        overrides: settings given on the command line; None leaves the environment's.

    Raises:
        SettingsError: a variable has a wrong value, or a `.env` names a stack that is gone.
    """
    settings = Settings.find(**{name: value for name, value in overrides.items() if value is not None})
    if gone := gone_stack(settings):
        if not waits:
            raise SettingsError(gone)
        err.print(f"{gone} Waiting for it.", style="yellow", soft_wrap=True)
    return settings


def gone_stack(settings: Settings) -> str:
    """Return a sentence about a `.env` that names a stack on this machine where nothing listens, else nothing."""
    origin = settings.origin
    if settings.database_url is not None:
        place = DatabaseAddress.parse(settings.database_url.get_secret_value()).place
        variable, url = origin.database, f"postgresql://{place}"
    else:
        variable, url = origin.url, settings.supabase_url or ""
    # Whoever sets the environment knows what it holds; a file outlives what it was written for.
    if variable is None or not Path(variable[1]).is_file() or not is_on_this_machine(url):
        return ""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if is_listening(host, port):
        return ""
    name, source = variable
    return (
        f"Nothing listens at {host}:{port}, which {name} of {source} names. If a local stack was there, start it again "
        f"(`runtime local start`), and remove {name} there, with its key: no command needs them, since each finds the "
        "stack of the folder it is called in."
    )
