"""The secrets of webhooks: their variables, their form and their least length."""

import re
from collections.abc import Mapping

from runtime.connection.environment import non_blank
from runtime.errors import DeclarationError, SettingsError

MIN_EXPOSED_CHARACTERS = 16
"""The least length of a secret that other machines can try to guess."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def check_exposed(secret: str, variable: str) -> str:
    """Return the secret, if it is long enough to be exposed to other machines.

    Args:
        secret: without blanks and quotes.
        variable: the environment variable it comes from, for the error.

    Raises:
        SettingsError: the secret is too short; the message does not repeat it.
    """
    if len(secret) < MIN_EXPOSED_CHARACTERS:
        raise SettingsError(
            f"{variable} has {len(secret)} characters, and other machines can try to guess it: take at "
            f'least {MIN_EXPOSED_CHARACTERS}, as from `python -c "import secrets; print(secrets.token_urlsafe())"`.'
        )
    return secret


def check_secret_name(name: object) -> str:
    """Return the name, if it is one of an environment variable.

    Raises:
        DeclarationError: it is not, or is a secret itself; the message does not repeat it.
    """
    if isinstance(name, str) and name.startswith("whsec_"):
        raise DeclarationError(
            "secret=… names the environment variable that holds the secret; a secret itself does not belong "
            'into code: secret="SHOP_WEBHOOK_SECRET".'
        )
    if isinstance(name, str) and _VARIABLE.fullmatch(name):
        return name
    raise DeclarationError('secret=… must name an environment variable, such as "SHOP_WEBHOOK_SECRET".')


def secrets_in(variables: Mapping[str, str], name: str) -> list[str]:
    """Return the secrets of a variable: one, or during a rotation several with spaces between them.

    Raises:
        SettingsError: it holds none.
    """
    found = [text for text in variables.get(name, "").split() if non_blank(text)]
    if not found:
        raise SettingsError(
            f"{name} is not set. Put the webhook's secret there; an old one may follow after a space."
        )
    return found
