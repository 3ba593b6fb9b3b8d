"""Detects from environment variables which processes a launcher started: SLURM, Open MPI, Kubernetes, TPU pods.

Only the variables are read, not the network. Not here: how the processes connect.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from jaxtrain.base.errors import ConfigError

ADDRESS, COUNT, PROCESS_ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
"""Variables: host:port of process 0, the number of processes, and the id of this one. They override a launcher's."""

FIRST_PORT, PORTS = 61440, 4096
"""The range of coordinator ports, from which a job takes one by its number: above Linux's ephemeral ports."""

UNKNOWN = -1

Environment = Mapping[str, str]


@dataclass(frozen=True)
class ProcessInfo:
    """This process among all processes of its run, in the terms of `jax.distributed.initialize`."""

    launcher: str
    """The name of the launcher, for messages."""
    coordinator_address: str | None
    """host:port of process 0; None for a run of one process."""
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None
    """Which of the visible GPUs belong to this process, where several processes share a host; None for all."""
    hint: str = ""
    """A warning where a launcher is there but this process will train alone; else empty."""


def detect(environment: Environment) -> ProcessInfo:
    """This process, from the JAX_ variables or those of a launcher; a run of one process if neither are set.

    Raises ConfigError for variables that are missing or contradict each other.
    """
    given = [name for name in (ADDRESS, COUNT, PROCESS_ID) if environment.get(name)]
    launchers = () if len(given) == 3 else (_openmpi, _slurm, _kubernetes, _tpu)
    info = next((info for launcher in launchers if (info := launcher(environment)) is not None), None)
    if info is None and not given:
        return ProcessInfo("no launcher", None, 1, 0, hint=_hint(environment))
    info = info or ProcessInfo("the JAX_ variables", None, UNKNOWN, UNKNOWN)
    info = replace(
        info,
        coordinator_address=environment.get(ADDRESS) or info.coordinator_address,
        num_processes=read_int(environment, COUNT, info.num_processes),
        process_id=read_int(environment, PROCESS_ID, info.process_id),
    )
    if (info.num_processes, info.process_id) == (1, 0):
        return replace(info, coordinator_address=None)
    _check_complete(info, given)
    return info


def _check_complete(info: ProcessInfo, given: list[str]) -> None:
    unknown = {
        ADDRESS: info.coordinator_address is None,
        COUNT: info.num_processes == UNKNOWN,
        PROCESS_ID: info.process_id == UNKNOWN,
    }
    missing = [name for name in unknown if unknown[name]]
    if missing:
        known = f"the environment has {', '.join(given) or info.launcher} but not {', '.join(missing)}"
        raise ConfigError(f"{known}: set all three of {ADDRESS} (host:port), {COUNT} and {PROCESS_ID}, or none")
    if info.process_id >= info.num_processes:
        below = f"{COUNT}={info.num_processes} ({info.launcher})"
        raise ConfigError(f"{PROCESS_ID}={info.process_id} must be a number below {below}")
    if not re.fullmatch(r".+:\d+", info.coordinator_address or ""):
        raise ConfigError(f"{ADDRESS}={info.coordinator_address} must be host:port")


def _openmpi(environment: Environment) -> ProcessInfo | None:
    """Ranks of mpirun, Open MPI 4 or 5. Tried before SLURM, whose variables the ranks inherit from mpirun's helpers."""
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) < 2:
        return None
    size, local_size, rank, local_rank = (
        read_int(environment, f"OMPI_COMM_WORLD_{name}") for name in ("SIZE", "LOCAL_SIZE", "RANK", "LOCAL_RANK")
    )
    host, job = _mpirun(environment)
    if local_size == size:
        host = "127.0.0.1"
    address = f"{host}:{_port(environment, job)}" if host else None
    return ProcessInfo("Open MPI", address, size, rank, _own_gpus(environment, local_rank, local_size))


def _mpirun(environment: Environment) -> tuple[str | None, int]:
    """The host of mpirun, and the number of its job."""
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")  # version 4: 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911
    if match := re.match(r"(\d+)\.\d+;tcp6?://\[([^,\]]+)", uri):  # or tcp6://[fe80::1,2620:10d::2]:43370
        return f"[{match[2]}]", int(match[1]) // 4096
    if match := re.match(r"(\d+)\.\d+;tcp6?://([^,:]+)", uri):
        return match[2], int(match[1]) // 4096
    namespace = environment.get("PMIX_NAMESPACE", "")  # version 5: prterun-tux1-4711@1
    if match := re.match(r"\w+-(.+)-(\d+)@\d+$", namespace):
        return match[1], int(match[2])
    return None, 0


def _slurm(environment: Environment) -> ProcessInfo | None:
    """Tasks of one srun. SLURM_NTASKS is no evidence: a shell within an allocation has it too."""
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return None
    count, process_id, local_id, node, job, step = (
        read_int(environment, f"SLURM_{name}")
        for name in ("STEP_NUM_TASKS", "PROCID", "LOCALID", "NODEID", "JOB_ID", "STEP_ID")
    )
    host = first_host(environment.get("SLURM_STEP_NODELIST", ""))
    # "2(x3),1": two tasks on each of three nodes, then one.
    tasks = re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    tasks_by_node = [int(number) for number, times in tasks for _ in range(int(times or 1))]
    local_count = tasks_by_node[node] if node < len(tasks_by_node) else 1
    address = f"{host}:{_port(environment, job + 61 * step)}"
    return ProcessInfo(f"SLURM job {job}", address, count, process_id, _own_gpus(environment, local_id, local_count))


def first_host(nodes: str) -> str:
    """The first node of a SLURM list: `tux1` for `tux[1-3,7],fox2`, `r02-n08` for `r[02-04]-n[08,11]`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if first is None:
        raise ConfigError(f"SLURM_STEP_NODELIST={nodes!r} names no node")
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def _kubernetes(environment: Environment) -> ProcessInfo | None:
    """Pods of an Indexed Job whose manifest sets COUNT, and ADDRESS unless a JobSet's names give it."""
    if "JOB_COMPLETION_INDEX" not in environment or not {COUNT, ADDRESS} & environment.keys():
        return None
    jobset, job = environment.get("JOBSET_NAME"), environment.get("REPLICATED_JOB_NAME")
    address = f"{jobset}-{job}-0-0.{jobset}:{_port(environment, 0)}" if jobset and job else None
    return ProcessInfo("Kubernetes Job", address, UNKNOWN, read_int(environment, "JOB_COMPLETION_INDEX"))


def _tpu(environment: Environment) -> ProcessInfo | None:
    """Hosts of a TPU pod on GKE, or of several slices (multislice)."""
    hosts = (environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or "").split(",")
    slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    if len(hosts) * slices < 2:
        return None
    first = (environment.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]).split(":")[0]
    first_of_slice = len(hosts) * int(environment.get("MEGASCALE_SLICE_ID") or 0)
    address = f"{first}:{environment.get('JAX_COORDINATOR_PORT') or 8482}"
    return ProcessInfo("TPU pod", address, len(hosts) * slices, first_of_slice + read_int(environment, "TPU_WORKER_ID"))


def _own_gpus(environment: Environment, local_id: int, local_count: int) -> tuple[int, ...] | None:
    """This process's equal share of the GPUs that all `local_count` processes of a host see; None: all visible ones."""
    visible = environment.get("CUDA_VISIBLE_DEVICES") or environment.get("ROCR_VISIBLE_DEVICES")
    bound = any(f"SLURM_{name}" in environment for name in ("GPUS_PER_TASK", "TRES_PER_TASK", "STEP_GPUS_PER_TASK"))
    gpus = len(visible.split(",")) if visible else int(environment.get("SLURM_GPUS_ON_NODE") or local_count)
    if local_count == 1 or bound or gpus < local_count:  # fewer than processes: the launcher gave each its own
        return None
    share = gpus // local_count
    return tuple(range(local_id * share, (local_id + 1) * share))


def _port(environment: Environment, job: int) -> int:
    """A port that all processes of a job compute alike, and that two jobs rarely share."""
    return read_int(environment, "JAX_COORDINATOR_PORT", FIRST_PORT + job % PORTS)


def read_int(environment: Environment, name: str, default: int | None = None) -> int:
    """A variable as an integer. Raises ConfigError for any other text, and where it is missing without a `default`."""
    value = environment.get(name, "")
    if value == "" and default is not None:
        return default
    if not value.isdigit():
        raise ConfigError(f"{name}={value} must be a number")
    return int(value)


def _hint(environment: Environment) -> str:
    tasks = environment.get("SLURM_NTASKS", "1")
    if tasks != "1" and environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return (
            f"SLURM job {environment.get('SLURM_JOB_ID')} has {tasks} tasks, but srun did not start this process: "
            "it trains alone. `srun jaxtrain train …` starts all of them"
        )
    if "JOB_COMPLETION_INDEX" in environment:
        return f"a pod of an Indexed Job without {ADDRESS} and {COUNT} in its manifest: it trains alone"
    return ""
