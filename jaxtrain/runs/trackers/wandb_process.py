"""A program that logs one run to Weights & Biases: it reads requests as lines of JSON, and answers each. It ends when
the run does. It is run as a file, and imports nothing of jaxtrain.

Not here: what is logged.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any


def _serve(parent: int, wait: float) -> None:
    """Serve the requests on stdin. parent: the process of the run. wait: seconds that finishing may take."""
    threading.Thread(target=_end_with, args=(parent, wait), daemon=True).start()
    answers, sys.stdout = sys.stdout, sys.stderr  # the library must not write among the answers
    run: Any = None
    for line in sys.stdin:
        request, answer = json.loads(line), {}
        try:
            if "open" in request:
                run = _opened(request["open"])
            elif "log" in request:
                _log(run, request)
            else:
                _end_after(wait)
                run.finish(exit_code=request["finish"])
                run = None
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if answer or run is None:
            break
    if run is not None:  # the run ended without a word
        _end_after(wait)
        run.finish(exit_code=1)


def _opened(options: Mapping[str, Any]) -> Any:
    import wandb

    settings = wandb.Settings(
        console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True, x_save_requirements=False
    )
    run = wandb.init(**options, resume="allow", settings=settings)
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _log(run: Any, request: Mapping[str, Any]) -> None:
    for step, at, values in request["log"]:
        run.log({**values, "step": step, "time": at})
    for event in request["events"]:
        run.summary[f"event/{event.get('kind')}"] = json.dumps(event)


def _end_with(parent: int, wait: float) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(wait)
    _end()


def _end_after(wait: float) -> None:
    timer = threading.Timer(wait, _end)
    timer.daemon = True
    timer.start()


def _end() -> None:
    os.killpg(0, signal.SIGKILL)  # the library's service too


if __name__ == "__main__":
    _serve(int(sys.argv[1]), float(sys.argv[2]))
