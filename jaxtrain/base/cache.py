"""The user's cache."""

import os
from pathlib import Path


def cache(name: str) -> Path:
    """The folder of this name in jaxtrain's part of the user's cache (`XDG_CACHE_HOME` or ~/.cache); may be missing."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxtrain" / name
