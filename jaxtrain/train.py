"""The training loop: compile, initialise or restore, and for each step train, then log, evaluate and save when due.

Not here: the step itself, the layout of a run folder, and what observes a run.
"""

import contextlib
from pathlib import Path

import jax

from jaxtrain.cluster import watchdog
from jaxtrain.cluster.stop import StopSignal
from jaxtrain.evaluate import check_metrics, evaluate_splits
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.experiment.files import Origin
from jaxtrain.experiment.fit import fit
from jaxtrain.program import Program
from jaxtrain.runs.begin import begin
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.folder import Run, horizon_of_run
from jaxtrain.runs.journal import Journal
from jaxtrain.runs.lock import Lock
from jaxtrain.runs.row_pass import keep_last_rows
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
    clock, runtime, stop, done = Clock(), experiment.runtime, stop or StopSignal(), 0
    stop.progress = lambda: (done, clock.phase)
    with stop, contextlib.ExitStack() as stack:
        with clock("compile"):
            program = Program(fit(experiment, folder), horizon=horizon_of_run(folder, experiment))
            experiment, lowered, first = program.experiment, program.lower(), FirstState(program)
            check_metrics(program)
        lock = stack.enter_context(Lock(runtime.deadlines.lock, watchdog.leave, progress=stop.progress))
        run = begin(folder, experiment, origin, lock)
        checkpoints = stack.enter_context(run.checkpoints())
        saved = done = checkpoints.latest() or 0
        stack.push(stop.failed)
        journal = stack.enter_context(Journal(run.observers(done, stop), clock, run.horizon))
        journal.log_begun(program, done, checkpoints)
        with clock("compile"):
            step = lowered.compile(dict(runtime.compiler_options) or None)
        journal.log_compiled(program, lowered, step)
        with clock("restore"):
            state, record = checkpoints.restore(program.state) if done else (first.make(journal.log_event), {})
        batches = stack.enter_context(contextlib.closing(program.batches(experiment.data, done, run.left_out)))
        journal.begun(done, record)
        with stop.steps():
            while True:
                scores = None
                if journal.evaluation_due(done):
                    journal.check(program, state)
                    found = evaluate_splits(program, state, clock, stop)
                    scores = journal.evaluated(done, found)  # outside of the phase that a signal may end
                if (checkpoints.improves(done, scores) or done % runtime.save_every == 0) and done > saved:
                    saved = journal.save(program, checkpoints, done, state, scores)
                if done >= experiment.steps or stop.requested():
                    break
                lock.check()
                with clock("data"):
                    batch = next(batches)
                with clock("step"), jax.transfer_guard("disallow"):
                    state, metrics = step(state, batch)
                done += 1
                with clock("step"):
                    journal.trained(done, {**metrics, **program.record(state, batch)})
        if done > saved:
            journal.save(program, checkpoints, done, state, scores)
        with clock("save"):
            journal.saved(checkpoints.wait())
        keep_last_rows(program, state, run.folder, clock, stop, journal.log_event)
        journal.ended(done)
    return run, state
