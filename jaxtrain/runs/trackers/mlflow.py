"""MLflow, by the REST API of its tracking server; its library is not needed.

https://mlflow.org/docs/latest/rest-api.html. Not here: artifacts and models.
"""

import base64
import json
import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import Range
from jaxtrain.base.text import cut
from jaxtrain.runs.trackers.base import TrackedRun, Tracker
from jaxtrain.runs.trackers.mirror import Lines, Sink
from jaxtrain.runs.trackers.wandb import kept_id

Timeout = Annotated[float, Range(above=0, at_most=3600, on_host=True)]

_PARAMS, _METRICS, _VALUE, _KEY = 100, 1000, 6000, 250  # what the API takes at once, and lengths that it takes


@dataclass(frozen=True, kw_only=True)
class MLflow(Tracker):
    """Copies a run to the tracking server of MLflow at `url`, such as "http://localhost:5000". A run that resumes keeps
    its id. User and password, or a token, are MLflow's own variables: MLFLOW_TRACKING_USERNAME,
    MLFLOW_TRACKING_PASSWORD and MLFLOW_TRACKING_TOKEN. While the server does not answer, lines wait in the queue.
    """

    url: str
    experiment: str = "jaxtrain"
    """The name of MLflow's experiment; made where there is none."""
    timeout: Timeout = 30.0
    """Seconds after which a request is tried again."""

    def __post_init__(self) -> None:
        """Raises ConfigError for an address that is none, or holds a password, which would be saved with the run."""
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"MLflow.url: {self.url!r} is not an address such as http://localhost:5000")
        if parts.username or parts.password:
            raise ConfigError(
                "MLflow.url: leave user and password out, since it is saved in the run folder: set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )

    def connect(self, run: TrackedRun) -> Sink:
        return _Server(self, run)


class _Server(Sink):
    """A run that is open on a server."""

    def __init__(self, tracker: MLflow, run: TrackedRun) -> None:
        self._url, self._timeout = tracker.url.rstrip("/"), tracker.timeout
        self._given_up = threading.Event()
        self._experiment, self._run, self._id = tracker.experiment, run, ""

    def open(self) -> None:
        run, folder = self._run, self._run.folder / "trackers"
        folder.mkdir(exist_ok=True)
        self._id = kept_id(folder / "mlflow.json", lambda: self._created(self._experiment, run.name))
        self._call("runs/update", {"status": "RUNNING"})
        known = self._params()
        params = {_name(path): cut(str(value), _VALUE) for path, value in run.config.items()}
        fresh = [{"key": key, "value": value} for key, value in params.items() if key not in known]
        for first in range(0, len(fresh), _PARAMS):
            self._call("runs/log-batch", {"params": fresh[first : first + _PARAMS]})
        self._tag("folder", str(run.folder.absolute()))
        for key, value in params.items():  # params cannot be changed, and a resumed run may have other steps
            if known.get(key, value) != value:
                self._tag(f"now.{key}", value)

    def send(self, lines: Sequence[Lines], events: Sequence[Mapping[str, Any]]) -> None:
        found = [
            {"key": _name(name), "value": _number(value), "timestamp": int(line.time * 1000), "step": line.step}
            for line in lines
            for name, value in line.values.items()
        ]
        for first in range(0, len(found), _METRICS):
            self._call("runs/log-batch", {"metrics": found[first : first + _METRICS]})
        for kind, event in {str(event.get("kind")): event for event in events}.items():
            self._tag(f"event.{kind}", json.dumps(event))

    def close(self, failed: bool) -> None:
        self._call("runs/update", {"status": "FAILED" if failed else "FINISHED"})

    def abandon(self) -> None:
        self._given_up.set()

    def _created(self, experiment: str, name: str) -> str:
        query = urllib.parse.urlencode({"experiment_name": experiment})
        found = self._request(f"experiments/get-by-name?{query}", None, missing=True)
        number = (
            found["experiment"]["experiment_id"]
            if found
            else self._request("experiments/create", {"name": experiment})["experiment_id"]
        )
        run = self._request("runs/create", {"experiment_id": number, "run_name": name})
        return run["run"]["info"]["run_id"]

    def _params(self) -> dict[str, str]:
        found = self._request(f"runs/get?{urllib.parse.urlencode({'run_id': self._id})}", None)
        return {each["key"]: each["value"] for each in found["run"]["data"].get("params", [])}

    def _tag(self, key: str, value: str) -> None:
        self._call("runs/set-tag", {"key": f"jaxtrain.{_name(key)}"[:_KEY], "value": value[:_VALUE]})

    def _call(self, path: str, content: Mapping[str, Any]) -> None:
        self._request(path, {"run_id": self._id, **content})

    def _request(self, path: str, content: Mapping[str, Any] | None, missing: bool = False) -> Any:
        """The answer to a request, which is sent again until the server takes it. missing: None where there is nothing.

        Raises RuntimeError for a request that the server refuses.
        """
        pause = 1.0
        while True:
            data = None if content is None else json.dumps(content, allow_nan=False).encode()
            headers = {"Content-Type": "application/json", **_authorization()}
            request = urllib.request.Request(f"{self._url}/api/2.0/mlflow/{path}", data, headers)
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                    self.problem = ""
                    return json.loads(answer.read() or b"{}")
            except urllib.error.HTTPError as error:
                with error:
                    words = error.read(10_000).decode(errors="replace")
                said = f"{self._url} answered {error.code}: {cut(words, 300)}"
                if missing and error.code == 404:
                    return None
                if error.code != 429 and error.code < 500:
                    raise RuntimeError(said) from None
                self.problem = said
            except (OSError, ValueError) as error:
                self.problem = f"{self._url}: {error}"
            if self._given_up.wait(pause):
                raise TimeoutError(self.problem)
            pause = min(2 * pause, 30.0)


def _authorization() -> dict[str, str]:
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    if user:
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN", "")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _name(name: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:_KEY]


def _number(value: float) -> float | str:
    """A number as its JSON has it."""
    return value if abs(value) < float("inf") else {"nan": "NaN", "inf": "Infinity"}.get(str(value), "-Infinity")
