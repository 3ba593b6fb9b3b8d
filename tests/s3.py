"""A local S3 server with faults, in this process, spoken to over its port. Not a test."""

import socket
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import fsspec
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


class S3:
    """A server with the bucket `runs`. `fault` is what it does with the next writes: "500", "cut" (the connection ends
    in the middle of the fourth object), "refused" (nobody listens), or "".
    """

    def __init__(self, set_variable: Callable[[str, str], None]) -> None:
        self.fault, self._objects = "", 0
        self._app = DomainDispatcherApplication(create_backend_app)
        self._port = 0
        self._start()
        set_variable("AWS_ENDPOINT_URL", f"http://127.0.0.1:{self._port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            set_variable(name, "anything")
        set_variable("AWS_DEFAULT_REGION", "us-east-1")
        set_variable("AWS_MAX_ATTEMPTS", "1")
        self.files = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
        self.files.mkdir("runs")

    def set(self, fault: str) -> None:
        """From now on this fault; "" for none."""
        if fault == "refused":
            self._end()
        elif self.fault == "refused":
            self._start()
        self.fault, self._objects = fault, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.fault != "refused":
            self._end()

    def _start(self) -> None:
        self._server: Any = make_server("127.0.0.1", self._port, self._answer, threaded=True, request_handler=_Quiet)
        self._server.daemon_threads = True
        self._port = self._server.port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def _end(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        writes = environ["REQUEST_METHOD"] in ("PUT", "POST")
        self._objects += writes
        if writes and self.fault == "500":
            start("500 Internal Server Error", [("Content-Length", "0")])
            return []
        if writes and self.fault == "cut" and self._objects >= 4:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        return self._app(environ, start)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterable[S3]:
    """A server with nothing on it, whose address and keys are in the environment."""
    with S3(monkeypatch.setenv) as server:
        yield server
        server.set("")
        server.files.rm("runs", recursive=True)
