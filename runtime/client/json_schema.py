"""Values held to JSON schemas, before they are sent."""

import re
from collections.abc import Mapping
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable

_SHOWN_FAULTS: Final = 5
_MAX_CHARACTERS: Final = 500
# Knows no other document: a schema out of the stream must not have this process load an address.
_ALONE: Final[Registry[Any]] = Registry()


def complaints(schema: Mapping[str, Any], value: object) -> list[str]:
    """Return what is wrong with a value, a sentence each; nothing where the handler itself has to judge."""
    try:
        Draft202012Validator.check_schema(schema)
        validator = Draft202012Validator(schema, registry=_ALONE)
        faults = sorted(validator.iter_errors(value), key=lambda fault: fault.json_path)
    except (SchemaError, Unresolvable, re.error, RecursionError):
        # A schema that the validator cannot read, or a value too deep for it.
        return []
    return [
        f"{fault.json_path.replace('$', 'value', 1)}: {fault.message[:_MAX_CHARACTERS]}"
        for fault in faults[:_SHOWN_FAULTS]
    ]
