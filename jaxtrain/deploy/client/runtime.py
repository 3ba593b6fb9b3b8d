"""ONNX Runtime for browsers: files of one version of the npm package onnxruntime-web, by its hash, in the cache."""

import io
import os
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from jaxtrain.base.cache import cache
from jaxtrain.base.errors import ConfigError, cannot_write
from jaxtrain.base.files import atomic_folder, digest, remove_unfinished

VERSION = "1.30.0"

SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
"""Of the package's tarball."""

_TARBALL = f"onnxruntime-web-{VERSION}.tgz"

_REGISTRY = "https://registry.npmjs.org"

_SECONDS = 60

_FILES = {
    "ort.wasm.js": "package/dist/ort.wasm.bundle.min.mjs",
    "ort.wasm": "package/dist/ort-wasm-simd-threaded.wasm",
    "ort.webgpu.js": "package/dist/ort.webgpu.bundle.min.mjs",
    "ort.webgpu.wasm": "package/dist/ort-wasm-simd-threaded.asyncify.wasm",
}
"""What is taken of the package. Scripts end with js, which every server gives a type that browsers run."""


def web_runtime() -> Path:
    """The folder with ONNX Runtime's files for browsers; fetched once from the npm registry, 33 MB.

    A registry of one's own is NPM_CONFIG_REGISTRY, as for npm. Raises ConfigError, with the command that fetches it
    elsewhere, where there is no network, and where the file is not the one whose hash is known.
    """
    folder = cache("web") / f"onnxruntime-web-{VERSION}"
    if folder.is_dir():
        return folder
    content = _tarball(folder.parent / _TARBALL)
    if (found := digest(content, length=64)) != SHA256:
        raise ConfigError(
            f"{_TARBALL} is not the one that is known: its sha256 is {found[:16]}…, not {SHA256[:16]}…: remove "
            f"{folder.parent / _TARBALL} if it is there, and see which registry it comes from"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)
        with atomic_folder(folder) as made, tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for name, member in _FILES.items():
                file = tar.extractfile(member)
                assert file is not None, member
                (made / name).write_bytes(file.read())
    except OSError as error:
        if not folder.is_dir():  # another process may have made it
            raise cannot_write(str(folder), error) from error
    return folder


def _tarball(local: Path) -> bytes:
    """The package: from a file that somebody put here, or from the registry."""
    if local.is_file():
        return local.read_bytes()
    registry = os.environ.get("NPM_CONFIG_REGISTRY") or _REGISTRY
    url = f"{registry.rstrip('/')}/onnxruntime-web/-/{_TARBALL}"
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
            return answer.read()
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ConfigError(
            f"the page needs ONNX Runtime for browsers, and {url} cannot be read ({error}): where there is a network, "
            f"run `npm pack onnxruntime-web@{VERSION}`, and put {_TARBALL} into {local.parent}"
        ) from error
