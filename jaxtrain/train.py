"""The training loop: compile, initialise or restore, and for each step train, then log, evaluate and save when due.

Not here: the step itself, the layout of a run folder, and what observes a run.
"""

import contextlib
from pathlib import Path

import jax

from jaxtrain.cluster.processes import StopSignal
from jaxtrain.evaluate import check_metrics, evaluate
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.experiment.files import Origin
from jaxtrain.experiment.fit import fit
from jaxtrain.program import Program
from jaxtrain.runs.begin import begin
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.folder import Run, horizon_of_run
from jaxtrain.runs.journal import Journal
from jaxtrain.runs.start import FirstState
from jaxtrain.step import TrainState


def train(
    experiment: Experiment, folder: Path | None = None, origin: Origin | None = None, stop: StopSignal | None = None
) -> tuple[Run, TrainState]:
    """Train to `experiment.steps` updates in `folder` (a new one by default), resuming its run if it holds one.

    Returns the run and its last state. Stops early, with a checkpoint, on a signal, and then `stop.code` is not 0, or
    by an observer. Raises ConfigError, before anything is written, where experiment, devices and folder do not fit
    together.
    """
    clock, runtime, stop = Clock(), experiment.runtime, stop or StopSignal()
    with clock("compile"):
        program = Program(fit(experiment, folder), horizon=horizon_of_run(folder, experiment))
        experiment, lowered, first = program.experiment, program.lower(), FirstState(program)
        check_metrics(program)
    run = begin(folder, experiment, origin)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(run.checkpoints())
        start = done = checkpoints.latest() or 0
        journal = stack.enter_context(contextlib.closing(Journal(run.observers(start, stop), clock, run.horizon)))
        journal.log_begun(program, start)
        checkpoints.report_to(journal.log_event)
        with clock("compile"):
            step = lowered.compile(dict(runtime.compiler_options) or None)
        journal.log_compiled(program, lowered, step)
        with clock("checkpoint"):
            state, record = checkpoints.restore(program.state) if start else (first.make(journal.log_event), {})
        batches = stack.enter_context(contextlib.closing(program.batches(experiment.data, start)))
        stack.enter_context(stop)
        stop.progress = lambda: (done, clock.phase)
        journal.begun(start, record)

        for done in range(start + 1, 1 + (start if stop.requested(start, 1) else experiment.steps)):
            with clock("data"):
                batch = next(batches)
            with clock("step"), jax.transfer_guard("disallow"):
                state, metrics = step(state, batch)
            with clock("step"):
                journal.trained(done, metrics)
            scores = None
            if done % runtime.eval_every == 0 or done == experiment.steps:
                journal.flush()
                with clock("eval"):
                    found = {split: evaluate(program, state, data) for split, data in experiment.evals.items()}
                    scores = journal.evaluated(done, found)
            ending = done == experiment.steps or stop.requested(done, runtime.log_every, runtime.eval_every)
            if done % runtime.save_every == 0 or ending or checkpoints.improves(scores):
                journal.flush()  # a run resumed from this checkpoint will not write these metrics again
                with clock("checkpoint"):
                    durable = checkpoints.save(done, state, journal.record(done), scores)
                journal.saved(durable)
            if ending:
                break
        with clock("checkpoint"):
            journal.saved(checkpoints.wait())
        journal.ended(done)
    return run, state
