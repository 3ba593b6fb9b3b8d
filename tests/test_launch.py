"""What `jaxtrain launch` writes for each platform, and how it runs processes on this machine."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cluster
import kubernetes_validate
import launch
import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from jaxtrain.base.errors import ConfigError
from jaxtrain.cli.main import main
from jaxtrain.launch.job import SHOULD_RESTART, should_restart
from jaxtrain.launch.kubernetes import Kubernetes
from jaxtrain.launch.local import Local
from jaxtrain.launch.tpu import Slice

ROOT = Path(__file__).parent.parent
TINY = f"{ROOT / 'tests' / 'tiny.py'}"
EXAMPLES = ("slurm.sbatch", "jobset_gpu.yaml", "jobset_tpu.yaml", "tpu_vm.sh")
COUNTING = """
import os, signal, sys, time
from pathlib import Path

here = Path(sys.argv[sys.argv.index("--run") + 1])
me = os.environ.get("JAX_PROCESS_ID", os.environ.get("WORKER", "0"))
start = len(list(here.glob(f"start-{me}-*")))
print("process", me, "of", os.environ["JAX_NUM_PROCESSES"], "at", os.environ["JAX_COORDINATOR_ADDRESS"], "start", start)
sys.stdout.flush()
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(75))
signal.signal(signal.SIGINT, lambda *_: stopped.append(130))
(here / f"start-{me}-{start}").write_text(str(os.getpid()))
CODE = int(os.environ.get(f"CODE_{me}_{start}", 0))
if CODE < 0:
    os.kill(os.getpid(), -CODE)
while f"WAIT_{me}_{start}" in os.environ and not stopped:
    time.sleep(0.02)
sys.exit(stopped[0] if stopped else CODE)
"""
"""In place of a training: records that it was started, then exits or waits as environment variables tell it."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the experiments, an empty run folder, and the program above."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "counting.py").write_text(COUNTING)
    (tmp_path / "kubectl").write_text("#!/bin/sh\necho no cluster >&2\nexit 1")
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for start in (tmp_path / "run").glob("start-*"):  # of a test that failed
        with contextlib.suppress(ProcessLookupError):
            os.killpg(os.getpgid(int(start.read_text())), signal.SIGKILL)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`jaxtrain launch` with these words, in this process."""

    def call(words: Sequence[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["jaxtrain", "launch", *words])
        main()

    return call


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_jobs_in_scripts_are_what_the_command_in_their_first_lines_writes(
    here: Path, cli: Callable[..., None], name: str
) -> None:
    text = (ROOT / "scripts" / name).read_text()
    head = next(line for line in text.splitlines() if line.startswith("# Written by: jaxtrain launch "))
    cli(shlex.split(head)[5:])
    assert (here / "scripts" / name).read_text() == text


@pytest.mark.parametrize("name", [name for name in EXAMPLES if not name.endswith("yaml")])
def test_the_scripts_satisfy_shellcheck(name: str) -> None:
    checker = Path(sys.executable).parent / "shellcheck"
    subprocess.run([checker, "--severity=warning", ROOT / "scripts" / name], check=True)


def test_words_with_spaces_quotes_and_dollars_pass_through_the_shell(
    here: Path, cli: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["slurm", f"{TINY}:main", "--run", "a run", "--env", "WORDS", "it's $HOME", "--", "--steps", "7"]
    cli(words)
    script = capsys.readouterr().out
    (here / "srun").write_text(
        '#!/bin/sh\nwhile [ "$1" != bash ]; do echo "$1"; shift; done; shift 4; printf \'%s\\n\' "$WORDS" "$@"'
    )
    (here / "srun").chmod(0o755)
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    printed = done.stdout.splitlines()
    assert "--output=a run/logs/process-%t.log" in printed
    assert printed[-8:] == ["it's $HOME", "jaxtrain", "train", f"{TINY}:main", "--run", "a run", "--steps", "7"]


JOBS: dict[str, dict[str, Any]] = {
    "GPUs": {"hosts": 2, "gpus": 8, "gpu_type": "nvidia-h100-80gb", "memory": "64Gi", "cpus": "16"},
    "a slice of TPUs": {"tpu": "v5p:2x2x4", "namespace": "lab", "env": {"A": "b"}},
    "one host without accelerators": {},
}


@pytest.mark.parametrize("name", JOBS)
def test_a_manifest_is_valid_by_the_schemas_of_jobset_and_kubernetes(name: str) -> None:
    job = Kubernetes(experiment="a.py:main", image="i", claim="c", **JOBS[name])
    manifest = yaml.safe_load(job.render("# head"))
    parsed = JobsetV1alpha2JobSet.from_dict(manifest)
    assert parsed is not None
    assert parsed.to_dict() == manifest  # unknown keys would be dropped
    template = manifest["spec"]["replicatedJobs"][0]["template"]
    inner: dict[str, Any] = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, **template}
    kubernetes_validate.validate(inner, "1.33", strict=True)
    inner["spec"]["template"]["spec"]["nodeSelektor"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(inner, "1.33", strict=True)


def test_pods_request_the_chips_of_their_slice_and_get_the_address_of_process_0() -> None:
    job = Kubernetes(experiment="a.py:main", image="i", claim="c", tpu="v5p:2x2x4")
    spec = job.manifest()["spec"]
    assert spec["network"] == {"enableDNSHostnames": True, "subdomain": "a-main"}
    template = spec["replicatedJobs"][0]["template"]["spec"]
    assert (template["completionMode"], template["completions"], template["parallelism"]) == ("Indexed", 4, 4)
    pod = template["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "2x2x4",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": "4"}
    assert container["command"] == ["jaxtrain", "train", "a.py:main", "--run", "/runs/a-main"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    # jobset-replicatedJob-jobIndex-podIndex.subdomain
    assert variables["JAX_COORDINATOR_ADDRESS"] == "a-main-hosts-0-0.a-main:8476"
    assert variables["JAX_NUM_PROCESSES"] == "4"


SLICES = {
    "v5e:1x1": (1, 1, 1),
    "v5e:2x4": (1, 8, 8),
    "v5e:4x4": (4, 4, 16),
    "v6e:16x16": (64, 4, 256),
    "v4:2x2x1": (1, 4, 4),
    "v5p:4x4x8": (32, 4, 128),
    "tpu7x:2x2x2": (2, 4, 16),
}
"""Hosts, chips of each, and devices as jax counts them."""


@pytest.mark.parametrize("name", SLICES)
def test_the_hosts_chips_and_devices_of_a_slice(name: str) -> None:
    slice = Slice.parse(name)
    assert (slice.hosts, slice.chips, slice.devices) == SLICES[name]


K8S = f"k8s {TINY}:fsdp --image i --claim c"
USER_ERRORS = {
    "an unknown platform": (f"slrum {TINY}", "there is no verb 'slrum'; did you mean 'slurm'?"),
    "an unknown function": (f"slurm {TINY}:fdsp", "no Experiment named 'fdsp'; did you mean 'fsdp'?"),
    "a layout that does not fit": (f"slurm {TINY}:fsdp --nodes 3", "which the mesh axes fsdp=3 do not divide"),
    "a mesh of another size": (
        f"slurm {TINY}:fsdp --nodes 2 --gpus 4 -- --layout.mesh fsdp 4",
        "{'fsdp': 4} needs 4 devices, but there are 8",
    ),
    "one device where more are asked for": (f"local {TINY}:main --processes 2", "the job has 2"),
    "no processes": (f"local {TINY}:main --processes 0", "Local.processes: 0 is not at least 1"),
    "a run that is not shared": (f"slurm {TINY}:fsdp -- --run=x", "give --run before `--`"),
    "a name without letters": (f"slurm {TINY}:fsdp --name 8", "a letter first"),
    "a variable with a dash": (f"slurm {TINY}:fsdp --env A-B c", "--env A-B"),
    "an unknown TPU": (f"{K8S} --tpu v5:2x2", "there is no TPU 'v5'; did you mean 'v5p'?"),
    "a slice that does not exist": (f"{K8S} --tpu v5e:4x5", "the shapes of v5e are 1x1, 2x2"),
    "a slice of two dimensions instead of three": (f"{K8S} --tpu v5p:4x4", "multiples of 4"),
    "another number of hosts than the slice has": (f"{K8S} --tpu v5e:4x4 --hosts 2", "has 4 hosts and no GPUs"),
    "a file that cannot be written": (f"slurm {TINY}:fsdp --out no/x", "--out no/x cannot be written"),
    "a run outside of the mounted claim": (f"{K8S} --run /data/x", "--run /data/x is not below --mount /runs"),
    "a platform that refuses": (f"{K8S} --submit", "kubectl apply -f - failed: no cluster"),
}


@pytest.mark.parametrize("name", USER_ERRORS)
def test_a_user_error_is_named_before_anything_is_submitted(
    here: Path, cli: Callable[..., None], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    words, message = USER_ERRORS[name]
    with pytest.raises(SystemExit) as ended:
        cli(words.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_platform_s_program_that_is_not_installed_is_named(
    here: Path, cli: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(here / "scripts"))
    with pytest.raises(SystemExit):
        cli(f"{K8S} --submit".split())
    assert "kubectl is not installed here: write the job with --out FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "restarts"),
    [
        (0, False),
        (1, False),
        (2, False),
        (4, False),
        (75, True),
        (128, False),
        (130, False),
        (137, True),
        (139, True),
        (141, False),
        (143, True),
    ],
)
def test_only_a_preempted_or_killed_training_is_restarted_by_python_and_by_bash_alike(
    code: int, restarts: bool
) -> None:
    assert should_restart(code) == restarts
    done = subprocess.run(["bash", "-c", f"code={code}; (({SHOULD_RESTART}))"], check=False)
    assert (done.returncode == 0) == restarts


def test_no_exit_code_of_ours_but_75_and_130_may_be_restarted_by_kubernetes() -> None:
    job = Kubernetes(experiment="a.py:main", image="i", claim="c").manifest()["spec"]
    template = job["replicatedJobs"][0]["template"]["spec"]
    (rule,) = template["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [1, 2, 3, 4, 5]
    (rule,) = job["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_each_process_has_its_own_gpus_or_its_own_simulated_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Local(experiment="a.py", processes=2, devices=2, platform="gpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert job.environment(1, 7)["CUDA_VISIBLE_DEVICES"] == "2,3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert job.environment(1, 7)["CUDA_VISIBLE_DEVICES"] == "6,7"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    with pytest.raises(ConfigError, match="has 1 GPUs, not 4"):
        job.environment(0, 7)
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_force_host_platform_device_count=8")
    own = Local(experiment="a.py", processes=2, devices=2).environment(1, 7)
    assert own["XLA_FLAGS"].split() == ["--xla_a=1", "--xla_force_host_platform_device_count=2"]
    assert own["JAX_PLATFORMS"] == "cpu"
    assert (own["JAX_COORDINATOR_ADDRESS"], own["JAX_PROCESS_ID"]) == ("127.0.0.1:7", "1")


def local(here: Path, *flags: str, **variables: str) -> subprocess.Popen:
    """`jaxtrain launch local` of the program above in two processes."""
    program = f"{sys.executable} {here / 'counting.py'}"
    words = ["launch", "local", f"{TINY}:data", "--processes", "2", "--run", "run", "--program", program, *flags]
    own = {**launch.environment(), **variables}
    return subprocess.Popen(
        [sys.executable, "-m", "jaxtrain", *words], env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def starts(here: Path) -> list[str]:
    return sorted(path.name for path in (here / "run").glob("start-*"))


@pytest.mark.slow
def test_processes_end_and_restart_together_and_the_first_exit_code_that_is_not_0_is_returned(here: Path) -> None:
    both = local(here)
    out, _ = both.communicate(timeout=60)
    assert both.returncode == 0
    assert re.fullmatch(r"process 0 of 2 at 127.0.0.1:\d+ start 0\n", out)
    assert (here / "run" / "logs" / "process-1.log").read_text() == out.replace("process 0", "process 1")

    killed = local(here, WAIT_0_1="", CODE_1_1="-9")
    _, err = killed.communicate(timeout=60)
    assert killed.returncode == 137
    assert "process 1: killed by SIGKILL" in err
    assert "start 1" in err  # the end of its log

    again = local(here, "--restarts", "3", CODE_0_2="75", CODE_1_2="75", CODE_1_3="2")
    _, err = again.communicate(timeout=60)
    assert again.returncode == 2
    assert "jaxtrain: exit code 75: restart 1 of 3\n" in err
    assert starts(here) == sorted(f"start-{process}-{start}" for process in (0, 1) for start in range(4))


@pytest.mark.slow
def test_a_signal_is_forwarded_to_all_processes_and_ends_restarts(here: Path) -> None:
    for start, (number, code) in enumerate(((signal.SIGTERM, 75), (signal.SIGINT, 130))):
        names = [f"start-{process}-{start}" for process in (0, 1)]
        waiting = local(here, "--restarts", "3", **{f"WAIT_{process}_{start}": "" for process in (0, 1)})
        cluster.until(lambda names=names: set(names) <= set(starts(here)), 30, lambda: str(starts(here)))
        waiting.send_signal(number)
        waiting.communicate(timeout=30)
        assert waiting.returncode == code
        assert len(starts(here)) == 2 * (start + 1)


GCLOUD = """#!/usr/bin/env bash
# Runs the command on two workers, which are folders here.
for word in "$@"; do [[ $word == --command=* ]] && command=${word#--command=}; [[ $word == --worker=* ]] && only=${word#--worker=}; done
for worker in 0 1; do
    [[ $only == all || $only == "$worker" ]] || continue
    (cd "$(dirname "$0")" && HOSTNAME=w-$worker WORKER=$worker bash -c "${command//\\/tmp\\/jaxtrain/$PWD\\/w-$worker-jaxtrain}")
done
"""


@pytest.mark.slow
def test_workers_of_a_tpu_vm_restart_after_75_or_a_kill_and_end_on_stop(
    here: Path, cli: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "gcloud").write_text(GCLOUD)
    (here / "gcloud").chmod(0o755)
    where = ["--vm", "v", "--zone", "z", "--tpu", "v5p:2x2x2", "--directory", ".", "--run", "run", "--out", "vm.sh"]
    cli(["tpu", f"{TINY}:data", *where, "--program", f"{sys.executable} counting.py"])
    # The metadata server of a worker.
    (here / "curl").write_text(
        "#!/bin/sh\ncase $4 in *endpoints) echo a:b:10.0.0.2,a:c:10.0.0.3 ;; *number) echo $WORKER ;; esac"
    )
    (here / "curl").chmod(0o755)
    own = {**os.environ, "CODE_0_0": "75", "CODE_1_0": "-9"}
    waits = {"WAIT_0_1": "", "WAIT_1_1": "", "WAIT_1_2": ""}

    def script(word: str) -> str:
        return subprocess.run(
            ["bash", "vm.sh", word], env={**own, **waits}, capture_output=True, text=True, check=True
        ).stdout

    def log(worker: int) -> str:
        path = here / "run" / "logs" / f"w-{worker}.log"
        return path.read_text() if path.exists() else ""

    script("start")
    cluster.until(lambda: len(starts(here)) == 4, 30, lambda: log(0) + log(1))
    assert "process 0 of 2 at 10.0.0.2:8476 start 0" in log(0)
    assert "process 1 of 2 at 10.0.0.2:8476 start 1" in log(1)
    assert "exit code 75 of start 0" in log(0)
    assert "exit code 137 of start 0" in log(1)
    script("start")
    cluster.until(lambda: all("already running on this worker" in log(worker) for worker in (0, 1)), 30, lambda: log(0))
    loops = [int(path.read_text()) for path in here.glob("w-*-jaxtrain-tiny-data.pid")]
    script("stop")
    cluster.until(lambda: not any(Path(f"/proc/{number}").exists() for number in loops), 30, lambda: log(0))
    assert len(loops) == 2
    assert len(starts(here)) == 4
