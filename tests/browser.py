"""A real browser for tests of pages: headless Chromium, driven over its DevTools pipe, with nothing but Python.

Protocol: https://chromedevtools.github.io/devtools-protocol/; messages are JSON, each ended by a zero byte, on the
browser's file descriptors 3 (to it) and 4 (from it).
"""

import base64
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.chromium import chromium

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    "--remote-debugging-pipe",
)
# Keys by their `key`, where that is not a letter or digit: code, Windows key code, text.
NAMED_KEYS: Mapping[str, tuple[str, int, str]] = MappingProxyType(
    {
        "Enter": ("Enter", 13, "\r"),
        "Backspace": ("Backspace", 8, ""),
        "Escape": ("Escape", 27, ""),
        "ArrowLeft": ("ArrowLeft", 37, ""),
        "ArrowRight": ("ArrowRight", 39, ""),
        "Tab": ("Tab", 9, ""),
        "+": ("NumpadAdd", 107, "+"),
        "-": ("NumpadSubtract", 109, "-"),
    }
)


class Browser:
    """A page of a running Chromium. Every call answers within `timeout_s` or raises TimeoutError."""

    def __init__(self, to_browser: int, from_browser: int, timeout_s: float) -> None:
        self._to, self._from, self._timeout_s = to_browser, from_browser, timeout_s
        self._received = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the result of a command; events that come before it are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None and not method.startswith(("Browser.", "Target.")):
            message["sessionId"] = self._session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._to, content) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def wait_for(self, event: str) -> dict[str, Any]:
        """Return the next event of that name, one that already came included; it is then forgotten."""
        while True:
            for place, found in enumerate(self.events):
                if found.get("method") == event:
                    return self.events.pop(place)
            self.events.append(self._receive())

    def open(self, address: str) -> None:
        """Go to an address, and wait until all of it is loaded."""
        self.events = [event for event in self.events if event.get("method") != "Page.loadEventFired"]
        self.call("Page.navigate", url=address)
        self.wait_for("Page.loadEventFired")

    def resize(self, width: int, height: int) -> None:
        """Give the window a size in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def wait_until(self, expression: str) -> None:
        """Return once a JavaScript expression is true; where it fails, it is not true yet. Raises: TimeoutError."""
        until = time.monotonic() + self._timeout_s
        while not self.evaluate(f"(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()"):
            if time.monotonic() > until:
                raise TimeoutError(f"{expression} did not come true; the page says {self.complaints()}")
            time.sleep(0.1)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, awaited if it is a promise."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise RuntimeError(f"{expression}: {details.get('exception', {}).get('description', details['text'])}")
        return result["result"].get("value")

    def press(self, key: str, *, ctrl: bool = False) -> None:
        """Press and let go of a key, as a person would: `a`, `3`, `Enter`, `Backspace`, `ArrowLeft`."""
        code, number, text = NAMED_KEYS.get(key) or (
            f"Digit{key}" if key.isdigit() else f"Key{key.upper()}",
            ord(key.upper()),
            key,
        )
        facts = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": 2 if ctrl else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **facts)
        self.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def type(self, text: str) -> None:
        """Put text into what has the focus."""
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Click the middle of the first element that a CSS selector finds."""
        box = self.evaluate(
            f"(() => {{ const box = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def drag(self, points: Sequence[tuple[float, float]]) -> None:
        """Draw with the left button held down, from the first point over all the others; in pixels of the window."""
        for kind, (x, y) in zip(["mousePressed", *["mouseMoved"] * (len(points) - 1)], points, strict=True):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
        x, y = points[-1]
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def requests(self) -> list[str]:
        """Return the addresses asked for so far that are not within the page itself (data:, blob:)."""
        sent = (event for event in self.events if event.get("method") == "Network.requestWillBeSent")
        addresses = [event["params"]["request"]["url"] for event in sent]
        return [address for address in addresses if not address.startswith(("data:", "blob:"))]

    def complaints(self) -> list[str]:
        """Return the errors and warnings so far: exceptions, what the security policy forbade."""
        found = []
        for event in self.events:
            if event.get("method") == "Runtime.exceptionThrown":
                details = event["params"]["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            elif event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] in ("error", "warning"):
                found.append(event["params"]["entry"]["text"])
        return found

    def _receive(self) -> dict[str, Any]:
        until = time.monotonic() + self._timeout_s
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._from], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the browser said nothing for {self._timeout_s:g} s")
            received = os.read(self._from, 1 << 20)
            if not received:
                raise RuntimeError("the browser ended")
            self._received += received
        line, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message


@contextmanager
def running_browser(folder: Path, *, width: int = 1280, height: int = 800, timeout_s: float = 60) -> Iterator[Browser]:
    """Yield a browser whose profile and downloads lie in `folder`, in profile/ and downloads/; it ends afterwards.

    Where there can be none the test is skipped, and fails in CI.
    """
    path = chromium()
    to_browser, from_browser = os.pipe(), os.pipe()
    # The browser reads from 3 and writes to 4, whatever numbers the pipes have here; bash puts them there, where sh
    # knows no numbers above 9.
    script = f'exec "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'
    process = subprocess.Popen(
        [
            *("bash", "-c", script, "bash", path, *FLAGS),
            *(f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"),
        ],
        pass_fds=(to_browser[0], from_browser[1]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser[0])
    os.close(from_browser[1])
    try:
        browser = Browser(to_browser[1], from_browser[0], timeout_s)
        downloads = folder / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads), eventsEnabled=True)
        browser.resize(width, height)
        yield browser
        browser.call("Browser.close")
    finally:
        os.close(to_browser[1])
        os.close(from_browser[0])
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
