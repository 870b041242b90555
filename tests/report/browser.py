"""A headless Chromium by the WebDriver protocol: JSON over HTTP to chromedriver, so that no package is needed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
MISSING = "needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)"
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the standard's name for a reference to an element
_WAIT = 30.0  # seconds that the driver may take to come up


class Browser:
    """One browser window."""

    def __init__(self, profile: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.driver = subprocess.Popen(
            [str(DRIVER), f"--port={self.address.rpartition(':')[2]}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HOME": str(profile)},
        )  # fmt: skip
        self.session = ""
        try:
            self._await_driver()
            switches = [
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
            ]
            options = {"binary": CHROMIUM, "args": [*switches, f"--user-data-dir={profile}"]}
            logs = {"browser": "ALL", "performance": "ALL"}
            wanted = {"browserName": "chrome", "goog:loggingPrefs": logs, "goog:chromeOptions": options}
            made = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self.session = f"/session/{made['sessionId']}"
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self.session:
            self._send("DELETE", self.session)
        self.driver.terminate()
        self.driver.wait(timeout=_WAIT)

    def open(self, page: Path, *, width: int = 1280, scheme: str = "light") -> None:
        """Show a page at a width, in the light or the dark scheme."""
        height, phone = (844, True) if width < 500 else (900, False)
        self._devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._devtools("Emulation.setEmulatedMedia", media="", features=[feature])
        self._send("POST", f"{self.session}/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *values: Any) -> Any:
        """What a script returns; it reads `values` as `arguments`."""
        return self._send("POST", f"{self.session}/execute/sync", {"script": script, "args": list(values)})

    def click(self, selector: str) -> None:
        """A real click, which fails where something covers the element."""
        self._send("POST", f"{self._element(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        self._send("POST", f"{self._element(selector)}/value", {"text": text})

    def hover(self, selector: str) -> None:
        """Move the pointer onto an element."""
        found = {_ELEMENT: self._element(selector).rpartition("/")[2]}
        move = {"type": "pointerMove", "duration": 0, "origin": found, "x": 0, "y": 0}
        pointer = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": [move]}
        self._send("POST", f"{self.session}/actions", {"actions": [pointer]})

    def logged(self) -> list[str]:
        """Messages of the console since the last call."""
        found = self._send("POST", f"{self.session}/se/log", {"type": "browser"})
        return [f"{entry['level']}: {entry['message']}" for entry in found]

    def requested(self, page: Path) -> list[str]:
        """Addresses that a page asked for since the last call; the browser's own new tab may be asking as well."""
        entries = self._send("POST", f"{self.session}/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [asked["request"]["url"] for asked in sent if asked["documentURL"] == page.resolve().as_uri()]

    def _element(self, selector: str) -> str:
        found = self._send("POST", f"{self.session}/element", {"using": "css selector", "value": selector})
        return f"{self.session}/element/{found[_ELEMENT]}"

    def _devtools(self, command: str, **values: Any) -> None:
        self._send("POST", f"{self.session}/goog/cdp/execute", {"cmd": command, "params": values})

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(
            self.address + path, data=data, method=method, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.read().decode()[:500]}") from None

    def _await_driver(self) -> None:
        deadline = time.monotonic() + _WAIT
        while time.monotonic() < deadline:
            try:
                if self._send("GET", "/status")["ready"]:
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("chromedriver does not answer")
