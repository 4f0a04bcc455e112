"""Where are the secrets of webhooks? In variables of the environment, whose names the code says: never in the code."""

import os
import re
from collections.abc import Mapping

from runtime.errors import DeclarationError, SettingsError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def check_secret_name(name: object) -> str:
    """The name of an environment variable.

    Raises:
        DeclarationError: it is none, or is a secret itself; the message does not repeat it.
    """
    if isinstance(name, str) and name.startswith("whsec_"):
        raise DeclarationError(
            "secret=… names the environment variable that holds the secret; a secret itself does not belong "
            'into code: secret="SHOP_WEBHOOK_SECRET".'
        )
    if isinstance(name, str) and _VARIABLE.fullmatch(name):
        return name
    raise DeclarationError('secret=… must name an environment variable, such as "SHOP_WEBHOOK_SECRET".')


def environment() -> Mapping[str, str]:
    """The environment, and under it the file .env of the working directory, as `Settings` reads them."""
    from dotenv import dotenv_values

    try:
        of_file = dotenv_values(".env")
    except (OSError, UnicodeError):
        raise SettingsError("The file .env cannot be read: it must be a text file in UTF-8.") from None
    return {name: text for each in (of_file, os.environ) for name, text in each.items() if text}


def secrets_in(variables: Mapping[str, str], name: str) -> list[str]:
    """The secrets that a variable holds: one, or several with spaces between them while one is rotated.

    Raises:
        SettingsError: it holds none.
    """
    found = variables.get(name, "").split()
    if not found:
        raise SettingsError(
            f"{name} is not set. Put the webhook's secret there; an old one may follow after a space."
        )
    return found
