"""Writes a JobSet manifest (YAML) for Kubernetes: one pod a host, with GPUs, CPUs or a slice of TPUs on GKE.

The cluster must have the JobSet controller (jobset.sigs.k8s.io), a ReadWriteMany PersistentVolumeClaim for run folders,
nodes with the accelerators, and an image with jaxtrain, the experiment's file and its data. `--submit` needs kubectl.
Pods find process 0 by the host names that a JobSet gives them. If a pod fails, the JobSet restarts all pods, unless its
exit code says that a restart would not help; a preempted pod has `--notice` seconds to save.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import NonNegativeInt, PositiveInt
from jaxtrain.launch.job import FATAL, ClusterJob
from jaxtrain.launch.tpu import GKE_ACCELERATORS, PORT, Slice


@dataclass(frozen=True, kw_only=True)
class Kubernetes(ClusterJob):
    """A JobSet for Kubernetes, one pod a host. The cluster needs the JobSet controller (jobset.sigs.k8s.io)."""

    submission = ("kubectl", "apply", "-f", "-")

    image: str
    """A container image with jaxtrain, the experiment's file and its data."""
    claim: str
    """The PersistentVolumeClaim for run folders; all pods write to it (ReadWriteMany)."""
    mount: Path = Path("/runs")
    """The path at which pods mount the claim; --run is a folder below it."""
    hosts: PositiveInt | None = None
    """Number of hosts, each with one pod; by default those of the TPU slice, else 1."""
    gpus: NonNegativeInt = 0
    """GPUs of each host; without these and --tpu each process is one CPU device."""
    gpu_type: str | None = None
    """GKE's name of the GPU, to select nodes: nvidia-h100-80gb."""
    tpu: str | None = None
    """A TPU slice on GKE: v5e:4x4, v5p:2x2x4."""
    cpus: str | None = None
    """CPUs of each host."""
    memory: str | None = None
    """Memory of each host: 64Gi."""
    namespace: str | None = None
    """The namespace; by default that of kubectl's current context."""
    notice: NonNegativeInt = 120
    """Seconds that the training has to save a checkpoint when its pod is evicted."""

    @property
    def folder(self) -> Path:
        """The run folder in the pods."""
        folder = self.mount / (self.run or self.title)
        if not folder.is_relative_to(self.mount):
            raise ConfigError(f"--run {folder} is not below --mount {self.mount}, where the claim is mounted")
        return folder

    def size(self) -> tuple[int, int]:
        """One process a host."""
        if self.tpu is not None:
            slice = Slice.parse(self.tpu)
            if self.gpus or self.hosts not in (None, slice.hosts):
                raise ConfigError(f"--tpu {self.tpu} has {slice.hosts} hosts and no GPUs: omit --hosts and --gpus")
            return slice.hosts, slice.devices
        hosts = 1 if self.hosts is None else self.hosts
        return hosts, hosts * (self.gpus or 1)

    def manifest(self) -> dict[str, Any]:
        """The JobSet."""
        name = self.title
        do_not_restart = {
            "name": "doNotRestart",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
        }
        one_slice_a_node_pool = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {
                "name": name,
                **({"namespace": self.namespace} if self.namespace else {}),
                **({"annotations": one_slice_a_node_pool} if self.tpu else {}),
            },
            "spec": {
                "network": {"enableDNSHostnames": True, "subdomain": name},
                "failurePolicy": {
                    "maxRestarts": self.restarts,
                    "rules": [do_not_restart],
                },
                "replicatedJobs": [{"name": "hosts", "replicas": 1, "template": {"spec": self._job()}}],
            },
        }

    def _job(self) -> dict[str, Any]:
        """The Job with one pod a host, which fails for good on an exit code that a restart would not help."""
        hosts, _ = self.size()
        fatal = {"containerName": "train", "operator": "In", "values": [*FATAL]}
        return {
            "completionMode": "Indexed",
            "completions": hosts,
            "parallelism": hosts,
            "backoffLimit": 0,  # a single pod cannot rejoin a run: the JobSet restarts all of them
            "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": fatal}]},
            "template": {"spec": self.pod()},
        }

    def pod(self) -> dict[str, Any]:
        """The pod of each host: its container, volumes and the nodes that it may run on."""
        limits, select = self._accelerators()
        return {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": self.notice,
            "containers": [self._container(limits)],
            "volumes": [
                {"name": "runs", "persistentVolumeClaim": {"claimName": self.claim}},
                # The default of 64 MB is too little for NCCL and for data loading in worker processes.
                {"name": "memory", "emptyDir": {"medium": "Memory"}},
            ],
            **({"nodeSelector": select} if select else {}),
        }

    def _accelerators(self) -> tuple[dict[str, str], dict[str, str]]:
        """The accelerators of one pod, as resource limits, and the labels of the nodes that have them."""
        if self.tpu is not None:
            slice = Slice.parse(self.tpu)
            return {"google.com/tpu": str(slice.chips)}, {
                "cloud.google.com/gke-tpu-accelerator": GKE_ACCELERATORS[slice.kind],
                "cloud.google.com/gke-tpu-topology": slice.shape,
            }
        limits = {"nvidia.com/gpu": str(self.gpus)} if self.gpus else {}
        return limits, {"cloud.google.com/gke-accelerator": self.gpu_type} if self.gpu_type else {}

    def _container(self, limits: dict[str, str]) -> dict[str, Any]:
        """The container that trains, with the environment by which its process finds the others."""
        requests = {"cpu": self.cpus, "memory": self.memory}
        return {
            "name": "train",
            "image": self.image,
            "command": list(self.command),
            "env": [{"name": key, "value": value} for key, value in self.environment().items()],
            "ports": [{"containerPort": PORT, "protocol": "TCP"}],
            "resources": {"limits": limits, "requests": {key: x for key, x in requests.items() if x is not None}},
            "volumeMounts": [
                {"name": "runs", "mountPath": str(self.mount)},
                {"name": "memory", "mountPath": "/dev/shm"},
            ],
        }

    def environment(self) -> dict[str, str]:
        """The variables of the container, by which its process finds the others."""
        hosts, _ = self.size()
        return {
            "JAX_COORDINATOR_ADDRESS": f"{self.title}-hosts-0-0.{self.title}:{PORT}",
            "JAX_NUM_PROCESSES": str(hosts),
            "JAXTRAIN_JOIN_SECONDS": "1800",  # nodes may have to be provisioned first, and images pulled
            **self.env,
        }

    def render(self, head: str) -> str:
        """The manifest."""
        return f"{head}\n{yaml.safe_dump(self.manifest(), sort_keys=False, width=1000)}"
