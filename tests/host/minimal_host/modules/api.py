"""The hosts' HTTP API, as far as tests need it."""

from __future__ import annotations

import base64
import io
import secrets
import sys
import threading
from pathlib import Path
from typing import Any

from fastapi import Body, Depends, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse

from modules import call_queue, lora, page, paths, processing, script_callbacks, scripts, sd_models, shared


def _basic(request: Request) -> None:
    """--api-auth; for the hosts' own routes alone, never for those of extensions."""
    pairs = shared.cmd_opts.api_auth
    if not pairs:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    wanted = [base64.b64encode(pair.strip().encode()).decode() for pair in pairs.split(",")]
    if scheme.lower() != "basic" or not any(secrets.compare_digest(given, one) for one in wanted):
        raise HTTPException(401, "Incorrect username or password", headers={"WWW-Authenticate": "Basic"})


def _txt2img(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008  (FastAPI's way)
    p = processing.StableDiffusionProcessingTxt2Img(**body)
    with call_queue.queue_lock:
        done = processing.process_images(p)
    buffer = io.BytesIO()
    done.images[0].save(buffer, "PNG")
    return {"images": [base64.b64encode(buffer.getvalue()).decode()], "info": done.info}


def _state() -> dict[str, Any]:
    model = sd_models.model_data.sd_model
    return {
        "model_device": model.device if model else None,
        "moves": model.moves if model else [],
        "lock_is_held": call_queue.queue_lock.locked(),
        "lock_waiting": call_queue.queue_lock.waiting,
        "builds": shared.builds,
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "imported": sorted(name for name in sys.modules if "." not in name),
        "tabs_s": script_callbacks.tabs_s,
        "scripts_s": scripts.load_s,
    }


def _thumbnail(filename: str) -> FileResponse:
    path = Path(filename).resolve()
    if not path.is_relative_to(paths.lora_dir().resolve()) or path.suffix != ".png":
        raise HTTPException(404)
    return FileResponse(path)


def _asset(number: int) -> FileResponse:
    return FileResponse(page.assets()[number])


def _ping() -> dict[str, Any]:
    return {}


def add_routes(app: FastAPI) -> None:
    protected = [Depends(_basic)]
    if shared.cmd_opts.api:
        app.add_api_route("/sdapi/v1/txt2img", _txt2img, methods=["POST"], dependencies=protected)
        app.add_exception_handler(Exception, _answer_exception)
    app.add_api_route(
        "/sdapi/v1/loras", lambda: [network.as_json() for network in lora.available_networks.values()], methods=["GET"]
    )
    app.add_api_route("/sdapi/v1/refresh-loras", lora.list_available_networks, methods=["POST"])
    app.add_api_route("/sd_extra_networks/thumb", _thumbnail, methods=["GET"])
    app.add_api_route("/internal/ping", _ping, methods=["GET"])
    app.add_api_route("/internal/reload-ui", shared.state.request_restart, methods=["POST"])
    app.add_api_route("/internal/state", _state, methods=["GET"])
    app.add_api_route(f"/{page.ASSETS}/{{number}}", _asset, methods=["GET"])


def _answer_exception(request: Request, error: Exception) -> JSONResponse:
    """Every exception of a route becomes JSON; headers of an HTTPException are lost, as in the hosts."""
    known = vars(error)
    content = {"error": type(error).__name__, "detail": known.get("detail", ""), "errors": str(error)}
    return JSONResponse(content, status_code=known.get("status_code", 500))
