"""What a result was made with: git revision, command, packages, environment variables, hardware."""

import functools
import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import read_json

RECORDED_VARIABLES = ("XLA_", "JAX_", "LIBTPU_", "NCCL_", "CUDA_VISIBLE_DEVICES")
"""Prefixes of the environment variables that may change the numbers or the speed of a run."""


def environment() -> dict[str, Any]:
    """What is needed to reproduce a run: code, command, packages, environment variables and hardware. JSON.

    "git" holds the revision, the diff (`git diff HEAD`) and the names of untracked files of the repository around the
    working directory; None outside of one. Initialises JAX's backend.
    """
    return {
        "git": _git(),
        "command": shlex.join(sys.orig_argv),
        "folder": os.getcwd(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hostname": socket.gethostname(),
        "packages": {**_installed_packages()},
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(RECORDED_VARIABLES)},
        "hardware": {
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "platform": jax.default_backend(),
            "processes": jax.process_count(),
            "cpus": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
    }


@functools.cache
def _installed_packages() -> dict[str, str]:
    """The versions of all installed packages. Cached, since parsing their metadata takes 0.2 s."""
    found = [each.metadata for each in importlib.metadata.distributions()]
    versions = {metadata["Name"]: metadata["Version"] for metadata in found}
    return dict(sorted(versions.items(), key=lambda item: item[0].lower()))


def read_environment(folder: Path) -> dict[str, Any]:
    """What `environment` found for the run in this folder. Raises ConfigError where the file that has it is missing,
    cannot be read or holds something else.
    """
    path = folder / "environment.json"
    try:
        found = read_json(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    groups = [found.get(name, {}) for name in ("packages", "variables", "hardware")] if isinstance(found, dict) else [0]
    git = (found.get("git") or {}) if isinstance(found, dict) else {}
    texts = [git.get("revision"), git.get("diff")] if isinstance(git, dict) else [0]
    if not all(isinstance(each, dict) for each in groups) or not all(isinstance(each, str | None) for each in texts):
        raise ConfigError(f"{path} holds no environment as a run writes it")
    return found


def revision() -> str | None:
    """The git revision of the repository around the working directory, with a note if there are uncommitted changes."""
    git = _git()
    if git is None or git["revision"] is None:
        return None
    return git["revision"] + (" with changes" if git["diff"] or git["untracked"] else "")


def _git() -> dict[str, Any] | None:
    def git(*arguments: str) -> str | None:
        command = ["git", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        except FileNotFoundError:
            return None
        return done.stdout if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None:
        return None
    root = top.removesuffix("\n")
    untracked = git("-C", root, "ls-files", "--others", "--exclude-standard", "-z")
    revision = git("rev-parse", "HEAD")
    return {
        "revision": revision and revision.strip(),
        "diff": git("-C", root, "diff", "--no-color", "--no-ext-diff", "HEAD"),
        "untracked": (untracked or "").split("\0")[:-1],
    }
