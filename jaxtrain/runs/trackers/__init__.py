"""Trackers: observers that copy a run's config, metrics and events to other tools, and can never stop or slow it."""

from jaxtrain.runs.trackers.base import TrackedRun, Tracker
from jaxtrain.runs.trackers.mirror import Lines, Sink
from jaxtrain.runs.trackers.mlflow import MLflow
from jaxtrain.runs.trackers.wandb import WandB

__all__ = ["Lines", "MLflow", "Sink", "TrackedRun", "Tracker", "WandB"]
