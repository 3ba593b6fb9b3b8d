"""A run's checkpoints and metrics on a bucket: sent from a thread, and fetched by a machine that has none.

Not here: copying.
"""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from jaxtrain.base.checksums import MANIFEST
from jaxtrain.base.errors import ConfigError, Damaged, DamagedCheckpoint, Retry
from jaxtrain.cluster.processes import broadcast_from_first, is_first_process
from jaxtrain.experiment.experiment import Retention
from jaxtrain.experiment.saved import best_first, saved_steps
from jaxtrain.runs.bucket import Bucket
from jaxtrain.runs.health import Health, logged
from jaxtrain.runs.saving import reason

Answer = TypeVar("Answer")
Stay = Callable[[Sequence[int]], set[int]]

FETCH_SECONDS = 24 * 3600
"""The longest that the other processes wait for process 0 to fetch a checkpoint."""


class Mirror:
    """Keeps a bucket equal to a run's folder of checkpoints. Every process calls every method; process 0 does the work.

    What fails is an event, and the next `send` sends all that is missing.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket, self._thread = bucket, ThreadPoolExecutor(1, "mirror")
        self._run: Path | None = None
        """The run's folder, once something was to be sent of it."""
        self._begun: list[Future[None]] = []
        """What has not been reported."""
        self.log: Callable[..., None] = logged
        """Gets the events."""

    def send(self, checkpoints: Path, stay: Stay) -> None:
        """Start to send what the bucket lacks, and then to delete there what neither the folder has nor `stay` keeps;
        in place of one that has not started.
        """
        if is_first_process():
            for each in self._begun:
                each.cancel()
            self._run = checkpoints.parent
            self._begun.append(self._thread.submit(self._send, checkpoints, stay))

    def report(self) -> str:
        """Log what has failed since the last call; returns the last reason, "" without any."""
        why = ""
        done = [each for each in self._begun if each.done()]
        self._begun = [each for each in self._begun if each not in done]
        for error in [each.exception() for each in done if not each.cancelled()]:
            if error is None:
                continue
            why = _why(error)
            note = "training goes on, and what is missing there is sent after the next save"
            self.log("mirror_failed", bucket=self._bucket.url, why=why, note=note)
        return why

    def finish(self, checkpoints: Path, stay: Stay) -> None:
        """Send what is missing, and wait. Raises Retry where the bucket lacks the last checkpoint then."""
        self.send(checkpoints, stay)
        missing, why = False, ""
        if is_first_process():
            wait(self._begun)
            why, steps = self.report(), _complete(checkpoints)
            missing = bool(steps) and steps[-1] not in self._bucket.sent
        if broadcast_from_first(int(missing)):
            raise Retry(
                f"the last checkpoint could not be sent to {self._bucket.url}: {why}. It is saved in {checkpoints}: "
                "once the bucket can be written, run the same command again, which sends it"
            )

    def fetch(self, checkpoints: Path, health: Health, keep: Retention, barrier: Callable[..., None]) -> None:
        """Where a folder has no good checkpoint, fetch the newest good one, and the best by `keep`.

        Raises ConfigError for a bucket of another experiment; where it is needed, Retry if it fails, and
        DamagedCheckpoint if nothing on it is good.
        """
        steps, newest = saved_steps(checkpoints), -1
        with contextlib.suppress(DamagedCheckpoint):
            newest = health.first_good(steps[::-1]) if broadcast_from_first(len(steps)) else -1
        if is_first_process():
            work = self._thread.submit(self._fetch, checkpoints, newest, keep)
            wait([work])
            error = work.exception()
            if isinstance(error, ConfigError | DamagedCheckpoint):
                raise error
            if error is not None and newest < 0:
                raise Retry(
                    f"no checkpoint here is good, and {self._bucket.url} fails: {_why(error)}. The run does not begin "
                    "anew: once the bucket works, run the same command again"
                )
            self._begun.append(work)
            self.report()
        barrier(key="jaxtrain_fetched", timeout_ms=FETCH_SECONDS * 1000)

    def close(self) -> None:
        """Wait for what is being sent and send what the run has written since, then stop the thread."""
        if self._run is not None:
            self._begun.append(self._thread.submit(self._send_files, self._run))
        self._thread.shutdown()
        self.report()

    def _send(self, checkpoints: Path, stay: Stay) -> None:
        if not (steps := _complete(checkpoints)):
            return
        self._bucket.check_owner(write=True)
        faults: list[Damaged | OSError] = []
        try:
            self._bucket.send_files(checkpoints.parent)  # first: a checkpoint there does not stand without its metrics
        except OSError as fault:
            faults.append(fault)
        for step in reversed(steps):
            try:
                self._bucket.send(checkpoints / str(step))
            except Damaged as fault:  # that of one harms no other
                faults.append(fault)
            except FileNotFoundError:
                if (checkpoints / str(step)).exists():  # else it was deleted meanwhile
                    raise
        if steps[-1] in self._bucket.sent:
            there = self._bucket.steps()
            later = {step for step in there if step > steps[-1]}  # of before the run went back to an earlier step
            for step in set(there) - set(steps) - (stay(sorted({*there, *steps} - later))):
                self._bucket.remove(step)
        if faults:
            raise faults[0]

    def _send_files(self, run: Path) -> None:
        if self._bucket.check_owner(write=False):
            self._bucket.send_files(run)

    def _fetch(self, checkpoints: Path, newest: int, keep: Retention) -> None:
        self._bucket.check_owner(write=False)
        there, damaged = self._bucket.steps()[::-1], []
        if newest >= 0:
            if later := [step for step in there if step > newest and self._bucket.is_complete(step)]:
                note = f"the run resumes from {checkpoints}, and deletes these when it saves; to use them, move that"
                self.log("mirror_is_later", bucket=self._bucket.url, steps=later, note=note)
            return
        found = self._first_good(there, checkpoints, damaged)
        if found is None and damaged:
            why = f"{damaged[0][1].why}\nno checkpoint in {self._bucket.url} is good, and none was moved"
            raise DamagedCheckpoint(damaged[0][1].file, None, why)
        if found is not None and (files := self._bucket.fetch_files(checkpoints.parent)):
            self.log("fetched", files=files, bucket=self._bucket.url)
        earlier = [step for step in there if found is not None and step <= found]
        best = best_first(self._bucket.scores(earlier, keep.best), keep.mode)
        self._first_good([step for step in best[:1] if step != found], checkpoints, damaged)
        for step, fault in damaged:
            self.log("damaged", step=step, file=fault.file, why=fault.why, moved=self._bucket.set_aside(step))

    def _first_good(
        self, steps: Sequence[int], checkpoints: Path, damaged: list[tuple[int, DamagedCheckpoint]]
    ) -> int | None:
        """The first good one of these steps, once it is fetched; the damaged ones before it are added to `damaged`."""
        for step in steps:
            try:
                if self._bucket.fetch(step, checkpoints):
                    self.log("fetched", step=step, bucket=self._bucket.url)
                    return step
            except DamagedCheckpoint as fault:
                damaged.append((step, fault))
        return None


def attempt(bucket: Bucket, work: Callable[..., Answer], *arguments: Any) -> Answer:
    """What `work` returns. Raises Retry, naming the bucket, for what its file system raises, of any library."""
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(work, *arguments)
    if (error := done.exception()) is None or isinstance(error, ConfigError | DamagedCheckpoint):
        return done.result()
    raise Retry(f"{bucket.url} fails: {_why(error)}. Once it works, run the same command again")


def _complete(checkpoints: Path) -> list[int]:
    return [step for step in saved_steps(checkpoints) if (checkpoints / str(step) / MANIFEST).exists()]


def _why(error: BaseException) -> str:
    return reason(error) if isinstance(error, OSError | Damaged) else f"{type(error).__name__}: {reason(error)}"
