"""A small file system that one process has for itself. Any user may make it, where Linux gives users namespaces."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

NAMESPACES = (["unshare", "--user", "--map-root-user", "--mount"], ["unshare", "--mount"])
MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift && exec "${@:2}"'


def run_on_small_disk(
    code: str, place: Path, size: str, *arguments: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python code, with `place` as its first argument, where this folder is a file system of `size`.

    It is gone with the process. Skips the test where nothing may be mounted.
    """
    place.mkdir(exist_ok=True)
    for namespaces in NAMESPACES:
        start = [*namespaces, "bash", "-c", MOUNT, "bash", size, str(place)]
        if subprocess.run([*start, "true"], capture_output=True, check=False).returncode == 0:
            return subprocess.run(
                [*start, sys.executable, "-c", code, str(place), *arguments],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "JAX_PLATFORMS": "cpu", **(env or {})},
                timeout=300,
            )
    pytest.skip("no file system can be mounted here, not even in a namespace")
