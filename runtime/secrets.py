"""Secrets: where those of webhooks are, what counts as one, and how long one must be where others can reach it."""

import os
import re
from collections.abc import Mapping

from pydantic import SecretStr

from runtime.errors import DeclarationError, SettingsError

MIN_EXPOSED_CHARACTERS = 16
"""How long a secret must be where more than this machine can try it."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def given(secret: str | SecretStr | None) -> str | None:
    """Return a secret without blanks and quotes around it; None where nothing is left of it.

    Characters that nobody sees count as blanks: a secret made of them would be known to everybody.
    """
    text = secret.get_secret_value() if isinstance(secret, SecretStr) else secret
    text = unquoted(text or "")
    return text if any(character.isprintable() and not character.isspace() for character in text) else None


def unquoted(text: str) -> str:
    """Return a setting without white space, and without the quotes that a shell would have taken away."""
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return text


def check_exposed(secret: str, variable: str) -> str:
    """Return a secret that is long enough to be tried by strangers.

    Args:
        secret: what `given` returned.
        variable: the environment variable it comes from, for the error.

    Raises:
        SettingsError: the secret is too short; the message does not repeat it.
    """
    if len(secret) < MIN_EXPOSED_CHARACTERS:
        raise SettingsError(
            f"{variable} has {len(secret)} characters, and others than this machine can try to guess it: take at "
            f'least {MIN_EXPOSED_CHARACTERS}, as from `python -c "import secrets; print(secrets.token_urlsafe())"`.'
        )
    return secret


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
    return {
        name: text for each in (of_file, os.environ) for name, text in each.items() if text and given(text)
    }


def secrets_in(variables: Mapping[str, str], name: str) -> list[str]:
    """The secrets that a variable holds: one, or several with spaces between them while one is rotated.

    Raises:
        SettingsError: it holds none.
    """
    found = [text for text in variables.get(name, "").split() if given(text)]
    if not found:
        raise SettingsError(
            f"{name} is not set. Put the webhook's secret there; an old one may follow after a space."
        )
    return found
