"""A job as a JobSet for Kubernetes, on GPUs, CPUs or a slice of TPUs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jaxtrain.base.errors import ConfigError
from jaxtrain.launch.job import Written
from jaxtrain.launch.tpu import KINDS, PORT, Slice

NEVER_AGAIN = [1, 2]
"""The exit codes of damaged data and of mistakes, after which the same would only happen again."""


@dataclass(frozen=True, kw_only=True)
class Kubernetes(Written):
    """A JobSet for Kubernetes (jobset.sigs.k8s.io must be installed there), one pod a host."""

    submission = ("kubectl", "apply", "-f", "-")

    image: str
    """With jaxtrain, the experiment's file and what it reads in it."""
    claim: str
    """The PersistentVolumeClaim that holds the run folders, which all pods can write (ReadWriteMany)."""
    mount: Path = Path("/runs")
    """Where the claim is in the pods; --run is a folder below it."""
    hosts: int | None = None
    """How many pods; those of the slice for TPUs, else 1."""
    gpus: int = 0
    """Of each host; without them and --tpu each process is one CPU device."""
    gpu_type: str | None = None
    """GKE's name of them, to choose nodes by: nvidia-h100-80gb."""
    tpu: str | None = None
    """A slice of TPUs on GKE: v5e:4x4, v5p:2x2x4."""
    cpus: str | None = None
    """Of each host."""
    memory: str | None = None
    """Of each host: 64Gi."""
    namespace: str | None = None
    """kubectl's own by default."""
    notice: int = 120
    """So many seconds the training has to save when its pod is to go."""

    @property
    def folder(self) -> Path:
        """The run's folder in the claim."""
        folder = self.mount / (self.run or self.title)
        if not folder.is_relative_to(self.mount):
            raise ConfigError(f"--run {folder} is not below --mount {self.mount}, where the claim is")
        return folder

    def size(self) -> tuple[int, int]:
        """One process a host."""
        if self.tpu is not None:
            slice = Slice.of(self.tpu)
            if self.gpus or self.hosts not in (None, slice.hosts):
                raise ConfigError(f"--tpu {self.tpu} has {slice.hosts} hosts and no GPUs: leave --hosts and --gpus out")
            return slice.hosts, slice.devices
        hosts = 1 if self.hosts is None else self.hosts
        return hosts, hosts * (self.gpus or 1)

    def manifest(self) -> dict[str, Any]:
        """The JobSet."""
        name, (hosts, _) = self.title, self.size()
        slice = Slice.of(self.tpu) if self.tpu else None
        select = {"cloud.google.com/gke-accelerator": self.gpu_type} if self.gpu_type else {}
        limits = {"nvidia.com/gpu": str(self.gpus)} if self.gpus else {}
        if slice:
            limits = {"google.com/tpu": str(slice.chips)}
            select = {
                "cloud.google.com/gke-tpu-accelerator": KINDS[slice.kind],
                "cloud.google.com/gke-tpu-topology": slice.shape,
            }
        requests = {"cpu": self.cpus, "memory": self.memory}
        variables = {
            "JAX_COORDINATOR_ADDRESS": f"{name}-hosts-0-0.{name}:{PORT}",
            "JAX_NUM_PROCESSES": str(hosts),
            "JAXTRAIN_JOIN_SECONDS": "1800",  # nodes may still have to be made, and images fetched
            **self.env,
        }
        container = {
            "name": "train",
            "image": self.image,
            "command": list(self.command),
            "env": [{"name": key, "value": value} for key, value in variables.items()],
            "ports": [{"containerPort": PORT, "protocol": "TCP"}],
            "resources": {"limits": limits, "requests": {key: x for key, x in requests.items() if x is not None}},
            "volumeMounts": [
                {"name": "runs", "mountPath": str(self.mount)},
                {"name": "memory", "mountPath": "/dev/shm"},
            ],
        }
        pod = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": self.notice,
            "containers": [container],
            "volumes": [
                {"name": "runs", "persistentVolumeClaim": {"claimName": self.claim}},
                # The usual 64 MB are too little for NCCL and for worker processes that read data.
                {"name": "memory", "emptyDir": {"medium": "Memory"}},
            ],
            **({"nodeSelector": select} if select else {}),
        }
        job = {
            "completionMode": "Indexed",
            "completions": hosts,
            "parallelism": hosts,
            "backoffLimit": 0,  # one pod cannot come back alone: the JobSet starts all of them again
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": "train", "operator": "In", "values": NEVER_AGAIN},
                    }
                ]
            },
            "template": {"spec": pod},
        }
        apart = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {
                "name": name,
                **({"namespace": self.namespace} if self.namespace else {}),
                **({"annotations": apart} if slice else {}),
            },
            "spec": {
                "network": {"enableDNSHostnames": True, "subdomain": name},
                "failurePolicy": {
                    "maxRestarts": self.restarts,
                    "rules": [{"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
                },
                "replicatedJobs": [{"name": "hosts", "replicas": 1, "template": {"spec": job}}],
            },
        }

    def render(self, head: str) -> str:
        """The manifest."""
        return f"{head}\n{yaml.safe_dump(self.manifest(), sort_keys=False, width=1000)}"
