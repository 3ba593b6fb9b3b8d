"""Every test sees eight simulated devices and a compilation cache that lasts from run to run."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

import pytest

# Before jax is imported anywhere: the number of devices is fixed when it first looks.
# What is compiled runs for milliseconds, so it is compiled quickly rather than well: half the time of a cold run.
FAST: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
if version("jaxlib").startswith("0.10."):  # later ones do not know it, and stop at what they do not know
    FAST["xla_cpu_use_fusion_emitters"] = False
QUICK = " ".join(f"--{name}={str(value).lower()}" for name, value in FAST.items())
FLAGS = f"--xla_force_host_platform_device_count=8 {QUICK}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxtrain" / "test-programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update-goldens` writes tests/goldens anew."""
    parser.addoption("--update-goldens", action="store_true", help="write down the numbers of tests/goldens anew")


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """What a test may leave to complain when it is collected is collected in that test, and not in a later one."""
    if any("PytestUnraisableExceptionWarning" in str(mark.args) for mark in item.iter_markers("filterwarnings")):
        gc.collect()
