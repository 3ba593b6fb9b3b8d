"""Calls all observers of a run: files, console, TensorBoard, profiler, and those of its experiment.

Not here: the observers, and when they are called.
"""

import contextlib
import logging
import signal
import traceback
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import Retry
from jaxtrain.base.text import cut
from jaxtrain.base.threads import CallThread
from jaxtrain.cluster.processes import broadcast_from_first, is_first_process
from jaxtrain.cluster.stop import Stopped, StopSignal
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.experiment.observers import Observer, Scores
from jaxtrain.runs.console import Console
from jaxtrain.runs.metrics_log import MetricsLog, read_metrics
from jaxtrain.runs.profiler import Profiler
from jaxtrain.runs.recorder import WAIT, Recorder
from jaxtrain.runs.sessions import left_by_session, process_age, rounded
from jaxtrain.runs.tensorboard import TensorBoard
from jaxtrain.runs.watcher import Watcher

MAY_END = ("begun", "evaluated")
"""The methods by whose return value an observer may end the run; all processes then agree on it."""


class Observers:
    """Calls every observer, on process 0 only. A reason to end the run goes to `stop`, so that all processes end.

    Files and console are called first; their errors end the run. TensorBoard and the profiler are called in the loop
    too, the experiment's observers in a thread. An error of one of these is logged as an event, and that observer is
    not called again.
    """

    def __init__(self, folder: Path, experiment: Experiment, start: int, stop: StopSignal) -> None:
        """`start`: the steps that are done. Metrics of later steps, from a process that died, are dropped."""
        self.folder, self.experiment, self._stop = folder, experiment, stop
        self._is_run = (folder / "experiment.json").is_file()
        first, profiled = is_first_process(), experiment.runtime.profiled
        self._log = log = MetricsLog(folder, first)
        self.recorder = Recorder(folder, experiment.runtime.flight, first)
        self._before = left_by_session(folder) if first else {}
        wrong = log.rewind(start, experiment.runtime.log_every) + self.recorder.steps.rewind(start)
        name, batch = folder.absolute().name, experiment.data.batch_size
        console = Console(experiment.steps, start, first, name=name, batch=batch, phase=lambda: stop.progress()[1])
        self._own: list[Watcher] = [log, console, self.recorder]
        self._mirrors: list[Watcher] = [TensorBoard(folder / "tensorboard", start)] if first else []
        self._mirrors += [Profiler(folder / "profile", profiled)] if first and profiled else []
        self._others: list[Observer] = list(experiment.observers) if first else []
        self._thread = CallThread("observers")
        self._last_call: Future[None] | None = None
        for each in wrong:
            self.log_event("damaged", note=each)

    @property
    def interrupted(self) -> bool:
        """Whether a signal is ending the run."""
        return bool(self._stop.code)

    @property
    def finished(self) -> bool:
        """Whether an observer ended the run."""
        return self._stop.reason is not None

    def session(self, seconds: Mapping[str, float]) -> dict[str, Any]:
        """For the event that begins a session, after these seconds by phase: how long the command needed to start, and
        what the session before left of its account.
        """
        startup = max(0.0, process_age() - seconds["total"]) if self._stop.watched else 0.0
        before = {"before": self._before} if self._before else {}
        return {"startup": round(startup, 3), "seconds_by_phase": rounded(seconds), **before}

    def ended_by(self, seconds: Mapping[str, float]) -> dict[str, Any]:
        """For the event that ends a session, after these seconds by phase: the exit code, and the signal where one is
        known here.
        """
        heard = {"signal": signal.Signals(self._stop.heard[0]).name} if self._stop.heard else {}
        return {"code": int(self._stop.code), **heard, "seconds_by_phase": rounded(seconds)}

    def failed(self, step: int, error: BaseException, seconds: Mapping[str, float]) -> None:
        """The run ends after `step` by an error, or by a signal where nothing was to be saved: log it in events.jsonl.

        The console leaves it to the error's own message.
        """
        stopped = isinstance(error, Stopped)
        facts: dict[str, Any] = {"error": cut(_described(error), 1000), "seconds_by_phase": rounded(seconds)}
        if stopped:
            facts = {"of": self.experiment.steps, **self.ended_by(seconds)}
        with contextlib.suppress(OSError, Retry), self._in_folder(step):  # a full disk may be why the run fails
            self._log.event("ended" if stopped else "failed", step=step, **facts)

    def saving(self, step: int, seconds: Mapping[str, float]) -> None:
        """A checkpoint of `step` is begun, after these seconds by phase: log it, but not on the console."""
        with self._in_folder(step):
            self._log.event("saving", step=step, seconds_by_phase=rounded(seconds))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_metrics(self.folder)

    def log_event(self, kind: str, **fields: object) -> None:
        """Write an event to events.jsonl and the console."""
        with self._in_folder():
            for each in self._own:
                each.event(kind, **fields)

    def begun(self, step: int) -> None:
        """Training begins; `step` steps are done."""
        self._call("begun", step)
        self._wait()
        self._agree()

    def stepped(self, step: int, metrics: Any) -> None:
        """A step was dispatched, whose metrics are still on the device."""
        for each in self._own:
            if type(each).stepped is not Watcher.stepped:  # every call counts here: this is done for every step
                each.stepped(self, step, metrics)
        for mirror in self._mirrors:
            if type(mirror).stepped is not Watcher.stepped:
                self._guarded(mirror, "stepped", step, metrics)

    def append(self, first: int, fetched: Sequence[Mapping[str, Any]]) -> None:
        """Write the metrics of steps from `first` on, which are on the host, to steps.bin."""
        with self._in_folder(first + len(fetched) - 1):
            self.recorder.append(first, fetched)

    def write_flight(self, step: int, why: str, seconds: Mapping[str, float], wait: float = WAIT) -> None:
        """The run fails after `step`: write flight.json, unless its folder is gone. `wait`: as of `Recorder.write`."""
        if not self._is_run or (self.folder / "experiment.json").is_file():
            try:
                self.recorder.write(self, step, why, seconds, wait)
            except OSError as error:  # of a full disk, say, which may be why the run fails
                logging.getLogger("jaxtrain.runs").warning("flight.json could not be written: %s", error)

    def trained(self, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> None:
        """Pass on the metrics over a period that ended with `step`."""
        self._call("trained", step, metrics, rates)

    def evaluated(self, step: int, scores: Scores) -> None:
        """Pass on the metrics of all evaluations after `step`, if there are any."""
        if scores:
            self._call("evaluated", step, scores)
            self._wait()  # the device has nothing to do meanwhile, and the run may have to end
            self._agree()

    def saved(self, step: int) -> None:
        """The checkpoint of `step` is durable."""
        self._call("saved", step)

    def ended(self, step: int) -> None:
        """No more steps follow."""
        self._call("ended", step)
        self._wait()

    def close(self) -> None:
        """Call nothing more."""
        self._thread.close()
        for each in (*self._mirrors, *self._own):
            each.close()

    def _call(self, method: str, step: int, *arguments: Any) -> None:
        with self._in_folder(step):
            for each in self._own:
                getattr(each, method)(self, step, *arguments)
        for each in self._mirrors:
            self._guarded(each, method, step, *arguments)
        if self._others:
            self._wait()  # an observer slower than a period delays the run; otherwise calls would pile up
            self._last_call = self._thread.submit(self._call_others, method, step, *arguments)

    @contextlib.contextmanager
    def _in_folder(self, step: int | None = None) -> Generator[None]:
        """A context for writing to the run folder: raises Retry if the folder is gone."""
        file, after = self.folder / "experiment.json", "" if step is None else f", after step {step}"
        gone = Retry(
            f"the run folder {self.folder} is gone{after}, and a run cannot go on without it: bring it back, and run "
            "the same command again"
        )
        if self._is_run and not file.is_file():  # else a write could create part of the folder again
            raise gone
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            if self._is_run and not file.is_file():
                raise gone from error
            raise

    def _call_others(self, method: str, step: int, *arguments: Any) -> None:
        for each in self._others:
            self._guarded(each, method, step, *arguments)

    def _agree(self) -> None:
        if self.experiment.observers:
            self._stop.ended = bool(broadcast_from_first(self._stop.reason is not None))

    def _wait(self) -> None:
        if self._last_call is not None:
            self._last_call.result()

    def _guarded(self, observer: Observer, method: str, step: int, *arguments: Any) -> None:
        try:
            reason = getattr(observer, method)(self, step, *arguments)
            if reason is not None and (method not in MAY_END or not isinstance(reason, str)):
                raise TypeError(f"{method} returned {reason!r}: only a text ends a run, from {' or '.join(MAY_END)}")
        except Exception as error:  # an observer's error must not end the run
            self._mirrors = [each for each in self._mirrors if each is not observer]
            self._others = [each for each in self._others if each is not observer]
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})"
            name = type(observer).__name__
            kind = "tensorboard_failed" if name == "TensorBoard" else "observer_failed"
            self.log_event(kind, step=step, observer=name, method=method, error=where)
            return
        if reason is not None and self._stop.reason is None:
            self._stop.reason = reason
            self.log_event("stopped", step=step, observer=type(observer).__name__, reason=self._stop.reason)


def _described(error: BaseException) -> str:
    """Type and message of an exception."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # a user's exception class may fail in `__str__`
        return type(error).__name__
