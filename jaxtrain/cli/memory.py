"""After a run that did not fit into memory: runs `jaxtrain memory` to say what takes the memory.

Not here: the computation, which is `analysis/memory.py`.
"""

import os
import subprocess
import sys

SECONDS = 300
"""How long `jaxtrain memory` may take; a tenth of it while other processes wait."""

_BY_HAND = "it does not fit into memory; `jaxtrain memory FILE` says what takes most, and what would help"


def account_of_this_command(error: BaseException) -> str:
    """Three lines on the memory of the run of this command; where they cannot be had, how to get them.

    Computed in a process of its own, on simulated devices, since those of this process are in use.
    """
    if "train" not in sys.argv[1:2]:
        return _BY_HAND
    import jax

    from jaxtrain.cli.first import fields

    if isinstance(error, MemoryError) and jax.default_backend() != "cpu":
        return "it is the memory of this machine, not of its devices: try fewer workers, or less prefetch"
    command = [sys.executable, "-m", "jaxtrain", "memory", *fields(sys.argv[1:]), "--brief"]
    command += ["--devices", str(jax.device_count())]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS if jax.process_count() == 1 else SECONDS / 10,
        )
    except (OSError, subprocess.TimeoutExpired, MemoryError):
        return _BY_HAND
    return done.stdout if done.returncode == 0 and done.stdout else _BY_HAND
