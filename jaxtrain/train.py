"""The training loop: compile, initialise or restore, and for each step train, then log, evaluate and save when due.

Not here: the step itself, the layout of a run folder, and file formats.
"""

import contextlib
from pathlib import Path

import jax

from jaxtrain.cluster.processes import StopSignal
from jaxtrain.evaluate import check_metrics, evaluate
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.experiment.files import Origin
from jaxtrain.experiment.fit import fit
from jaxtrain.experiment.validate import replicated_leaves
from jaxtrain.program import Program
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.folder import Run, begin
from jaxtrain.runs.journal import Journal
from jaxtrain.runs.start import FirstState
from jaxtrain.step import TrainState


def train(
    experiment: Experiment, folder: Path | None = None, origin: Origin | None = None, stop: StopSignal | None = None
) -> tuple[Run, TrainState]:
    """Train to `experiment.steps` updates in `folder` (a new one by default), resuming its run if it holds one.

    Returns the run and its last state. Stops early, with a checkpoint, on a signal; `stop.code` then is not 0. Raises
    ConfigError, before anything is written, where experiment, devices and folder do not fit together.
    """
    clock, runtime = Clock(), experiment.runtime
    with clock("data"):
        experiment = fit(experiment, folder)
    with clock("compile"):
        program = Program(experiment)
        lowered = program.lower()
        check_metrics(program)
        first = FirstState(program)
    run = begin(folder, experiment, origin)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(run.checkpoints())
        start = done = checkpoints.latest() or 0
        journal = stack.enter_context(contextlib.closing(Journal(run.folder, experiment, start, clock)))
        sizes = dict(program.mesh.shape)
        journal.log_event("begun", step=start, of=experiment.steps, folder=str(run.folder), mesh=sizes)
        if first.facts and not start:
            journal.log_event("started", **first.facts)
        if replicated := replicated_leaves(experiment, program.state):
            journal.log_event("replicated", leaves=list(replicated), bytes=sum(replicated.values()))
        with clock("compile"):
            step = lowered.compile(dict(runtime.compiler_options) or None)
        journal.log_event("compiled", seconds=round(clock.account()["compile"], 2), **program.notes(lowered))
        with clock("checkpoint"):
            state = checkpoints.restore(program.state)[0] if start else first.make()
        batches = stack.enter_context(contextlib.closing(program.batches(experiment.data, start)))
        stop = stack.enter_context(stop or StopSignal())
        stop.progress = lambda: (done, clock.phase)

        for done in range(start + 1, experiment.steps + 1):
            with clock("data"):
                batch = next(batches)
            with clock("step"), jax.transfer_guard("disallow"):
                state, metrics = step(state, batch)
            with clock("step"):
                journal.trained(done, metrics)
            ending = done == experiment.steps or stop.requested(done, runtime.log_every)
            scores = None
            if done % runtime.eval_every == 0 or done == experiment.steps:
                journal.flush()
                with clock("eval"):
                    found = {split: evaluate(program, state, data) for split, data in experiment.evals.items()}
                    scores = journal.evaluated(done, found)
            if done % runtime.save_every == 0 or ending:
                journal.flush()  # a run resumed from this checkpoint will not write these metrics again
                with clock("checkpoint"):
                    checkpoints.save(done, state, {"step": done}, scores)
            if ending:
                break
        with clock("checkpoint"):
            checkpoints.wait()
        journal.ended(done)
    return run, state
