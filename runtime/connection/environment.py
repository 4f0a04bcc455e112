"""The variables of the environment and of the file .env, without blanks and quotes."""

import os
from collections.abc import Mapping

from pydantic import SecretStr

from runtime.errors import SettingsError


def non_blank(secret: str | SecretStr | None) -> str | None:
    """Return a secret without blanks and quotes around it; None if nothing is left.

    Invisible characters count as blanks: anybody could guess a secret made of them.
    """
    text = secret.get_secret_value() if isinstance(secret, SecretStr) else secret
    text = unquoted(text or "")
    return text if any(character.isprintable() and not character.isspace() for character in text) else None


def unquoted(text: str) -> str:
    """Return a setting without white space, and without the quotes that a shell would have removed."""
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return text


def environment() -> Mapping[str, str]:
    """Return the environment over the file .env of the working directory, as `Settings` reads them."""
    from pydantic_settings import BaseSettings, DotEnvSettingsSource

    try:
        of_file = DotEnvSettingsSource(BaseSettings, ".env", "utf-8", case_sensitive=True).env_vars
    except (OSError, UnicodeError):
        raise SettingsError("The file .env cannot be read: it must be a text file in UTF-8.") from None
    return {
        name: text
        for each in (of_file, os.environ)
        for name, text in each.items()
        if text and non_blank(text)
    }
