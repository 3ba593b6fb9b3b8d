"""Which processes a launcher started, read off the environment that it gave them. Not here: how they find each other.

Nothing is asked of a network, so that what is found depends on the variables alone.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from jaxtrain.base.errors import ConfigError

ADDRESS, COUNT, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
"""host:port of process 0, how many processes there are, and which one this is; a launcher has the last word on none."""

PORTS = 61440
"""Where the ports that belong to a job begin: above those that Linux gives to connections."""

MISSING = -1

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """This process among those of a run."""

    found: str
    """What started them, for people."""
    address: str | None
    """host:port where process 0 is to be found; None alone."""
    count: int
    process: int
    devices: tuple[int, ...] | None = None
    """Which of the GPUs that it sees are its own; None for all. Without several processes on a host it takes all."""
    hint: str = ""
    """What somebody who expected to find more should know."""


def detect(environment: Environment) -> Place:
    """Where this process stands. Alone, unless the JAX_ variables or a launcher name several processes.

    Raises ConfigError for variables that are missing or cannot be.
    """
    given = [name for name in (ADDRESS, COUNT, PROCESS) if environment.get(name)]
    launchers = () if len(given) == 3 else (_openmpi, _slurm, _kubernetes, _tpu)
    place = next((place for launcher in launchers if (place := launcher(environment)) is not None), None)
    if place is None and not given:
        return Place("alone", None, 1, 0, hint=_hint(environment))
    place = place or Place("the JAX_ variables", None, MISSING, MISSING)
    place = replace(
        place,
        address=environment.get(ADDRESS) or place.address,
        count=number_of(environment, COUNT, place.count),
        process=number_of(environment, PROCESS, place.process),
    )
    if (place.count, place.process) == (1, 0):
        return replace(place, address=None)
    found = {ADDRESS: place.address is None, COUNT: place.count == MISSING, PROCESS: place.process == MISSING}
    missing = [name for name in found if found[name]]
    if missing:
        known = f"the environment has {', '.join(given) or place.found} but not {', '.join(missing)}"
        raise ConfigError(f"{known}: set all three of {ADDRESS} (host:port), {COUNT} and {PROCESS}, or none")
    if place.process >= place.count:
        raise ConfigError(f"{PROCESS}={place.process} must be a number below {COUNT}={place.count} ({place.found})")
    if not re.fullmatch(r".+:\d+", place.address or ""):
        raise ConfigError(f"{ADDRESS}={place.address} must be host:port")
    return place


def _openmpi(environment: Environment) -> Place | None:
    """Ranks of mpirun, version 4 or 5, before SLURM, whose variables they inherit from mpirun's own helpers."""
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) < 2:
        return None
    count, local = (number_of(environment, f"OMPI_COMM_WORLD_{name}") for name in ("SIZE", "LOCAL_SIZE"))
    # 4 leaves "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911", 5 "prterun-tux1-4711@1": mpirun's host and a number.
    old = re.match(r"(\d+)\.\d+;tcp6?://(\[[^,\]]+|[^,:]+)", environment.get("OMPI_MCA_orte_hnp_uri", ""))
    new = re.match(r"\w+-(.+)-(\d+)@\d+$", environment.get("PMIX_NAMESPACE", ""))
    host, job = None, 0
    if old:
        host, job = old[2] + "]" * old[2].startswith("["), int(old[1]) // 4096
    elif new:
        host, job = new[1], int(new[2])
    host = "127.0.0.1" if local == count else host
    address = host and f"{host}:{_port(environment, job)}"
    rank, own = (number_of(environment, f"OMPI_COMM_WORLD_{name}") for name in ("RANK", "LOCAL_RANK"))
    return Place("Open MPI", address, count, rank, _share(environment, own, local))


def _slurm(environment: Environment) -> Place | None:
    """Tasks of one srun. SLURM_NTASKS is no sign of them: a shell within an allocation has it too."""
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return None
    count, process, own, node, job, step = (
        number_of(environment, f"SLURM_{name}")
        for name in ("STEP_NUM_TASKS", "PROCID", "LOCALID", "NODEID", "JOB_ID", "STEP_ID")
    )
    host = first_host(environment.get("SLURM_STEP_NODELIST", ""))
    # "2(x3),1": two tasks on each of three nodes, then one.
    tasks = re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    by_node = [int(number) for number, times in tasks for _ in range(int(times or 1))]
    local = by_node[node] if node < len(by_node) else 1
    address = f"{host}:{_port(environment, job + 61 * step)}"
    return Place(f"SLURM job {job}", address, count, process, _share(environment, own, local))


def first_host(nodes: str) -> str:
    """The first of SLURM's list of nodes: `tux1` of `tux[1-3,7],fox2`, `r02-n08` of `r[02-04]-n[08,11]`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if first is None:
        raise ConfigError(f"SLURM_STEP_NODELIST={nodes!r} names no node")
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def _kubernetes(environment: Environment) -> Place | None:
    """Pods of an Indexed Job, whose manifest says how many there are, and the address or the names of its JobSet."""
    if "JOB_COMPLETION_INDEX" not in environment or not {COUNT, ADDRESS} & environment.keys():
        return None
    jobs, job = environment.get("JOBSET_NAME"), environment.get("REPLICATED_JOB_NAME")
    address = f"{jobs}-{job}-0-0.{jobs}:{_port(environment, 0)}" if jobs and job else None
    return Place("Kubernetes Job", address, MISSING, number_of(environment, "JOB_COMPLETION_INDEX"))


def _tpu(environment: Environment) -> Place | None:
    """Hosts of a TPU pod on Google's Kubernetes, and of several of them (slices)."""
    hosts = (environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or "").split(",")
    slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    if len(hosts) * slices < 2:
        return None
    first = (environment.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]).split(":")[0]
    before = len(hosts) * int(environment.get("MEGASCALE_SLICE_ID") or 0)
    address = f"{first}:{environment.get('JAX_COORDINATOR_PORT') or 8482}"
    return Place("TPU pod", address, len(hosts) * slices, before + number_of(environment, "TPU_WORKER_ID"))


def _share(environment: Environment, own: int, local: int) -> tuple[int, ...] | None:
    """The GPUs of one of `local` processes on a host that all see the same ones; None where it may take all it sees."""
    seen = environment.get("CUDA_VISIBLE_DEVICES") or environment.get("ROCR_VISIBLE_DEVICES")
    bound = any(f"SLURM_{name}" in environment for name in ("GPUS_PER_TASK", "TRES_PER_TASK", "STEP_GPUS_PER_TASK"))
    gpus = len(seen.split(",")) if seen else int(environment.get("SLURM_GPUS_ON_NODE") or local)
    if local == 1 or bound or gpus < local:  # fewer than processes: the launcher gave each its own
        return None
    each = gpus // local
    return tuple(range(own * each, (own + 1) * each))


def _port(environment: Environment, job: int) -> int:
    """A port that all processes of a job come to without asking, and another job's hardly ever."""
    return number_of(environment, "JAX_COORDINATOR_PORT", PORTS + job % 4096)


def number_of(environment: Environment, name: str, default: int | None = None) -> int:
    """A variable that holds a number."""
    value = environment.get(name, "")
    if value == "" and default is not None:
        return default
    if not value.isdigit():
        raise ConfigError(f"{name}={value} must be a number")
    return int(value)


def _hint(environment: Environment) -> str:
    return next(_hints(environment), "")


def _hints(environment: Environment) -> Iterator[str]:
    tasks = environment.get("SLURM_NTASKS", "1")
    if tasks != "1" and environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        yield (
            f"SLURM job {environment.get('SLURM_JOB_ID')} has {tasks} tasks, but srun did not start this process: "
            "it trains alone. `srun jaxtrain train …` starts all of them"
        )
    if "JOB_COMPLETION_INDEX" in environment:
        yield f"a pod of an Indexed Job without {ADDRESS} and {COUNT} in its manifest: it trains alone"
