"""One training on many machines: a `Job`, written down for SLURM, Kubernetes or a TPU VM, or run on this machine."""
