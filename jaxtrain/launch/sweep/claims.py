"""Which driver of a sweep runs which trial: claims that no two drivers can have, and that outlive no driver.

A claim is a file that names its driver, `claims/0001.1`, and that only one process can create. A driver shows that it
lives by the lock of a folder of its own, `drivers/TOKEN/lock.json`, with a heartbeat (`runs/lock.py`). The trial of a
dead driver passes to the one that creates the next file, `claims/0001.2`. Not here: the run folder's own lock, which
also holds where a driver was thought dead and was not.
"""

import json
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from jaxtrain.base.text import cut
from jaxtrain.reports.sweep.read import label
from jaxtrain.runs.lock import BEAT, SILENT, Lock, Watch, create_exclusively


class Claims:
    """The claims of this driver on the trials of a sweep's folder. As a context they are given up at the end.

    beat, silent: as of `Lock`.
    """

    def __init__(self, folder: Path, beat: float = BEAT, silent: float = SILENT) -> None:
        self._folder, self._silent = folder, silent
        self._token = secrets.token_hex(16)
        self._own = folder / "drivers" / self._token
        self._lock = Lock(0, beat=beat, silent=silent)
        self._watched: dict[str, Watch] = {}

    def __enter__(self) -> Self:
        (self._folder / "claims").mkdir(parents=True, exist_ok=True)
        self._lock.take(self._own)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
        shutil.rmtree(self._own, ignore_errors=True)

    def take(self, number: int) -> bool:
        """Take a trial that nobody has, or whose driver is dead. A False may be a True a while later."""
        last, driver = self._last(number)
        if last and not self._is_dead(driver):
            return False
        path = self._folder / "claims" / f"{label(number)}.{last + 1}"
        file = create_exclusively(path, json.dumps({"driver": self._token}).encode(), self._token)
        if file is None:
            return False
        os.close(file)
        return True

    def holds(self, number: int) -> bool:
        """Whether a trial is still this driver's, which may have been suspended and thought dead."""
        return self._last(number)[1] == self._token

    def was_begun(self, number: int) -> bool:
        """Whether any driver ever had a trial."""
        return self._last(number)[0] > 0

    def _last(self, number: int) -> tuple[int, str]:
        """How many claims there were on a trial, and the driver of the last one; "" where its file is damaged."""
        count = 0
        while (path := self._folder / "claims" / f"{label(number)}.{count + 1}").exists():
            count += 1
        if not count:
            return 0, ""
        path = path.with_suffix(f".{count}")
        try:
            with path.open("rb") as file:
                return count, str(json.loads(file.read(1024))["driver"])
        except (OSError, ValueError, KeyError, TypeError):
            return count, ""

    def _is_dead(self, driver: str) -> bool:
        if driver == self._token:
            return True  # this driver gave the trial up
        name = cut(driver, 32)
        if not name.isalnum():
            return True
        watch = self._watched.setdefault(name, Watch(self._folder / "drivers" / name, self._silent))
        return watch.is_free()
