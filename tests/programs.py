"""Programs and packages of other languages that slow tests run. A test fails where one is missing, and says what to type:
a test that is skipped looks like one that passed.
"""

import hashlib
import os
import shutil
import tarfile
import urllib.request
from pathlib import Path

import pytest

from jaxtrain.base.cache import cache
from jaxtrain.base.files import atomic_folder

PACKAGES = {"chromium": "chromium", "node": "nodejs", "g++": "g++"}
"""Of Debian."""

NODE_PACKAGES = {
    "onnxruntime-node": ("1.30.0", "6e3390d6b783e7be946fad629292799da28d0b42f84856e50d2c1b0383291e75"),
    "onnxruntime-common": ("1.30.0", "7906c439e0d3e0f4048caa23b64cdfadc0f455c377f579ce1ab2a4b778f07d5f"),
}
"""Version and sha256. The first holds ONNX Runtime for three systems, 114 MB."""


def program(name: str, *others: str) -> str:
    """The path of a program, or of one of the same kind; without one the test fails."""
    found = next((path for each in (name, *others) if (path := shutil.which(each))), None)
    if found is None:
        pytest.fail(f"slow tests need {name}: apt-get install {PACKAGES[name]}", pytrace=False)
    return found


def node_modules() -> Path:
    """A folder `node_modules` with ONNX Runtime for Node, fetched once."""
    registry = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org").rstrip("/")
    folder = cache("test-node") / "node_modules"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as made:
            for name, (version, sha256) in NODE_PACKAGES.items():
                tarball = made / "package.tgz"
                urllib.request.urlretrieve(f"{registry}/{name}/-/{name}-{version}.tgz", tarball)
                with tarball.open("rb") as file:
                    assert hashlib.file_digest(file, "sha256").hexdigest() == sha256, name
                with tarfile.open(tarball) as tar:
                    tar.extractall(made / name, [each for each in tar if _is_needed(each.name)], filter="data")
                tarball.unlink()
                for part in (made / name / "package").iterdir():
                    part.rename(made / name / part.name)
                (made / name / "package").rmdir()
    return folder


def _is_needed(path: str) -> bool:
    return path.endswith((".js", ".json", "linux/x64/libonnxruntime.so.1", "linux/x64/onnxruntime_binding.node"))
