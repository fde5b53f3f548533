"""`cmd_opts`: the flags of `launch.py`. Unknown ones are ignored, so that a test runner may import this."""

from __future__ import annotations

import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, default=7870)
parser.add_argument("--data-dir", default=".")
parser.add_argument("--extension", action="append", default=[])
parser.add_argument("--ckpt-dir", default=None)
parser.add_argument("--lora-dir", default=None)
parser.add_argument("--api", action="store_true")
parser.add_argument("--api-auth", default=None)
parser.add_argument("--gradio-auth", default=None)
parser.add_argument("--nowebui", action="store_true")
parser.add_argument("--subpath", default=None)
parser.add_argument("--device", default="cpu")
parser.add_argument("--lowvram", action="store_true")
parser.add_argument("--skip-load-model-at-start", action="store_true")
parser.add_argument("--listen", action="store_true", help="changes what extensions may do; not where we listen")
parser.add_argument("--share", action="store_true", help="as above")
parser.add_argument("--hide-ui-dir-config", action="store_true")
parser.add_argument("--localization", default="None")
parser.add_argument("--run-installers", action="store_true")

cmd_opts, _ = parser.parse_known_args()
cmd_opts.webui_is_non_local = cmd_opts.listen or cmd_opts.share
