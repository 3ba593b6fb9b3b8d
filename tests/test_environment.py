"""Which processes are detected in the environment variables that launchers set."""

import pytest

from jaxtrain.base.errors import ConfigError
from jaxtrain.cluster.environment import ProcessInfo, detect, first_host

EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:6543", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
ALLOCATION = {"SLURM_JOB_ID": "42", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "tux[1-2]", "SLURM_NODEID": "0"}
BATCH = {**ALLOCATION, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
SRUN = {
    **ALLOCATION,
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "tux[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
PER_NODE = {**SRUN, "SLURM_STEP_NODELIST": "tux[1-4]", "SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_LOCALID": "0"}
INTERACTIVE = {**ALLOCATION, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
RANK = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPI4 = {**RANK, "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
MPI4_V6 = {**RANK, "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp6://[fe80::b9b:1,2620:10d::2]:43370"}
MPI5 = {**RANK, "PMIX_NAMESPACE": "prterun-tux-1-4711@1"}
POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "JOB_COMPLETION_INDEX": "3"}
JOB = {**POD, "JAX_COORDINATOR_ADDRESS": "train-0.pods:6543", "JAX_NUM_PROCESSES": "4"}
JOBSET = {**POD, "JOBSET_NAME": "big", "REPLICATED_JOB_NAME": "workers", "JAX_NUM_PROCESSES": "4"}
TPU = {"TPU_WORKER_ID": "3", "TPU_WORKER_HOSTNAMES": "t-0.pods,t-1.pods,t-2.pods,t-3.pods"}
SLICES = {
    "TPU_WORKER_ID": "1",
    "TPU_WORKER_HOSTNAMES": "t-2,t-3",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "t-0:8080",
}

SEVERAL = {
    "explicit": (EXPLICIT, "10.0.0.1:6543", None),
    "explicit in a SLURM step": ({**SRUN, **EXPLICIT}, "10.0.0.1:6543", None),
    "a SLURM step, two on a node": (SRUN, "tux1:61482", (1,)),
    "a SLURM step, one on a node": (PER_NODE, "tux1:61482", None),
    "a second step of the same job": ({**PER_NODE, "SLURM_STEP_ID": "1"}, "tux1:61543", None),
    "a SLURM step and a port": ({**PER_NODE, "JAX_COORDINATOR_PORT": "7000"}, "tux1:7000", None),
    "a SLURM step and an address": ({**PER_NODE, "JAX_COORDINATOR_ADDRESS": "ib1:7"}, "ib1:7", None),
    "two tasks that see the same 8 GPUs": ({**SRUN, "SLURM_GPUS_ON_NODE": "8"}, "tux1:61482", (4, 5, 6, 7)),
    "two tasks that see 2 GPUs": ({**SRUN, "CUDA_VISIBLE_DEVICES": "4,5"}, "tux1:61482", (1,)),
    "two tasks with a GPU each": (
        {**SRUN, "SLURM_GPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": "0"},
        "tux1:61482",
        None,
    ),
    "two tasks bound to a GPU each": ({**SRUN, "CUDA_VISIBLE_DEVICES": "0"}, "tux1:61482", None),
    "mpirun 4": (MPI4, "10.96.0.1:62624", (1,)),
    "mpirun 4 by IPv6": (MPI4_V6, "[fe80::b9b:1]:62624", (1,)),
    "mpirun 5": (MPI5, "tux-1:62055", (1,)),
    "mpirun 5 on one host": ({**MPI5, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, "127.0.0.1:62055", (1,)),
    "mpirun within SLURM": ({**INTERACTIVE, **SRUN, **MPI5, "SLURM_PROCID": "0"}, "tux-1:62055", (1,)),
    "mpirun and an address": ({**RANK, "JAX_COORDINATOR_ADDRESS": "ib1:7"}, "ib1:7", (1,)),
    "an Indexed Job": (JOB, "train-0.pods:6543", None),
    "a JobSet": (JOBSET, "big-workers-0-0.big:61440", None),
    "a TPU pod": (TPU, "t-0.pods:8482", None),
    "two TPU slices": (SLICES, "t-0:8482", None),
}

ALONE = {
    "nothing": ({}, ""),
    "an allocation (salloc, an IDE in it)": (ALLOCATION, "srun did not start"),
    "a batch script": (BATCH, "srun did not start"),
    "a shell that is a step": (INTERACTIVE, "srun did not start"),
    "a SLURM job of one task": ({**BATCH, "SLURM_NTASKS": "1"}, ""),
    "a SLURM step of one task": ({**SRUN, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, ""),
    "one rank": ({**MPI5, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, ""),
    "one TPU host": ({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}, ""),
    "a TPU host without names": ({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": ""}, ""),
    "one process, explicitly": ({**EXPLICIT, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, ""),
    "a pod of a job without variables for jax": (POD, "without JAX_COORDINATOR_ADDRESS"),
    "a job of one pod": ({**JOB, "JAX_NUM_PROCESSES": "1", "JOB_COMPLETION_INDEX": "0"}, ""),
}

WRONG = {
    "only an address": ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "has JAX_COORDINATOR_ADDRESS but not JAX_NUM_PROCESSES"),
    "no id": ({**EXPLICIT, "JAX_PROCESS_ID": ""}, "but not JAX_PROCESS_ID"),
    "an id that is too high": ({**EXPLICIT, "JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4 must be a number below"),
    "a process with a negative id": ({**EXPLICIT, "JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID=-1 must be a number"),
    "no port": ({**EXPLICIT, "JAX_COORDINATOR_ADDRESS": "host"}, "must be host:port"),
    "a job without an address": ({**POD, "JAX_NUM_PROCESSES": "4"}, "but not JAX_COORDINATOR_ADDRESS"),
    "ranks without a host": (RANK, "has Open MPI but not JAX_COORDINATOR_ADDRESS"),
    "a TPU host without id": ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_ID= must be a number"),
}


@pytest.mark.parametrize(("environment", "address", "devices"), SEVERAL.values(), ids=SEVERAL)
def test_each_launcher_s_variables_give_address_number_of_processes_id_and_gpus(
    environment: dict[str, str], address: str, devices: tuple[int, ...] | None
) -> None:
    info = detect(environment)
    assert (info.coordinator_address, info.num_processes, info.process_id) == (address, 4, 3)
    assert info.local_device_ids == devices


@pytest.mark.parametrize(("environment", "hint"), ALONE.values(), ids=ALONE)
def test_a_run_has_one_process_where_nothing_started_several(environment: dict[str, str], hint: str) -> None:
    info = detect(environment)
    assert (info.coordinator_address, info.num_processes, info.process_id) == (None, 1, 0)
    assert hint in info.hint
    assert bool(hint) == bool(info.hint)


@pytest.mark.parametrize(("environment", "message"), WRONG.values(), ids=WRONG)
def test_missing_or_contradicting_variables_are_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        detect(environment)


def test_the_first_host_of_every_form_of_node_list() -> None:
    hosts = {
        "tux1": "tux1",
        "tux1,fox2": "tux1",
        "tux[1-3,7],fox2": "tux1",
        "tux[007-015]": "tux007",
        "r[02-04]-n[08,11]": "r02-n08",
        "gpu-a-1,gpu-b-[1-2]": "gpu-a-1",
        "n[3].cluster": "n3.cluster",
    }
    assert {nodes: first_host(nodes) for nodes in hosts} == hosts


def test_the_jax_variables_alone_are_enough() -> None:
    assert detect(EXPLICIT) == ProcessInfo("the JAX_ variables", "10.0.0.1:6543", 4, 3)
