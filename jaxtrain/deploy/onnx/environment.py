"""The packages that make ONNX of a model, in a folder of the cache that only the converting process sees.

jax2onnx asks for an orbax-checkpoint that is older than the one of training. Nobody's environment is changed: these
packages are installed without their dependencies, which are those of the environment that is running.
"""

import contextlib
import csv
import fcntl
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Generator, Sequence
from pathlib import Path

from jaxtrain.base.cache import cache
from jaxtrain.base.errors import ConfigError, cannot_write
from jaxtrain.base.files import atomic_folder, digest, remove_unfinished

ONNX_PACKAGES = (
    "jax2onnx==0.17.1",
    "onnx==1.23.2",
    "onnx-ir==1.1.0",
    "onnxruntime==1.32.0",
    "protobuf==7.36.2",
    "sympy==1.14.0",
    "mpmath==1.3.0",
)
"""What is installed. All else that they import is what training has: jax, flax, numpy, ml_dtypes."""

_SECONDS = 1200  # 140 MB


def onnx_environment() -> Path:
    """The folder of the packages, which is made at the first call: whole or not at all, whoever else makes it.

    Raises ConfigError, with the command to type, where they cannot be installed.
    """
    folder = folder_of_packages()
    if missing(folder) is None:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if missing(folder) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                remove_unfinished(folder)
                with atomic_folder(folder) as unfinished:
                    _install(unfinished, folder)
                    os.sync()
    except OSError as error:
        raise cannot_write(str(folder), error) from error
    return folder


def folder_of_packages() -> Path:
    """Where the packages are, or will be, for this Python and machine."""
    version = ONNX_PACKAGES[0].partition("==")[2]
    kind = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    return cache(f"onnx-{version}-{digest(*ONNX_PACKAGES, kind, length=8)}")


def missing(folder: Path) -> str | None:
    """What of the packages is not in the folder as it was installed; None where all is."""
    found = {each.name.lower(): each for each in importlib.metadata.distributions(path=[str(folder)])}
    for requirement in ONNX_PACKAGES:
        name, _, version = requirement.partition("==")
        package = found.get(name)
        if package is None or package.version != version:
            return requirement
        for path, _, size in csv.reader((package.read_text("RECORD") or "").splitlines()):
            file = folder / path
            if not file.is_file() or (size and file.stat().st_size != int(size)):
                return f"{file} of {requirement}"
    return None


def run_in_environment(arguments: Sequence[str], given: bytes) -> subprocess.CompletedProcess[bytes]:
    """Runs a module of ours in a process that sees the packages before its own, on the CPU, and reads `given`."""
    path = os.pathsep.join([str(onnx_environment()), *filter(None, sys.path)])
    # An accelerator belongs to this process, and a graph is checked on a CPU.
    variables = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "PYTHONUTF8": str(sys.flags.utf8_mode)}
    command = [sys.executable, "-P", "-m", *arguments]
    return subprocess.run(command, input=given, capture_output=True, env=variables, check=False)


def _install(unfinished: Path, folder: Path) -> None:
    command = _installer()
    if command is None:
        raise ConfigError(f"{_why('neither uv nor pip is here')}, once uv is installed: {_by_hand(folder)}")
    try:
        done = subprocess.run(
            [*command, "--target", str(unfinished), *ONNX_PACKAGES],
            capture_output=True,
            text=True,
            cwd=folder.parent,  # not in a project, whose settings are about other packages
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{_why(f'that took more than {_SECONDS} s')}: {_by_hand(folder)}") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise ConfigError(f"{_why('; '.join(lines[-2:]) or f'{command[0]} failed')}: {_by_hand(folder)}")
    if (what := missing(unfinished)) is not None:
        raise ConfigError(f"{_why(f'{what} is missing')}: {_by_hand(folder)}")


def _installer() -> list[str] | None:
    """uv, or where it is missing pip, without dependencies, for this Python."""
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--quiet", "--no-deps", "--python", sys.executable]
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    return None


def _why(reason: str) -> str:
    return (
        f"ONNX is made by {ONNX_PACKAGES[0]}, which is installed once in a folder of its own, and that failed "
        f"({reason}). Where there is a network, type"
    )


def _by_hand(folder: Path) -> str:
    command = _installer() or ["uv", "pip", "install", "--no-deps", "--python", sys.executable]
    return " ".join([*command, "--target", str(folder), *ONNX_PACKAGES])


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None]:
    """One process at a time; the kernel unlocks where one is killed."""
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
