"""Processes of `site.py`, and what is asked of them over HTTP."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import lora_train
from tests.faults.site import LOGIN

_LIMIT_S = 120
_CREDENTIALS = base64.b64encode(":".join(LOGIN).encode()).decode()
HEADERS = {"Content-Type": "application/json", "Authorization": f"Basic {_CREDENTIALS}"}

VERSION = {"project": "cat", "version": "v1"}


class Site:
    """One WebUI on the workspace in `root`; killed and started as often as a test likes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._log = root / f"site-{self.port}.log"
        self.start()

    def start(self, *, waits: bool = True) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.site", str(self.root), str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                cwd=Path(lora_train.__file__).parents[1],
            )
        if waits:
            self.wait_until(lambda: self.ask("version"))

    def kill(self) -> None:
        """As by kill -9, or by the power that is gone."""
        self.process.kill()
        self.process.wait(_LIMIT_S)

    def call(self, path: str, body: object = None) -> tuple[int, Any]:
        """Status and decoded answer: GET, or POST with a body."""
        data = None if body is None else json.dumps(body).encode("utf-8")
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/train-tools/v1/{path}", data, HEADERS)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_LIMIT_S) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def ask(self, path: str, body: object = None) -> Any:
        """The answer to what must be right."""
        status, answer = self.call(path, body)
        assert status == 200, (path, answer)
        return answer

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def wait_until(self, is_true: Any) -> None:
        until = time.monotonic() + _LIMIT_S
        while True:
            try:
                if is_true():
                    return
            except OSError:  # it does not listen yet
                pass
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < until, self.log()
            time.sleep(0.05)
