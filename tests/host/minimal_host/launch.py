"""A small WebUI of our own that behaves towards an extension as Automatic1111 and its kind do. For tests.

    python tests/host/minimal_host/launch.py --port 7870 --data-dir DIR [--extension DIR ...] [--ckpt-dir DIR]
        [--lora-dir DIR] [--api] [--gradio-auth user:password] [--api-auth user:password] [--nowebui] [--subpath NAME]
        [--device cuda] [--lowvram] [--skip-load-model-at-start] [--listen] [--hide-ui-dir-config] [--localization NAME]
        [--run-installers]

Runs on gradio 3.41, 4.40 and 6, always on 127.0.0.1, and prints `ready: http://127.0.0.1:7870/` when it can be used.
What it does as the real ones do:

* Extensions are the folders in `DIR/extensions` and those given by `--extension`. Of each, `scripts/*.py` are run with
  the folder on `sys.path` only meanwhile; `javascript/*.js`, `style.css` and `localizations/*.json` go into the page.
  A script that fails is reported and skipped. `install.py` is run only with `--run-installers`.
* `modules.script_callbacks`: exceptions of callbacks are reported and swallowed; what `on_ui_tabs` gives is strung
  together and unpacked as triples, where a wrong shape ends the start.
* Tabs are Blocks rendered within the page's Blocks (`#tab_<id>`). Every widget without `do_not_save_to_config` gets
  its entries in `DIR/ui-config.json`, and its values from there.
* `modules.shared.opts`: settings have a section or the start ends; they are kept in `DIR/config.json` and shown in the
  tab Settings (`#setting_<key>`, `#settings_submit`, `#settings_restart_gradio` is "Reload UI").
* `modules.call_queue.queue_lock`: first come, first served, not re-entrant, around every picture.
* `modules.sd_models`: lists checkpoints; the "model" is an object that knows on which device it is, and is moved like
  A1111's. A picture fails unless it is on `modules.devices.device` ("cpu", or with `--device` any name: no such
  device is needed). Loading happens in a thread at the start.
* `modules.processing`: a picture depends on prompt, seed, size, checkpoint and LoRAs (`<lora:NAME:WEIGHT>`, by stem).
* `sys.modules["networks"]` lists LoRAs; cards (`#txt2img_lora_cards .card`) appear after a click on
  `#txt2img_lora_extra_refresh_internal` or `#txt2img_lora_extra_refresh`, and a click on one completes the prompt.
* `modules.shared.interrogator` and `modules.deepbooru.model` caption by the colour of a picture's corner; they must be
  loaded before and say whether the queue lock was held.
* Page: `#txt2img_prompt`, `#txt2img_seed`, `#txt2img_generate`, `#txt2img_gallery img`, `#html_info_txt2img`, and
  `gradioApp`, `onUiLoaded`, `onUiUpdate`, `onAfterUiUpdate`, `onUiTabChange`, `updateInput`, `switch_to_txt2img`,
  `opts` for scripts; localisation of whole text nodes in the browser.
* HTTP: `POST /sdapi/v1/txt2img` (with `--api`), `GET /sdapi/v1/loras`, `POST /sdapi/v1/refresh-loras`,
  `GET /internal/ping`; and for tests alone `POST /internal/reload-ui` and `GET /internal/state` (where the model is,
  who waits for the lock, how often the UI was built, which threads and packages there are, what extensions cost).
* "Reload UI" closes the server, clears callbacks and settings, runs the scripts again and serves a new app; packages,
  their threads and state stay.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HOST_ROOT = Path(__file__).resolve().parent

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def run_pip(command: str, desc: str | None = None) -> None:
    """What an extension's `install.py` uses: pip for this Python. Raises RuntimeError."""
    import subprocess

    done = subprocess.run(f'"{sys.executable}" -m pip {command} --prefer-binary', shell=True)
    if done.returncode:
        raise RuntimeError(f"Couldn't install {desc}.")


if __name__ == "__main__":
    if str(HOST_ROOT) not in sys.path:
        sys.path.insert(0, str(HOST_ROOT))
    from modules import server

    server.main()
