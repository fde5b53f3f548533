"""A WebUI for the tests of this folder: the App, its queue and its routes on a server of its own, without a page.

python site.py ROOT PORT        the workspace and the LoRA folder lie in ROOT
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from lora_train import api
from tests.faults.deeds import open_app

LOGIN = ("ann", "secret")


def main(root: str, port: str) -> None:
    app = open_app(Path(root))
    app.start_background()
    server = FastAPI()
    api.add_routes(server, app, api.PageGate(lambda: [LOGIN], lambda: True), lambda _: {})
    uvicorn.run(server, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
