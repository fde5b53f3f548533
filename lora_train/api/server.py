"""Puts the routes on a server: asks the gate, decodes, calls `App` in a thread, answers.

Nothing is ever raised into the host, whose own handlers would drop our words.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from lora_train.api.gate import TOKEN, TOO_MANY_TRIES, Gate
from lora_train.api.openapi import operation
from lora_train.api.pace import Busy, Turns
from lora_train.api.route import Route
from lora_train.api.routes import ROUTES
from lora_train.api.shapes import (
    FileAnswer,
    JpegPicture,
    LiveQuery,
    LongTextFile,
    Nothing,
    Problem,
    StoredFile,
    TaskAnswer,
    TaskQuery,
    TextFile,
)
from lora_train.api.uploading import UPLOAD_BODY_LIMIT_BYTES
from lora_train.app import App
from lora_train.app.tasks import SOON_S
from lora_train.core.assets import page_folder
from lora_train.core.errors import ConfigError, TrainToolsError
from lora_train.core.failures import refusal_of

PREFIX = "/train-tools/v1/"
_CALLS_AT_ONCE = 16
_UPLOADS_AT_ONCE = 4
"""Each may hold UPLOAD_BODY_LIMIT_BYTES, and as much again while it is decoded."""
_WAITING = 500
_STALL_LIMIT_S = 60.0
"""How long a body may not grow: who sends one and stops would keep the turn of all others."""
_GOES_ON = 202
"""The status of an answer that comes before the call is done."""
_writers = ThreadPoolExecutor(2, thread_name_prefix="train-tools-writer")
"""Files that are written for their askers take memory and a processor for seconds."""
_LOG = logging.getLogger(__name__)
_PICTURE_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".avif": "image/avif",
}
"""Everything else is downloaded, never shown: an SVG may hold a script."""


class _Refusal(Exception):  # noqa: N818  (an answer, not a failure)
    def __init__(self, status: int, error: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.problem = Problem(error, message, hint)


def add_routes(fastapi_app: FastAPI, app: App, gate: Gate, live: Callable[[Mapping[str, str]], dict[str, Any]]) -> None:
    """Put `train-tools/v1/…` on a server. `live` makes what the page's script polls; its pictures' addresses carry
    the token."""
    live_route = Route(
        "GET",
        "live",
        "The changing part of the page.",
        LiveQuery,
        dict[str, Any],
        lambda _, query: live({**msgspec.to_builtins(query), "token": TOKEN}),
    )
    answer_route = Route(
        "GET",
        "tasks/answer",
        "What a call came to that was answered with 202, once; 202 again as long as it goes on.",
        TaskQuery,
        dict[str, Any],
        lambda app, query: _taken(app, query.task),
    )
    calls, uploads = Turns(_CALLS_AT_ONCE, _WAITING), Turns(_UPLOADS_AT_ONCE, _WAITING)
    for route in [*ROUTES, live_route, answer_route]:
        is_upload = route.body_limit_bytes == UPLOAD_BODY_LIMIT_BYTES
        fastapi_app.add_api_route(
            PREFIX + route.path,
            _upload_endpoint(route, app, gate, uploads) if is_upload else _endpoint(route, app, gate, calls),
            methods=[route.method],
            name=f"train_tools_{route.path}",
            summary=route.summary,
            tags=["Train Tools"],
            response_class=Response,
            response_model=None,
            openapi_extra=operation(route),
        )
    _add_page_files(fastapi_app)


# --- a call ---


def _endpoint(route: Route[Any, Any], app: App, gate: Gate, turns: Turns) -> Callable[..., Any]:
    async def endpoint(request: Request) -> Response:
        try:
            _require_welcome(request, gate)
            body = await _read_body(request, route.body_limit_bytes) if route.method == "POST" else b""
            async with turns.turn():
                return await run_in_threadpool(_serve, route, app, request, body)
        except Exception as error:  # the border to the host
            return _error_answer(error, route)

    return endpoint


def _upload_endpoint(route: Route[Any, Any], app: App, gate: Gate, turns: Turns) -> Callable[..., Any]:
    """Reads the body only when it is its turn: many large ones at a time would fill the memory."""

    async def endpoint(request: Request) -> Response:
        try:
            _require_welcome(request, gate)
            async with AsyncExitStack() as turn:
                await turn.enter_async_context(turns.turn())
                body = await _read_body(request, route.body_limit_bytes)
                answer = await run_in_threadpool(_serve, route, app, request, body)
                if answer.status_code == _GOES_ON:  # and holds the file in memory
                    task = msgspec.json.decode(answer.body, type=TaskAnswer).task
                    ending = asyncio.create_task(_end_with(app, task, turn.pop_all()))
                    going_on.add(ending)
                    ending.add_done_callback(going_on.discard)
                return answer
        except Exception as error:  # as above
            return _error_answer(error, route)

    going_on: set[asyncio.Task[None]] = set()
    """Nobody else keeps them from being thrown away in the middle."""
    return endpoint


async def _end_with(app: App, task: str, turn: AsyncExitStack) -> None:
    async with turn:
        while app.tasks.goes_on(task):
            await asyncio.sleep(SOON_S)


def _require_welcome(request: Request, gate: Gate) -> None:
    """Raises _Refusal for a caller who may not."""
    reason = gate.check(request)
    if reason == TOO_MANY_TRIES:
        raise _Refusal(429, "TooManyTries", reason)
    if reason is not None:
        raise _Refusal(401, "Unauthorized", reason)


async def _read_body(request: Request, limit_bytes: int) -> bytes:
    """A JSON body. Pages of other sites can send other types without being asked first, so those are refused."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise _Refusal(
            415, "WrongType", f"The body's type is {content_type or 'not given'}.", "Send it as application/json."
        )
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit_bytes:
        raise _too_large(limit_bytes)
    body = bytearray()
    chunks = request.stream()
    while (chunk := await _next_chunk(chunks)) is not None:
        body += chunk
        if len(body) > limit_bytes:
            raise _too_large(limit_bytes)
    return bytes(body)


async def _next_chunk(chunks: AsyncGenerator[bytes, None]) -> bytes | None:
    """None at the end. Raises _Refusal where nothing comes for too long."""
    try:
        return await asyncio.wait_for(anext(chunks, None), _STALL_LIMIT_S)
    except asyncio.TimeoutError:
        message = f"Nothing more of the body came for {_STALL_LIMIT_S:g} seconds."
        raise _Refusal(408, "TooSlow", message, "Try again in a moment.") from None


def _too_large(limit_bytes: int) -> _Refusal:
    return _Refusal(413, "TooLarge", f"The body is larger than {limit_bytes // 2**20} MB.", "Send less at once.")


def _serve(route: Route[Any, Any], app: App, request: Request, body: bytes) -> Response:
    try:
        if route.method == "POST":
            taken = msgspec.json.decode(body, type=route.takes)
        else:
            taken = msgspec.convert(dict(request.query_params), route.takes, strict=False)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _Refusal(422, "WrongShape", f"{route.path} can't be asked like this: {error}.") from None
    if _may_be_later(request):
        return _soon(route, app, taken)
    given = route.call(app, taken)
    if isinstance(given, Response):
        return given
    if isinstance(given, FileAnswer):
        return _file_answer(given, request)
    return _json_answer(given)


# --- a call that may go on after its answer: `Prefer: respond-async` of RFC 7240 ---


def _may_be_later(request: Request) -> bool:
    preferred = request.headers.get("prefer", "").replace(";", ",").split(",")
    return request.method == "POST" and "respond-async" in (wish.strip().lower() for wish in preferred)


def _soon(route: Route[Any, Any], app: App, taken: Any) -> Response:
    task = app.tasks.begin("", lambda: _json_answer(route.call(app, taken)))
    return task.result() if task.is_answered else _json_answer(TaskAnswer(task.id), _GOES_ON)


def _taken(app: App, task_id: str) -> Response:
    task = app.tasks.take(task_id)
    if task is None:
        return _json_answer(TaskAnswer(task_id), _GOES_ON)
    answer = task.result()
    return answer if isinstance(answer, Response) else _json_answer(Nothing())


# --- answers ---


def _json_answer(content: Any, status: int = 200) -> Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def _file_answer(answer: FileAnswer, request: Request) -> Response:
    headers = {"Cache-Control": "private", "X-Content-Type-Options": "nosniff"}
    if isinstance(answer, JpegPicture):
        headers["ETag"] = tag = f'"{hashlib.sha256(answer.content).hexdigest()[:32]}"'
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(answer.content, headers=headers, media_type="image/jpeg")
    if isinstance(answer, (TextFile, LongTextFile)):
        headers["Content-Disposition"] = f"attachment; filename*=utf-8''{quote(answer.name, safe='')}"
        if isinstance(answer, TextFile):
            return Response(answer.content.encode("utf-8"), headers=headers, media_type=answer.media_type)
        writing = _writers.submit(answer.write)
        wait([writing], SOON_S)
        if writing.done():
            return Response(writing.result().encode("utf-8"), headers=headers, media_type=answer.media_type)
        return StreamingResponse(_pieces(answer.start, writing), headers=headers, media_type=answer.media_type)
    assert isinstance(answer, StoredFile)
    if not answer.path.is_file():
        raise FileNotFoundError(2, "", answer.path.name)
    picture_type = _PICTURE_TYPES.get(answer.path.suffix.lower())
    return FileResponse(
        answer.path,
        headers=headers,
        media_type=picture_type or "application/octet-stream",
        filename=answer.path.name,
        content_disposition_type="attachment" if answer.is_download or picture_type is None else "inline",
    )


async def _pieces(start: str, writing: Future[str]) -> AsyncGenerator[bytes, None]:
    """A mistake in between ends the connection: the browser says that the download failed, and keeps no half file."""
    yield start.encode("utf-8")
    text = await asyncio.wrap_future(writing)
    assert text.startswith(start)
    yield text.removeprefix(start).encode("utf-8")


def _error_answer(error: Exception, route: Route[Any, Any]) -> Response:
    """The answer for what went wrong. Only what is our own mistake goes to the log."""
    name = type(error).__name__
    match error:
        case _Refusal():
            return _json_answer(error.problem, error.status)
        case ClientDisconnect():  # in the middle of an upload: nothing was taken, and nobody hears the answer
            return Response(status_code=400)
        case Busy():
            return _json_answer(Problem("TooBusy", "Too many calls wait already.", "Try again in a moment."), 429)
        case ConfigError():
            return _json_answer(Problem(name, error.message, error.hint, error.problems), 400)
        case TrainToolsError():
            return _json_answer(Problem(name, error.message, error.hint), 400)
        case FileNotFoundError():
            missing = Path(error.filename or "The file").name
            return _json_answer(Problem("NotFound", f"{missing} does not exist.", "It may have been deleted."), 404)
        case OSError():
            refused = refusal_of(error)
            return _json_answer(Problem(name, refused.message, refused.hint), 500)
        case _:
            _LOG.error("%s %s failed", route.method, route.path, exc_info=error)
            message = f"{route.path} failed unexpectedly ({name})."
            return _json_answer(Problem(name, message, "The program's log tells more."), 500)


# --- the page's own files, which are no secret ---


def _add_page_files(fastapi_app: FastAPI) -> None:
    folder = page_folder()

    async def page_script() -> Response:
        return _page_file(folder / "javascript" / "train_tools.js", "text/javascript")

    async def page_style() -> Response:
        return _page_file(folder / "style.css", "text/css")

    async def page_language(language: str) -> Response:
        known = {path.stem: path for path in folder.glob("localizations/*.json")}
        return _page_file(known.get(language), "application/json")

    for path, endpoint in (
        ("page.js", page_script),
        ("page.css", page_style),
        ("localizations/{language}.json", page_language),
    ):
        fastapi_app.add_api_route(PREFIX + path, endpoint, response_model=None, include_in_schema=False)


def _page_file(path: Path | None, media_type: str) -> Response:
    if path is None or not path.is_file():
        return _json_answer(Problem("NotFound", "There is no such file."), 404)
    return FileResponse(path, media_type=media_type, headers={"Cache-Control": "no-cache"})
