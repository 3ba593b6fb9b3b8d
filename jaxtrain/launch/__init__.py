"""Launching a training on many hosts: as a job for SLURM, Kubernetes or a TPU VM, or as processes on this machine."""
