"""The folder of the desk's own files."""

import os
from pathlib import Path


def data_folder() -> Path:
    """Return DESK_DATA, or `data` in the working directory."""
    return Path(os.environ.get("DESK_DATA") or "data")
