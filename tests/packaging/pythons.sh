#!/usr/bin/env bash
# The wheel in a venv of each Python that it says it is for: a nightly's work, as the packages of each are downloaded.
#
#     tests/packaging/pythons.sh WORK_FOLDER python3.10 python3.11 python3.12 python3.13
#
# torch, and what is built on it, stays out: it is 200 MB to 5 GB for each. So the wheel is installed without its
# dependencies, the light ones are installed by name, and what needs no torch is tried: every module of the rooms
# without it is imported, the command line and the doctor run; then the unit tests of `core` and `data` in the checkout.
# That all of its dependencies can be had for this Python, uv finds out: it reads of a wheel no more than its metadata.
set -euo pipefail

work=$(mkdir -p "$1" && cd "$1" && pwd)
repository=$(cd "$(dirname "$0")/../.." && pwd)
export PIP_DISABLE_PIP_VERSION_CHECK=1

rm -rf "$work/dist" "$work"/venv-*
mkdir -p "$work/dist"
for python in "${@:2}"; do
  venv="$work/venv-$(basename "$python")-$("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")')"
  "$python" -m venv "$venv"
  pip() { "$venv/bin/python" -m pip install -q --no-cache-dir "$@"; }
  pip -U pip
  [ -e "$work"/dist/*.whl ] || "$venv/bin/python" -m pip wheel -q --no-deps -w "$work/dist" "$repository"
  pip --no-deps "$work"/dist/*.whl
  pip msgspec psutil pyyaml pillow numpy imagehash safetensors pytest hypothesis scikit-image uv
  cd "$work" # where no checkout is
  "$venv/bin/python" -V
  "$venv/bin/python" "$repository/tests/packaging/check_modules.py"
  "$venv/bin/lora-train" --version
  "$venv/bin/lora-train" --help >/dev/null
  if told=$("$venv/bin/lora-train" doctor); then
    echo "NOT AS IT SHOULD BE: the doctor finds nothing wrong without torch"
    exit 1
  fi
  grep -F "BAD   Package: torch" <<<"$told"
  echo "train-tools @ file://$(ls "$work"/dist/*.whl)" |
    "$venv/bin/uv" pip compile -q --no-annotate --no-header --only-binary :all: --python "$venv/bin/python" - \
      >"$venv/resolved.txt"
  echo "with its dependencies: $(wc -l <"$venv/resolved.txt") packages, $(grep ^torch== "$venv/resolved.txt")"
done
cd "$repository"
for venv in "$work"/venv-*; do
  "$venv/bin/python" -V
  "$venv/bin/python" -m pytest -q tests/unit/core tests/unit/data
done
