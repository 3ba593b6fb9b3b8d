"""The manifest by which KServe serves a repository of bundles with Triton. Needs no jax."""

import re
from typing import Any

from jaxtrain.base.errors import ConfigError
from jaxtrain.deploy.signature import Signature

_RUNTIME = "kserve-tritonserver"  # which KServe installs

_LONGEST = 63  # letters of a name of Kubernetes


def inference_service(signature: Signature, storage: str, namespace: str | None = None) -> dict[str, Any]:
    """KServe's InferenceService of a bundle, for `kubectl apply`: all models of the repository are served.

    storage: where the cluster finds the repository, the folder that `export --out` wrote: `s3://bucket/models`,
        `gs://…`, `pvc://claim/models`, ….

    Raises ConfigError for a storage that is no address.
    """
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://\S+", storage):
        raise ConfigError(f"storage: {storage!r} is no address: give s3://bucket/folder, gs://…, pvc://claim/folder, …")
    name = re.sub(r"[^a-z0-9]+", "-", signature.name.lower()).strip("-")[:_LONGEST].strip("-")
    model = {
        "modelFormat": {"name": "triton"},  # a repository of models, not one file
        "protocolVersion": "v2",
        "runtime": _RUNTIME,
        "storageUri": storage,
    }
    where = {} if namespace is None else {"namespace": namespace}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name or "model", **where},
        "spec": {"predictor": {"model": model}},
    }
