"""A headless Chromium over the DevTools protocol, and a server through which all of its requests go."""

import base64
import contextlib
import http.server
import io
import json
import os
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Generator
from pathlib import Path
from typing import Any

from programs import program

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--disable-domain-reliability",
    "--disable-features=OptimizationHints,MediaRouter,Translate,AutofillServerCommunication,InterestFeedContentSuggestions",
    "--metrics-recording-only",
    "--no-pings",
    "--password-store=basic",
    "--proxy-bypass-list=<-loopback>",
    "--remote-debugging-pipe",
)


class Site:
    """A server of a folder at http://localhost:8000, and the proxy of a browser: it sees whatever that asks for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.open = folder, list[str](), True
        site = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=str(folder))

            def do_GET(self) -> None:
                site.asked.append(self.path)
                url = urllib.parse.urlsplit(self.path)
                if not site.open or url.netloc != "localhost:8000":
                    self.close_connection = True
                    self.connection.close()
                    return
                self.path = url.path
                super().do_GET()

            def do_CONNECT(self) -> None:
                site.asked.append(self.path)
                self.send_error(502)

            do_POST = do_PUT = do_HEAD = do_OPTIONS = do_CONNECT

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def proxy(self) -> str:
        return f"127.0.0.1:{self.server.server_address[1]}"

    @property
    def elsewhere(self) -> list[str]:
        """What was asked of other hosts."""
        return [each for each in self.asked if urllib.parse.urlsplit(each).netloc != "localhost:8000"]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Page:
    """A tab."""

    def __init__(self, commands: int, answers: io.RawIOBase) -> None:
        self.commands, self.answers = commands, answers
        self.number, self.left, self.session, self.events = 0, b"", "", list[dict[str, Any]]()
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        """The result of a command."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == self.number:
                assert "error" not in found, found
                return found["result"]
            self.events.append(found)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.left:
            part = self.answers.read(1 << 20)
            assert part, "the browser ended"
            self.left += part
        line, _, self.left = self.left.partition(b"\0")
        return json.loads(line)

    def open(self, url: str = "http://localhost:8000/") -> None:
        self.send("Page.navigate", url=url)

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        found = self.send("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, code: str, seconds: float = 120) -> bool:
        """True once an expression is."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(AssertionError):  # while a page is being opened
                if value := self.run(f"Boolean({code})"):
                    return value
            time.sleep(0.05)
        raise AssertionError(
            f"{code} is not true after {seconds} s: {self.problems()} {self.run('document.body.innerText')}"
        )

    def problems(self) -> list[str]:
        """What the page logged as wrong."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(params["entry"]["text"] + " " + params["entry"].get("url", ""))
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"])[:500])
            if event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                found.append(str([each.get("description", each.get("value")) for each in params["args"]]))
        return found

    def picture(self, file: Path, width: int = 1000, height: int = 800, dark: bool = False) -> None:
        """Saves what the page looks like."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=features)
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        time.sleep(0.3)
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def page(site: Site, profile: Path, *flags: str) -> Generator[Page]:
    """A tab of a new browser, all of whose requests go through the site's server."""
    chromium = program("chromium", "chromium-browser", "google-chrome")
    read_commands, commands = os.pipe()
    answers, write_answers = os.pipe()
    command = ["bash", "-c", f'exec "$@" 3<&{read_commands} 4>&{write_answers}', "bash", chromium, *FLAGS, *flags]
    command += [f"--user-data-dir={profile}", f"--proxy-server=http://{site.proxy}", "about:blank"]
    process = subprocess.Popen(
        command, pass_fds=(read_commands, write_answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(read_commands)
    os.close(write_answers)
    try:
        with os.fdopen(answers, "rb", buffering=0) as said:
            yield Page(commands, said)
    finally:
        process.kill()
        process.wait()
        os.close(commands)
        site.close()
