"""The standalone page in a process of its own, and a client that asks it as a browser does, over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import psutil

ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = Path(__file__).with_name("waiting_workers.py")
_START_S = 300.0
_TASK_S = 0.05
_TASK = re.compile(r'id="train_tools_begun" hidden data-task="([0-9a-f]*)"')
_SHOWN = re.compile(r'id="train_tools_shown" hidden data-project="([^"]*)" data-version="([^"]*)"')
_UNDRAWN = 'data-live="progress"></div><!--'
_IN_SIGHT = "dataset,captioning,preset,optimizers,sum,progress,queue,results,judge,sweeps"
_TOKEN = re.compile(r'data-token="([^"]+)"')


class Answer(NamedTuple):
    status: int
    body: bytes
    wall_s: float
    """To the first byte: an answer is made before it is sent, but for files that are written as they go."""
    cpu_s: float
    """Of the whole server process meanwhile; what others ask at the same time is in it."""

    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """A running `lora-train ui` over a workspace; its workers wait to be ended, and compute nothing."""

    def __init__(self, workspace: Path, lora_dir: Path, log: Path, python: str = sys.executable) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [python, str(_PROGRAM), "ui", "--workspace", str(workspace), "--lora-dir", str(lora_dir)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [*command, "--port", str(self.port)], stdout=stream, stderr=stream, env=environment
            )
        self.process = psutil.Process(self._process.pid)
        self._wait_until_up(log)

    def _wait_until_up(self, log: Path) -> None:
        until = time.monotonic() + _START_S
        while "Ctrl+C closes the page" not in log.read_text(encoding="utf-8", errors="replace"):
            assert self._process.poll() is None, log.read_text(encoding="utf-8", errors="replace")
            assert time.monotonic() < until, "the page did not come up"
            time.sleep(0.1)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def cpu_s(self) -> float:
        told = self.process.cpu_times()
        return told.user + told.system

    def rss_bytes(self) -> int:
        return self.process.memory_info().rss


class Client:
    """One browser: its connection, and the page's token."""

    def __init__(self, server: Server, token: str = "") -> None:
        self.server = server
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        self.token = token

    def ask(self, path: str, body: Any = None) -> Answer:
        """GET, or POST of JSON; as the page's script does, which does not wait for what takes long."""
        headers = {"X-Train-Tools": self.token, "Prefer": "respond-async"}
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body)
        cpu_s, began = self.server.cpu_s(), time.perf_counter()
        self._connection.request("GET" if body is None else "POST", path, content, headers)
        response = self._connection.getresponse()
        answer = response.read(1)
        wall_s, spent_s = time.perf_counter() - began, self.server.cpu_s() - cpu_s
        answer += response.read()
        self._connection.close()  # opened anew by the next question: the server gives idle ones up
        return Answer(response.status, answer, wall_s, spent_s)

    def get(self, route: str, **query: Any) -> Answer:
        return self.ask(f"/train-tools/v1/{route}?{urlencode(query)}")

    def post(self, route: str, **body: Any) -> Answer:
        """What came of it in the end; the times are those until the server said something."""
        first = last = self.ask(f"/train-tools/v1/{route}", body)
        while last.status == 202:
            time.sleep(_TASK_S)
            last = self.get("tasks/answer", **last.json())
        return first._replace(status=last.status, body=last.body)


class Page(Client):
    """An open page: keeps the values of its components, and calls their handlers with them."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        config = self.ask("/config").json()
        self.handlers: list[dict[str, Any]] = config["dependencies"]
        self._prefix = config.get("api_prefix", "")
        properties = {entry["id"]: entry["props"] for entry in config["components"]}
        self.names: dict[int, str] = {number: told.get("elem_id") or "" for number, told in properties.items()}
        self.values = {number: told.get("value") for number, told in properties.items()}
        self._taken = {""}
        self._carried = {""}
        (self.token,) = {match for told in self.values.values() for match in _TOKEN.findall(str(told))}

    def send(self, handler: dict[str, Any]) -> Answer:
        """The server's answer, whatever it is."""
        number = handler.get("id", self.handlers.index(handler))
        data = [self.values[component] for component in handler["inputs"]]
        asked = {"data": data, "fn_index": number, "session_hash": "load", "event_data": None}
        return self.ask(f"{self._prefix}/run/predict", asked)

    def call(self, handler: dict[str, Any]) -> Answer:
        """The server's first answer; it is taken onto the page, as is all that comes of it later."""
        answer = self._take(handler)
        self._draw_what_is_left()
        while task := self._begun():
            (own,) = (told for told in self.get("tasks").json() if told["id"] == task)
            if own["has_ended"]:
                (taker,) = self.handlers_of("click", "train_tools_take")
                self._take(taker)
                self._taken.add(task)
            else:
                time.sleep(_TASK_S)
        return answer

    def _draw_what_is_left(self) -> None:
        """As the page's script does where drawing took longer than the click."""
        for component in [component for component, told in self.values.items() if _UNDRAWN in str(told)]:
            (shown,) = {match.groups() for told in self.values.values() for match in _SHOWN.finditer(str(told))}
            self.get("live", project=shown[0], version=shown[1], parts=_IN_SIGHT)
            self.values[component] = ""

    def _begun(self) -> str:
        """The task whose outcome the page has to take."""
        (task,) = {match for told in self.values.values() for match in _TASK.findall(str(told))}
        return "" if task in self._taken else task

    def _take(self, handler: dict[str, Any]) -> Answer:
        answer = self.send(handler)
        assert answer.status == 200, answer.body[:2000]
        for component, value in zip(handler["outputs"], answer.json()["data"], strict=True):
            if not (isinstance(value, dict) and value.get("__type__") == "update"):
                self.values[component] = value
            elif "value" in value:
                self.values[component] = value["value"]
        self._put_carried(handler)
        return answer

    def _put_carried(self, handler: dict[str, Any]) -> None:
        """What the browser puts into its places by itself (see `ui.carrier`)."""
        number = handler.get("id", self.handlers.index(handler))
        for after in self.handlers:
            if after.get("trigger_after") == number and not after["backend_fn"]:
                text = self.values[after["inputs"][0]]
                if text in self._carried:
                    continue
                self._carried.add(text)
                for component, value in json.loads(text)["values"].items():
                    kept = self.values[int(component)]
                    self.values[int(component)] = value.get("value", kept) if isinstance(value, dict) else value

    def value(self, name: str) -> Any:
        """What a component (by its id) holds."""
        return self.values[self._number(name)]

    def type(self, name: str, value: Any) -> None:
        """Put something into a component (by its id), and say so to nobody."""
        self.values[self._number(name)] = value

    def _number(self, name: str) -> int:
        return next(number for number, told in self.names.items() if told == name)

    def handlers_of(self, event: str, name: str = "") -> list[dict[str, Any]]:
        """Those that are bound to an event of a component (by its id), or of the whole page."""
        found: list[dict[str, Any]] = []
        for handler in self.handlers:
            targets = handler["targets"]
            if handler.get("trigger"):  # gradio 3
                targets = [(target, handler["trigger"]) for target in targets or [None]]
            if any(told == event and (not name or self.names.get(target) == name) for target, told in targets):
                found.append(handler)
        return found
